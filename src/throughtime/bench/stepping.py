"""How fast single steps are: writing, against ONNX Runtime, and a stream fed from Python, against torch.nn."""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.bench.comparison import Comparison, Item, Point
from throughtime.bench.measure import interleaved
from throughtime.cells import LSTM
from throughtime.layers import Recurrent
from throughtime.tasks.decoding import Free, sample_natively
from throughtime.tasks.network import NextUnit

UNITS = 1000  # written in one timing
STEPS = 200  # made of a stream in one timing
VOCABULARY = 65
STREAM = 128
_REST = 0.05  # seconds, so that neither's waiting threads hold a core that the other needs
_CHECKED = 20  # units of a text that have to be the same


@dataclass(frozen=True)
class Writing:
    """Layers of LSTM that write: hidden units and as many features; ``half``: with weights rounded to bfloat16."""

    layers: int
    hidden: int
    half: bool = False

    @property
    def name(self) -> str:
        return f"LSTM, {self.layers}x{self.hidden}{', bfloat16' if self.half else ''}"


WRITERS = (Writing(1, 128), Writing(2, 256), Writing(2, 512), Writing(2, 512, half=True))


def streams(only: str = "") -> list[Item]:
    """What there is to time, of "writing" and "streaming"; both unless one is named."""
    found = []
    if only in ("", "writing"):
        found += [Item("writing", writer.name, functools.partial(writing, writer)) for writer in WRITERS]
    if only in ("", "streaming"):
        found += [
            Item("streaming", peer, functools.partial(streaming, peer, STREAM))
            for peer in ("nn.LSTM, T = 1", "nn.LSTMCell")
        ]
    return found


def missing() -> str | None:
    """Why writing cannot be compared here, or None."""
    absent = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    return f"writing is not measured: {' and '.join(absent)} not installed" if absent else None


def writing(kind: Writing, seconds: float) -> list[Comparison]:
    """Times the writing of LSTM layers against ONNX Runtime in float32, once both have written the same.

    With rounded weights, both have numbers that bfloat16 holds.

    Raises:
        RuntimeError: they have not; nothing is timed then.
    """
    torch.manual_seed(0)
    layers, hidden = kind.layers, kind.hidden
    network = NextUnit(VOCABULARY, cell="lstm", hidden=hidden, layers=layers, embedding=hidden).eval()
    with torch.no_grad():
        network.output.weight.mul_(8)  # chances that differ
        if kind.half:
            for part in (network.recurrent, network.output):
                for matrix in (weight for weight in part.parameters() if weight.dim() == 2):
                    matrix.copy_(matrix.to(torch.bfloat16))
    mask = torch.ones(VOCABULARY, dtype=torch.bool)
    writer, theirs = network.writer([0], torch.bfloat16 if kind.half else None), _OnnxWriter(network)
    assert writer is not None
    random = torch.Generator()

    def mine() -> list[int]:
        return list(sample_natively(writer, Free(mask, UNITS), random.manual_seed(1)))

    def others() -> list[int]:
        return theirs.write(torch.rand(UNITS, dtype=torch.float64, generator=random.manual_seed(1)))

    if mine()[:_CHECKED] != others()[:_CHECKED]:
        raise RuntimeError(f"the text of {kind.name} differs from ONNX Runtime's; not timed")
    taken = interleaved([mine, others], seconds, rest=_REST)
    work = 2.0 * UNITS * (layers * 4 * hidden * 2 * hidden + hidden * VOCABULARY)
    return [Comparison("writing", kind.name, "ONNX Runtime", Point(1, UNITS, hidden), taken[0], taken[1], work)]


