"""One call of a cell's kernels, or of two cells' side by side."""

from __future__ import annotations

import functools
import itertools
from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from throughtime.cells.cell import Cell
from throughtime.engine import reference
from throughtime.engine.cpu.graph import evaluate
from throughtime.engine.cpu.kernels import (
    Kernels,
    Launch,
    Rows,
    by_sequence,
    by_step,
    compile_program,
    gradient_buffers,
    rows_of,
    run,
)
from throughtime.engine.cpu.once import one_at_a_time
from throughtime.engine.cpu.pages import in_large_pages, used_again
from throughtime.engine.cpu.program import Program, build
from throughtime.engine.cpu.trace import Step
from throughtime.engine.sequence import Sequence as Steps


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

    @property
    def results(self) -> int:
        """How many: outputs, all states where asked for, final states."""
        return self.outputs + len(self.fields)

    def of_sequences(self, count: int) -> list[bool]:
        """Whether an argument, of so many, has a row for each sequence: inputs and states have."""
        first = len(self.names) + len(self.fields)
        return [k < first for k in range(count)]

    def times(self, number: int) -> Task:
        """The same over so many batches in one."""
        lengths = None if self.lengths is None else self.lengths.repeat(number)
        return replace(self, batch_size=number * self.batch_size, lengths=lengths)

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
            with one_at_a_time:
                if key not in self.prepared.kernels:
                    self.prepared.kernels[key] = compile_program(self.program(arguments, wanted), dtype)
        return self.prepared.kernels[key]

    def matrices(self, arguments: list[Tensor]) -> list[Tensor]:
        return arguments[len(self.names) + len(self.fields) + self.step.vectors :]

    def split(self, arguments: list[Tensor]) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """Inputs by name, state, rows and matrices, as the kernels read them."""
        inputs = {n: _columns_together(a) for n, a in zip(self.names, arguments, strict=False)}
        rest = [_columns_together(a).contiguous() for a in arguments[len(self.names) :]]
        n, v = len(self.fields), self.step.vectors
        return inputs, rest[:n], rest[n : n + v], rest[n + v :]

    def by_reference(self, arguments: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The results in plain PyTorch: the traced step through the reference loop."""
        n, fields, step = len(self.names), len(self.fields), self.step
        inputs, state = arguments[:n], arguments[n : n + fields]
        split = n + fields + step.vectors
        like = namedtuple("like", self.fields)(*state)
        cell = GraphCell(step, list(arguments[n + fields : split]), list(arguments[split:]), inputs[0].shape[2])
        sequence = Steps(inputs[0], like, like, tuple(inputs[1:]) or None, self.lengths, None, self.reverse)
        y, final, states = reference.run(cell, sequence, self.return_states)
        return (y, *(states if states is not None else ()), *final)

    def wanted(self, needs: Sequence[bool]) -> frozenset[str]:
        """The inputs by which derivatives are needed, given whether they are by each argument."""
        return frozenset(name for name, need in zip(self.names, needs, strict=False) if need)

    def forward(
        self, arguments: list[Tensor], wanted: frozenset[str] | None = None
    ) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """Outputs and final states, and what is kept for a way back: trajectories of the states, saved values."""
        launch, results, kept = self.going_forward(arguments, wanted)
        run([launch])
        return results, kept

    def backward(
        self, arguments: list[Tensor], kept: list[Tensor], derivatives: list[Tensor], wanted: frozenset[str]
    ) -> list[Tensor | None]:
        """Derivatives by each argument."""
        launch, finish = self.going_back(arguments, kept, derivatives, wanted)
        run([launch])
        return finish()

    def going_forward(
        self, arguments: list[Tensor], wanted: frozenset[str] | None
    ) -> tuple[Launch, tuple[Tensor, ...], list[Tensor]]:
        """What is to be run, and the results and what is kept, to be filled by it."""
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
                path = used_again(x, batch, steps + 1, first.shape[1])
                self._place_path(placed, name, path)
                kept.append(path)
        if forward.keeps_states:
            kept.append(used_again(x, batch, steps, forward.saved))
            placed["saved"] = by_step(kept[-1])
        alive = [*inputs.values(), *state, *outputs, *finals, *kept]
        launch = Launch(kernels.forward, kernels.forward_layout, self.rows, placed, vectors, matrices, [], alive)
        return launch, (*outputs, *finals), kept

    def _place_path(self, placed: dict, name: str, path: Tensor) -> None:
        """A trajectory holds T + 1 states; in reverse, the state before step t stands at t + 1."""
        before, after = (1, 0) if self.rows.reverse else (0, 1)
        placed[f"before.{name}"], placed[f"after.{name}"] = by_step(path, step=before), by_step(path, step=after)

    def going_back(
        self, arguments: list[Tensor], kept: list[Tensor], derivatives: list[Tensor], wanted: frozenset[str]
    ) -> tuple[Launch, Callable[[], list[Tensor | None]]]:
        """What is to be run, and what makes the derivatives by each argument when it has been."""
        kernels = self.kernels(arguments, wanted)
        backward = kernels.program.backward
        assert backward is not None
        assert kernels.backward_layout is not None
        inputs, state, vectors, matrices = self.split(arguments)
        batch, steps, x = self.batch_size, self.steps, inputs["x"]
        ragged = self.lengths is not None
        placed = {name: by_step(tensor) for name, tensor in inputs.items()}
        kept = [tensor.contiguous() for tensor in kept]  # hooks on saved tensors may have laid them out anew
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
        spare = used_again(x, batch * steps * backward.derivatives + 64)
        stride = steps * backward.derivatives
        placed["derivatives"] = (spare.data_ptr(), stride, backward.derivatives)
        sums = x.new_zeros(batch, backward.sums)
        placed["sums"] = by_sequence(sums)
        results = gradient_buffers(kernels, x.dtype)
        alive = [*inputs.values(), *kept, *hold, *firsts, *grads.values(), spare, sums]
        launch = Launch(kernels.backward, kernels.backward_layout, self.rows, placed, vectors, matrices, results, alive)

        def finish() -> list[Tensor | None]:
            vector_grads: list[Tensor | None] = [None] * len(vectors)
            total = sums.sum(0)
            for parameter, first, width, column in backward.vectors:
                part = total[column : column + width]
                if width != len(vectors[parameter]):
                    part = torch.nn.functional.pad(part, (first, len(vectors[parameter]) - first - width))
                known = vector_grads[parameter]
                vector_grads[parameter] = part if known is None else known + part
            matrix_grads: list[Tensor | None] = [None] * len(matrices)
            for gradient, result in zip(backward.matrices, results, strict=True):
                part = result[: gradient.width, : gradient.source_width]
                known = matrix_grads[gradient.matrix]
                matrix_grads[gradient.matrix] = part if known is None else known + part
            return [*(grads.get(name) for name in self.names), *firsts, *vector_grads, *matrix_grads]

        return launch, finish


class SideBySide:
    """Tasks that do not wait for each other, as one: their arguments, results and what they keep come in turn."""

    def __init__(self, tasks: Sequence[Task], counts: Sequence[int]) -> None:
        """``counts``: how many arguments each has."""
        self.tasks, self.counts = tuple(tasks), tuple(counts)

    @property
    def results(self) -> int:
        return sum(task.results for task in self.tasks)

    @property
    def batch_size(self) -> int:
        return self.tasks[0].batch_size

    def apart(
        self, arguments: Sequence[Any], kept: Sequence[Any], derivatives: Sequence[Any]
    ) -> list[tuple[list[Any], list[Any], list[Any]]]:
        """What is each task's of these."""
        own = _in_runs(arguments, self.counts)
        theirs = _in_runs(kept, [len(task.fields) + 1 for task in self.tasks])
        given = _in_runs(derivatives, [task.results for task in self.tasks])
        return list(zip(own, theirs, given, strict=True))

    def times(self, number: int) -> SideBySide:
        return SideBySide([task.times(number) for task in self.tasks], self.counts)

    def of_sequences(self, count: int) -> list[bool]:
        return [of for task, own in zip(self.tasks, self.counts, strict=True) for of in task.of_sequences(own)]

    def wanted(self, needs: Sequence[bool]) -> tuple[frozenset[str], ...]:
        parts = _in_runs(needs, self.counts)
        return tuple(task.wanted(part) for task, part in zip(self.tasks, parts, strict=True))

    def by_reference(self, arguments: Sequence[Tensor]) -> tuple[Tensor, ...]:
        parts = _in_runs(arguments, self.counts)
        made = [task.by_reference(part) for task, part in zip(self.tasks, parts, strict=True)]
        return tuple(itertools.chain.from_iterable(made))

    def forward(
        self, arguments: Sequence[Tensor], wanted: tuple[frozenset[str], ...] | None = None
    ) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        parts = _in_runs(arguments, self.counts)
        asked = wanted or (None,) * len(parts)
        begun = [t.going_forward(part, names) for t, part, names in zip(self.tasks, parts, asked, strict=True)]
        run([launch for launch, _, _ in begun])
        results = tuple(itertools.chain.from_iterable(made for _, made, _ in begun))
        return results, list(itertools.chain.from_iterable(kept for _, _, kept in begun))

    def backward(
        self, arguments: list[Tensor], kept: list[Tensor], derivatives: list[Tensor],
        wanted: tuple[frozenset[str], ...],
    ) -> list[Tensor | None]:  # fmt: skip
        parts = self.apart(arguments, kept, derivatives)
        begun = [task.going_back(*part, names) for task, part, names in zip(self.tasks, parts, wanted, strict=True)]
        run([launch for launch, _ in begun])
        return list(itertools.chain.from_iterable(finish() for _, finish in begun))


def _in_runs(values: Sequence[Any], counts: Sequence[int]) -> list[list[Any]]:
    """The first so many values, then the next so many, ..."""
    taken = iter(values)
    return [list(itertools.islice(taken, count)) for count in counts]


def _made(like: Tensor, zeros: bool, *shape: int) -> Tensor:
    made = in_large_pages(like.new_empty(shape))
    return made.zero_() if zeros else made


def _columns_together(tensor: Tensor) -> Tensor:
    """A tensor whose last axis lies side by side; the others may be anywhere."""
    if tensor.is_neg():  # PyTorch negates the imaginary part of a conjugate when it is read
        tensor = tensor.resolve_neg()
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


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
