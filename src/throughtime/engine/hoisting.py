"""The loop in plain PyTorch, with products of the input moved out of time.

The step runs as it is written, but is given its input as a `Row`, a tensor that sees which functions it is passed to.
A function of such rows (of the input, the noise, or what was made of them) and of parameters alone, which treats rows
apart, is called once, with the rows of all steps, and each step is handed its part: so W x_t is one product for all
steps, whatever else the step does.
"""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from throughtime.cells.cell import Cell, at_step, checked_step, own_step
from throughtime.engine import reference
from throughtime.engine.cpu.backend import written_down
from throughtime.engine.cpu.trace import flatten, standing_in
from throughtime.engine.rowwise import GETTERS, PRODUCTS, ROWWISE, VIEWS, by_row, leaves_alone, tensors_in
from throughtime.engine.sequence import Result, Sequence, run_forwards

BLOCK = 256  # steps whose products are made at once


def refusal(cell: Cell, sequence: Sequence | None = None) -> str | None:
    """Why this backend cannot take the cell (or this sequence), or None."""
    if torch.compiler.is_compiling():
        return "a compiler looks on"
    why = written_down() or _compiled(cell)
    if why:
        return why
    if sequence is not None:
        if any(type(t) not in (Tensor, torch.nn.Parameter) for t in (sequence.x, *flatten(sequence.noise))):
            return "its input is not a plain tensor"
        return None
    try:
        return None if hoisted_products(cell) else "its step has no product of the input and parameters alone"
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        return f"its step fails on zeros: {str(error).splitlines()[0]}"


def _compiled(cell: Cell) -> str:
    """Why rows cannot be shown to all parts of a step, or nothing: those that torch.compile made know plain tensors."""
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None:
        return ""
    for module in cell.modules():
        kind = type(module)
        if isinstance(module, dynamo.OptimizedModule) or module._compiled_call_impl is not None:
            return f"its {kind.__name__} is compiled by torch.compile"
        if any(map(_marked, vars(module).values())) or _reaches_compiled(cast(Hashable, kind)):
            return f"what its {kind.__name__} calls is compiled by torch.compile"
    return ""


def _marked(value: Any) -> bool:
    return hasattr(value, "_torchdynamo_orig_callable")


@functools.lru_cache(256)
def _reaches_compiled(kind: Any) -> bool:
    """Whether a method of a class is compiled, or what it calls by name."""
    own = [base for base in kind.__mro__ if not issubclass(torch.nn.Module, base)]
    for function in (f for base in own for f in vars(base).values() if inspect.isfunction(f)):
        found = inspect.getclosurevars(function)
        if _marked(function) or any(map(_marked, (*found.globals.values(), *found.nonlocals.values()))):
            return True
    return False


def offer(cell: Cell, sequence: Sequence) -> str | Callable[[bool], Result]:
    """How the sequence would be run, given whether all states are asked for; or why it cannot be."""
    return refusal(cell, sequence) or functools.partial(run, cell, sequence)


def run(cell: Cell, sequence: Sequence, return_states: bool) -> Result:
    """As `reference.run`."""
    if sequence.steps < 2:
        return reference.run(cell, sequence, return_states)
    return run_forwards(
        lambda forwards: reference.loop(cell, forwards, return_states, InBlocks(cell, forwards).step), sequence
    )


def describe(cell: Cell) -> str:
    """What leaves the loop, in words."""
    return "\n".join(["before time, for all steps at once:", *(f"  {product}" for product in hoisted_products(cell))])


def hoisted_products(cell: Cell) -> list[str]:
    """The products that leave the loop, found by a step over zeros."""
    tensors = {name: p.detach().clone() for name, p in (*cell.named_parameters(), *cell.named_buffers())}
    copy = standing_in(cell, tensors)  # a step that counts, counts in the copy
    with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the step thinks of zeros
        state, noise = copy.initial_state(1), copy.noise(1, 2)
        x = state[0].new_zeros(1, 2, cell.input_size)
        hoisting = Hoisting(copy, [x, *flatten(noise)])
        checked_step(copy, x[:, 0], state, at_step(noise, 0), hoisting.step)
    return hoisting.products


