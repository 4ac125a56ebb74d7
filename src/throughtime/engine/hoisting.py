"""The loop in plain PyTorch, with products of the input moved out of time.

The step runs as it is written, but is given its input as a `Row`, a tensor that sees which functions it is passed to. A
product of its columns by a parameter is made once, for all steps of a block, and each step is handed its part: so W x_t
is one product, whatever else the step does. Nothing else is moved: what a step does with the result is its own.
"""

from __future__ import annotations

import copy
import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator
from types import CodeType
from typing import Any, cast

import torch
from torch import Tensor, nn

from throughtime.cells.cell import Cell, at_step, checked_step, own_step
from throughtime.engine import reference
from throughtime.engine.cpu.backend import written_down
from throughtime.engine.cpu.trace import standing_in
from throughtime.engine.sequence import Result, Sequence, run_forwards

BLOCK = 256  # steps whose products are made at once
PLAIN = (Tensor, nn.Parameter, nn.Buffer)
# A step that takes derivatives itself, or goes behind PyTorch's back, needs each product in its own place.
WARY = frozenset((
    "grad", "backward", "jacobian", "vjp", "jvp", "checkpoint", "register_hook", "register_prehook", "retain_grad",
    "grad_fn", "requires_grad", "requires_grad_", "data", "numpy", "set_", "data_ptr", "from_numpy",
))  # fmt: skip
NOT_OF_A_STEP = ("__init__", "reset_parameters", "extra_repr")
PRODUCTS = frozenset(
    [nn.functional.linear, torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__, torch.addmm]
)
CHUNKS = frozenset([torch.chunk, torch.split, Tensor.chunk, Tensor.split])
VIEWS = CHUNKS | {Tensor.__getitem__}


def refusal(cell: Cell, sequence: Sequence | None = None) -> str | None:
    """Why this backend cannot take the cell (or this sequence), or None."""
    if torch.compiler.is_compiling():
        return "a compiler looks on"
    if torch.is_inference_mode_enabled():
        return "in inference mode tensors do not tell of changes in place"
    why = written_down() or _parts_in_the_way(cell)
    if why:
        return why
    if sequence is not None:
        return None if type(sequence.x) in PLAIN else "its input is not a plain tensor"
    try:
        return None if hoisted_products(cell) else "its step has no product of the input by a parameter"
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError) as error:
        return f"its step fails on zeros: {(str(error) or type(error).__name__).splitlines()[0]}"


def _parts_in_the_way(cell: Cell) -> str:
    """Why rows cannot be shown to all parts of a step, or nothing."""
    for tensor in (*cell.parameters(), *cell.buffers()):
        if type(tensor) not in PLAIN or tensor.is_inference():
            return f"a parameter is a {type(tensor).__name__} of its own kind, or made in inference mode"
    dynamo = sys.modules.get("torch._dynamo")
    for module in cell.modules():
        name = type(module).__name__
        if module._backward_hooks and not module._is_full_backward_hook:
            return f"its {name} has a backward hook of the kind that is not full"
        made = dynamo is not None and isinstance(module, dynamo.OptimizedModule)
        if made or module._compiled_call_impl is not None:
            return f"its {name} is compiled by torch.compile"
        found = _met_in(cast(Hashable, type(module))) or _first(map(_met_by, vars(module).values()))
        if found:
            return f"its {name} {found}"
    return ""


def _first(words: Iterable[str]) -> str:
    return next(filter(None, words), "")


@functools.lru_cache(256)
def _met_in(kind: Any) -> str:
    """What a class that is not PyTorch's own has in its methods that keeps products where they are, in words."""
    bases = [base for base in kind.__mro__ if base.__module__.split(".")[0] not in ("torch", "builtins")]
    return _first(_met_by(v) for base in bases for name, v in vars(base).items() if name not in NOT_OF_A_STEP)


