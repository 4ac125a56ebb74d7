"""The measuring of speed: that it refuses wrong results and counts right; never how fast anything is."""

import json
import math

import pytest
import torch

from throughtime.bench import Point, compare, comparisons, peak, summary
from throughtime.bench.speed import SUBJECTS, Comparison
from throughtime.cli.main import main
from throughtime.errors import UserError


@pytest.mark.parametrize("what", ["training", "forward"])
@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_each_subject_agrees_with_its_peer_and_is_timed(subject, what):
    result = compare(subject, Point(3, 5, 8), what, seconds=0.001)
    assert result.ours > 0
    assert result.theirs > 0
    assert result.ratio == result.theirs / result.ours


def test_a_wrong_result_is_not_timed():
    (subject, point, what), *_ = comparisons(["LSTM"], [Point(3, 5, 8)])
    wrong = type(subject)(subject.name, subject.make, "a wrong peer", lambda cell, size: (torch.tanh, []), 4)
    with pytest.raises(RuntimeError, match="differs from a wrong peer"):
        compare(wrong, point, what, seconds=0.001)


def test_the_summary_is_the_least_and_the_geometric_mean():
    results = [
        Comparison("training", "LSTM", "nn.LSTM", Point(1, 1, k), 1.0, ratio, 0.0) for k, ratio in ((1, 2), (2, 8))
    ]
    assert list(summary(results)) == [
        {"what": "training", "cell": "LSTM", "peer": "nn.LSTM", "least": 2, "mean": pytest.approx(4), "points": 2}
    ]


def test_the_peak_is_a_number_of_operations():
    assert math.isfinite(peak())
    assert peak() > 1e8


def test_an_unknown_cell_is_named():
    with pytest.raises(UserError, match="perceptron"):
        comparisons(["perceptron"])


def test_the_command_prints_json(monkeypatch, capsys, tmp_path):
    figure = tmp_path / "speed.png"
    command = "throughtime bench --cells LSTM --size 2,3,8 --size 3,2,8 --seconds 0.01 --json --figure"
    monkeypatch.setattr("sys.argv", [*command.split(), str(figure)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["results"]) == 4
    assert {row["what"] for row in told["summary"]} == {"training", "forward"}
    assert figure.stat().st_size > 0


def test_a_size_that_is_none_is_told(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["throughtime", "bench", "--size", "2,x,8"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "three whole numbers" in capsys.readouterr().err
