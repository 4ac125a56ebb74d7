"""How fast batches of other kinds are: in both directions, and of unequal lengths, against torch.nn."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from throughtime.bench.comparison import GRID, Comparison, Item, Point
from throughtime.bench.measure import interleaved
from throughtime.cells import LSTM
from throughtime.layers import Recurrent

Run = Callable[[nn.Module, Tensor], Tensor]
Kind = Callable[[Point], tuple[bool, Run, Run, float]]


def batches(only: str = "") -> list[Item]:
    """What there is to time, of "bidirectional" and "ragged"; both unless one is named."""
    kinds: dict[str, Kind] = {"bidirectional": _bidirectional, "ragged": _ragged}
    return [
        Item(what, str(point), functools.partial(_compare, what, make, point))
        for what, make in kinds.items()
        if only in ("", what)
        for point in GRID
    ]


def _bidirectional(point: Point) -> tuple[bool, Run, Run, float]:
    """Two directions, and the work of a step in matrices of H by H."""

    def run(layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x)[0]

    return True, run, run, 16.0 * point.batch * point.steps


def _ragged(point: Point) -> tuple[bool, Run, Run, float]:
    """Lengths drawn from 1..T: given as they are, or by packing, as torch.nn wants them."""
    lengths = torch.randint(1, point.steps + 1, (point.batch,), generator=torch.Generator().manual_seed(1))

    def ours(layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x, lengths=lengths)[0]

    def theirs(layer: nn.Module, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(layer(packed)[0], batch_first=True, total_length=point.steps)[0]

    return False, ours, theirs, 8.0 * int(lengths.sum())


def _compare(what: str, make: Kind, point: Point, seconds: float) -> list[Comparison]:
    """A training step, once outputs and gradients are found equal.

    Raises:
        RuntimeError: they differ; nothing is timed then.
    """
    torch.manual_seed(0)
    both, ours, theirs, products = make(point)
    size = point.hidden
    mine = Recurrent(LSTM, size, size, bidirectional=both)
    other = nn.LSTM(size, size, batch_first=True, bidirectional=both)
    pairs = _same_weights(mine, other)
    x = torch.randn(point.batch, point.steps, size, requires_grad=True)
    dy = torch.randn(point.batch, point.steps, size * (2 if both else 1))

    def train(run: Run, layer: nn.Module, leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
        y = run(layer, x)
        return y.detach(), *torch.autograd.grad(y, [x, *leaves], dy)

    checked = (
        train(ours, mine, [one for one, _ in pairs]),
        train(theirs, other, [two for _, two in pairs]),
    )
    for one, two in zip(*checked, strict=True):
        if not torch.allclose(one, two, rtol=1e-3, atol=1e-3 * float(two.abs().max())):
            raise RuntimeError(f"{what} batches at {point} differ from nn.LSTM's; not timed")
    leaves = list(mine.parameters()), list(other.parameters())
    taken = interleaved([lambda: train(ours, mine, leaves[0]), lambda: train(theirs, other, leaves[1])], seconds)
    return [Comparison(what, "LSTM", "nn.LSTM", point, taken[0], taken[1], 3 * 2.0 * products * size * size)]


def _same_weights(mine: Recurrent, other: nn.LSTM) -> list[tuple[Tensor, Tensor]]:
    """Gives torch's layer the weights of ours, whose second bias is none; what is to have the same gradients."""
    pairs: list[tuple[Tensor, Tensor]] = []
    for suffix, cells in (("", mine.forward_cells), ("_reverse", mine.backward_cells)):
        for module in cells:
            cell: Any = module
            same = [getattr(other, f"{name}_l0{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih")]
            pairs += zip((cell.input.weight, cell.recurrent.weight, cell.input.bias), same, strict=True)
            nn.init.zeros_(getattr(other, f"bias_hh_l0{suffix}"))
    with torch.no_grad():
        for ours, theirs in pairs:
            theirs.copy_(ours)
    return pairs
