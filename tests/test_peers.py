"""Cells against the RNN, GRU and LSTM operators of ONNX Runtime, which have the options that torch.nn lacks."""

import numpy as np
import pytest
import torch

import throughtime as tt
from cases import random_state
from throughtime import cells

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

B, T, INPUTS, H = 4, 6, 3, 5
DIRECTIONS = ("forward", "reverse", "bidirectional")

directions = pytest.mark.parametrize("direction", DIRECTIONS)
ragged = pytest.mark.parametrize("lengths", [None, (6, 1, 3, 4), (2, 0, 5, 1)])
started = pytest.mark.parametrize("with_state", [False, True])


def random_cells(make, direction):
    """One cell, or two, in float32 with every parameter random."""
    made = [make() for _ in range(2 if direction == "bidirectional" else 1)]
    for cell in made:
        with torch.no_grad():
            for parameter in cell.parameters():
                parameter.normal_(std=0.6)
    return made


def reordered(rows, order):
    """Blocks of H rows in the operator's order: ``order`` says which of ours stands at each place."""
    blocks = rows.detach().split(H)
    return torch.cat([blocks[k] for k in order])


def onnx_run(operator, weights, x, lengths, state, direction, **attributes):
    """Y (B, T, directions * H) and the final states, by the operator. Weights: name -> (directions, ...)."""
    arrays = {name: torch.stack(parts).numpy() for name, parts in weights.items()}
    feeds = {"X": x.transpose(0, 1).contiguous().numpy()}  # (T, B, I)
    names = ["X", "W", "R", "B", "sequence_lens", "initial_h"]
    outputs = ["Y", "Y_h"]
    if operator == "LSTM":
        names += ["initial_c", "P"]
        outputs.append("Y_c")
    if lengths is not None:
        feeds["sequence_lens"] = np.array(lengths, dtype=np.int32)
    for name, field in zip(("initial_h", "initial_c"), state or (), strict=False):
        feeds[name] = field.numpy()  # (directions, B, H)
    present = set(arrays) | set(feeds)
    node = onnx.helper.make_node(
        operator,
        [name if name in present else "" for name in names],
        outputs,
        hidden_size=H,
        direction=direction,
        **attributes,
    )
    kinds = {"sequence_lens": onnx.TensorProto.INT32}
    graph = onnx.helper.make_graph(
        [node],
        "peer",
        [
            onnx.helper.make_tensor_value_info(name, kinds.get(name, onnx.TensorProto.FLOAT), array.shape)
            for name, array in feeds.items()
        ],
        [
            onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * (4 if name == "Y" else 3))
            for name in outputs
        ],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y, *finals = (torch.from_numpy(array) for array in session.run(None, feeds))
    return y.permute(2, 0, 1, 3).flatten(2), finals  # y was (T, directions, B, H)


def check(operator, made, weights, direction, lengths, with_state, **attributes):
    """Whether our cells and the operator, with the same weights, give the same outputs and final states."""
    x = torch.randn(B, T, INPUTS)
    starts = [random_state(cell, B) if with_state else None for cell in made]
    state = [torch.stack(fields) for fields in zip(*starts, strict=True)] if with_state else None
    y, finals = onnx_run(operator, weights, x, lengths, state, direction, **attributes)
    backwards = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[direction]
    with torch.no_grad():
        runs = [
            tt.unroll(cell, x, start, lengths=lengths, reverse=reverse)
            for cell, start, reverse in zip(made, starts, backwards, strict=True)
        ]
    torch.testing.assert_close(torch.cat([run[0] for run in runs], -1), y, rtol=1e-5, atol=1e-5)
    # of a sequence of length zero the operator gives out a zero state, where ours is the initial one: not compared
    some = torch.tensor([True] * B if lengths is None else [length > 0 for length in lengths])
    for k, final in enumerate(finals):
        mine = torch.stack([run[1][k] for run in runs])
        torch.testing.assert_close(mine[:, some], final[:, some], rtol=1e-5, atol=1e-5)


