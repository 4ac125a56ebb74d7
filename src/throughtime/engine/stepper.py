"""Streams: layers of cells that hold their state and take one step at a time."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from throughtime.cells.cell import Cell
from throughtime.engine.cpu import backend as cpu
from throughtime.engine.cpu.stepping import Stack, Watch
from throughtime.engine.explain import SlowPathWarning
from throughtime.engine.sequence import check_state, map_state


class Stepper:
    """Layers of cells, one upon another, that hold their state and take one step at a time, for inference.

    >>> import throughtime as tt
    >>> import torch
    >>> net = tt.Recurrent(tt.cells.LSTM, 3, 5, num_layers=2)
    >>> x = torch.randn(1, 4, 3)
    >>> stepper = net.stepper()
    >>> y = torch.stack([stepper.step(x[:, t]) for t in range(4)], dim=1)
    >>> torch.equal(y, net(x, backend="cpu")[0])
    True

    Where the compiled backend takes the cells, their weights are packed once, and a step is one call of a kernel: its
    numbers are those of `unroll` on that backend, to the bit. Otherwise each cell's own ``step`` runs.

    A change of the parameters is noticed at the next step (by PyTorch's count of changes; what is written past it,
    through ``.data``, is not seen), and the state stays. What else a step depends on, mode and plain attributes, is as
    it was when the stepper was made. Gradients do not pass.

    Args:
        cells: each takes the output of the one before.
        batch_size: streams side by side.
        backend: "auto", "cpu" or "reference".
        weights: torch.bfloat16 keeps the matrices of float32 cells rounded to it: half the memory to read at each
            step, and each weight off by at most 1/256 of itself. Sums, states and outputs stay float32: the numbers
            are those of cells with weights so rounded.

    Raises:
        ValueError: the backend is unknown, or cannot take a cell; rounded weights without kernels for them.

    Warns:
        SlowPathWarning: where "auto" is left with the cells' own steps.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        batch_size: int = 1,
        *,
        backend: str = "auto",
        weights: torch.dtype | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"a stepper has at least 1 stream, not {batch_size}")
        self.cells, self.batch_size = list(cells), batch_size
        why = step_refusal(self.cells)
        self._half = rounds(weights, self.cells, "it is asked to be plain" if backend == "reference" else why)
        if backend not in ("auto", "cpu", "reference"):
            raise ValueError(f"a stepper's backend is auto, cpu or reference, not {backend!r}")
        if backend == "cpu" and why is not None:
            raise ValueError(f"backend 'cpu' cannot take these cells: {why}")
        if backend == "auto" and why is not None:
            warn_slow(why)
        self._lock = threading.Lock()
        self._shape, self._dtype = (batch_size, self.cells[0].input_size), precision(self.cells)
        self._watch = Watch(self.cells)
        self._stack: Stack | None = None
        self._state: tuple[Any, ...] = ()
        if backend != "reference" and why is None:
            self._stack = Stack(self.cells, batch_size, self._dtype, half=self._half)
        else:
            self._state = self.initial_state()

    def step(self, x: Tensor) -> Tensor:
        """``x (B, I) -> y (B, O)``.

        Raises:
            ValueError: x has another shape or precision, or wants a gradient.
        """
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError("no gradient passes a stepper; give it x.detach(), or use unroll")
        if x.shape != self._shape:
            raise ValueError(f"x must be {self._shape}, not {tuple(x.shape)}")
        stack = self._stack
        if stack is None:
            return self._step(x)
        if x.dtype is not self._dtype or x.device.type != "cpu":
            raise ValueError(f"x must be {self._dtype} on the CPU, not {x.dtype} on {x.device.type}")
        if x.stride(1) != 1:
            x = x.contiguous()
        with self._lock:
            if self._watch.changed():
                stack = self._renew(stack)
            return stack.step(x)

    def initial_state(self) -> tuple[Any, ...]:
        """The state before the first step, one item a layer."""
        with torch.no_grad():
            return tuple(cell.initial_state(self.batch_size) for cell in self.cells)

    @property
    def state(self) -> tuple[Any, ...]:
        """The state after the last step, one item a layer: as `Recurrent` returns and takes it. Setting it to None
        begins anew."""
        if self._stack is None:
            return self._state
        with self._lock:
            return self._stack.state

    @state.setter
    def state(self, state: Sequence[Any] | None) -> None:
        initial = self.initial_state()
        if state is None:
            state = initial
        if len(state) != len(initial):
            raise ValueError(f"the state of {len(state)} layers is given to a stepper of {len(initial)}")
        state = tuple(check_state(given, wanted) for given, wanted in zip(state, initial, strict=True))
        if self._stack is None:
            self._state = tuple(map_state(lambda field: field.detach(), part) for part in state)
        else:
            with self._lock:
                self._stack.state = state

    def _renew(self, stack: Stack) -> Stack:
        """The layers with their parameters as they are now, going on from the same state."""
        why = step_refusal(self.cells)
        if why is not None or precision(self.cells) != self._dtype:
            raise ValueError(f"the cells have changed so that the stepper cannot go on: {why or 'another precision'}")
        self._watch = Watch(self.cells)
        renewed = Stack(self.cells, self.batch_size, self._dtype, half=self._half)
        renewed.state = stack.state
        self._stack = renewed
        return renewed

    def _step(self, x: Tensor) -> Tensor:
        """The cells' own steps."""
        finals = []
        with torch.no_grad():
            for cell, state in zip(self.cells, self._state, strict=True):
                x, final = cell(x, state)
                finals.append(final)
        self._state = tuple(finals)
        return x


def step_refusal(cells: Sequence[Cell]) -> str | None:
    """Why these cells cannot step by kernels, or None."""
    for cell in cells:
        with torch.random.fork_rng(devices=[]):
            random = cell.noise(1, 1) is not None
        why = "it draws random numbers; call eval() first" if random else cpu.refusal(cell)
        if why is not None:
            return f"{type(cell).__name__}: {why}"
    if len({parameter.dtype for cell in cells for parameter in cell.parameters()}) > 1:
        return "the cells are of different precision"
    return None


def precision(cells: Sequence[Cell]) -> torch.dtype:
    """The cells' own, or PyTorch's default where they have no parameters."""
    return next((p.dtype for cell in cells for p in cell.parameters()), torch.get_default_dtype())


def rounds(weights: torch.dtype | None, cells: Sequence[Cell], why: str | None) -> bool:
    """Whether weights are to be rounded to bfloat16.

    Raises:
        ValueError: they cannot be: ``why`` there are no kernels, or another type is asked for.
    """
    if weights is None:
        return False
    if weights is not torch.bfloat16:
        raise ValueError(f"weights are kept as they are, or as torch.bfloat16; not as {weights}")
    if precision(cells) is not torch.float32:
        raise ValueError(f"weights are rounded to bfloat16 from float32, not from {precision(cells)}")
    if why is not None:
        raise ValueError(f"only kernels read rounded weights, and they cannot take these layers: {why}")
    return True


def warn_slow(why: str) -> None:
    warnings.warn(
        f"these layers step in plain PyTorch, which is slow: {why} (backend='reference' says that this is meant)",
        SlowPathWarning,
        stacklevel=4,
    )
