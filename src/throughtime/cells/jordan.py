"""The recurrence through the output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn

from throughtime.cells.activations import activation_named
from throughtime.cells.cell import Cell


class Jordan(Cell):
    r"""Jordan network (Jordan 1986): the recurrence goes through the output.

    .. math:: h_t = f(W x_t + U y_{t-1} + b), \qquad y_t = g(V h_t + d)

    Departure: Jordan's state units also held a decaying trace of past outputs; here, as in most later work
    (Mesnil et al. 2013, say), only the last output is fed back.

    >>> import torch
    >>> Jordan(3, 5, output_size=2)(torch.zeros(4, 3))[0].shape
    torch.Size([4, 2])

    Args:
        output_size: features O of y; H unless given.
        activation: f, and ``output_activation`` g: names or functions, see `Elman`.

    Raises:
        ValueError: an activation's name is unknown.
    """

    family = "Jordan"
    equation = "h = f(Wx + Uy + b),  y = g(Vh + d)"
    source = "Jordan 1986"

    class State(NamedTuple):
        y: Tensor  # (B, O)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        output_size: int | None = None,
        activation: str | Callable[[Tensor], Tensor] = "tanh",
        output_activation: str | Callable[[Tensor], Tensor] = "sigmoid",
    ) -> None:
        super().__init__(input_size, hidden_size, output_size=output_size)
        self.input = nn.Linear(input_size, hidden_size)
        self.recurrent = nn.Linear(self.output_size, hidden_size, bias=False)
        self.output = nn.Linear(hidden_size, self.output_size)
        self.activation = activation_named(activation)
        self.output_activation = activation_named(output_activation)

    def initial_state(self, batch_size: int) -> Any:
        return self.State(self._zeros(batch_size, self.output_size))

    def step(self, x: Tensor, state: Any, noise: Any = None) -> tuple[Tensor, Any]:
        h = self.activation(self.input(x) + self.recurrent(state.y))  # (B, H)
        y = self.output_activation(self.output(h))  # (B, O)
        return y, self.State(y)
