"""Keeping the gradient's norm on its way back through time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from throughtime.cells.cell import Cell
from throughtime.engine import unroll
from throughtime.engine.sequence import map_state
from throughtime.learning.flat import flatten_state
from throughtime.learning.tapped import Tapped, stacked


def vanishing_gradient_penalty(
    cell: Cell,
    x: Tensor,
    loss: Callable[[Tensor], Tensor],
    state: Any = None,
    *,
    lengths: Any = None,
    resets: Any = None,
) -> Tensor:
    r"""The regulariser of Pascanu, Mikolov & Bengio (2013), which asks that gradients keep their norm.

    .. math::
        \Omega = \sum_k \left( \frac{\left\| \frac{dL}{ds_{k+1}} \frac{\partial s_{k+1}}{\partial s_k} \right\|}
        {\left\| \frac{dL}{ds_{k+1}} \right\|} - 1 \right)^2

    As in the paper, its gradient is the immediate one: the states and dL/ds are constants in it. Add it to the loss,
    with a weight: ``(loss + weight * penalty).backward()``.

    >>> import throughtime as tt
    >>> cell, x = tt.cells.Elman(3, 5), torch.zeros(2, 7, 3)
    >>> penalty = vanishing_gradient_penalty(cell, x, lambda y: y[:, -1].sum())
    >>> penalty.backward()

    The sum is over steps, the mean over sequences. Steps that carry no gradient, padding and steps after a reset are
    left out, and a loss on y_t counts towards dL/ds_t where y is a field of the state (h, mostly). The state is all
    of its fields together. The cost is about two more runs of the reference loop.

    Args:
        cell: any `Cell`.
        x: the input (B, T, I).
        loss: from y (B, T, O) to a number; only its gradient is used.
        state: as in `throughtime.unroll`.
        lengths: as in `throughtime.unroll`.
        resets: as in `throughtime.unroll`.
    """
    tapped = Tapped(cell)
    with torch.enable_grad():
        y, _ = unroll(tapped, x, state, lengths=lengths, resets=resets, backend="reference")
        record = tapped.record
        if not record.after:
            return x.new_zeros(())
        after = [field for s in record.after for field in s]
        found = torch.autograd.grad(loss(y), after, allow_unused=True)
    grads = [torch.zeros_like(a) if g is None else g for a, g in zip(after, found, strict=True)]
    width = len(record.after[0])
    kind = type(record.after[0])
    total = [kind(*grads[at : at + width]) for at in range(0, len(grads), width)]  # dL/ds_t for each t

    # with the states as constants the steps no longer wait for each other: all run as one batch (T * B, ...)
    before = map_state(lambda field: field.detach().requires_grad_(), stacked(record.before))
    inputs, noise = stacked(record.inputs).detach(), stacked(record.noise)
    _, new = cell.step(inputs, before) if noise is None else cell.step(inputs, before, noise)
    cotangent = stacked(total)
    back = torch.autograd.grad(list(new), list(before), list(cotangent), create_graph=True, materialize_grads=True)
    kept = torch.linalg.vector_norm(flatten_state(kind(*back)), dim=1)  # (T * B,)
    size = torch.linalg.vector_norm(flatten_state(cotangent), dim=1)
    counted = size > 0
    if resets is not None:
        counted = counted & ~torch.as_tensor(resets, device=x.device).T.flatten()
    ratio = kept[counted] / size[counted]
    return (ratio - 1).square().sum() / max(1, x.shape[0])
