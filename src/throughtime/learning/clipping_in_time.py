"""Clipping the gradient on its way through the recurrence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from throughtime.cells.cell import Cell
from throughtime.cells.wrappers import Wrapper
from throughtime.engine.sequence import map_state


class ClippedGradient(Wrapper):
    r"""A cell whose state's gradient is clipped at every step, on its way back (Graves 2013, "Generating sequences").

    .. math::
        \text{forwards: } (y_t, s_t) = \mathrm{cell}(x_t, s_{t-1}), \qquad
        \text{backwards: } \frac{dL}{ds_{t-1}} \leftarrow \mathrm{clip}\left(\frac{dL}{ds_{t-1}}, -v, v\right)

    Clipping the norm of the whole gradient, after the sum over time, keeps the explosion's direction; clipping here
    stops it where it arises, and the result is no longer the gradient of anything. It runs on the reference backend,
    as the compiled one makes its own way back. Graves clips what goes into the
    LSTM's gates (in [-10, 10]); here it is what comes out of them into the state, so that it is defined for any cell.

    >>> from throughtime.cells import LSTM
    >>> ClippedGradient(LSTM(3, 5), limit=1.0)
    ClippedGradient(
      limit=1.0
      (cell): LSTM(
        input_size=3, hidden_size=5
        (input): Linear(in_features=3, out_features=20, bias=True)
        (recurrent): Linear(in_features=5, out_features=20, bias=False)
      )
    )

    Args:
        cell: any cell.
        limit: v; of a complex state the real and the imaginary part are clipped apart.

    Raises:
        ValueError: the limit is not above 0.
    """

    equation = "dL/ds ← clip(dL/ds, -v, v) at each step"
    source = "Graves 2013"

    def __init__(self, cell: Cell, *, limit: float = 10.0) -> None:
        super().__init__(cell)
        if not limit > 0:
            raise ValueError(f"limit must be above 0, not {limit!r}")
        self.limit = limit

    def step(self, x: Tensor, state: Any, noise: Any = None) -> tuple[Tensor, Any]:
        state = map_state(lambda field: clip_gradient(field, self.limit), state)
        return self.inner_step(x, state, noise)

    def extra_repr(self) -> str:
        return f"limit={self.limit}"


def clip_gradient(x: Tensor, limit: float) -> Tensor:
    """``x``, whose gradient is clipped to [-limit, limit] on its way back.

    >>> x = torch.zeros(2, requires_grad=True)
    >>> (clip_gradient(x, 1.0) * torch.tensor([0.5, 3.0])).sum().backward()
    >>> x.grad
    tensor([0.5000, 1.0000])
    """
    if get_proxy_mode() is not None:
        # a graph of the way forwards would lose what is done on the way back
        raise NotImplementedError("it clips gradients on their way back")
    return _ClipGradient.apply(x, limit)


class _ClipGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, limit: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.limit = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if grad.is_complex():
            return torch.complex(grad.real.clamp(-ctx.limit, ctx.limit), grad.imag.clamp(-ctx.limit, ctx.limit)), None
        return grad.clamp(-ctx.limit, ctx.limit), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return tangent.view_as(tangent)  # forwards nothing is clipped
