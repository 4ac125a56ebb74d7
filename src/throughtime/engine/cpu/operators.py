"""The kernels as operators of PyTorch's, for its compilers: torch.compile, torch.export, AOT autograd.

An operator is told by text which step it runs (see `wire`), so that a graph with it needs nothing else of the cell
that it was made from, and can be written to a file and read where `throughtime` is installed.

``throughtime::unroll``
    outputs, all states where asked for, final states. Differentiable: where a gradient is asked for,
``throughtime::unroll_kept``
    does the same and returns, behind these, what the way back reads again;
``throughtime::unroll_backward``
    makes from it the derivatives by each argument.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, fx

from throughtime.cells.cell import Cell
from throughtime.engine.cpu.differentiable import differentiably, in_transform
from throughtime.engine.cpu.graph import walk
from throughtime.engine.cpu.task import Prepared, Task
from throughtime.engine.cpu.wire import from_text, to_text

_library = torch.library.Library("throughtime", "DEF")
_ARGUMENTS = "str step, Tensor[] inputs, Tensor[] state, Tensor[] rows, Tensor[] matrices, Tensor? lengths"
_WAY = "bool reverse, bool return_states"
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
_library.define(f"unroll({_ARGUMENTS}, {_WAY}) -> Tensor[]", tags=_TAGS)
_library.define(f"unroll_kept({_ARGUMENTS}, {_WAY}, str[] wanted) -> Tensor[]", tags=_TAGS)
_library.define(
    f"unroll_backward({_ARGUMENTS}, {_WAY}, str[] wanted, Tensor[] kept, Tensor[] derivatives) -> Tensor[]", tags=_TAGS
)
unroll = torch.ops.throughtime.unroll.default
unroll_kept = torch.ops.throughtime.unroll_kept.default
unroll_backward = torch.ops.throughtime.unroll_backward.default


# What a compiler takes for constant of a cell


def _outside(function: Any) -> Any:
    """Runs a function while a compiler traces, untraced, and hands it the result as a constant."""

    @functools.wraps(function)
    def outside(*arguments: Any) -> Any:
        # numbers, not the stand-ins of the compiler at work
        with (
            torch.utils._python_dispatch._disable_current_modes(),
            torch._C.DisableTorchFunction(),
            torch._guards.tracing(None),
            torch.enable_grad(),
        ):
            return function(*arguments)

    return torch.compiler.assume_constant_result(outside)


def _prepared(cell: Cell, dtype: torch.dtype, widths: Any, resetting: bool) -> Prepared | str:
    from throughtime.engine.cpu.backend import prepare  # which runs these operators

    return prepare(cell, widths, resetting=resetting, dtype=dtype)


@_outside
def surroundings_compiled() -> str:
    """Why no cell can be taken where the program now stands, or nothing."""
    from throughtime.engine.cpu.backend import surroundings

    return "it is inside a transform of torch.func, compiled" if in_transform() else surroundings()


@_outside
def refusal(cell: Cell, dtype: torch.dtype, widths: Any, resetting: bool) -> str:
    """Why the kernels cannot take a cell, or nothing."""
    prepared = _prepared(cell, dtype, widths, resetting)
    return prepared if isinstance(prepared, str) else ""


@_outside
def text(cell: Cell, dtype: torch.dtype, widths: Any, resetting: bool) -> str:
    """The step that the operators are to run."""
    prepared = _prepared(cell, dtype, widths, resetting)
    assert isinstance(prepared, Prepared)
    return to_text(prepared.step)


_prologues: list[fx.GraphModule] = []


@_outside
def prologue(cell: Cell, dtype: torch.dtype, widths: Any, resetting: bool) -> int:
    """The number of what makes the step's rows and matrices from the cell's parameters."""
    prepared = _prepared(cell, dtype, widths, resetting)
    assert isinstance(prepared, Prepared)
    made = prepared.step.prologue
    assert made is not None
    if made not in _prologues:
        _prologues.append(made)
    return _prologues.index(made)


@torch.compiler.allow_in_graph
def rows_and_matrices(number: int, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """What the prologue of that number makes of a cell's parameters and buffers."""
    return _prologues[number](*tensors)


@_outside
def vectors(cell: Cell, dtype: torch.dtype, widths: Any, resetting: bool) -> int:
    """How many of these are rows."""
    prepared = _prepared(cell, dtype, widths, resetting)
    assert isinstance(prepared, Prepared)
    return prepared.step.vectors


# The operators


