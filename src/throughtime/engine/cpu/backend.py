"""The backend "cpu": one compiled kernel for a whole sequence, and one for the way back."""

from __future__ import annotations

import contextlib
import functools
import itertools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from throughtime.cells.cell import Cell
from throughtime.cells.wrappers import Wrapper
from throughtime.engine.cpu import operators
from throughtime.engine.cpu.complex_numbers import real_parts, rejoined
from throughtime.engine.cpu.differentiable import differentiably, in_transform
from throughtime.engine.cpu.graph import Untraceable
from throughtime.engine.cpu.kernels import REAL
from throughtime.engine.cpu.machine import instruction_set
from throughtime.engine.cpu.once import one_at_a_time
from throughtime.engine.cpu.program import build, describe_program
from throughtime.engine.cpu.settings import watched
from throughtime.engine.cpu.task import Prepared, SideBySide, Task
from throughtime.engine.cpu.trace import flatten, trace, widths_of, with_data
from throughtime.engine.sequence import Result, Sequence, map_state


class Resetting(Wrapper):
    """A cell whose state goes back to initial where a reset says so: noise is (inner noise, reset, initial state)."""

    def step(self, x: Tensor, state: Any, noise: Any = None) -> tuple[Tensor, Any]:
        inner, reset, initial = noise
        state = map_state(lambda old, new: torch.where(reset != 0, new, old), state, rejoined(initial, state))
        return self.inner_step(x, state, inner)


TRANSFORMS = (torch._C._functorch.TransformType.Grad, torch._C._functorch.TransformType.Vmap)
TRACERS = (torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY)
ORDINARY = (Tensor.__torch_function__, nn.Parameter.__torch_function__)
REMEMBERED = 64  # traces of one cell, of the settings that it had
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training"}
_prepared: weakref.WeakKeyDictionary[Cell, dict[Any, Prepared | str]] = weakref.WeakKeyDictionary()


def refusal(cell: Cell, sequence: Sequence | None = None) -> str | None:
    """Why this backend cannot take the cell (or this sequence), or None."""
    offered = offer(cell, sequence)
    return offered if isinstance(offered, str) else None


def offer(cell: Cell, sequence: Sequence | None) -> str | Callable[[bool], Result]:
    """How the sequence would be run, given whether all states are asked for; or why it cannot be."""
    compiling = torch.compiler.is_compiling()
    why = operators.surroundings_compiled() if compiling else surroundings()
    if why:
        return why
    if torch.is_autocast_enabled("cpu"):
        return "autocast is on"
    own, settings = (tensors_of(cell), ()) if compiling else _tensors_and_settings(cell)
    tensors = [tensor for tensor in own.values() if isinstance(tensor, nn.Parameter) or tensor.is_floating_point()]
    if sequence is not None:
        tensors += [sequence.x, *real_parts(sequence.state), *flatten(sequence.noise)]
    why = _unfit(tensors) or ("" if compiling else _of_its_own_kind(tensors))
    if why:
        return why
    noise = None if sequence is None else noise_of(sequence)
    widths, resetting = widths_of(noise), sequence is not None and sequence.resets is not None
    if compiling:
        named = getattr(cell, "stands_for", cell), tensors[-1].dtype, widths, resetting
        return operators.refusal(*named) or functools.partial(_run_compiled, named, own, sequence, noise)
    prepared = _prepare(cell, own, settings, widths, resetting, None)
    return prepared if isinstance(prepared, str) else Offer(prepared, own, sequence, noise)


def _unfit(tensors: list[Tensor]) -> str:
    """Why kernels cannot read these, or nothing."""
    for tensor in tensors:
        if tensor.is_complex():
            return "it has complex parameters"
        if tensor.device.type != "cpu":
            return f"it runs on the CPU, not on {tensor.device.type}"
        if tensor.dtype not in REAL:
            return f"it takes float32 and float64, not {str(tensor.dtype).removeprefix('torch.')}"
    if any(tensor.dtype != tensors[0].dtype for tensor in tensors):
        return "input, state and parameters are of different precision"
    return ""


def _of_its_own_kind(tensors: list[Tensor]) -> str:
    """Why kernels may not read these, or nothing: to a class of tensors with functions of its own, they are not all."""
    for tensor in tensors:
        if type(tensor).__torch_function__ not in ORDINARY:
            return f"one of its tensors is a {type(tensor).__name__} of its own kind"
    return ""


