"""Depth within one step of time (Pascanu et al. 2013, "How to construct deep recurrent neural networks")."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from throughtime.cells.activations import activation_named
from throughtime.cells.cell import Cell
from throughtime.cells.wrappers import Wrapper


class DeepTransition(Wrapper):
    r"""Deep transition, DT-RNN: the way from one state to the next passes through further layers.

    .. math::
        \tilde h_t &= \mathrm{cell}(x_t, h_{t-1}) \\
        h_t &= \phi(A_L \cdots \phi(A_1 \tilde h_t + a_1) \cdots + a_L), \qquad y_t = h_t

    Around `Elman` this is the paper's DT-RNN. With ``shortcut=True`` each layer adds its input,
    \phi(A h + a) + h, so that gradients have a short way as well; the paper's DT(S)-RNN feeds h_{t-1} to the inner
    layers to the same end.

    Args:
        cell: any cell whose state has a field ``h`` that is its output.
        layers: L, at least 1.
        activation: \phi: a name or a function, see `Elman`.
        shortcut: whether each layer adds its input.

    Raises:
        ValueError: layers below 1, or the cell's state has no field ``h`` of its output's size.
    """

    family = "deep"
    equation = "h = φ(A…φ(A·cell(x, h)))"
    source = "Pascanu et al. 2013"

    def __init__(
        self,
        cell: Cell,
        *,
        layers: int = 1,
        activation: str | Callable[[Tensor], Tensor] = "tanh",
        shortcut: bool = False,
    ) -> None:
        super().__init__(cell)
        state = cell.initial_state(1)
        if "h" not in state._fields or state.h.shape[-1] != cell.output_size or state.h.is_complex():
            raise ValueError(
                f"a deep transition needs a real state h of the output's size; {type(cell).__name__}'s is not"
            )
        self.transition = mlp_layers(cell.output_size, layers)
        self.activation = activation_named(activation)
        self.shortcut = shortcut

    def step(self, x: Tensor, state: Any, noise: Any = None) -> tuple[Tensor, Any]:
        _, new = self.inner_step(x, state, noise)
        h = new.h  # (B, H)
        for layer in self.transition:
            h = self.activation(layer(h)) + h if self.shortcut else self.activation(layer(h))
        return h, new._replace(h=h)


class DeepOutput(Wrapper):
    r"""Deep output, DO-RNN: further layers between the cell's output and y.

    .. math:: y_t = \phi(A_L \cdots \phi(A_1 \tilde y_t + a_1) \cdots + a_L)

    Args:
        cell: any cell.
        layers: L, at least 1.
        activation: \phi: a name or a function, see `Elman`.

    Raises:
        ValueError: layers below 1.
    """

    family = "deep"
    equation = "y = φ(A…φ(A·cell(x, s)))"
    source = "Pascanu et al. 2013"

    def __init__(self, cell: Cell, *, layers: int = 1, activation: str | Callable[[Tensor], Tensor] = "tanh") -> None:
        super().__init__(cell)
        self.output = mlp_layers(cell.output_size, layers)
        self.activation = activation_named(activation)

    def step(self, x: Tensor, state: Any, noise: Any = None) -> tuple[Tensor, Any]:
        y, state = self.inner_step(x, state, noise)
        for layer in self.output:
            y = self.activation(layer(y))
        return y, state


def mlp_layers(size: int, layers: int) -> nn.ModuleList:
    if layers < 1:
        raise ValueError(f"layers must be at least 1, not {layers!r}")
    return nn.ModuleList(nn.Linear(size, size) for _ in range(layers))