@functools.lru_cache(maxsize=256)
def _read(step: str) -> Prepared:
    return Prepared(from_text(step))


def _task(
    step: str, inputs: list[Tensor], lengths: Tensor | None, reverse: bool, return_states: bool, kind: type[Task] = Task
) -> Task:
    batch, steps, _ = inputs[0].shape
    return kind(_read(step), batch, steps, lengths, reverse, return_states)


def _check(task: Task, inputs: list[Tensor], state: list[Tensor], rows: list[Tensor], matrices: list[Tensor]) -> None:
    """What a graph was compiled for may not be what it is run on; kernels trust their arguments."""
    batch, steps, lengths = task.batch_size, task.steps, task.lengths
    x, wanted = inputs[0], _shapes_of(task.prepared)
    groups = (inputs, state, rows, matrices)
    if [len(group) for group in groups] != [len(shapes) for shapes in wanted]:
        numbers = [[len(part) for part in parts] for parts in (groups, wanted)]
        raise ValueError(f"{numbers[0]} inputs, states, rows and matrices where the step takes {numbers[1]}")
    leading = ((batch, steps), (batch,), (), ())
    for group, shapes, before in zip(groups, wanted, leading, strict=True):
        for tensor, shape in zip(group, shapes, strict=True):
            behind = tensor.shape[len(before) :]
            fits = behind >= shape if group is rows else behind == (shape or behind)  # a row may be read in part
            if tensor.shape[: len(before)] != before or len(behind) != (1, 2)[group is matrices] or not fits:
                raise ValueError(f"a tensor of shape {tuple(tensor.shape)} where the step takes {(*before, *shape)}")
            if tensor.dtype != x.dtype:
                raise ValueError(f"inputs, state and parameters are of different precision: {tensor.dtype}, {x.dtype}")
    if lengths is not None:
        if lengths.shape != (batch,):
            raise ValueError(f"lengths must be ({batch},), one a sequence, not {tuple(lengths.shape)}")
        if batch and not 0 <= int(lengths.min()) <= int(lengths.max()) <= steps:
            raise ValueError(f"lengths must lie in 0..{steps}; they are {lengths.tolist()}")


Shapes = list[tuple[int, ...]]


def _shapes_of(prepared: Prepared) -> tuple[Shapes, Shapes, Shapes, Shapes]:
    """Of inputs and states behind batch and time, of rows and of matrices; () where the step does not read it."""
    step = prepared.step
    nodes = walk([step.y, *step.state])
    given = {node.detail: node.width for node in nodes if node.op == "input"}
    rows: Shapes = [()] * step.vectors
    matrices: dict[int, tuple[int, ...]] = {}
    for node in nodes:
        if node.op == "vector":
            number, first = node.detail
            rows[number] = max(rows[number], (first + node.width,))
        elif node.op == "mm":
            matrices[node.detail[0]] = (node.width, node.arguments[0].width)
    names = ["x", *(f"noise.{k}" for k in range(step.noise))]
    inputs: Shapes = [(given[name],) if name in given else () for name in names]
    return inputs, [(node.width,) for node in step.state], rows, [matrices[k] for k in sorted(matrices)]


def _unroll(
    step: str, inputs: list[Tensor], state: list[Tensor], rows: list[Tensor], matrices: list[Tensor],
    lengths: Tensor | None, reverse: bool, return_states: bool,
) -> list[Tensor]:  # fmt: skip
    task = _task(step, inputs, lengths, reverse, return_states)
    _check(task, inputs, state, rows, matrices)
    results, _ = task.forward([a.detach() for a in (*inputs, *state, *rows, *matrices)])
    return list(results)


def _unroll_kept(
    step: str, inputs: list[Tensor], state: list[Tensor], rows: list[Tensor], matrices: list[Tensor],
    lengths: Tensor | None, reverse: bool, return_states: bool, wanted: list[str],
) -> list[Tensor]:  # fmt: skip
    task = _task(step, inputs, lengths, reverse, return_states)
    _check(task, inputs, state, rows, matrices)
    results, kept = task.forward([a.detach() for a in (*inputs, *state, *rows, *matrices)], frozenset(wanted))
    return [*results, *kept]


def _unroll_backward(
    step: str, inputs: list[Tensor], state: list[Tensor], rows: list[Tensor], matrices: list[Tensor],
    lengths: Tensor | None, reverse: bool, return_states: bool, wanted: list[str], kept: list[Tensor],
    derivatives: list[Tensor],
) -> list[Tensor]:  # fmt: skip
    task = _task(step, inputs, lengths, reverse, return_states)
    arguments = [a.detach() for a in (*inputs, *state, *rows, *matrices)]
    grads = task.backward(arguments, list(kept), list(derivatives), frozenset(wanted))
    pairs = zip(grads, arguments, strict=True)
    return [torch.zeros_like(a) if g is None else g.contiguous() for g, a in pairs]


