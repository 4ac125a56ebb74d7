"""How fast batches of other kinds are: in both directions, and of unequal lengths, against torch.nn."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import throughtime.nn
from throughtime.bench.measure import interleaved
from throughtime.bench.speed import GRID, Comparison, Point
from throughtime.bench.stepping import Stream

SEVERAL = tuple(point for point in GRID if point.batch > 1)


def batches(only: str = "") -> list[Stream]:
    """What there is to time, of "bidirectional" and "ragged"; both unless one is named."""
    kinds = {"bidirectional": (_bidirectional, GRID), "ragged": (_ragged, SEVERAL)}
    return [
        Stream(what, str(point), functools.partial(_compare, what, make, point))
        for what, (make, points) in kinds.items()
        if only in ("", what)
        for point in points
    ]


Run = Callable[[nn.Module, Tensor], Tensor]


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


def _compare(
    what: str, make: Callable[[Point], tuple[bool, Run, Run, float]], point: Point, seconds: float
) -> Comparison:
    """A training step, once outputs and gradients are found equal.

    Raises:
        RuntimeError: they differ; nothing is timed then.
    """
    torch.manual_seed(0)
    both, ours, theirs, products = make(point)
    size = point.hidden
    mine = throughtime.nn.LSTM(size, size, batch_first=True, bidirectional=both)
    other = nn.LSTM(size, size, batch_first=True, bidirectional=both)
    other.load_state_dict(mine.state_dict())
    x = torch.randn(point.batch, point.steps, size, requires_grad=True)
    dy = torch.randn(point.batch, point.steps, size * (2 if both else 1))

    def train(run: Run, layer: nn.Module) -> tuple[Tensor, ...]:
        y = run(layer, x)
        return y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], dy)

    for one, two in zip(train(ours, mine), train(theirs, other), strict=True):
        if not torch.allclose(one, two, rtol=1e-3, atol=1e-3 * float(two.abs().max())):
            raise RuntimeError(f"{what} batches at {point} differ from nn.LSTM's; not timed")
    taken = interleaved([lambda: train(ours, mine), lambda: train(theirs, other)], seconds)
    return Comparison(what, "LSTM", "nn.LSTM", point, taken[0], taken[1], 3 * 2.0 * products * size * size)