@dataclass
class Memory:
    """What several tensors share."""

    changed: bool = False  # or given to a function that may have changed it, or have passed it on


@dataclass(frozen=True)
class Known:
    """What is known of a row: whose it is, of which step, made by which call, in whose memory."""

    hoisting: Hoisting
    step: int
    key: int
    memory: Memory

    @property
    def holds(self) -> bool:
        return self.step == self.hoisting.step_now and not self.memory.changed


class Row(Tensor):
    """Rows (B, ...) of one step, where those of all steps are known as a whole (T * B, ...)."""

    known: Known | None = None  # None: of a copy

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        options = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func in GETTERS:
                return func(*args, **options)
            tensors = tensors_in((*args, *options.values()) if options else args)
            known = [t.known for t in tensors if isinstance(t, Row) and t.known is not None]
            if known and func in ROWWISE and all(map(known[0].hoisting.knows, tensors)):
                result = known[0].hoisting.called(func, args, options, known)
                if result is not None:
                    return result
            if not leaves_alone(func, options):
                for row in known:
                    row.memory.changed = True
            return func(*args, **options)


class InBlocks:
    """The steps of a run, so many at a time: what is made ahead of time needs no more room for a longer sequence."""

    def __init__(self, cell: Cell, sequence: Sequence) -> None:
        noise = flatten(sequence.noise)
        parts = zip(*(tensor.split(BLOCK, dim=1) for tensor in (sequence.x, *noise)), strict=True)
        self.blocks = (Hoisting(cell, list(block)) for block in parts)
        self.block: Hoisting | None = None
        self.left = 0  # steps of the block
        self.worthwhile = True

    def step(self, cell: Cell, x: Tensor, state: Any, noise: Any) -> tuple[Tensor, Any]:
        """The next step, as `checked_step` runs it."""
        if self.left == 0 and self.worthwhile:
            self.block = next(self.blocks)
            self.left = self.block.steps
        if not self.worthwhile or self.block is None:
            return checked_step(cell, x, state, noise)
        result = checked_step(cell, x, state, noise, self.block.step)
        self.left -= 1
        self.worthwhile = bool(self.block.products)
        return result


