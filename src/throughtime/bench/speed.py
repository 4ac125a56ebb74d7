"""Cells on the compiled backend against torch.nn and against plain loops."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.bench import loops
from throughtime.bench.bars import OURS, TORCHS
from throughtime.bench.comparison import GRID, Comparison, Point
from throughtime.bench.measure import interleaved
from throughtime.cells import GRU, LSTM, Cell, Elman, Jordan, LayerNormLSTM, PeepholeLSTM
from throughtime.engine import unroll
from throughtime.errors import UserError

CHECKED = 32  # steps that have to be the same; a chaotic cell makes of any two roundings two courses in the end


@dataclass(frozen=True)
class Subject:
    """A cell, and what else runs it: a layer of torch.nn or a loop. ``gates``: products of (H, H) on either side;
    ``built_in``: for a cell as users write them, the subject whose products are of the same kind, one matrix of all
    gates or what is built of one."""

    name: str
    make: Callable[[int, int], Cell]
    peer: str
    other: Callable[[Any, int], tuple[Callable[[Tensor], Tensor], list[Tensor]]]
    gates: float
    built_in: str | None = None

    def operations(self, point: Point, what: str) -> float:
        """Floating-point operations of the products."""
        forward = 2.0 * point.batch * point.steps * self.gates * point.hidden * 2 * point.hidden
        return 3 * forward if what == "training" else forward


def _built_in(
    layer: Callable[..., nn.RNNBase],
) -> Callable[[Any, int], tuple[Callable[[Tensor], Tensor], list[Tensor]]]:
    def make(cell: Any, size: int) -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
        other = layer(size, size, batch_first=True)
        no_bias = torch.zeros_like(cell.input.bias)
        other.load_state_dict(
            {
                "weight_ih_l0": cell.input.weight,
                "weight_hh_l0": cell.recurrent.weight,
                "bias_ih_l0": cell.input.bias,
                "bias_hh_l0": no_bias if cell.recurrent.bias is None else cell.recurrent.bias,
            }
        )
        return lambda x: other(x)[0], list(other.parameters())

    return make


def _loop(loop: loops.Loop) -> Callable[[Any, int], tuple[Callable[[Tensor], Tensor], list[Tensor]]]:
    def make(cell: Any, size: int) -> tuple[Callable[[Tensor], Tensor], list[Tensor]]:
        return lambda x: loop(cell, x), list(cell.parameters())

    return make


SUBJECTS = (
    Subject("LSTM", LSTM, "nn.LSTM", _built_in(nn.LSTM), 4),
    Subject("GRU", GRU, "nn.GRU", _built_in(nn.GRU), 3),
    Subject("Elman", Elman, "nn.RNN", _built_in(nn.RNN), 1),
    Subject("peephole LSTM", PeepholeLSTM, "loop", _loop(loops.peephole), 4, "LSTM"),
    Subject("layer-normalised LSTM", LayerNormLSTM, "loop", _loop(loops.layer_norm), 4, "LSTM"),
    Subject("Jordan", Jordan, "loop", _loop(loops.jordan), 1.5, "Elman"),
    Subject("reset-before GRU", functools.partial(GRU, reset="before"), "loop", _loop(loops.reset_before), 3, "GRU"),
    Subject("own cell (MGU)", loops.MinimalGatedUnit, "loop", _loop(loops.minimal), 2, "GRU"),
)


def comparisons(
    cells: Iterable[str] = (), points: Iterable[Point] = GRID, *, whats: Iterable[str] = ("training", "forward")
) -> list[tuple[Subject, Point, str]]:
    """What there is to compare.

    Args:
        cells: names of subjects; all unless given.

    Raises:
        UserError: a name is unknown.
    """
    names = {subject.name: subject for subject in SUBJECTS}
    chosen = list(cells) or list(names)
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise UserError(f"no speed of {', '.join(unknown)} is measured; there are: {', '.join(names)}")
    return [(names[name], point, what) for name in chosen for what in whats for point in points]


def compare(subject: Subject, point: Point, what: str, seconds: float = 1.0) -> list[Comparison]:
    """Times a cell on the compiled backend against its peer, turn by turn, once the results are found equal.

    Raises:
        RuntimeError: the results differ; nothing is timed then.
    """
    ours, theirs = _both(subject, point, what)
    mine, others = interleaved([ours, theirs], seconds)
    return [Comparison(what, subject.name, subject.peer, point, mine, others, subject.operations(point, what))]


def compare_built_in(subject: Subject, point: Point, what: str, seconds: float = 1.0) -> list[Comparison]:
    """Times a cell as users write them against built-in ones, turn by turn: ours of the same kind, and torch.nn's.

    A built-in cell's time is taken in the proportion of the products' operations.
    """
    built_in = next(other for other in SUBJECTS if other.name == subject.built_in)
    (own, _), (ours, torchs) = _both(subject, point, what), _both(built_in, point, what)
    taken = interleaved([own, ours, torchs], seconds)
    work = subject.operations(point, what)
    same = work / built_in.operations(point, what)
    peers = (OURS.format(built_in.name), TORCHS.format(built_in.peer))
    return [
        Comparison(what, subject.name, peer, point, taken[0], other * same, work)
        for peer, other in zip(peers, taken[1:], strict=True)
    ]


def _both(subject: Subject, point: Point, what: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """A step of ours and of the peer's, which give the same."""
    torch.manual_seed(0)
    size = point.hidden
    cell = subject.make(size, size)
    other, weights = subject.other(cell, size)
    x = torch.randn(point.batch, point.steps, size, requires_grad=what == "training")
    dy = torch.randn(point.batch, point.steps, cell.output_size)

    def ours() -> Tensor:
        return unroll(cell, x, backend="cpu")[0]

    few = x.detach()[:, :CHECKED].requires_grad_(x.requires_grad)
    _same(subject, point, lambda: unroll(cell, few, backend="cpu")[0], lambda: other(few), few, dy[:, :CHECKED])
    if what == "training":
        mine = functools.partial(_train, ours, [x, *cell.parameters()], dy)
        theirs = functools.partial(_train, lambda: other(x), [x, *weights], dy)
        return mine, theirs
    return functools.partial(_forward, ours), functools.partial(_forward, lambda: other(x))


def _train(run: Callable[[], Tensor], leaves: list[Tensor], dy: Tensor) -> None:
    torch.autograd.grad(run(), leaves, dy)


def _forward(run: Callable[[], Tensor]) -> None:
    with torch.no_grad():
        run()


def _same(
    subject: Subject, point: Point, ours: Callable[[], Tensor], theirs: Callable[[], Tensor], x: Tensor, dy: Tensor
) -> None:
    results = []
    for run in (ours, theirs):
        y = run()
        results.append([y.detach(), *(torch.autograd.grad(y, [x], dy) if x.requires_grad else ())])
    for one, other in zip(*results, strict=True):
        if not torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max())):
            raise RuntimeError(f"{subject.name} at {point} differs from {subject.peer}; not timed")
