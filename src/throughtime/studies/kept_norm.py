"""The vanishing-gradient regulariser of one Elman network in closed form, for studies that take many steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from throughtime.cells import Cell, Elman
from throughtime.engine import unroll
from throughtime.errors import UserError

_TINY = 1e-38  # what a norm is held above before it divides


class Driven(Cell):
    """An Elman cell that is given W x + b in place of x, so that the gradient by its input is that by each sum."""

    def __init__(self, cell: Elman) -> None:
        super().__init__(cell.hidden_size, cell.hidden_size)
        self.recurrent, self.activation = cell.recurrent, cell.activation

    def step(self, x: Tensor, state: Any, noise: Any = None) -> tuple[Tensor, Any]:
        h = self.activation(x + self.recurrent(state.h))  # (B, H)
        return h, self.State(h)


class RegularisedGradients:
    r"""Gradients of cross entropy at the last step plus a weight times `vanishing_gradient_penalty` / T.

    They are those of the general function. They cost one run of the compiled backend there and back, and a few
    products over all steps at once, because for h_t = tanh(W x_t + U h_{t-1} + b) all that is needed is known:

    .. math::
        g_t = \frac{dL}{dh_t}, \qquad v_t = g_t \circ (1 - h_t^2), \qquad k_t = v_t U = \frac{dL}{dh_{t-1}}, \qquad
        \Omega = \frac{1}{B} \sum_t \left( \frac{\|k_t\|}{\|g_t\|} - 1 \right)^2

    With g and h_{t-1} as constants, k depends on U, and on all parameters through h_t.

    Args:
        cell: with tanh.
        answer: from the last h to the classes.

    Raises:
        UserError: the cell is another one, whose slope is not 1 - h².
    """

    def __init__(self, cell: Elman, answer: nn.Linear) -> None:
        if type(cell) is not Elman or cell.activation is not torch.tanh:
            raise UserError(
                "this form of the regulariser is that of an Elman cell with tanh; for others there is "
                "throughtime.learning.vanishing_gradient_penalty"
            )
        self.cell, self.answer = cell, answer
        self.driven = Driven(cell)  # one for all calls: a new one would be compiled anew
        self.parameters = [cell.input.weight, cell.input.bias, cell.recurrent.weight, *answer.parameters()]

    def __call__(self, x: Tensor, target: Tensor, weight: float) -> tuple[float, float]:
        """Sets the gradients of the parameters.

        Args:
            x: (B, T, I), all of one length.
            target: (B,) classes.
            weight: of the penalty a step.

        Returns:
            The cross entropy, and the penalty a step.
        """
        driven = self.cell.input(x)  # (B, T, H)
        h, _ = unroll(self.driven, driven)
        last = h[:, -1]
        loss = nn.functional.cross_entropy(self.answer(last), target)
        *found, by_sum, by_last = torch.autograd.grad(loss, [*self.parameters, driven, last])
        for parameter, gradient in zip(self.parameters, found, strict=True):
            parameter.grad = gradient
        if not weight:
            return loss.item(), 0.0
        by_w, by_b, by_u = found[:3]
        with torch.no_grad():
            u, size, steps = self.cell.recurrent.weight, h.shape[0], h.shape[1]
            g = torch.cat([by_sum[:, 1:] @ u, by_last[:, None]], dim=1)  # (B, T, H)
            slope = 1 - h * h
            v = g * slope
            k = v @ u
            kept, whole = (torch.linalg.vector_norm(a, dim=2, keepdim=True) for a in (k, g))  # (B, T, 1)
            off = torch.where(whole > 0, kept / whole.clamp_min(_TINY) - 1, 0.0)  # the bracket; no gradient, no penalty
            by_k = k / kept.clamp_min(_TINY) * (off / whole.clamp_min(_TINY) * (2 * weight / (size * steps)))
            by_pre = (by_k @ u.T) * g * (-2 * h) * slope  # by the sum that tanh is taken of, through 1 - h²
            before = torch.cat([torch.zeros_like(last)[:, None], h[:, :-1]], dim=1)  # h_{t-1}
            into = by_pre.flatten(0, 1).T  # (H, B T)
            by_w += into @ x.flatten(0, 1)
            by_b += into.sum(1)
            by_u += v.flatten(0, 1).T @ by_k.flatten(0, 1) + into @ before.flatten(0, 1)
            return loss.item(), float(off.square().sum()) / (size * steps)
