"""What all figures share."""

from __future__ import annotations

import base64
import io
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Colour-blind safe (Okabe & Ito), in the order in which curves take them.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
Array = np.ndarray[Any, Any]


def new_figure(
    rows: int = 1, columns: int = 1, *, width: float = 7.0, height: float = 3.2
) -> tuple[Figure, list[Axes]]:
    """A figure apart from pyplot, so that nothing needs a display and nothing stays open."""
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flatten())


def colour(n: int) -> str:
    return COLOURS[n % len(COLOURS)]


def finish(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)


def log_where_positive(axes: Axes) -> None:
    """A logarithmic scale of y, where there is something to show on it; without, a word that there is not."""
    if any((np.asarray(line.get_ydata(), dtype=float) > 0).any() for line in axes.get_lines()):
        axes.set_yscale("log")
    else:
        axes.text(0.5, 0.5, "0 throughout", transform=axes.transAxes, ha="center")


def counted(number: float, what: str) -> str:
    """
    >>> counted(1, "step"), counted(2.5, "step")
    ('1 step', '2.5 steps')
    """
    return f"{number:.3g} {what}" + "s" * (number != 1)


def legend(axes: Axes) -> None:
    """A legend where there is something to tell apart, small."""
    _, labels = axes.get_legend_handles_labels()
    if labels:
        axes.legend(fontsize=7, frameon=False)


def picture(figure: Figure) -> str:
    """A figure as an address that holds it (SVG), for a page that fetches nothing."""
    file = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "throughtime"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()
