"""The kernels to autograd and to the transforms of torch.func.

`Unrolled` is the way forward, `Returned` the way back; both know what to do under vmap. A derivative of the way back is
found by the reference loop, which PyTorch knows how to differentiate as often as one likes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from throughtime.engine.cpu.task import SideBySide, Task

AnyTask = Task | SideBySide


def differentiably(task: AnyTask, arguments: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The results of a task, such that derivatives can be taken by its arguments."""
    transformed = in_transform()  # then arguments do not tell what will be needed
    wanted = task.wanted([transformed or a.requires_grad for a in arguments])
    return Unrolled.apply(task, wanted, *arguments)[: task.results]


def in_transform() -> bool:
    """Whether the program now stands inside a transform of torch.func."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def _quickly_bound(function: Callable[..., Any]) -> Callable[..., Any]:
    """PyTorch asks a forward for its signature at every call, which takes longer than many a short sequence."""
    anything = inspect.Parameter("arguments", inspect.Parameter.VAR_POSITIONAL)
    function.__signature__ = inspect.Signature([anything])  # type: ignore[attr-defined]
    return function


class Unrolled(torch.autograd.Function):
    """``(task, wanted, *arguments) -> (*results, *kept)``."""

    @staticmethod
    @_quickly_bound
    def forward(task: AnyTask, wanted: Any, *arguments: Tensor) -> tuple[Tensor, ...]:
        results, kept = task.forward(list(arguments), wanted)
        return (*results, *kept)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        task, wanted, *arguments = inputs
        kept = output[task.results :]
        ctx.task, ctx.wanted, ctx.count = task, wanted, len(arguments)
        ctx.set_materialize_grads(False)  # of what is kept there are none
        ctx.mark_non_differentiable(*kept)
        ctx.shapes = [result.shape for result in output[: task.results]]
        ctx.save_for_backward(*arguments, *kept)

    @staticmethod
    def backward(ctx: Any, *derivatives: Tensor | None) -> tuple[Tensor | None, ...]:
        task, needs, saved = ctx.task, ctx.needs_input_grad[2:], list(ctx.saved_tensors)
        arguments, kept = saved[: ctx.count], saved[ctx.count :]
        asked = list(derivatives[: task.results])
        if not isinstance(task, SideBySide):
            return (None, None, *_returned(task, ctx.wanted, needs, arguments, kept, asked, ctx.shapes))
        parts = task.apart(arguments, kept, list(zip(asked, ctx.shapes, strict=True)))
        if all(any(d is not None for d, _ in given) for _, _, given in parts):
            return (None, None, *_returned(task, ctx.wanted, needs, arguments, kept, asked, ctx.shapes))
        grads: list[Tensor | None] = []  # a cell that no result is used of has no gradient, rather than one of zeros
        for one, names, (own, theirs, given) in zip(task.tasks, ctx.wanted, parts, strict=True):
            own_needs = needs[len(grads) : len(grads) + len(own)]
            if all(d is None for d, _ in given):
                grads += [None] * len(own)
            else:
                ds, shapes = zip(*given, strict=True)
                grads += _returned(one, names, own_needs, own, theirs, ds, shapes)
        return (None, None, *grads)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, task: AnyTask, wanted: Any, *arguments: Tensor) -> tuple:
        dims, number = in_dims[2:], info.batch_size
        of_sequences = task.of_sequences(len(arguments))
        if any(dim is not None and not of for dim, of in zip(dims, of_sequences, strict=True)):
            return _one_by_one(lambda own: Unrolled.apply(task, wanted, *own), number, arguments, dims)
        # where the weights are the same for all, it is one batch
        folded = [
            _folded(a, dim, number) if of else a for a, dim, of in zip(arguments, dims, of_sequences, strict=True)
        ]
        made = Unrolled.apply(task.times(number), wanted, *folded)
        return tuple(m.unflatten(0, (number, task.batch_size)) for m in made), (0,) * len(made)


def _returned(
    task: AnyTask, wanted: Any, needs: Sequence[bool], arguments: list[Tensor], kept: list[Tensor],
    derivatives: Sequence[Tensor | None], shapes: Sequence[torch.Size],
) -> list[Tensor | None]:  # fmt: skip
    """The derivatives by the arguments, None by those that need none."""
    if not any(needs):
        return [None] * len(needs)
    given = [arguments[0].new_zeros(s) if d is None else d for d, s in zip(derivatives, shapes, strict=True)]
    if any(torch._C._functorch.is_legacy_batchedtensor(d) for d in given):
        return _for_each_batched(given, lambda own: _returned(task, wanted, needs, arguments, kept, own, shapes))
    # autograd need not know of a way back of which no derivative can be asked
    call = Returned.apply if torch.is_grad_enabled() or in_transform() else Returned.forward
    made = iter(call(task, wanted, needs, *arguments, *kept, *given))
    return [next(made) if need else None for need in needs]


def _for_each_batched(
    derivatives: list[Tensor], call: Callable[[list[Tensor]], list[Tensor | None]]
) -> list[Tensor | None]:
    """A call for each of many derivatives that come as one: autograd (``is_grads_batched``) has a `vmap` of its own,
    which does not ask a Function how."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    apart = [torch._remove_batch_dim(d, level, 1, 0) for d in derivatives]  # 1: for what is the same for all
    number = max(d.shape[0] for d in apart)
    made = [call([d[k if len(d) > 1 else 0] for d in apart]) for k in range(number)]
    together = zip(*made, strict=True)
    return [None if parts[0] is None else torch._add_batch_dim(torch.stack(parts), 0, level) for parts in together]


