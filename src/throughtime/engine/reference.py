"""The loop in plain PyTorch. It is the specification: every other backend is tested against it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from throughtime.cells.cell import Cell, at_step, checked_step
from throughtime.engine.sequence import Result, Sequence, map_state, run_forwards

Step = Callable[[Cell, Tensor, Any, Any], tuple[Tensor, Any]]


def refusal(cell: Cell, sequence: Sequence | None = None) -> str | None:
    """Why this backend cannot take the cell; None, as it takes any."""
    return None


def offer(cell: Cell, sequence: Sequence) -> str | Callable[[bool], Result]:
    """How the sequence would be run, given whether all states are asked for."""
    return functools.partial(run, cell, sequence)


def run(cell: Cell, sequence: Sequence, return_states: bool) -> Result:
    """Outputs (B, T, O), the final state, and all states (fields (B, T, ...)) where asked for."""
    return run_forwards(lambda forwards: loop(cell, forwards, return_states), sequence)


def loop(cell: Cell, sequence: Sequence, return_states: bool, step: Step = checked_step) -> Result:
    """The loop itself, forwards."""
    state = sequence.state
    outputs, states = [], []
    for t, x in enumerate(sequence.x.unbind(1)):  # (B, I)
        if sequence.resets is not None:
            state = choose(sequence.resets[:, t], sequence.initial, state)
        noise = at_step(sequence.noise, t)
        y, new = step(cell, x, state, noise)
        if sequence.lengths is not None:
            new = choose(t < sequence.lengths, new, state)
        state = type(sequence.state)(*new)
        outputs.append(y)
        states.append(state)
    if outputs:
        y = torch.stack(outputs, dim=1)  # (B, T, O)
    else:
        y = sequence.x.new_zeros(sequence.batch_size, 0, cell.output_size)
    return y, state, stack_states(states, state) if return_states else None


def choose(where: Tensor, one: Any, other: Any) -> Any:
    """For each sequence the one state or the other: where (B,) bool."""
    return map_state(lambda a, b: torch.where(where.reshape(-1, *[1] * (a.dim() - 1)), a, b), one, other)


def stack_states(states: list[Any], like: Any) -> Any:
    """States of all steps as one, its fields (B, T, ...)."""
    if not states:
        return map_state(lambda field: field.new_zeros(field.shape[0], 0, *field.shape[1:]), like)
    return map_state(lambda *fields: torch.stack(fields, dim=1), *states)
