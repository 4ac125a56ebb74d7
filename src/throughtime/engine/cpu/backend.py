"""The backend "cpu": one compiled kernel for a whole sequence, and one for the way back."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.cells.cell import Cell
from throughtime.cells.wrappers import Wrapper
from throughtime.engine import reference
from throughtime.engine.cpu.graph import evaluate
from throughtime.engine.cpu.kernels import (
    REAL,
    Kernels,
    by_sequence,
    by_step,
    call,
    compile_program,
    gradient_buffers,
    rows_of,
)
from throughtime.engine.cpu.machine import instruction_set
from throughtime.engine.cpu.program import build, describe_program
from throughtime.engine.cpu.trace import Step, Untraceable, flatten, trace
from throughtime.engine.sequence import Result, Sequence, map_state


class Resetting(Wrapper):
    """A cell whose state goes back to initial where a reset says so: noise is (inner noise, reset, initial state)."""

    def step(self, x: Tensor, state: Any, noise: Any = None) -> tuple[Tensor, Any]:
        inner, reset, initial = noise
        state = map_state(lambda old, new: torch.where(reset != 0, new, old), state, type(state)(*initial))
        return self.inner_step(x, state, inner)


@dataclass
class Prepared:
    """A cell as traced, and its kernels by what is asked of them."""

    step: Step
    kernels: dict[Any, Kernels]


_prepared: weakref.WeakKeyDictionary[Cell, dict[Any, Prepared | str]] = weakref.WeakKeyDictionary()


def refusal(cell: Cell, sequence: Sequence | None = None) -> str | None:
    """Why this backend cannot take the cell (or this sequence), or None."""
    if instruction_set() == "none":
        return "this processor has none of AVX-512, AVX2 and NEON"
    if torch.compiler.is_compiling():
        return "torch.compile is tracing"
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "it is inside a transform of torch.func"
    if torch.autograd.forward_ad._current_level >= 0:
        return "derivatives are taken in forward mode"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    tensors: list[Tensor] = list(cell.parameters())
    if sequence is not None:
        tensors += [sequence.x, *sequence.state]
    if any(tensor.is_complex() for tensor in tensors):
        return "its state is complex"
    for tensor in tensors:
        if tensor.device.type != "cpu":
            return f"it runs on the CPU, not on {tensor.device.type}"
        if tensor.dtype not in REAL:
            return f"it takes float32 and float64, not {str(tensor.dtype).removeprefix('torch.')}"
    if len({tensor.dtype for tensor in tensors}) > 1:
        return "input, state and parameters are of different precision"
    noise = None if sequence is None else noise_of(sequence)
    prepared = prepare(cell, noise, resetting=sequence is not None and sequence.resets is not None)
    return prepared if isinstance(prepared, str) else None


def noise_of(sequence: Sequence) -> Any:
    """The noise of a sequence, with resets as part of it."""
    if sequence.resets is None:
        return sequence.noise
    initial = tuple(field[:, None].expand(-1, sequence.steps, -1) for field in sequence.initial)
    return sequence.noise, _borders(sequence).to(sequence.x.dtype), initial


def prepare(cell: Cell, noise: Any, *, resetting: bool = False) -> Prepared | str:
    """The cell traced, from memory where nothing has changed, or the reason why it cannot be."""
    tensors = dict(cell.named_parameters()) | dict(cell.named_buffers())
    key = (
        tuple((name, p.shape, p.dtype) for name, p in tensors.items()),
        tuple(part.shape[2:] for part in flatten(noise)),
        _settings(cell),
        resetting,
    )
    known = _prepared.setdefault(getattr(cell, "stands_for", cell), {})
    if key not in known:
        try:
            traced = (
                trace(Resetting(cell), {f"cell.{n}": p for n, p in tensors.items()}, noise)
                if resetting
                else trace(cell, tensors, noise)
            )
            known[key] = Prepared(traced, {})
        except Untraceable as error:
            known[key] = str(error)
    return known[key]


def _settings(cell: Cell) -> tuple:
    """What a step may depend on beside its parameters: plain attributes of the cell and its parts."""
    found: list[Any] = []
    for module in cell.modules():
        found.append(type(module))
        for name, value in vars(module).items():
            if name[0] != "_" and isinstance(value, (bool, int, float, str, tuple, type(None))):
                found.append((name, value))
            elif name[0] != "_" and isinstance(value, dict):
                found.append((name, tuple(value.items())))
            elif callable(value) and not isinstance(value, nn.Module):
                found.append((name, id(value)))
    return tuple(found)


def run(cell: Cell, sequence: Sequence, return_states: bool) -> Result:
    """As `reference.run`, and in reverse by itself."""
    noise = noise_of(sequence)
    prepared = prepare(cell, noise, resetting=sequence.resets is not None)
    assert isinstance(prepared, Prepared)
    tensors = dict(cell.named_parameters()) | dict(cell.named_buffers())
    step = prepared.step
    made = step.prologue(*tensors.values())
    vectors, matrices = list(made[: step.vectors]), list(made[step.vectors :])
    inputs = [sequence.x, *flatten(noise)]
    arguments = [*inputs, *sequence.state, *vectors, *matrices]
    training = torch.is_grad_enabled() and any(a.requires_grad for a in arguments)
    task = Task(cell, prepared, sequence, noise, return_states, training, len(vectors))
    if training:
        results = Unrolled.apply(task, *arguments)
    else:
        results, _ = task.forward([a.detach() for a in arguments])
    outputs, finals = results[: task.outputs], results[task.outputs :]
    final = type(sequence.state)(*finals)
    return outputs[0], final, type(sequence.state)(*outputs[1:]) if return_states else None


def _borders(sequence: Sequence) -> Tensor:
    """Whether the state goes back to initial before a step is run, (B, T, 1)."""
    resets, real = sequence.resets, sequence.real
    assert resets is not None
    if real is not None:
        resets = resets & real
    if sequence.reverse:  # the same border, from its other side
        resets = torch.cat([resets[:, 1:], torch.zeros_like(resets[:, :1])], dim=1)
    return resets[..., None]


def describe(cell: Cell, noise: Any) -> str:
    """The stages of a cell's kernels, in words."""
    prepared = prepare(cell, noise)
    assert isinstance(prepared, Prepared)
    step = prepared.step
    tensors = [p.detach() for p in (dict(cell.named_parameters()) | dict(cell.named_buffers())).values()]
    shapes = tuple((m.shape[0], m.shape[1]) for m in step.prologue(*tensors)[step.vectors :])
    return describe_program(build(step, shapes, outputs=(step.y,), wanted=frozenset(["x"]), backward=True))


