"""Backpropagation through time in little memory: a few states are kept, what lies between is run again."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from throughtime.engine.reference import choose
from throughtime.learning.nested import Runner, rebuilt, tensors_in


def checkpointed(
    network: Any,
    x: Tensor,
    state: Any = None,
    *,
    lengths: Any = None,
    resets: Any = None,
    reverse: bool = False,
    segments: int | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Any]:
    r"""`throughtime.unroll` with the same results and gradients, keeping the state at ``segments`` places only.

    >>> import throughtime as tt
    >>> y, state = checkpointed(tt.cells.LSTM(3, 5), torch.zeros(2, 100, 3))
    >>> y.sum().backward()

    Forwards, T steps are run in segments and nothing is kept but the state each begins with. Backwards, one
    segment after the other is run again, with what autograd keeps for it, and forgotten. What is kept beside x and
    y is ``segments`` states and T / segments steps of the usual record; least, about sqrt(T) of each, where
    segments is about sqrt(T), the default (Chen et al. 2016; through time, Gruslys et al. 2016). The cost is one
    more run forwards: a third more work, or so.

    Noise is replayed: a `Cell` draws it once for all T (drawn as `unroll` draws it, and kept, as it is needed
    again); another network has the random generator wound back for each segment, so it draws recurrent dropout
    masks segment by segment. Any backend of `unroll` serves.

    Args:
        network: a `Cell`, a one-directional `Recurrent`, or anything called as ``network(x, state) -> (y, state)``.
        x: the input (B, T, ...).
        state: the state before the first step.
        lengths: (B,) as in `unroll`.
        resets: (B, T) as in `unroll`.
        reverse: as in `unroll`; for a Cell only.
        segments: how many; about sqrt(T) unless given.
        backend: as in `unroll`; for a Cell only.

    Returns:
        ``(y, final_state)``. Gradients are of first order; for second order take `unroll`.

    Raises:
        ValueError: segments below 1; a bidirectional network, whose layers cannot be cut at one place in time;
            reverse or a backend with a network other than a Cell.
    """
    if segments is not None and segments < 1:
        raise ValueError(f"segments must be at least 1, not {segments}")
    if getattr(network, "bidirectional", False):
        raise ValueError(
            "a bidirectional network cannot be cut in time: its directions meet nowhere; checkpoint its cells, one "
            "with reverse=True"
        )
    run = Runner(network, x, lengths, resets, reverse=reverse, backend=backend)
    if not run.is_cell and (reverse or backend != "auto"):
        raise ValueError("reverse and backend are for a Cell; a network is called as it is")
    steps = x.shape[1]
    if steps == 0:
        return run(x, state, 0, 0)
    segments = min(steps, segments or math.ceil(math.sqrt(steps)))
    plan = _Segments(run, [steps * k // segments for k in range(segments + 1)], state, x)
    parameters = list(network.parameters()) if isinstance(network, torch.nn.Module) else []
    outputs = _Checkpointed.apply(plan, x, *tensors_in(state), *parameters)
    return outputs[0], rebuilt(plan.like, iter(outputs[1:]))


class _Segments:
    """Which steps belong to a segment, and how to run it, the first time and again."""

    def __init__(self, run: Runner, borders: list[int], state: Any, x: Tensor) -> None:
        self.run = run
        spans = list(pairwise(borders))
        self.spans = spans[::-1] if run.reverse else spans  # in the order in which time passes
        self.given = len(tensors_in(state))  # tensors of the state that was passed
        self.like = state  # the make of a state; known for certain after the first segment
        self.randomness: list[Any] = []  # of each segment, for a network that draws as it runs
        self.device = x.device
        kind = x.device.type
        self.autocast = (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))

    def first(self, k: int, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Segment ``k``, whose input ``x`` is, for the first time."""
        if not self.run.is_cell:
            cuda = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
            self.randomness.append((torch.get_rng_state(), cuda))
        y, state = self._step(k, x, state)
        self.like = state
        return y, state

    def again(self, k: int, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Segment ``k`` as it was."""
        kind, dtype, enabled = self.autocast
        with torch.autocast(kind, dtype=dtype, enabled=enabled):
            if self.run.is_cell:
                return self._step(k, x, state)
            with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                host, cuda = self.randomness[k]
                torch.set_rng_state(host)
                if cuda is not None:
                    torch.cuda.set_rng_state(cuda, self.device)
                return self._step(k, x, state)

    def _step(self, k: int, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        start, stop = self.spans[k]
        if self.run.reverse and k > 0 and self.run.resets is not None:
            # the border before step `stop` is crossed here, from behind, between two segments
            border = self.run.resets[:, stop]
            if self.run.lengths is not None:
                border = border & (stop < self.run.lengths)
            state = choose(border, self.run.network.initial_state(x.shape[0]), state)
        return self.run(x, state, start, stop)


class _Checkpointed(torch.autograd.Function):
    """Forwards without a record; backwards segment by segment."""

    @staticmethod
    def forward(ctx: Any, plan: _Segments, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        state = rebuilt(plan.like, iter(tensors[: plan.given]))
        outputs: list[Tensor] = []
        kept: list[Tensor] = []
        counts = []
        for k in range(len(plan.spans)):
            before = tensors_in(state)
            counts.append(len(before))
            kept += before
            start, stop = plan.spans[k]
            y, state = plan.first(k, x[:, start:stop], state)
            outputs.append(y)
        if plan.run.reverse:
            outputs.reverse()
        ctx.plan, ctx.counts = plan, counts
        ctx.save_for_backward(x, *kept, *tensors[plan.given :])
        # a state may be one that came in (a sequence of length zero); an output of its own is wanted
        given = {id(tensor) for tensor in tensors}
        final = [field.clone() if id(field) in given else field for field in tensors_in(state)]
        return torch.cat(outputs, dim=1), *final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, *grad_final: Tensor) -> tuple[Tensor | None, ...]:
        plan: _Segments = ctx.plan
        x, *rest = ctx.saved_tensors
        kept, parameters = rest[: sum(ctx.counts)], rest[sum(ctx.counts) :]
        wanted = [p for p in parameters if p.requires_grad]
        totals: list[Tensor | None] = [None] * len(wanted)
        needs_x = ctx.needs_input_grad[1]
        grads_x: list[Tensor] = []
        grads_state = list(grad_final)
        for k in reversed(range(len(plan.spans))):
            start, stop = plan.spans[k]
            with torch.enable_grad():
                leaves = [field.detach().requires_grad_() for field in kept[len(kept) - ctx.counts[k] :]]
                kept = kept[: len(kept) - ctx.counts[k]]
                x_k = x[:, start:stop].detach().requires_grad_(needs_x)
                state = rebuilt(plan.like, iter(leaves)) if leaves else None
                y, new = plan.again(k, x_k, state)
            pairs = [(y, grad_y[:, start:stop]), *zip(tensors_in(new), grads_state, strict=True)]
            pairs = [(output, grad) for output, grad in pairs if output.requires_grad]
            targets = [*([x_k] if needs_x else []), *leaves, *wanted]
            found: list[Tensor | None] = [None] * len(targets)
            if pairs and targets:
                found = list(
                    torch.autograd.grad([o for o, _ in pairs], targets, [g for _, g in pairs], allow_unused=True)
                )
            if needs_x:
                first = found.pop(0)
                grads_x.append(torch.zeros_like(x_k) if first is None else first)
            grads_state = [
                torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, found, strict=False)
            ]
            for n, grad in enumerate(found[len(leaves) :]):
                total = totals[n]
                totals[n] = grad if total is None else total if grad is None else total + grad
        if not plan.run.reverse:
            grads_x.reverse()
        by_parameter = iter(totals)
        return (
            None,
            torch.cat(grads_x, dim=1) if needs_x else None,
            *(grads_state if plan.given else []),
            *(next(by_parameter) if p.requires_grad else None for p in parameters),
        )
