"""The simple recurrent network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.cells.activations import activation_named
from throughtime.cells.cell import Cell


class Elman(Cell):
    r"""Simple recurrent network (Elman 1990).

    .. math:: h_t = f(W x_t + U h_{t-1} + b), \qquad y_t = h_t

    With ``identity_init=True`` and ``activation="relu"`` it is the IRNN of Le, Jaitly & Hinton (2015): U starts
    as the identity and b as zero.

    Departures: Elman's own network used the logistic function; tanh is the default here, as everywhere today. The
    IRNN's other weights start as those of any layer, where Le et al. draw them with a deviation of 0.001.

    >>> Elman(3, 5, activation="relu", identity_init=True).recurrent.weight.diagonal().sum()
    tensor(5., grad_fn=<SumBackward0>)

    Args:
        activation: "tanh", "relu", "sigmoid", "identity", or any function of a tensor.
        identity_init: U = identity, b = 0.

    Raises:
        ValueError: the activation's name is unknown.
    """

    family = "Elman"
    equation = "h = f(Wx + Uh + b)"
    source = "Elman 1990; IRNN: Le, Jaitly & Hinton 2015"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        activation: str | Callable[[Tensor], Tensor] = "tanh",
        identity_init: bool = False,
    ) -> None:
        super().__init__(input_size, hidden_size)
        self.input = nn.Linear(input_size, hidden_size)
        self.recurrent = nn.Linear(hidden_size, hidden_size, bias=False)
        self.activation = activation_named(activation)
        if identity_init:
            with torch.no_grad():
                nn.init.eye_(self.recurrent.weight)
                nn.init.zeros_(self.input.bias)

    def step(self, x: Tensor, state: Any, noise: Any = None) -> tuple[Tensor, Any]:
        h = self.activation(self.input(x) + self.recurrent(state.h))  # (B, H)
        return h, self.State(h)