class Returned(torch.autograd.Function):
    """``(task, wanted, needs, *arguments, *kept, *derivatives)`` to the derivatives by the arguments that need one."""

    @staticmethod
    @_quickly_bound
    def forward(task: AnyTask, wanted: Any, needs: Sequence[bool], *tensors: Tensor) -> tuple[Tensor, ...]:
        arguments, kept, derivatives = _sorted_out(task, needs, tensors)
        made = task.backward(arguments, kept, derivatives, wanted)
        needed = zip(made, arguments, needs, strict=True)
        return tuple(torch.zeros_like(a) if grad is None else grad for grad, a, need in needed if need)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        ctx.task, _, ctx.needs, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *second: Tensor) -> tuple[Tensor | None, ...]:
        task, needs = ctx.task, ctx.needs
        arguments, kept, derivatives = _sorted_out(task, needs, ctx.saved_tensors)

        def derived(*tensors: Tensor) -> tuple[Tensor, ...]:
            back = torch.func.vjp(lambda *own: task.by_reference(own), *tensors[: len(needs)])[1]
            made = back(tuple(tensors[len(needs) :]))
            return tuple(grad for grad, need in zip(made, needs, strict=True) if need)

        back = torch.func.vjp(derived, *arguments, *derivatives)[1]
        made = back(tuple(second))
        return (None, None, None, *made[: len(needs)], *[None] * len(kept), *made[len(needs) :])

    @staticmethod
    def vmap(info: Any, in_dims: tuple, task: AnyTask, wanted: Any, needs: Sequence[bool], *tensors: Tensor) -> tuple:
        return _one_by_one(lambda own: Returned.apply(task, wanted, needs, *own), info.batch_size, tensors, in_dims[3:])


def _sorted_out(
    task: AnyTask, needs: Sequence[bool], tensors: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Arguments, what is kept, derivatives."""
    first, last = len(needs), len(tensors) - task.results
    return list(tensors[:first]), list(tensors[first:last]), list(tensors[last:])


def _folded(tensor: Tensor, dim: int | None, number: int) -> Tensor:
    """(N, B, ...) as (N * B, ...)."""
    apart = tensor.expand(number, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return apart.reshape(number * apart.shape[1], *apart.shape[2:])


def _one_by_one(
    call: Callable[[list[Tensor]], tuple[Tensor, ...]], number: int, tensors: Sequence[Tensor], dims: Sequence
) -> tuple:
    """A call for each of what vmap maps over: kernels take one set of weights."""
    if number == 0:
        like = call(
            [
                t if dim is None else t.new_zeros(t.movedim(dim, 0).shape[1:])
                for t, dim in zip(tensors, dims, strict=True)
            ]
        )
        return tuple(m.new_empty(0, *m.shape) for m in like), (0,) * len(like)
    made = [call([_taken(t, dim, k) for t, dim in zip(tensors, dims, strict=True)]) for k in range(number)]
    stacked = tuple(torch.stack(parts) for parts in zip(*made, strict=True))
    return stacked, (0,) * len(stacked)


def _taken(tensor: Tensor, dim: int | None, k: int) -> Tensor:
    return tensor if dim is None else tensor.select(dim, k)