def surroundings() -> str:
    """Why no cell can be taken where the program now stands, or nothing."""
    if instruction_set() == "none":
        return "this processor has none of AVX-512, AVX2 and NEON"
    if torch.autograd.forward_ad._current_level >= 0:
        return "derivatives are taken in forward mode"
    if in_transform() and any(level.key() not in TRANSFORMS for level in torch._C._functorch.get_interpreter_stack()):
        return "it is inside a transform of torch.func other than grad, vjp and vmap"
    why = written_down()
    if why:
        return why
    if torch.nn.modules.module._has_any_global_hook():
        return "hooks are set on all modules, which a kernel would not call"
    return ""


def written_down() -> str:
    """Why steps have to run as they are written, or nothing: a tracer looks on, and there may be no numbers."""
    if torch._C._get_tracing_state() is not None or any(map(torch._C._get_dispatch_mode, TRACERS)):
        return "PyTorch's operations are being written down, and tensors may have no numbers"
    return ""


def noise_of(sequence: Sequence) -> Any:
    """The noise of a sequence, with resets as part of it."""
    if sequence.resets is None:
        return sequence.noise
    initial = tuple(part[:, None].expand(-1, sequence.steps, -1) for part in real_parts(sequence.initial))
    return sequence.noise, _borders(sequence).to(sequence.x.dtype), initial


def tensors_of(cell: Cell) -> dict[str, Tensor]:
    """A cell's parameters and buffers by name."""
    return dict(cell.named_parameters()) | dict(cell.named_buffers())


def prepare(cell: Cell, widths: Any, *, resetting: bool = False, dtype: torch.dtype | None = None) -> Prepared | str:
    """The cell traced, from memory where nothing has changed, or the reason why it cannot be.

    Args:
        widths: of the noise, as `widths_of` tells them.
        resetting: whether its state goes back to initial now and then.
        dtype: of its numbers, where its own parameters do not tell.
    """
    return _prepare(cell, *_tensors_and_settings(cell), widths, resetting, dtype)


def _prepare(
    cell: Cell, tensors: dict[str, Tensor], settings: tuple, widths: Any, resetting: bool, dtype: torch.dtype | None
) -> Prepared | str:
    shapes = tuple([(name, p.shape, p.dtype) for name, p in tensors.items()])
    key = (shapes, widths, settings, resetting, dtype)
    known = _prepared.setdefault(getattr(cell, "stands_for", cell), {})
    with one_at_a_time if key not in known else contextlib.nullcontext():
        if key in known:
            return known[key]
        hooked = _hooked(cell)
        if hooked:
            known[key] = hooked
            return hooked
        with temporarily_clear_interpreter_stack():  # a trace is no part of a transform of torch.func
            real = {name: with_data(p, dtype) for name, p in tensors.items()}
            try:
                traced = (
                    trace(Resetting(cell), {f"cell.{n}": p for n, p in real.items()}, widths)
                    if resetting
                    else trace(cell, real, widths)
                )
                while len(known) >= REMEMBERED:
                    known.pop(next(iter(known)))
                known[key] = Prepared(traced)
            except Untraceable as error:
                known[key] = str(error)
    return known[key]


def _hooked(cell: Cell) -> str:
    """Why hooks keep a cell from kernels, or nothing: they are called at each step, as no kernel would. PyTorch's own,
    which make a weight of others, only do what a trace sees."""
    for part in cell.modules():
        hooks = [hook for kind in HOOKS for hook in getattr(part, kind).values()]
        if part is not cell and not all(type(hook).__module__.startswith("torch.nn.utils.") for hook in hooks):
            return f"hooks are set on its {type(part).__name__}, which a kernel would not call"
    return ""


def _tensors_and_settings(cell: Cell) -> tuple[dict[str, Tensor], tuple]:
    """`tensors_of` a cell, and what its step may depend on beside them: attributes of the cell and its parts, which
    tensors are one. In one round, as this is done at every call."""
    parameters: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    code = getattr(type(cell).step, "__code__", None)  # a notebook may load a class anew while its cells live
    settings: list[Any] = [type(cell).step, code]
    known: dict[int, Any] = {}  # parts and tensors in more than one place count once
    pending: list[tuple[str, nn.Module]] = [("", cell)]
    while pending:
        prefix, module = pending.pop()
        if id(module) in known:
            settings.append(known[id(module)])
            continue
        known[id(module)] = prefix
        settings.append(type(module))
        for kind in HOOKS:
            if getattr(module, kind):
                settings.append((kind, *map(watched, getattr(module, kind).values())))
        for held, found in ((module._parameters, parameters), (module._buffers, buffers)):
            for name, tensor in held.items():
                if tensor is None:
                    continue
                if id(tensor) in known:
                    settings.append((prefix + name, known[id(tensor)]))
                else:
                    known[id(tensor)] = prefix + name
                    found[prefix + name] = tensor
        for name, value in module.__dict__.items():
            if name not in _OF_EVERY_MODULE:
                settings.append((name, watched(value)))
        parts = [(f"{prefix}{name}.", part) for name, part in module._modules.items() if part is not None]
        pending += reversed(parts)  # as PyTorch orders them
    return parameters | buffers, tuple(settings)


