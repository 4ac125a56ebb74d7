"""What the commands of jobs that read sequences share: input line by line, figures as text."""

from __future__ import annotations

import io
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from throughtime.data.lines import numbered_lines
from throughtime.errors import UserError

RUN = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)]
DATA = Annotated[Path, typer.Option("--data", help="The data to measure on; test data are for the very end.")]
INPUT = Annotated[Path, typer.Option("--input", help="A file of inputs; - for standard input.")]
JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
JSON_LINES = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]
_TOGETHER = 64  # lines that are predicted together


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a file, or of standard input.

    Raises:
        UserError: they cannot be read, or are not UTF-8.
    """
    if str(path) != "-":
        yield from (line for _, line in numbered_lines(path))
        return
    for number, line in enumerate(sys.stdin.buffer, 1):
        try:
            yield line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(
                f"standard input:{number}: not UTF-8 (0x{line[error.start]:02x}); "
                "convert it: iconv -f ENCODING -t UTF-8"
            ) from error


def format_option(formats: Iterable[str]) -> Any:
    """``--format`` of a command that predicts."""
    names = f"auto, lines, {', '.join(formats)}"
    return typer.Option("--format", help=f"What the input is, one a line or as data: {names}. auto goes by its name.")


def read_as(form: str, path: Path, formats: Iterable[str], by_name: str | None) -> tuple[str, Path]:
    """The format of an input, and where it is read from.

    Args:
        form: what was asked for.
        path: the input.
        formats: those that a file may have.
        by_name: the format that the input's name tells, if it tells one.

    Raises:
        UserError: there is no such format.
    """
    if form not in ("auto", "lines", *formats):
        raise UserError(f"format {form!r} is unknown; choose one of auto, lines, {', '.join(formats)}")
    standard = str(path) == "-"
    if form == "auto":
        form = "lines" if standard or by_name is None else by_name
    return form, Path("/dev/stdin") if standard and form != "lines" else path


def groups(lines: Iterator[str], together: bool) -> Iterator[list[str]]:
    """Lines in groups: one at a time where an answer is awaited, many where none is."""
    size = _TOGETHER if together else 1
    while group := list(itertools.islice(lines, size)):
        yield group


def say(text: str) -> None:
    """Writes a line in UTF-8, whatever the locale, and at once."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.lower() != "utf-8":
        sys.stdout.reconfigure(encoding="utf-8")
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def say_figures(figures: Mapping[str, Any], as_json: bool) -> None:
    """Figures as JSON, or a line each."""
    if as_json:
        say(json.dumps(figures, ensure_ascii=False))
        return
    for name, value in figures.items():
        if not isinstance(value, dict):
            shown = f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
            say(f"{name.replace('_', ' '):<16} {shown}")