def _met_by(value: Any, depth: int = 3) -> str:
    """The same of a function and those that it calls by name."""
    if hasattr(value, "_torchdynamo_orig_callable"):
        return "calls what torch.compile made"
    function = inspect.unwrap(value) if inspect.isroutine(value) else value
    if not inspect.isfunction(function) or function.__module__.split(".")[0] == "torch" or depth == 0:
        return ""
    met = WARY & set(_names(function.__code__))
    if met:
        return f"uses {sorted(met)[0]}"
    found = inspect.getclosurevars(function)
    return _first(_met_by(v, depth - 1) for v in (*found.globals.values(), *found.nonlocals.values()))


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def offer(cell: Cell, sequence: Sequence) -> str | Callable[[bool], Result]:
    """How the sequence would be run, given whether all states are asked for; or why it cannot be."""
    return refusal(cell, sequence) or functools.partial(run, cell, sequence)


def run(cell: Cell, sequence: Sequence, return_states: bool) -> Result:
    """As `reference.run`."""
    if sequence.steps < 2 or not _finite(sequence.x):
        return reference.run(cell, sequence, return_states)
    return run_forwards(
        lambda forwards: reference.loop(cell, forwards, return_states, InBlocks(cell, forwards.x).step), sequence
    )


def _finite(x: Tensor) -> bool:
    """Of a product that a step goes without, a derivative of zero times infinity would be left."""
    return torch._C._functorch.is_functorch_wrapped_tensor(x) or bool(x.detach().isfinite().all())


def describe(cell: Cell) -> str:
    """What leaves the loop, in words."""
    return "\n".join(["before time, for many steps at once:", *(f"  {product}" for product in hoisted_products(cell))])


def hoisted_products(cell: Cell) -> list[str]:
    """The products that leave the loop, found by a step over zeros."""
    tensors = {name: p.detach().clone() for name, p in (*cell.named_parameters(), *cell.named_buffers())}
    stand_in = standing_in(cell, tensors)  # a step that counts, counts there
    with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the step thinks of zeros
        state, noise = stand_in.initial_state(1), stand_in.noise(1, 2)
        x = state[0].new_zeros(1, 2, cell.input_size)
        hoisting = Hoisting(stand_in, x)
        checked_step(stand_in, x[:, 0], state, at_step(noise, 0), hoisting.step)
    return hoisting.products


class InBlocks:
    """The steps of a run, so many at a time: what is made ahead of time needs no more room for a longer sequence."""

    def __init__(self, cell: Cell, x: Tensor) -> None:
        self.blocks = (Hoisting(cell, part) for part in x.split(BLOCK, dim=1))
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


class Row(Tensor):
    """The input at one step (B, I), or columns of it, where those of all steps are known as a whole (T * B, I)."""

    hoisting: Hoisting | None = None  # None: of a copy
    key = 0  # of the whole
    step = 0
    source: Any = None  # its grad_fn, when it was made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        options = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func is Tensor.__deepcopy__:
                return copy.deepcopy(args[0].as_subclass(Tensor), *args[1:])
            if func in PRODUCTS or func in VIEWS:
                row = args[1 if func is torch.addmm else 0] if args else None
                if isinstance(row, Row) and row.hoisting is not None and row.hoisting.knows(row):
                    made = row.hoisting.product if func in PRODUCTS else row.hoisting.view
                    result = made(func, args, options, row)
                    if result is not None:
                        return result
            return func(*args, **options)


