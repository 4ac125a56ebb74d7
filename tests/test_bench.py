"""The measuring of speed: that it refuses wrong results and counts right; never how fast anything is."""

import json
import math

import pytest
import torch

from throughtime.bench import KINDS, Comparison, Point, derived, peak, plan, speed, summary
from throughtime.bench.bars import BARS, bar_of
from throughtime.bench.speed import SUBJECTS, compare, compare_built_in, comparisons
from throughtime.cli.main import main
from throughtime.errors import UserError


def told(monkeypatch, capsys, arguments, status=0):
    """What ``throughtime bench`` prints: (stdout, stderr)."""
    monkeypatch.setattr("sys.argv", ["throughtime", "bench", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == status
    return capsys.readouterr()


@pytest.mark.parametrize("what", ["training", "forward"])
@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_each_subject_agrees_with_its_peer_and_is_timed(subject, what):
    [result] = compare(subject, Point(3, 5, 8), what, seconds=0.001)
    assert result.ours > 0
    assert result.theirs > 0
    assert result.ratio == result.theirs / result.ours


def test_a_wrong_result_is_not_timed():
    (subject, point, what), *_ = comparisons(["LSTM"], [Point(3, 5, 8)])
    wrong = type(subject)(subject.name, subject.make, "a wrong peer", lambda cell, size: (torch.tanh, []), 4)
    with pytest.raises(RuntimeError, match="differs from a wrong peer"):
        compare(wrong, point, what, seconds=0.001)


def result(what, cell, peer, ratio, point=(1, 1, 1), operations=0.0, ours=1.0):
    return Comparison(what, cell, peer, Point(*point), ours, ours * ratio, operations)


def test_the_summary_is_the_least_and_the_geometric_mean_and_says_what_is_met():
    rows = list(summary(result("training", "LSTM", "nn.LSTM", ratio, (1, 1, k)) for k, ratio in ((1, 2), (2, 8))))
    assert rows == [
        {
            "what": "training", "cell": "LSTM", "peer": "nn.LSTM", "least": 2, "mean": pytest.approx(4), "points": 2,
            "bar_least": 1.0, "bar_mean": 1.4, "met": True,
        }
    ]  # fmt: skip
    [low] = summary(result("training", "LSTM", "nn.LSTM", ratio, (1, 1, k)) for k, ratio in ((1, 0.9), (2, 8)))
    [flat] = summary([result("training", "LSTM", "nn.LSTM", 1.3)])
    [without] = summary([result("training", "LSTM", "JAX", 1.3)])
    assert (low["met"], flat["met"], without["met"], without["bar_least"]) == (False, False, None, None)


def test_cells_of_users_are_put_beside_built_in_ones_by_their_arithmetic():
    items, _ = plan(["training", "forward"], ["own cell (MGU)"], [Point(2, 3, 4)])
    rows = [row for item in items for row in item.measure(0.0)]
    assert [(row.what, row.cell, row.peer) for row in rows] == [
        ("training", "own cell (MGU)", "loop"),
        ("forward", "own cell (MGU)", "loop"),
        ("training", "own cell (MGU)", "GRU here, for the same arithmetic"),
        ("training", "own cell (MGU)", "nn.GRU, for the same arithmetic"),
        ("forward", "own cell (MGU)", "GRU here, for the same arithmetic"),
        ("forward", "own cell (MGU)", "nn.GRU, for the same arithmetic"),
    ]


def test_a_built_in_cell_is_given_time_for_the_same_arithmetic(monkeypatch):
    monkeypatch.setattr(speed, "interleaved", lambda functions, seconds: [1.0, 3.0, 6.0])
    [(subject, point, what)] = comparisons(["own cell (MGU)"], [Point(2, 3, 4)], whats=["training"])
    rows = compare_built_in(subject, point, what)
    assert [row.ratio for row in rows] == [2.0, 4.0]  # two products where the GRU has three


def test_the_fastest_of_two_is_the_one_that_does_better_beside_us():
    results = [
        result("training", "GRU", "nn.GRU", 3.0), result("training", "GRU", "JAX", 2.0, ours=4.0),
        result("training", "GRU", "nn.GRU", 1.5, (1, 1, 2)), result("training", "GRU", "JAX", 2.5, (1, 1, 2)),
        result("training", "GRU", "nn.GRU", 1.0, (1, 1, 3)),  # JAX was not measured there
        result("forward", "GRU", "JAX", 0.5),
    ]  # fmt: skip
    [row] = summary(derived(results, 1e9))
    assert (row["peer"], row["least"], row["points"], row["bar_least"]) == ("fastest of torch and JAX", 1.5, 2, 1.0)
    assert row["mean"] == pytest.approx(math.sqrt(1.5 * 2.0))


def test_the_share_of_the_peak_is_of_large_sizes_in_training():
    results = [
        result("training", "LSTM", "nn.LSTM", 1.0, (32, 1, 256), operations=6e9, ours=8.0),
        result("training", "LSTM", "nn.LSTM", 1.0, (31, 1, 256), operations=6e9),
        result("training", "LSTM", "nn.LSTM", 1.0, (32, 1, 255), operations=6e9),
        result("forward", "LSTM", "nn.LSTM", 1.0, (32, 1, 256), operations=6e9),
        result("training", "own cell (MGU)", "loop", 1.0, (32, 1, 256), operations=6e9),
    ]
    [row] = [row for row in derived(results, 1e9) if row.peer == "FMA peak"]
    assert row.ratio == pytest.approx(6 / 8)


def test_the_peak_is_a_number_of_operations():
    assert math.isfinite(peak())
    assert peak() > 1e8


def test_an_unknown_cell_is_named():
    with pytest.raises(UserError, match="perceptron"):
        comparisons(["perceptron"])


def test_every_bar_is_of_something_that_is_measured():
    items, _ = plan()
    kinds = {item.kind for item in items}
    assert {what for what, _ in BARS} <= kinds
    assert bar_of("training", "Jordan", "Elman here, for the same arithmetic").mean == 0.9
    assert bar_of("forward", "Jordan", "FMA peak") is None


def test_kinds_are_chosen_by_comma():
    items, _ = plan(["streaming", "growth"])
    assert {item.kind for item in items} == {"streaming", "growth"}
    assert {item.kind for item in plan((), ["LSTM"])[0]} <= {"training", "forward", "jax"}
    assert len(plan(["training"], ["GRU"], [Point(1, 2, 3), Point(4, 5, 6)])[0]) == 2


def test_the_command_prints_json(monkeypatch, capsys, tmp_path):
    figure = tmp_path / "speed.png"
    command = f"--cells LSTM --only training,forward --size 2,3,8 --size 3,2,8 --seconds 0.01 --json --figure {figure}"
    found = json.loads(told(monkeypatch, capsys, command).out)
    assert len(found["results"]) == 4
    assert all(row["rate"] == pytest.approx(6 / row["ours"]) for row in found["results"])
    assert {(row["what"], row["bar_mean"]) for row in found["summary"]} == {("training", 1.4), ("forward", 1.2)}
    assert all(row["met"] in (True, False) for row in found["summary"])
    assert figure.stat().st_size > 0


def test_the_command_prints_tables(monkeypatch, capsys):
    out = told(monkeypatch, capsys, "--cells GRU --only training --size 2,3,8 --seconds 0.01").out
    assert "nn.GRU" in out
    assert " 4.00 " in out  # a bar


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ("--size 2,x,8", "three whole numbers"),
        ("--only writing --cells LSTM", "set sizes"),
        ("--only training,growth --size 1,2,3", "growth is measured at set sizes"),
        ("--only training --figure speed.xyz", "name it after a kind that can be drawn"),
        ("--only training --figure no/such/speed.png", "there is no folder"),
        ("--only training,x", f"--only is one or more of {', '.join(KINDS)}, not 'x'"),
    ],
)
def test_what_cannot_be_chosen_is_told(arguments, word, monkeypatch, capsys):
    assert word in told(monkeypatch, capsys, arguments, status=2).err


def test_the_help_names_all_kinds(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "400")
    shown = told(monkeypatch, capsys, "--help").out
    assert all(kind in shown for kind in KINDS)
