"""The independently recurrent network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.cells.activations import activation_named
from throughtime.cells.cell import Cell


class IndRNN(Cell):
    r"""Independently recurrent network (Li et al. 2018): each unit sees only its own past.

    .. math:: h_t = f(W x_t + u \circ h_{t-1} + b)

    Args:
        activation: f: a name or a function, see `Elman`.
        max_recurrent: u starts uniform in [0, max_recurrent]. The paper bounds |u| by 2^(1/T) for sequences of T
            steps; 1 holds a memory of any length without explosion.
    """

    family = "IndRNN"
    equation = "h = f(Wx + u∘h + b)"
    source = "Li et al. 2018"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        activation: str | Callable[[Tensor], Tensor] = "relu",
        max_recurrent: float = 1.0,
    ) -> None:
        super().__init__(input_size, hidden_size)
        self.input = nn.Linear(input_size, hidden_size)
        self.recurrent_weight = nn.Parameter(torch.empty(hidden_size).uniform_(0, max_recurrent))
        self.activation = activation_named(activation)

    def step(self, x: Tensor, state: Any, noise: Any = None) -> tuple[Tensor, Any]:
        h = self.activation(self.input(x) + self.recurrent_weight * state.h)  # (B, H)
        return h, self.State(h)