class Hoisting:
    """Steps of a cell, in order. What leaves time is what the first of them calls."""

    def __init__(self, cell: Cell, x: Tensor) -> None:
        self.batch, self.steps, self.now = x.shape[0], x.shape[1], -1
        self.device = x.device.type
        self.parameters = {id(p) for p in (*cell.parameters(), *cell.buffers())}
        self.products: list[str] = []  # that left, in words
        self.wholes: list[Tensor] = [x.transpose(0, 1).flatten(0, 1)]  # (T * B, I), and columns of it
        self.keys: dict[Hashable, int] = {}  # of views
        self.pieces: dict[Hashable, list[Tensor | None]] = {}  # of products: (B, N) for each step

    def step(self, cell: Cell, x: Tensor, state: Any, noise: Any) -> Any:
        """The cell's own step, the next one, on a row."""
        self.now += 1
        return _plain(own_step(cell, self.row(x, 0), state, noise))

    def row(self, tensor: Tensor, key: int) -> Row:
        row = tensor.as_subclass(Row)
        row.hoisting, row.key, row.step, row.source = self, key, self.now, row.grad_fn
        return row

    def knows(self, row: Row) -> bool:
        """Whether it is of this step, and as it was made."""
        return row.step == self.now and row.grad_fn is row.source and row.dim() == 2

    def product(self, func: Any, args: tuple, options: dict[str, Any], row: Row) -> Tensor | None:
        """This step's part of a product, or None where it has to be made in the step."""
        others = [a for a in (*args, *options.values()) if a is not row]
        if not all(self.fixed(a) for a in others if a is not None) or (func is torch.addmm and args[0].dim() != 1):
            return None
        modes = torch.is_grad_enabled(), torch.is_autocast_enabled(self.device)
        call = func, row.key, *map(_frozen, others), *options, modes
        if call not in self.pieces:
            if self.now:
                return None
            swapped = [self.wholes[row.key] if a is row else a for a in args]
            whole = func(*swapped, **options).unflatten(0, (self.steps, self.batch))  # (T, B, N)
            self.pieces[call] = list(torch.ops.aten.unbind_copy(whole))
            shapes = [str(tuple(a.shape)) for a in others if isinstance(a, Tensor)]
            self.products.append(f"{func.__name__.strip('_')} {', '.join(shapes)}")
        pieces = self.pieces[call]
        piece, pieces[self.now] = pieces[self.now], None  # asked for again, it is made in the step
        return piece

    def fixed(self, value: Any) -> bool:
        """Whether it is a parameter or a view of one, a matrix or a row."""
        if not isinstance(value, Tensor) or isinstance(value, Row) or value.dim() not in (1, 2):
            return False
        return id(value) in self.parameters or id(value._base) in self.parameters

    def view(self, func: Any, args: tuple, options: dict[str, Any], row: Row) -> Any:
        """The view that the step asks for, as rows where it is of columns."""
        if not _over_columns(func, args, options):
            return None
        call = func, row.key, repr(args[1:]), repr(options), torch.is_grad_enabled()
        whole = func(self.wholes[row.key], *args[1:], **options) if call not in self.keys else None
        made = func(*args, **options)
        if whole is not None:
            self.keys[call] = len(self.wholes)
            self.wholes += whole if isinstance(whole, tuple) else [whole]
        key = self.keys[call]
        if isinstance(made, tuple):
            return tuple(self.row(view, key + k) for k, view in enumerate(made))
        return self.row(made, key)


def _over_columns(func: Any, args: tuple, options: dict[str, Any]) -> bool:
    """Whether a view takes all rows, and the same columns of each."""
    if func in CHUNKS:
        return (args[2] if len(args) > 2 else options.get("dim", 0)) in (1, -1)
    index = args[1]
    return (
        isinstance(index, tuple)
        and len(index) == 2
        and all(isinstance(i, slice) for i in index)
        and index[0] == slice(None)
        and all(type(part) in (int, type(None)) for part in (index[1].start, index[1].stop, index[1].step))
    )


def _frozen(value: Any) -> Hashable:
    """A parameter, or a view of one, as it now is: what a call is known by from step to step."""
    if value is None:
        return None
    owner = value if value._base is None else value._base
    kind = value.shape, value.stride(), value.storage_offset(), value.dtype, value.is_conj(), value.is_neg()
    return id(owner), value._version, value.requires_grad, *kind


def _plain(value: Any) -> Any:
    """What a step returned, without rows."""
    if isinstance(value, Row):
        return value.as_subclass(Tensor)
    if isinstance(value, tuple):
        parts = [_plain(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value