def _shapes(
    step: str, inputs: list[Tensor], state: list[Tensor], rows: list[Tensor], matrices: list[Tensor],
    lengths: Tensor | None, reverse: bool, return_states: bool,
) -> list[Tensor]:  # fmt: skip
    """Tensors without data, as `_unroll` returns."""
    task = _task(step, inputs, lengths, reverse, return_states)
    make, batch, steps = inputs[0].new_empty, task.batch_size, task.steps
    widths = [task.step.y.width] + [node.width for node in task.step.state] * return_states
    return [make(batch, steps, width) for width in widths] + [make(batch, node.width) for node in task.step.state]


def _shapes_kept(
    step: str, inputs: list[Tensor], state: list[Tensor], rows: list[Tensor], matrices: list[Tensor],
    lengths: Tensor | None, reverse: bool, return_states: bool, wanted: list[str],
) -> list[Tensor]:  # fmt: skip
    task = _task(step, inputs, lengths, reverse, return_states)
    make, batch, steps = inputs[0].new_empty, task.batch_size, task.steps
    program = task.program([*inputs, *state, *rows, *matrices], frozenset(wanted))
    kept = [make(batch, steps + 1, node.width) for node in task.step.state]
    kept.append(make(batch, steps, program.forward.saved))
    return [*_shapes(step, inputs, state, rows, matrices, lengths, reverse, return_states), *kept]


def _shapes_backward(
    step: str, inputs: list[Tensor], state: list[Tensor], rows: list[Tensor], matrices: list[Tensor],
    lengths: Tensor | None, reverse: bool, return_states: bool, wanted: list[str], kept: list[Tensor],
    derivatives: list[Tensor],
) -> list[Tensor]:  # fmt: skip
    return [a.new_empty(a.shape) for a in (*inputs, *state, *rows, *matrices)]


class _Operated(Task):
    """A task by way of the operators, so that a compiler sees these."""

    text: str

    def _arguments(self, arguments: list[Tensor]) -> tuple[Any, ...]:
        first, second = len(self.names), len(self.names) + len(self.fields)
        third = second + self.step.vectors
        parts = arguments[:first], arguments[first:second], arguments[second:third], arguments[third:]
        return (self.text, *parts, self.lengths, self.reverse, self.return_states)

    def forward(
        self, arguments: list[Tensor], wanted: frozenset[str] | None = None
    ) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        with torch._C._AutoDispatchBelowAutograd():
            made = unroll_kept(*self._arguments(arguments), sorted(wanted or ()))
        results = self.outputs + len(self.fields)
        return tuple(made[:results]), made[results:]

    def backward(
        self, arguments: list[Tensor], kept: list[Tensor], derivatives: list[Tensor], wanted: frozenset[str]
    ) -> list[Tensor | None]:
        with torch._C._AutoDispatchBelowAutograd():
            return unroll_backward(*self._arguments(arguments), sorted(wanted), kept, derivatives)


def _unroll_differentiably(
    step: str, inputs: list[Tensor], state: list[Tensor], rows: list[Tensor], matrices: list[Tensor],
    lengths: Tensor | None, reverse: bool, return_states: bool,
) -> list[Tensor]:  # fmt: skip
    arguments = [*inputs, *state, *rows, *matrices]
    if torch.is_grad_enabled() and any(a.requires_grad for a in arguments):
        task = _task(step, inputs, lengths, reverse, return_states, _Operated)
        assert isinstance(task, _Operated)
        task.text = step
        return list(differentiably(task, arguments))
    with torch._C._AutoDispatchBelowAutograd():
        return unroll(step, inputs, state, rows, matrices, lengths, reverse, return_states)


_library.impl("unroll", _unroll, "CPU")
_library.impl("unroll_kept", _unroll_kept, "CPU")
_library.impl("unroll_backward", _unroll_backward, "CPU")
_library.impl("unroll", _unroll_differentiably, "Autograd")
torch.library.register_fake("throughtime::unroll", _shapes, lib=_library)
torch.library.register_fake("throughtime::unroll_kept", _shapes_kept, lib=_library)
torch.library.register_fake("throughtime::unroll_backward", _shapes_backward, lib=_library)