@dataclass
class Task:
    """One call: what runs, over which rows."""

    cell: Cell
    prepared: Prepared
    sequence: Sequence
    noise: Any
    return_states: bool
    training: bool
    vectors: int

    def __post_init__(self) -> None:
        step = self.prepared.step
        self.step = step
        self.fields = step.fields
        self.outputs = 1 + (len(step.fields) if self.return_states else 0)
        self.names = ["x", *(f"noise.{k}" for k in range(step.noise))]
        s = self.sequence
        self.rows = rows_of(s.batch_size, s.steps, s.lengths, s.reverse)

    def kernels(self, arguments: list[Tensor], wanted: frozenset[str]) -> Kernels:
        dtype = arguments[0].dtype
        key = (dtype, self.return_states, self.training, wanted)
        if key not in self.prepared.kernels:
            step = self.step
            outputs = (step.y, *step.state) if self.return_states else (step.y,)
            shapes = tuple((m.shape[0], m.shape[1]) for m in self.matrices(arguments))
            program = build(step, shapes, outputs=outputs, wanted=wanted, backward=self.training)
            self.prepared.kernels[key] = compile_program(program, dtype)
        return self.prepared.kernels[key]

    def matrices(self, arguments: list[Tensor]) -> list[Tensor]:
        return arguments[len(self.names) + len(self.fields) + self.vectors :]

    def split(self, arguments: list[Tensor]) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Inputs by name, state, rows and matrices, as the kernels read them."""
        inputs = {n: _columns_together(a) for n, a in zip(self.names, arguments, strict=False)}
        rest = [a.contiguous() for a in arguments[len(self.names) :]]
        n, v = len(self.fields), self.vectors
        return inputs, rest[:n], rest[n : n + v], rest[n + v :]

    def forward(
        self, arguments: list[Tensor], wanted: frozenset[str] = frozenset()
    ) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """Outputs and final states, and what is kept for the way back: trajectories of the states, saved values."""
        kernels = self.kernels(arguments, wanted)
        forward = kernels.program.forward
        inputs, state, vectors, matrices = self.split(arguments)
        batch, steps, x = self.sequence.batch_size, self.sequence.steps, inputs["x"]
        ragged = self.sequence.lengths is not None
        make = x.new_zeros if ragged else x.new_empty
        outputs = [make(batch, steps, width) for width in forward.outputs]
        finals = [torch.empty_like(field) for field in state]
        placed = {name: by_step(tensor) for name, tensor in inputs.items()}
        placed |= {f"out.{k}": by_step(tensor) for k, tensor in enumerate(outputs)}
        kept: list[Tensor] = []
        for name, first, final in zip(self.fields, state, finals, strict=True):
            placed[f"first.{name}"], placed[f"final.{name}"] = by_sequence(first), by_sequence(final)
            if forward.keeps_states:
                path = x.new_empty(batch, steps + 1, first.shape[1])
                self._place_path(placed, name, path)
                kept.append(path)
        if forward.keeps_states:
            kept.append(x.new_empty(batch, steps, forward.saved))
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
        batch, steps, x = self.sequence.batch_size, self.sequence.steps, inputs["x"]
        ragged = self.sequence.lengths is not None
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
        make = x.new_zeros if ragged else x.new_empty
        grads = {name: make(batch, steps, inputs[name].shape[2]) for name in backward.inputs}
        placed |= {f"grad.{name}": by_step(grad) for name, grad in grads.items()}
        # rows are read in tiles, a few numbers past their end
        spare = x.new_empty(batch * steps * backward.derivatives + 64)
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
    rows, matrices = own[n + fields : n + fields + task.vectors], own[n + fields + task.vectors :]
    like = type(task.sequence.state)
    noise = tuple(inputs[1:]) or None
    sequence = replace(task.sequence, x=inputs[0], state=like(*state), noise=noise, resets=None)
    cell = GraphCell(step, rows, matrices, inputs[0].shape[2])
    y, final, states = reference.run(cell, sequence, task.return_states)
    results = [y, *(states if task.return_states else ()), *final]
    wanted = [a for a, need in zip(own, needs, strict=True) if need]
    pairs = [(r, d) for r, d in zip(results, derivatives, strict=True) if r.requires_grad]
    made = iter(
        torch.autograd.grad([r for r, _ in pairs], wanted, [d for _, d in pairs], create_graph=True, allow_unused=True)
    )
    return [next(made) if need else None for need in needs]
