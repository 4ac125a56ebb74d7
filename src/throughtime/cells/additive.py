"""Additive memory: the two steps that lead from the simple network to gating."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from throughtime.cells.activations import activation_named
from throughtime.cells.cell import Cell


class AdditiveMemory(Cell):
    r"""Additive memory with a linear edge through time: what comes in is added up and never fades.

    .. math:: h_t = h_{t-1} + g(W x_t + b)

    The derivative of h_t by h_{t-1} is the identity, so gradients neither vanish nor explode (the constant error
    carousel of Hochreiter & Schmidhuber 1997); but the memory cannot look at itself.

    Args:
        activation: g: a name or a function, see `Elman`.
    """

    family = "additive"
    equation = "h = h + g(Wx + b)"
    source = "Hochreiter & Schmidhuber 1997 (constant error carousel)"

    def __init__(
        self, input_size: int, hidden_size: int, *, activation: str | Callable[[Tensor], Tensor] = "tanh"
    ) -> None:
        super().__init__(input_size, hidden_size)
        self.input = nn.Linear(input_size, hidden_size)
        self.activation = activation_named(activation)

    def step(self, x: Tensor, state: Any, noise: Any = None) -> tuple[Tensor, Any]:
        h = state.h + self.activation(self.input(x))  # (B, H)
        return h, self.State(h)


class ResidualMemory(Cell):
    r"""Additive memory that looks at itself: a residual connection through time.

    .. math:: h_t = h_{t-1} + g(W x_t + U h_{t-1} + b)

    The next step, a gate on either term, gives the LSTM and the GRU.

    Args:
        activation: g: a name or a function, see `Elman`.
    """

    family = "additive"
    equation = "h = h + g(Wx + Uh + b)"
    source = "residual form of Elman 1990; after He et al. 2016"

    def __init__(
        self, input_size: int, hidden_size: int, *, activation: str | Callable[[Tensor], Tensor] = "tanh"
    ) -> None:
        super().__init__(input_size, hidden_size)
        self.input = nn.Linear(input_size, hidden_size)
        self.recurrent = nn.Linear(hidden_size, hidden_size, bias=False)
        self.activation = activation_named(activation)

    def step(self, x: Tensor, state: Any, noise: Any = None) -> tuple[Tensor, Any]:
        h = state.h + self.activation(self.input(x) + self.recurrent(state.h))  # (B, H)
        return h, self.State(h)