def streaming(peer: str, hidden: int, seconds: float) -> list[Comparison]:
    """Times single steps of an LSTM called from Python against torch.nn's, once the results are found equal.

    Raises:
        RuntimeError: they differ; nothing is timed then.
    """
    torch.manual_seed(0)
    net = Recurrent(LSTM, hidden, hidden).eval()
    cell: Any = net.forward_cells[0]
    stepper = net.stepper()
    x = torch.randn(STEPS, 1, hidden)
    weights = [cell.input.weight, cell.recurrent.weight, cell.input.bias, torch.zeros(4 * hidden)]
    other = nn.LSTMCell(hidden, hidden) if peer == "nn.LSTMCell" else nn.LSTM(hidden, hidden)
    with torch.no_grad():
        for parameter, weight in zip(other.parameters(), weights, strict=True):
            parameter.copy_(weight)

    def ours() -> Tensor:
        stepper.state = None
        for row in x:
            y = stepper.step(row)
        return y

    @torch.inference_mode()
    def others() -> Tensor:
        state = None
        for row in x:
            if peer == "nn.LSTMCell":
                state = other(row, state)
                y = state[0]
            else:
                y, state = other(row[None], state)
        return y

    if not torch.allclose(ours(), others().reshape(1, hidden), rtol=1e-3, atol=1e-4):
        raise RuntimeError(f"a stream of {hidden} units differs from {peer}; not timed")
    taken = interleaved([ours, others], seconds, rest=_REST)
    work = 2.0 * STEPS * 8 * hidden * hidden
    return [Comparison("streaming", "LSTM", peer, Point(1, STEPS, hidden), taken[0], taken[1], work)]


class _OnnxWriter:
    """The network as a graph of ONNX operators that reads one unit, and the loop around it, as one writes it."""

    def __init__(self, network: NextUnit) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(
            onnx_model(network).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._layers, self._hidden = network.recurrent.num_layers, network.recurrent.output_size

    def write(self, uniforms: Tensor) -> list[int]:
        import numpy as np

        names = [f"{kind}{k}" for k in range(self._layers) for kind in ("h", "c")]
        feeds = {name: np.zeros((1, 1, self._hidden), dtype=np.float32) for name in names}
        written, number = [], 0
        for uniform in uniforms.tolist():
            chances, *states = self._session.run(None, {**feeds, "number": np.array([[number]])})
            reached = chances[0].astype(np.float64).cumsum()
            number = int(np.searchsorted(reached, uniform * reached[-1], side="right"))
            written.append(number)
            feeds = dict(zip(names, states, strict=True))
        return written


def onnx_model(network: NextUnit) -> Any:
    """One step of a network of LSTM layers: a number and states in, chances and states out."""
    from onnx import TensorProto, checker, helper, numpy_helper

    hidden, size = network.recurrent.output_size, network.output.out_features
    names = [f"{kind}{k}" for k in range(network.recurrent.num_layers) for kind in ("h", "c")]
    constants: dict[str, Tensor] = {
        "table": network.embedding.weight,
        "output": network.output.weight.T,
        "bias": network.output.bias,
    }
    nodes = [helper.make_node("Gather", ["table", "number"], ["x0"])]  # (1, 1, E)
    for k, module in enumerate(network.recurrent.forward_cells):
        cell: Any = module
        i, f, g, o = range(4)

        def ordered(rows: Tensor, order: tuple[int, ...] = (i, o, f, g)) -> Tensor:
            blocks = rows.chunk(4)
            return torch.cat([blocks[gate] for gate in order])[None]

        constants |= {f"W{k}": ordered(cell.input.weight), f"R{k}": ordered(cell.recurrent.weight)}
        constants[f"B{k}"] = torch.cat([ordered(cell.input.bias), torch.zeros(1, 4 * hidden)], dim=1)
        nodes += [
            helper.make_node(
                "LSTM", [f"x{k}", f"W{k}", f"R{k}", f"B{k}", "", f"h{k}", f"c{k}"], [f"y{k}", f"h{k}'", f"c{k}'"],
                hidden_size=hidden,
            ),
            helper.make_node("Squeeze", [f"y{k}", "axis 1"], [f"x{k + 1}"]),
        ]  # fmt: skip
    last = f"h{network.recurrent.num_layers - 1}'"
    nodes += [
        helper.make_node("Squeeze", [last, "axis 0"], ["top"]),
        helper.make_node("Gemm", ["top", "output", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["chances"]),
    ]

    def kept(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, hidden])

    graph = helper.make_graph(
        nodes,
        "writer",
        [*map(kept, names), helper.make_tensor_value_info("number", TensorProto.INT64, [1, 1])],
        [
            helper.make_tensor_value_info("chances", TensorProto.FLOAT, [1, size]),
            *(kept(f"{name}'") for name in names),
        ],
        [
            *(numpy_helper.from_array(value.detach().contiguous().numpy(), name) for name, value in constants.items()),
            *(helper.make_tensor(f"axis {axis}", TensorProto.INT64, [1], [axis]) for axis in (0, 1)),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    checker.check_model(model)
    return model
