"""The linear family in parallel over time, by an associative scan."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from throughtime.cells.cell import Cell
from throughtime.cells.linear import LinearCell
from throughtime.engine.sequence import Result, Sequence, run_forwards, within


def refusal(cell: Cell, sequence: Sequence | None = None) -> str | None:
    """Why this backend cannot take the cell, or None."""
    if not isinstance(cell, LinearCell):
        return f"{type(cell).__name__} is not a LinearCell"
    if type(cell).step is not LinearCell.step:
        return f"{type(cell).__name__} has a step of its own beside its coefficients"
    return None


def offer(cell: Cell, sequence: Sequence) -> str | Callable[[bool], Result]:
    """How the sequence would be run, given whether all states are asked for; or why it cannot be."""
    return refusal(cell) or functools.partial(run, cell, sequence)


def run(cell: Cell, sequence: Sequence, return_states: bool) -> Result:
    """As `reference.run`."""
    assert isinstance(cell, LinearCell)
    return run_forwards(lambda forwards: parallel(cell, forwards, return_states), sequence)


def parallel(cell: LinearCell, sequence: Sequence, return_states: bool) -> Result:
    """All steps at once, forwards."""
    x, (h0,) = sequence.x, sequence.state
    if sequence.steps == 0:
        y = x.new_zeros(sequence.batch_size, 0, cell.output_size)
        return y, sequence.state, cell.State(h0[:, None][:, :0]) if return_states else None
    a, b = cell.coefficients(x)  # (B, T, H) each
    if sequence.resets is not None:
        reset = sequence.resets[..., None]
        b = torch.where(reset, a * sequence.initial[0][:, None] + b, b)
        a = torch.where(reset, torch.zeros_like(a), a)
    if sequence.lengths is not None:
        real = within(sequence.lengths, sequence.steps)[..., None]  # (B, T, 1)
        a = torch.where(real, a, torch.ones_like(a))  # padding carries the state on
        b = torch.where(real, b, torch.zeros_like(b))
    b = torch.cat([b[:, :1] + a[:, :1] * h0[:, None], b[:, 1:]], dim=1)
    h = linear_scan(a, b)  # (B, T, H)
    y = cell.read(x, h)
    return y, cell.State(h[:, -1]), cell.State(h) if return_states else None


def linear_scan(a: Tensor, b: Tensor) -> Tensor:
    r"""All h_t = a_t h_{t-1} + b_t with h_{-1} = 0, time on axis 1 (Blelloch 1990).

    Two steps are one step of the same kind, (a_2 a_1, a_2 b_1 + b_2); so run the pairs, then fill the gaps. The
    work grows with T, the number of operations in a row with log T.

    >>> linear_scan(torch.full((1, 3, 1), 0.5), torch.ones(1, 3, 1)).flatten()
    tensor([1.0000, 1.5000, 1.7500])
    """
    steps = a.shape[1]
    if steps == 1:
        return b
    a_even, a_odd = a[:, 0 : steps - 1 : 2], a[:, 1::2]
    b_even, b_odd = b[:, 0 : steps - 1 : 2], b[:, 1::2]
    h_odd = linear_scan(a_odd * a_even, a_odd * b_even + b_odd)  # h_1, h_3, ...
    rest_a, rest_b = a[:, 2::2], b[:, 2::2]
    h_rest = rest_a * h_odd[:, : rest_a.shape[1]] + rest_b  # h_2, h_4, ...
    h_even = torch.cat([b[:, :1], h_rest], dim=1)
    pairs = torch.stack([h_even[:, : h_odd.shape[1]], h_odd], dim=2).flatten(1, 2)
    return pairs if steps % 2 == 0 else torch.cat([pairs, h_even[:, -1:]], dim=1)
