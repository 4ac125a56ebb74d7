"""Cells as their users write them in plain PyTorch today: a loop over time, with the input product outside of it.

Each takes a cell and x (B, T, I) and gives y (B, T, O); the weights are the cell's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.cells import Cell


class MinimalGatedUnit(Cell):
    r"""A user's own cell: the minimal gated unit (Zhou et al. 2016), which is not among the built-in ones.

    .. math::
        f_t &= \sigma(W_f x_t + U_f h_{t-1} + b_f) \\
        h_t &= (1 - f_t) \circ h_{t-1} + f_t \circ \tanh(W_n x_t + U_n (f_t \circ h_{t-1}) + b_n)
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__(input_size, hidden_size)
        self.input = nn.Linear(input_size, 2 * hidden_size)
        self.gate = nn.Linear(hidden_size, hidden_size, bias=False)
        self.candidate = nn.Linear(hidden_size, hidden_size, bias=False)

    def step(self, x: Tensor, state: Any, noise: Any = None) -> tuple[Tensor, Any]:
        x_f, x_n = self.input(x).chunk(2, dim=-1)  # (B, H) each
        f = (x_f + self.gate(state.h)).sigmoid()
        n = (x_n + self.candidate(f * state.h)).tanh()
        h = (1 - f) * state.h + f * n
        return h, self.State(h)


def peephole(cell: Any, x: Tensor) -> Tensor:
    xs, outputs = cell.input(x), []
    h = c = x.new_zeros(x.shape[0], cell.hidden_size)
    p_i, p_f, p_o = cell.peephole.unbind(0)
    for t in range(x.shape[1]):
        i, f, g, o = (xs[:, t] + cell.recurrent(h)).chunk(4, dim=-1)
        c = (f + p_f * c).sigmoid() * c + (i + p_i * c).sigmoid() * g.tanh()
        h = (o + p_o * c).sigmoid() * c
        outputs.append(h)
    return torch.stack(outputs, dim=1)


def layer_norm(cell: Any, x: Tensor) -> Tensor:
    xs, outputs = cell.norm_input(cell.input(x)), []
    h = c = x.new_zeros(x.shape[0], cell.hidden_size)
    for t in range(x.shape[1]):
        i, f, g, o = (xs[:, t] + cell.norm_recurrent(cell.recurrent(h))).chunk(4, dim=-1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * cell.norm_cell(c).tanh()
        outputs.append(h)
    return torch.stack(outputs, dim=1)


def jordan(cell: Any, x: Tensor) -> Tensor:
    xs, outputs = cell.input(x), []
    y = x.new_zeros(x.shape[0], cell.output_size)
    for t in range(x.shape[1]):
        y = cell.output((xs[:, t] + cell.recurrent(y)).tanh()).sigmoid()
        outputs.append(y)
    return torch.stack(outputs, dim=1)


def reset_before(cell: Any, x: Tensor) -> Tensor:
    xs, outputs = cell.input(x), []
    h = x.new_zeros(x.shape[0], cell.hidden_size)
    for t in range(x.shape[1]):
        x_r, x_z, x_n = xs[:, t].chunk(3, dim=-1)
        h_r, h_z = cell.recurrent(h).chunk(2, dim=-1)
        r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
        n = (x_n + cell.recurrent_candidate(r * h)).tanh()
        h = z * h + (1 - z) * n
        outputs.append(h)
    return torch.stack(outputs, dim=1)


def minimal(cell: Any, x: Tensor) -> Tensor:
    xs, outputs = cell.input(x), []
    h = x.new_zeros(x.shape[0], cell.hidden_size)
    for t in range(x.shape[1]):
        x_f, x_n = xs[:, t].chunk(2, dim=-1)
        f = (x_f + cell.gate(h)).sigmoid()
        n = (x_n + cell.candidate(f * h)).tanh()
        h = (1 - f) * h + f * n
        outputs.append(h)
    return torch.stack(outputs, dim=1)


Loop = Callable[[Any, Tensor], Tensor]