class Hoisting:
    """Steps of a cell, in order. What leaves time is what the first of them calls."""

    def __init__(self, cell: Cell, given: list[Tensor]) -> None:
        """``given``: the input and the tensors of the noise, (B, T, ...)."""
        self.batch, self.steps, self.step_now = given[0].shape[0], given[0].shape[1], -1
        self.device = given[0].device.type
        self.parameters = {id(p) for p in (*cell.parameters(), *cell.buffers())}
        self.products: list[str] = []  # that left, in words
        self.wholes: list[Any] = [t.transpose(0, 1).flatten(0, 1) for t in given]  # (T * B, ...), by key
        self.pieces: dict[int, list[Tensor | None]] = {}  # of a whole: (B, ...) for each step
        self.keys: dict[Hashable, int | None] = {}  # of calls
        self.sources: dict[int, int] = {}  # of views
        self.chained: set[int] = set()  # what others are made of; the rest need not be rows after the first step

    def step(self, cell: Cell, x: Tensor, state: Any, noise: Any) -> Any:
        """The cell's own step, the next one, with rows for what it is given of it."""
        self.step_now += 1
        keys = iter(range(len(self.wholes)))
        return _plain(own_step(cell, self.row(x, next(keys), Memory()), state, self.rows_of(noise, keys)))

    def rows_of(self, noise: Any, keys: Iterator[int]) -> Any:
        """Nested noise as rows."""
        if noise is None:
            return None
        if isinstance(noise, Tensor):
            return self.row(noise, next(keys), Memory())
        return tuple(self.rows_of(part, keys) for part in noise)

    def row(self, tensor: Tensor, key: int, memory: Memory) -> Row:
        row = tensor.as_subclass(Row)
        row.known = Known(self, self.step_now, key, memory)
        return row

    def knows(self, tensor: Tensor) -> bool:
        """Whether it is a row of this step, a parameter, or a view of one."""
        if isinstance(tensor, Row):
            known = tensor.known
            return known is not None and known.hoisting is self and known.holds
        return id(tensor) in self.parameters or id(tensor._base) in self.parameters

    def called(self, func: Any, args: tuple, options: dict[str, Any], rows: list[Known]) -> Any:
        """This step's part of what a call makes of all steps; None where it has to be made in the step."""
        call = func, _frozen(args), _frozen(options), torch.is_grad_enabled(), torch.is_autocast_enabled(self.device)
        if call not in self.keys:
            apart = not self.step_now and by_row(func, args, options, lambda t: isinstance(t, Row))
            self.keys[call] = self.for_all_steps(func, args, options, rows) if apart else None
        key = self.keys[call]
        if key is None:
            return None
        if func in VIEWS:  # of the same memory as in the step alone, which may go on to change it in place
            views = func(*args, **options)
            if isinstance(views, Tensor):
                return self.row(views, key, rows[0].memory)
            return type(views)(self.row(view, key + k, rows[0].memory) for k, view in enumerate(views))
        if key not in self.pieces:
            self.pieces[key] = list(torch.ops.aten.unbind_copy(self.by_step(key)))
        piece, self.pieces[key][self.step_now] = self.pieces[key][self.step_now], None
        if piece is None:  # asked for once more in this step, which may have changed the first in place
            piece = self.by_step(key)[self.step_now].clone()
        return piece if self.step_now and key not in self.chained else self.row(piece, key, Memory())

    def by_step(self, key: int) -> Tensor:
        return self.wholes[key].unflatten(0, (self.steps, self.batch))  # (T, B, ...)

    def for_all_steps(self, func: Any, args: tuple, options: dict[str, Any], rows: list[Known]) -> int:
        """Calls a function with the rows of all steps; the key of what it makes, or of its first part."""
        whole, key = func(*self.whole(args), **self.whole(options)), len(self.wholes)
        self.wholes += whole if isinstance(whole, (tuple, list)) else [whole]
        if func in VIEWS:
            self.sources |= dict.fromkeys(range(key, len(self.wholes)), rows[0].key)
            return key
        pending = [row.key for row in rows]
        while pending:
            self.chained.add(pending[-1])
            source = self.sources.get(pending.pop())
            pending += [] if source is None else [source]
        if func in PRODUCTS:
            weights = [tuple(t.shape) for t in tensors_in((*args, *options.values())) if not isinstance(t, Row)]
            self.products.append(f"{func.__name__.strip('_')} {', '.join(map(str, weights))}")
        return key

    def whole(self, value: Any) -> Any:
        """Arguments with all steps in place of one."""
        if isinstance(value, Row) and value.known is not None:
            return self.wholes[value.known.key]
        if isinstance(value, (tuple, list)):
            return type(value)(self.whole(part) for part in value)
        if isinstance(value, dict):
            return {name: self.whole(part) for name, part in value.items()}
        return value


def _frozen(value: Any) -> Hashable:
    """An argument as part of what a call is known by from step to step."""
    if isinstance(value, Row) and value.known is not None:
        return "row", value.known.key
    if isinstance(value, Tensor):  # a parameter, or a view of one, as it now is
        version = 0 if value.is_inference() else value._version
        if value._base is None:
            return id(value), version
        return id(value._base), version, value.shape, value.stride(), value.storage_offset()
    if isinstance(value, (tuple, list)):
        return tuple([_frozen(part) for part in value])
    if isinstance(value, dict):
        return tuple([(name, _frozen(part)) for name, part in value.items()])
    if isinstance(value, slice):
        return "slice", value.start, value.stop, value.step
    return type(value), value


def _plain(value: Any) -> Any:
    """What a step returned, without rows."""
    if isinstance(value, Row):
        return value.as_subclass(Tensor)
    if isinstance(value, tuple):
        parts = [_plain(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value
