"""The measuring of single steps: that it refuses wrong results; never how fast anything is."""

import json

import pytest
import torch

from throughtime.bench import plan
from throughtime.bench.stepping import Writing, missing, onnx_model, streaming, streams, writing
from throughtime.cli.main import main
from throughtime.tasks.network import NextUnit

with_runtime = pytest.mark.skipif(missing() is not None, reason="onnx or onnxruntime is not installed")


@with_runtime
@pytest.mark.parametrize(
    "kind", [Writing(1, 16), Writing(2, 16), Writing(2, 16, half=True)], ids=lambda kind: kind.name
)
def test_writing_agrees_with_onnx_runtime_and_is_timed(kind):
    [result] = writing(kind, 0.001)
    assert result.ours > 0
    assert result.theirs > 0
    assert (result.what, result.cell) == ("writing", kind.name)


@with_runtime
def test_a_wrong_text_is_not_timed(monkeypatch):
    def wrong(network):
        with torch.no_grad():
            network.output.bias[3] += 20
            model = onnx_model(network)
            network.output.bias[3] -= 20
        return model

    monkeypatch.setattr("throughtime.bench.stepping.onnx_model", wrong)
    with pytest.raises(RuntimeError, match="differs from ONNX Runtime"):
        writing(Writing(1, 16), 0.001)


def test_a_missing_runtime_is_told_and_leaves_the_rest(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert missing() == "writing is not measured: onnx and onnxruntime not installed"
    items, absent = plan(["writing", "streaming"])
    assert {item.kind for item in items} == {"streaming"}
    assert absent == [missing()]
    assert {item.kind for item in streams()} == {"writing", "streaming"}


@pytest.mark.parametrize("peer", ["nn.LSTM, T = 1", "nn.LSTMCell"])
def test_a_stream_agrees_with_its_peer_and_is_timed(peer):
    [result] = streaming(peer, 8, 0.001)
    assert result.ours > 0
    assert result.ratio == result.theirs / result.ours


def test_the_command_prints_json(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["throughtime", "bench", "--only", "streaming", "--seconds", "0.01", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert [(row["what"], row["peer"]) for row in told["results"]] == [
        ("streaming", "nn.LSTM, T = 1"), ("streaming", "nn.LSTMCell"),
    ]  # fmt: skip


def test_the_peer_is_a_step_of_the_network():
    pytest.importorskip("onnx")
    assert len(onnx_model(NextUnit(5, hidden=4, layers=2, embedding=4)).graph.input) == 5
