"""One call of a cell's kernels, and the same to autograd."""

from __future__ import annotations

import functools
from collections import namedtuple
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from throughtime.cells.cell import Cell
from throughtime.engine import reference
from throughtime.engine.cpu.graph import evaluate
from throughtime.engine.cpu.kernels import (
    Kernels,
    Rows,
    by_sequence,
    by_step,
    call,
    compile_program,
    gradient_buffers,
    rows_of,
)
from throughtime.engine.cpu.pages import in_large_pages
from throughtime.engine.cpu.program import Program, build
from throughtime.engine.cpu.trace import Step
from throughtime.engine.sequence import Sequence


@dataclass
class Prepared:
    """A cell as traced, and its kernels by what is asked of them."""

    step: Step
    programs: dict[Any, Program] = field(default_factory=dict)
    kernels: dict[Any, Kernels] = field(default_factory=dict)


@dataclass(eq=False)
class Task:
    """One call: what runs, over which rows. Its arguments are inputs (x, then noise), state, rows and matrices."""

    prepared: Prepared
    batch_size: int
    steps: int
    lengths: Tensor | None  # (B,)
    reverse: bool
    return_states: bool

    def __post_init__(self) -> None:
        step = self.prepared.step
        self.step = step
        self.fields = step.fields
        self.outputs = 1 + (len(step.fields) if self.return_states else 0)
        self.names = ["x", *(f"noise.{k}" for k in range(step.noise))]

    @functools.cached_property
    def rows(self) -> Rows:
        return rows_of(self.batch_size, self.steps, self.lengths, self.reverse)

    def program(self, arguments: list[Tensor], wanted: frozenset[str] | None) -> Program:
        """What the kernels do; ``wanted``: inputs by which derivatives will be asked for, None for no way back."""
        step, programs, key = self.step, self.prepared.programs, (self.return_states, wanted)
        if key not in programs:
            outputs = (step.y, *step.state) if self.return_states else (step.y,)
            shapes = tuple((int(m.shape[0]), int(m.shape[1])) for m in self.matrices(arguments))
            back = wanted is not None
            programs[key] = build(step, shapes, outputs=outputs, wanted=wanted or frozenset(), backward=back)
        return programs[key]

    def kernels(self, arguments: list[Tensor], wanted: frozenset[str] | None) -> Kernels:
        dtype = arguments[0].dtype
        key = (dtype, self.return_states, wanted)
        if key not in self.prepared.kernels:
            self.prepared.kernels[key] = compile_program(self.program(arguments, wanted), dtype)
        return self.prepared.kernels[key]

    def matrices(self, arguments: list[Tensor]) -> list[Tensor]:
        return arguments[len(self.names) + len(self.fields) + self.step.vectors :]

    def split(self, arguments: list[Tensor]) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Inputs by name, state, rows and matrices, as the kernels read them."""
        inputs = {n: _columns_together(a) for n, a in zip(self.names, arguments, strict=False)}
        rest = [a.contiguous() for a in arguments[len(self.names) :]]
        n, v = len(self.fields), self.step.vectors
        return inputs, rest[:n], rest[n : n + v], rest[n + v :]

    def forward(
        self, arguments: list[Tensor], wanted: frozenset[str] | None = None
    ) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """Outputs and final states, and what is kept for a way back: trajectories of the states, saved values."""
        kernels = self.kernels(arguments, wanted)
        forward = kernels.program.forward
        inputs, state, vectors, matrices = self.split(arguments)
        batch, steps, x = self.batch_size, self.steps, inputs["x"]
        ragged = self.lengths is not None
        outputs = [_made(x, ragged, batch, steps, width) for width in forward.outputs]
        finals = [torch.empty_like(field) for field in state]
        placed = {name: by_step(tensor) for name, tensor in inputs.items()}
        placed |= {f"out.{k}": by_step(tensor) for k, tensor in enumerate(outputs)}
        kept: list[Tensor] = []
        for name, first, final in zip(self.fields, state, finals, strict=True):
            placed[f"first.{name}"], placed[f"final.{name}"] = by_sequence(first), by_sequence(final)
            if forward.keeps_states:
                path = _made(x, False, batch, steps + 1, first.shape[1])
                self._place_path(placed, name, path)
                kept.append(path)
        if forward.keeps_states:
            kept.append(_made(x, False, batch, steps, forward.saved))
            placed["saved"] = by_step(kept[-1])
        call(kernels.forward, kernels.forward_layout, self.rows, placed, vectors, matrices, [])
        return (*outputs, *finals), kept

    def _place_path(self, placed: dict, name: str, path: Tensor) -> None:
        """A trajectory holds T + 1 states; in reverse, the state before step t stands at t + 1."""
        before, after = (1, 0) if self.rows.reverse else (0, 1)
        placed[f"before.{name}"], placed[f"after.{name}"] = by_step(path, step=before), by_step(path, step=after)

    def backward(
        self, arguments: list[Tensor], kept: list[Tensor], derivatives: list[Tensor], wanted: frozenset[str]
    ) -> list[Tensor | None]:
        """Derivatives by each argument."""
        kernels = self.kernels(arguments, wanted)
        backward = kernels.program.backward
        assert backward is not None
        assert kernels.backward_layout is not None
        inputs, state, vectors, matrices = self.split(arguments)
        batch, steps, x = self.batch_size, self.steps, inputs["x"]
        ragged = self.lengths is not None
        placed = {name: by_step(tensor) for name, tensor in inputs.items()}
        for name, path in zip(self.fields, kept, strict=False):
            self._place_path(placed, name, path)
        placed["saved"] = by_step(kept[-1])
        hold = [_columns_together(d) for d in derivatives]
        for k, d in enumerate(hold[: self.outputs]):
            placed[f"d.out.{k}"] = by_step(d)
        firsts = [torch.empty_like(field) for field in state]
        for name, d, made in zip(self.fields, hold[self.outputs :], firsts, strict=True):
            placed[f"d.final.{name}"], placed[f"d.first.{name}"] = by_sequence(d), by_sequence(made)
        grads = {name: _made(x, ragged, batch, steps, inputs[name].shape[2]) for name in backward.inputs}
        placed |= {f"grad.{name}": by_step(grad) for name, grad in grads.items()}
        # rows are read in tiles, a few numbers past their end
        spare = _made(x, False, batch * steps * backward.derivatives + 64)
        stride = steps * backward.derivatives
        placed["derivatives"] = (spare.data_ptr(), stride, backward.derivatives)
        sums = x.new_zeros(batch, backward.sums)
        placed["sums"] = by_sequence(sums)
        results = gradient_buffers(kernels, x.dtype)
        call(kernels.backward, kernels.backward_layout, self.rows, placed, vectors, matrices, results)

        vector_grads: list[Tensor | None] = [None] * len(vectors)
        total = sums.sum(0)
        for parameter, first, width, column in backward.vectors:
            known = vector_grads[parameter]
            grad = torch.zeros_like(vectors[parameter]) if known is None else known
            grad[first : first + width] += total[column : column + width]
            vector_grads[parameter] = grad
        matrix_grads: list[Tensor | None] = [None] * len(matrices)
        for gradient, result in zip(backward.matrices, results, strict=True):
            part = result[: gradient.width, : gradient.source_width]
            known = matrix_grads[gradient.matrix]
            matrix_grads[gradient.matrix] = part if known is None else known + part
        return [*(grads.get(name) for name in self.names), *firsts, *vector_grads, *matrix_grads]


def _made(like: Tensor, zeros: bool, *shape: int) -> Tensor:
    made = in_large_pages(like.new_empty(shape))
    return made.zero_() if zeros else made


def _columns_together(tensor: Tensor) -> Tensor:
    """A tensor whose last axis lies side by side; the others may be anywhere."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


