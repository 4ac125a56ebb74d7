"""Whether a step takes the same time however long the sequence is."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from throughtime.bench.comparison import Comparison, Item, Point
from throughtime.bench.measure import interleaved
from throughtime.cells import LSTM
from throughtime.engine import unroll

LENGTHS = (100, 1000, 10_000, 100_000)
HIDDEN = 128
_STEPS = 10_000  # in one turn, at least: as many for the short sequences as for the long ones


def growths() -> list[Item]:
    """What there is to time: both ways through time, and one alone."""
    return [
        Item("growth", what, functools.partial(growth, what, HIDDEN, LENGTHS, _STEPS))
        for what in ("training", "forward")
    ]


def growth(what: str, hidden: int, lengths: tuple[int, ...], steps: int, seconds: float) -> list[Comparison]:
    """What sequences of several lengths take, against as many steps at the pace of the shortest; a batch of one.

    Raises:
        RuntimeError: the shortest is not what nn.LSTM gives, or the longest begins otherwise; nothing is timed then.
    """
    torch.manual_seed(0)
    cell = LSTM(hidden, hidden)
    first, longest = min(lengths), max(lengths)
    x, dy = torch.randn(1, longest, hidden), torch.randn(1, longest, hidden)
    _same(cell, x, first)

    def train(length: int) -> None:
        given = x[:, :length].requires_grad_()
        torch.autograd.grad(unroll(cell, given, backend="cpu")[0], [given, *cell.parameters()], dy[:, :length])

    def forward(length: int) -> None:
        with torch.no_grad():
            unroll(cell, x[:, :length], backend="cpu")

    run, times = train if what == "training" else forward, [max(1, steps // length) for length in lengths]

    def turn(length: int, count: int) -> Callable[[], None]:
        def several() -> None:
            for _ in range(count):
                run(length)

        return several

    taken = interleaved([turn(*pair) for pair in zip(lengths, times, strict=True)], seconds, least=3)
    whole = {length: seconds / count for length, count, seconds in zip(lengths, times, taken, strict=True)}
    work = 2.0 * 8 * hidden * hidden * (3 if what == "training" else 1)
    return [
        Comparison(
            "growth",
            f"LSTM, {what}",
            f"T = {first:,}",
            Point(1, t, hidden),
            whole[t],
            whole[first] * t / first,
            t * work,
        )
        for t in lengths
        if t != first
    ]


def _same(cell: LSTM, x: Tensor, first: int) -> None:
    other = nn.LSTM(cell.input_size, cell.hidden_size, batch_first=True)
    weights = [cell.input.weight, cell.recurrent.weight, cell.input.bias, torch.zeros_like(cell.input.bias)]
    with torch.no_grad():
        for parameter, weight in zip(other.parameters(), weights, strict=True):
            parameter.copy_(weight)
        short, whole = unroll(cell, x[:, :first], backend="cpu")[0], unroll(cell, x, backend="cpu")[0]
        if not torch.allclose(short, other(x[:, :first])[0], rtol=1e-3, atol=1e-4):
            raise RuntimeError(f"{first} steps differ from nn.LSTM's; not timed")
        if not torch.equal(whole[:, :first], short):
            raise RuntimeError("a long sequence begins otherwise than a short one; not timed")
