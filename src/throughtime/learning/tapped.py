"""A record of every step of a recurrence, attached to the graph, so that any state's gradient can be asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from throughtime.cells.cell import Cell
from throughtime.cells.wrappers import Wrapper
from throughtime.engine.sequence import map_state


@dataclass
class Record:
    """What a cell was given and what it made of it, step by step, in the order in which it ran."""

    inputs: list[Tensor] = field(default_factory=list)  # x_t (B, I)
    before: list[Any] = field(default_factory=list)  # s_{t-1}
    after: list[Any] = field(default_factory=list)  # s_t
    noise: list[Any] = field(default_factory=list)


class Tapped(Wrapper):
    """A cell that writes down what it does. Only for ``unroll(..., backend="reference")``: step has a side effect.

    Every state needs a gradient, even where nothing that it comes from does. The fields of a state are recorded as
    coordinates of their own: the gradient by one holds the others fixed. An output that is a field of the state (h,
    mostly) is that field; any other is a function of the state before.
    """

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        self.record = Record()

    def step(self, x: Tensor, state: Any, noise: Any = None) -> tuple[Tensor, Any]:
        y, new = self.inner_step(x, state, noise)
        # a copy of each field, so that the gradient by c, say, does not take in the way through h of the same step
        attached = map_state(lambda s: s.clone() if s.requires_grad else s.detach().requires_grad_(), new)
        record = self.record
        record.inputs.append(x)
        record.before.append(state)
        record.after.append(attached)
        record.noise.append(noise)
        for old, now in zip(new, attached, strict=True):
            if y is old:
                y = now
        return y, attached


def stacked(parts: list[Any]) -> Any:
    """Steps (B, ...) of a record as one batch (T * B, ...); nested as they are."""
    first = parts[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return torch.cat(parts)
    columns = [stacked([part[n] for part in parts]) for n in range(len(first))]
    return type(first)(*columns) if hasattr(first, "_fields") else tuple(columns)