class Unrolled(torch.autograd.Function):
    """The kernels to autograd."""

    @staticmethod
    def forward(ctx: Any, task: Task, *arguments: Tensor) -> tuple[Tensor, ...]:
        needs = ctx.needs_input_grad[1:]
        wanted = frozenset(name for name, need in zip(task.names, needs, strict=False) if need)
        results, kept = task.forward(list(arguments), wanted)
        ctx.task, ctx.wanted, ctx.count = task, wanted, len(arguments)
        ctx.save_for_backward(*arguments, *kept)
        return results

    @staticmethod
    def backward(ctx: Any, *derivatives: Tensor) -> tuple[Tensor | None, ...]:
        saved = list(ctx.saved_tensors)
        arguments, kept = saved[: ctx.count], saved[ctx.count :]
        if torch.is_grad_enabled():
            return (None, *_again_by_reference(ctx.task, arguments, list(derivatives), ctx.needs_input_grad[1:]))
        grads = ctx.task.backward(arguments, kept, list(derivatives), ctx.wanted)
        needed = zip(grads, arguments, ctx.needs_input_grad[1:], strict=True)
        return (None, *(torch.zeros_like(a) if grad is None and need else grad for grad, a, need in needed))


class GraphCell(Cell):
    """A traced step as a cell in plain PyTorch, over given rows and matrices."""

    def __init__(self, step: Step, vectors: list[Tensor], matrices: list[Tensor], width: int) -> None:
        super().__init__(width, step.state[0].width, output_size=step.y.width)
        self.traced, self.rows, self.matrices = step, vectors, matrices

    def step(self, x: Tensor, state: Any, noise: Any = None) -> tuple[Tensor, Any]:
        traced = self.traced
        inputs = {"x": x} | {f"state.{name}": field for name, field in zip(traced.fields, state, strict=True)}
        inputs |= {f"noise.{k}": part for k, part in enumerate(noise or ())}
        y, *new = evaluate([traced.y, *traced.state], inputs, self.rows, self.matrices)
        batch = x.shape[0]
        return y.expand(batch, -1), type(state)(*(field.expand(batch, -1) for field in new))


def _again_by_reference(
    task: Task, arguments: list[Tensor], derivatives: list[Tensor], needs: tuple[bool, ...]
) -> list[Tensor | None]:
    """Derivatives that can be differentiated again: the traced step in plain PyTorch, through the reference loop."""
    own = [a.view_as(a) for a in arguments]  # so that what one argument owes to another is not counted here
    n, fields, step = len(task.names), len(task.fields), task.step
    inputs, state = own[:n], own[n : n + fields]
    split = n + fields + step.vectors
    rows, matrices = own[n + fields : split], own[split:]
    like = namedtuple("like", task.fields)(*state)
    sequence = Sequence(inputs[0], like, like, tuple(inputs[1:]) or None, task.lengths, None, task.reverse)
    cell = GraphCell(step, rows, matrices, inputs[0].shape[2])
    y, final, states = reference.run(cell, sequence, task.return_states)
    results = [y, *(states if task.return_states else ()), *final]
    wanted = [a for a, need in zip(own, needs, strict=True) if need]
    pairs = [(r, d) for r, d in zip(results, derivatives, strict=True) if r.requires_grad]
    made = iter(
        torch.autograd.grad([r for r, _ in pairs], wanted, [d for _, d in pairs], create_graph=True, allow_unused=True)
    )
    return [next(made) if need else None for need in needs]
