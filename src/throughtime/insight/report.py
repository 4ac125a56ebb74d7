"""The report of a run: one HTML file that holds all it shows."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
from matplotlib.figure import Figure

from throughtime.errors import UserError

COLOURS = ("#1f5fa8", "#c8501e", "#3c7d3c", "#7a4a9c")


@dataclass(frozen=True)
class Curve:
    """Points to be joined by a line."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    marked: bool = False  # few points, each worth a mark


@dataclass(frozen=True)
class Section:
    """A picture with what there is to see in it."""

    title: str
    sentences: Sequence[str]
    picture: str = ""  # a data: address
    alt: str = ""


@dataclass(frozen=True)
class Sample:
    """Something that a model made, and how."""

    title: str
    text: str


def write_report(
    path: Path,
    *,
    title: str,
    lead: str,
    sections: Sequence[Section],
    settings: Mapping[str, Any],
    samples: Sequence[Sample] = (),
    commands: Sequence[str] = (),
) -> None:
    """Writes the report. Nothing in it is fetched from anywhere.

    Args:
        path: the file.
        title: its heading.
        lead: a sentence or two that say how it went.
        sections: pictures.
        settings: name and value.
        samples: what the model made.
        commands: what to try next on the command line.

    Raises:
        UserError: the file cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("throughtime.insight"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("report.html").render(
        title=title, lead=lead, sections=sections, settings=settings, samples=samples, commands=commands
    )
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; the run itself is whole") from error


def draw_curves(curves: Sequence[Curve], *, x_label: str, y_label: str, level: tuple[str, float] | None = None) -> str:
    """Curves over one axis as an address that holds the picture (SVG); ``level`` is a named height to compare with."""
    with mpl.rc_context({"svg.hashsalt": "throughtime", "font.size": 12, "axes.unicode_minus": False}):
        figure = Figure(figsize=(7.2, 4.0), layout="constrained")
        axes = figure.add_subplot()
        for curve, colour in zip(curves, COLOURS, strict=False):
            marked: dict[str, Any] = {"marker": "o", "markersize": 4} if curve.marked else {}
            axes.plot(curve.x, curve.y, color=colour, label=curve.name, linewidth=1.6, **marked)
        if level is not None:
            axes.axhline(level[1], color="#888888", linestyle=":", linewidth=1.2, label=level[0])
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if curves:
            axes.legend(frameon=False)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode()
