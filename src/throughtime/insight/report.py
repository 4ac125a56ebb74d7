"""The report of a run: one HTML file that holds all it shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from throughtime.errors import UserError
from throughtime.insight.figures import colour, finish, legend, new_figure, picture


@dataclass(frozen=True)
class Curve:
    """Points to be joined by a line."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    marked: bool = False  # few points, each worth a mark


@dataclass(frozen=True)
class Table:
    """Rows under names; a cell may be shaded, from 0 to 1."""

    names: Sequence[str]
    rows: Sequence[Sequence[str]]
    shades: Sequence[Sequence[float]] = ()  # one a cell, or none at all


@dataclass(frozen=True)
class Shaded:
    """A text in parts, each shaded by what it counts for, from 0 to 1."""

    title: str
    parts: Sequence[tuple[str, float]]


@dataclass(frozen=True)
class Section:
    """A picture, a table or shaded texts, with what there is to see in them."""

    title: str
    sentences: Sequence[str]
    picture: str = ""  # a data: address
    alt: str = ""
    table: Table | None = None
    texts: Sequence[Shaded] = ()


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


def draw_curves(curves: Sequence[Curve], *, x_label: str, y_label: str) -> str:
    """Curves over one axis, as an address that holds the picture."""
    figure, (axes,) = new_figure()
    for number, curve in enumerate(curves):
        marker = "o" if curve.marked else None
        axes.plot(curve.x, curve.y, color=colour(number), label=curve.name, marker=marker, markersize=4)
    axes.grid(alpha=0.25)
    finish(axes, "", x_label, y_label)
    legend(axes)
    return picture(figure)
