"""States over a text, and the units that respond to something in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from throughtime.insight.figures import Array, finish, new_figure
from throughtime.insight.record import check_finite, record_run
from throughtime.learning.flat import flatten_state


@dataclass(frozen=True)
class States:
    """See `states`."""

    name: str
    values: Array  # (T, H)
    text: tuple[str, ...]  # (T,) what was read at each step; () where nobody said

    @property
    def sentence(self) -> str:
        """What to see in the figure."""
        dead = int((self.values.std(0) < 1e-6).sum())
        silent = f" {dead} of {self.values.shape[1]} never change." if dead else " A row that never changes is dead."
        return "Each row is a unit, each column a step: blue is negative, red positive." + silent

    def responding(self, measured: Sequence[float] | Array) -> list[tuple[int, float]]:
        """Units by how well they follow a quantity (T,): ``(unit, correlation)``, the closest first.

        >>> values = np.array([[0.0, 1.0], [1.0, 1.0], [0.0, 2.0]])
        >>> States("h", values, ()).responding([1, 0, 1])[0]
        (0, -1.0)

        Raises:
            ValueError: the quantity is not of T numbers.
        """
        wanted = np.asarray(measured, dtype=float)
        if wanted.shape != self.values.shape[:1]:
            raise ValueError(f"{self.values.shape[0]} steps and {wanted.size} numbers to compare them with")
        a = self.values - self.values.mean(0)
        b = wanted - wanted.mean()
        scale = np.linalg.norm(a, axis=0) * np.linalg.norm(b)
        r = np.divide(a.T @ b, scale, out=np.zeros(a.shape[1]), where=scale > 1e-12)
        return [(int(unit), round(float(r[unit]), 6)) for unit in np.argsort(-np.abs(r), kind="stable")]

    def draw(self, axes: Axes, units: Sequence[int] | None = None) -> None:
        """A heat map of units over steps, the text below it."""
        chosen = list(range(self.values.shape[1])) if units is None else list(units)
        size = float(np.abs(self.values[:, chosen]).max()) or 1.0
        axes.imshow(
            self.values[:, chosen].T, aspect="auto", cmap="RdBu_r", vmin=-size, vmax=size, interpolation="nearest"
        )
        if len(chosen) <= 40:
            axes.set_yticks(range(len(chosen)), [str(unit) for unit in chosen], fontsize=6)
        if self.text:
            shown = [{"\n": "⏎", "\t": "⇥"}.get(piece, piece) for piece in self.text]
            small = max(3.0, min(8.0, 700 / max(1, len(shown))))
            # a dollar sign would begin mathematics
            labels = [piece.replace("$", r"\$") for piece in shown]
            upright = 90 if any(len(piece) > 3 for piece in shown) else 0  # words beside one another need the room
            axes.set_xticks(range(len(shown)), labels, fontsize=small, rotation=upright)
            axes.tick_params(axis="x", length=0)
        finish(axes, f"States {self.name}".strip(), "step" if not self.text else "text", "unit")

    def figure(self, units: Sequence[int] | None = None) -> Figure:
        """`draw` as a figure of its own.

        Args:
            units: which ones, in this order; all unless given.
        """
        figure, (axes,) = new_figure(width=10, height=3.5)
        self.draw(axes, units)
        return figure


def states(
    network: nn.Module,
    x: Tensor,
    *,
    text: Sequence[str] = (),
    layer: int = -1,
    field: str | None = None,
    row: int = 0,
    **options: Any,
) -> States:
    """The states of one layer along one sequence.

    >>> import throughtime as tt
    >>> states(tt.cells.LSTM(3, 5), torch.zeros(1, 4, 3), field="c", text="this").values.shape
    (4, 5)

    Args:
        network: as in `gradient_flow`.
        x: its input.
        text: what is read at each step, for the figure.
        layer: which cell, in the order of the network's layers; the last unless given.
        field: which field of its state; the first unless given. Of a complex one, real then imaginary parts.
        row: which sequence of the batch.
        options: passed to the network.

    Raises:
        ValueError: the state has no such field, or the text is not of T pieces.
    """
    with torch.no_grad():
        _, layers = record_run(network, x, **options)
    check_finite(layers)
    seen = layers[layer]
    after = seen.record.after[::-1] if seen.reverse else seen.record.after
    name = after[0]._fields[0] if field is None else field
    if name not in after[0]._fields:
        raise ValueError(f"the state has the fields {', '.join(after[0]._fields)}, not {field!r}")
    values = flatten_state([torch.stack([getattr(s, name)[row].detach() for s in after])]).double().cpu().numpy()
    if text and len(text) != len(values):
        raise ValueError(f"{len(values)} steps and {len(text)} pieces of text")
    return States(seen.curve_name(name), values, tuple(text))


def position_in_line(text: Sequence[str]) -> list[int]:
    """Characters since the line began.

    >>> position_in_line("ab\\nc")
    [0, 1, 2, 0]
    """
    counts, at = [], 0
    for piece in text:
        counts.append(at)
        at = 0 if piece == "\n" else at + 1
    return counts


def inside(text: Sequence[str], opening: str = '"', closing: str | None = None) -> list[int]:
    """How deep within brackets, or, with one sign alone, whether within quotes.

    >>> inside('a "b" c')
    [0, 0, 1, 1, 0, 0, 0]
    >>> inside("f(g(x))", "(", ")")
    [0, 1, 1, 2, 2, 1, 0]
    """
    depths, depth = [], 0
    for piece in text:
        if closing is None:
            depth = depth ^ 1 if piece == opening else depth
        elif piece == opening:
            depth += 1
        elif piece == closing:
            depth = max(0, depth - 1)
        depths.append(depth)
    return depths