def weights_of(made, order):
    """W, R and B in the operator's order of gates. Its two biases are added up, so ours is parted at random."""
    parts = {"W": [], "R": [], "B": []}
    for cell in made:
        bias = reordered(cell.input.bias, order)
        part = torch.randn_like(bias)
        parts["W"].append(reordered(cell.input.weight, order))
        parts["R"].append(reordered(cell.recurrent.weight, order))
        parts["B"].append(torch.cat([bias - part, part]))
    return parts


@directions
@ragged
@started
@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid"])
def test_elman(activation, direction, lengths, with_state):
    made = random_cells(lambda: cells.Elman(INPUTS, H, activation=activation), direction)
    names = [activation.capitalize()] * len(made)
    check("RNN", made, weights_of(made, [0]), direction, lengths, with_state, activations=names)


@directions
@ragged
@started
def test_gru_reset_after(direction, lengths, with_state):
    made = random_cells(lambda: cells.GRU(INPUTS, H, reset="after"), direction)
    order = [1, 0, 2]  # z, r, n
    weights = {
        "W": [reordered(cell.input.weight, order) for cell in made],
        "R": [reordered(cell.recurrent.weight, order) for cell in made],
        "B": [torch.cat([reordered(p.bias, order) for p in (cell.input, cell.recurrent)]) for cell in made],
    }
    check("GRU", made, weights, direction, lengths, with_state, linear_before_reset=1)


@directions
@ragged
@started
@pytest.mark.parametrize("update", ["keep", "write"])
def test_gru_reset_before(update, direction, lengths, with_state):
    made = random_cells(lambda: cells.GRU(INPUTS, H, reset="before", update=update), direction)
    order = [1, 0, 2]  # z, r, n
    sign = torch.ones(3 * H)
    sign[:H] = 1 if update == "keep" else -1  # the operator's gate keeps; one that writes is its negative
    weights = {"W": [], "R": [], "B": []}
    for cell in made:
        recurrent = torch.cat([cell.recurrent.weight, cell.recurrent_candidate.weight])
        bias, part = sign * reordered(cell.input.bias, order), torch.randn(3 * H)
        weights["W"].append(sign[:, None] * reordered(cell.input.weight, order))
        weights["R"].append(sign[:, None] * reordered(recurrent, order))
        weights["B"].append(torch.cat([bias - part, part]))
    check("GRU", made, weights, direction, lengths, with_state, linear_before_reset=0)


@directions
@ragged
@started
def test_lstm(direction, lengths, with_state):
    made = random_cells(lambda: cells.LSTM(INPUTS, H), direction)
    weights = weights_of(made, [0, 3, 1, 2])  # i, o, f, c
    check("LSTM", made, weights, direction, lengths, with_state)


@directions
@ragged
@started
def test_lstm_with_peepholes(direction, lengths, with_state):
    made = random_cells(lambda: cells.PeepholeLSTM(INPUTS, H, form="chung2014"), direction)
    weights = weights_of(made, [0, 3, 1, 2])  # i, o, f, c
    weights["P"] = [cell.peephole.detach()[[0, 2, 1]].flatten() for cell in made]  # i, o, f
    check("LSTM", made, weights, direction, lengths, with_state)


@directions
@ragged
@started
def test_lstm_with_coupled_gates(direction, lengths, with_state):
    made = random_cells(lambda: cells.CoupledLSTM(INPUTS, H), direction)
    weights = weights_of(made, [0, 2, 0, 1])  # i, o, f, c; what stands for f is not used
    check("LSTM", made, weights, direction, lengths, with_state, input_forget=1)


@directions
def test_original_lstm(direction):
    made = random_cells(lambda: cells.OriginalLSTM(INPUTS, H), direction)
    weights = weights_of(made, [0, 2, 0, 1])  # i, o, f, c
    for w, r, b in zip(weights["W"], weights["R"], weights["B"], strict=True):
        for rows, value in ((w, 0.0), (r, 0.0), (b[: 4 * H], 100.0), (b[4 * H :], 0.0)):
            rows[2 * H : 3 * H] = value  # the forget gate stands open
    check("LSTM", made, weights, direction, (6, 1, 3, 4), True)