@dataclass(frozen=True)
class Offer:
    """A cell ready to be run over a sequence."""

    prepared: Prepared
    tensors: dict[str, Tensor]
    sequence: Sequence | None
    noise: Any

    def __call__(self, return_states: bool) -> Result:
        return run_together([self], return_states)[0]

    def task(self, return_states: bool) -> tuple[Task, list[Tensor]]:
        """What is to be run, and its arguments."""
        sequence = self.sequence
        assert sequence is not None
        made = rows_and_matrices(self.prepared, self.tensors, sequence.x.dtype)
        arguments = [sequence.x, *flatten(self.noise), *real_parts(sequence.state), *made]
        batch, steps, lengths, reverse = sequence.batch_size, sequence.steps, sequence.lengths, sequence.reverse
        return Task(self.prepared, batch, steps, lengths, reverse, return_states), arguments


def run_together(offers: list[Offer], return_states: bool) -> list[Result]:
    """Several cells that do not wait for each other, each on threads of its own where there are enough."""
    tasks, lists = zip(*(offer.task(return_states) for offer in offers), strict=True)
    task = tasks[0] if len(tasks) == 1 else SideBySide(tasks, [len(part) for part in lists])
    arguments = [a for part in lists for a in part]
    if in_transform() or (torch.is_grad_enabled() and any(a.requires_grad for a in arguments)):
        results = iter(differentiably(task, arguments))
    else:
        results = iter(task.forward([a.detach() for a in arguments])[0])
    return [
        _result(offer.sequence, list(itertools.islice(results, part.results)), return_states)
        for offer, part in zip(offers, tasks, strict=True)
    ]


def _run_compiled(
    named: tuple[Cell, torch.dtype, Any, bool],
    tensors: dict[str, Tensor],
    sequence: Sequence | None,
    noise: Any,
    return_states: bool,
) -> Result:
    """By way of the operators, of which a compiler makes a part of its graph.

    A copy of a cell that is filled with other parameters is made while it traces; what it knows as constant is the cell
    that the copy stands for.
    """
    assert sequence is not None
    made = _numbers(operators.rows_and_matrices(operators.prologue(*named), list(tensors.values())), sequence.x.dtype)
    rows = operators.vectors(*named)
    inputs, state = [sequence.x, *flatten(noise)], real_parts(sequence.state)
    results = operators.unroll(
        operators.text(*named), inputs, state, made[:rows], made[rows:], sequence.lengths,
        sequence.reverse, return_states,
    )  # fmt: skip
    return _result(sequence, results, return_states)


def rows_and_matrices(prepared: Prepared, tensors: dict[str, Tensor], dtype: torch.dtype) -> list[Tensor]:
    """What the kernels read of a cell's parameters and buffers: the step's rows, then its matrices."""
    assert prepared.step.prologue is not None
    return _numbers(prepared.step.prologue(*tensors.values()), dtype)


def _numbers(made: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    """What kernels read is of one precision; a mask or a count that a cell keeps as a buffer is not."""
    return [tensor if tensor.dtype == dtype else tensor.to(dtype) for tensor in made]


def _result(sequence: Sequence | None, results: Any, return_states: bool) -> Result:
    assert sequence is not None
    like, fields = sequence.state, len(real_parts(sequence.state))
    final = rejoined(results[-fields:], like)
    return results[0], final, rejoined(results[1 : 1 + fields], like) if return_states else None


def _borders(sequence: Sequence) -> Tensor:
    """Whether the state goes back to initial before a step is run, (B, T, 1)."""
    resets, real = sequence.resets, sequence.real
    assert resets is not None
    if real is not None:
        resets = resets & real
    if sequence.reverse:  # the same border, from its other side
        resets = torch.cat([resets[:, 1:], torch.zeros_like(resets[:, :1])], dim=1)
    return resets[..., None]


def describe(cell: Cell) -> str:
    """The stages of a cell's kernels, in words."""
    prepared = prepare(cell, widths_of(cell.noise(1, 1)))
    assert isinstance(prepared, Prepared)
    step = prepared.step
    assert step.prologue is not None
    tensors = [p.detach() for p in tensors_of(cell).values()]
    shapes = tuple((m.shape[0], m.shape[1]) for m in step.prologue(*tensors)[step.vectors :])
    return describe_program(build(step, shapes, outputs=(step.y,), wanted=frozenset(["x"]), backward=True))
