"""Gates: how open they stand, and how many are stuck."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from throughtime.cells.cell import Cell
from throughtime.insight.figures import Array, finish, new_figure
from throughtime.insight.record import Layer, check_finite, record_run

# Squashing functions by the name torch calls them by, and the range they squash into.
SQUASHING = {"sigmoid": (0.0, 1.0), "hardsigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0), "hardtanh": (-1.0, 1.0)}
BINS = 40
_SUMS = ("add", "__add__", "__radd__", "mul", "__mul__", "__rmul__")
EDGE = 0.1  # a unit is left- or right-saturated where it stands within a tenth of an end (Karpathy et al. 2015)


@dataclass(frozen=True)
class Gate:
    """One squashing function of a step: its values over steps and sequences, for each unit."""

    name: str  # "f", "tanh(c)"; what the step calls it, where that can be seen
    layer: str
    function: str
    values: Array  # (N, H)

    @property
    def ends(self) -> tuple[float, float]:
        return SQUASHING[self.function]

    @property
    def position(self) -> Array:
        """Values as a share of the way from one end of the range to the other."""
        low, high = self.ends
        return (self.values - low) / (high - low)

    @property
    def left(self) -> Array:
        """(H,) the share of time a unit is saturated at the lower end."""
        return np.asarray((self.position < EDGE).mean(0))

    @property
    def right(self) -> Array:
        """(H,) the share of time a unit is saturated at the upper end."""
        return np.asarray((self.position > 1 - EDGE).mean(0))

    @property
    def histogram(self) -> tuple[Array, Array]:
        """Counts, and the edges of the bins."""
        counts, edges = np.histogram(self.values, bins=BINS, range=self.ends)
        return counts, edges

    @property
    def stuck(self) -> float:
        """The share of values where the function's slope is below a fiftieth of its largest, so nothing is learned."""
        slope = 4 * self.position * (1 - self.position)
        return float((slope < 0.02).mean())


@dataclass(frozen=True)
class Gates:
    """See `gates`."""

    gates: tuple[Gate, ...]

    @property
    def sentence(self) -> str:
        """What to see in the figures."""
        if not self.gates:
            return "This cell has no squashing function in its step."
        worst = max(self.gates, key=lambda gate: gate.stuck)
        label = f"{worst.layer} {worst.name}".strip()
        if worst.stuck > 0.5:
            return f"{label} is stuck at its ends {worst.stuck:.0%} of the time, where it passes hardly any gradient."
        return f"No gate is stuck: the worst, {label}, is at its ends {worst.stuck:.0%} of the time."

    def figure(self) -> Figure:
        """For each gate the histogram of its values, and each unit's share of time saturated left and right."""
        if not self.gates:
            figure, (axes,) = new_figure(height=1)
            axes.set_axis_off()
            axes.text(0, 0.5, self.sentence)
            return figure
        figure, all_axes = new_figure(len(self.gates), 2, width=8, height=1.9)
        for gate, (left, right) in zip(self.gates, zip(all_axes[::2], all_axes[1::2], strict=True), strict=True):
            counts, edges = gate.histogram
            left.bar(edges[:-1], counts / max(1, counts.sum()), np.diff(edges), align="edge", color="#0072B2")
            title = f"{gate.layer} {gate.name} ({gate.function})".strip()
            finish(left, title, "value", "share")
            right.scatter(gate.right, gate.left, s=9, color="#D55E00", alpha=0.7)
            right.plot([0, 1], [1, 0], color="black", linewidth=0.5)
            right.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
            finish(right, "units", "share of time at the upper end", "at the lower end")
        return figure


def gates(network: nn.Module, x: Tensor, **options: Any) -> Gates:
    """Every sigmoid and tanh in the step of every cell, also of a cell of one's own, along real sequences.

    >>> import throughtime as tt
    >>> [gate.name for gate in gates(tt.cells.LSTM(3, 5), torch.zeros(1, 4, 3)).gates]
    ['f', 'i', 'tanh(g)', 'o', 'tanh(c)']

    They are found by running the step once and watching which functions it calls. A gate has the name of the variable
    it is put into, or else of the one it is computed from; else it is numbered.

    Args:
        network: as in `gradient_flow`.
        x: its input; ``lengths`` among the options keep padding out.
        options: passed to the network.
    """
    with torch.no_grad():
        _, layers = record_run(network, x, **options)
        check_finite(layers)
        return Gates(tuple(gate for layer in layers for gate in gates_of(layer, options.get("lengths"))))


def gates_of(layer: Layer, lengths: Any = None) -> list[Gate]:
    """The gates of a layer that is on record."""
    x, state, noise = layer.points()
    with torch.no_grad():
        found = watch_step(layer.cell, x, state, noise)
    batch, steps = layer.record.inputs[0].shape[0], len(layer.record.inputs)
    kept: Any = slice(None)
    if lengths is not None:
        # either direction runs through the real steps first
        real = torch.arange(steps)[:, None] < torch.as_tensor(lengths).cpu()  # (T, B)
        kept = real.flatten().numpy()
    return [
        Gate(name, layer.name, function, value.flatten(1).double().cpu().numpy()[kept])
        for name, function, value in found
        if value.shape[0] == batch * steps
    ]


def watch_step(cell: Cell, x: Tensor, state: Any, noise: Any = None) -> list[tuple[str, str, Tensor]]:
    """One step of a cell; the squashing functions it called: name, function, values."""
    watch = _Watch()
    with watch:
        _, new = cell.step(x, state) if noise is None else cell.step(x, state, noise)
    watch.name_by(zip(new._fields, new, strict=True))
    names = []
    for n, seen in enumerate(watch.seen):
        by_argument = f"tanh({seen.argument})" if "tanh" in seen.function else seen.argument
        names.append(seen.result or (by_argument if seen.argument else f"{seen.function} {n}"))
    return [(name, seen.function, seen.value) for name, seen in zip(names, watch.seen, strict=True)]


@dataclass
class _Seen:
    function: str
    value: Tensor
    argument: str  # the variable that was put in, "" where it was an expression
    result: str = ""  # the variable that it was put into


class _Watch(TorchFunctionMode):
    """Writes down calls of squashing functions, and what the code that called them calls their results."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[_Seen] = []
        self.sums: list[tuple[Tensor, str]] = []  # results of + and *, and the first variable in them

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        frame = _caller(sys._getframe(1))
        variables = {} if frame is None else frame.f_locals
        self.name_by(variables.items())
        result = func(*args, **(kwargs or {}))
        function = getattr(func, "__name__", "").rstrip("_")
        if not isinstance(result, Tensor) or not args:
            return result
        if function in SQUASHING:
            self.seen.append(_Seen(function, result, self._variable(args[0], variables)))
        elif function in _SUMS:
            self.sums.append((result, self._variable(args[0], variables)))
        return result

    def _variable(self, value: Any, variables: Mapping[str, Any]) -> str:
        known = next((name for name, other in variables.items() if other is value), "")
        return known or next((name for other, name in self.sums if other is value), "")

    def name_by(self, variables: Iterable[tuple[str, Any]]) -> None:
        for name, value in variables:
            for seen in self.seen:
                if value is seen.value and not seen.result:
                    seen.result = name


def _caller(frame: FrameType | None) -> FrameType | None:
    """The nearest code outside torch."""
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] == "torch":
        frame = frame.f_back
    return frame
