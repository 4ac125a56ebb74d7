"""Numbers over time with a label each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from throughtime.data.lines import numbered_lines
from throughtime.errors import UserError


class Series(NamedTuple):
    """A series and its label."""

    values: NDArray[Any]  # (T, C)
    label: str  # "" where there is none
    path: Path
    line: int  # or which one, in a file without lines

    @property
    def where(self) -> str:
        return f"{self.path}:{self.line}"


def read_ts(path: Path, *, labelled: bool = True) -> Iterator[Series]:
    """The .ts format of sktime and the UCR archive: channels parted by colons, values by commas, the label last.

    Channels of a series that are shorter than its longest, and values that are missing (``?``, NaN), hold the value
    before them; at a beginning, the first one there is.

    Raises:
        UserError: a value is no number, the number of channels changes, there is no ``@data``, or time stamps are used.
    """
    data, channels, has_label = False, None, labelled
    number = 0
    for number, line in numbered_lines(path):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("@"):
            name, *values = line.split()
            name = name.lower()
            if name == "@timestamps" and values[:1] == ["true"]:
                raise UserError(f"{path}:{number}: series with time stamps are not read; give values at even times")
            if name == "@classlabel":
                has_label = values[:1] == ["true"]
                if not has_label and labelled:
                    raise UserError(f"{path}:{number}: its series have no labels")
            data = data or name == "@data"
            continue
        if not data:
            raise UserError(f"{path}:{number}: a series before @data; is it a .ts file?")
        series = series_of_line(line, path, number, labelled=has_label)
        if channels is not None and series.values.shape[1] != channels[0]:
            raise UserError(
                f"{path}:{number}: {series.values.shape[1]} channels, where line {channels[1]} has {channels[0]}"
            )
        channels = channels or (series.values.shape[1], number)
        yield series
    if not data:
        raise UserError(f"{path}:{max(number, 1)}: no @data in it; is it a .ts file?")


def series_of_line(line: str, path: Path, number: int, *, labelled: bool) -> Series:
    """One line of a .ts file.

    Raises:
        UserError: a value is no number, or a label is wanted and missing.
    """
    parts = line.split(":")
    label = parts.pop().strip() if labelled else ""
    if labelled and (not parts or not label):
        raise UserError(f"{path}:{number}: no label; values:label is wanted")
    columns = [_channel(part, path, number) for part in parts]
    steps = max(map(len, columns))
    values = np.full((steps, len(columns)), np.nan, dtype=np.float32)
    for c, column in enumerate(columns):
        values[: len(column), c] = column
    return Series(_filled(values), label, path, number)


def _channel(part: str, path: Path, number: int) -> list[float]:
    values = []
    for text in part.split(",") if part.strip() else []:
        text = text.strip()
        try:
            values.append(np.nan if text == "?" else float(text))
        except ValueError as error:
            raise UserError(f"{path}:{number}: {text!r} is no number") from error
        if np.isinf(values[-1]):
            raise UserError(f"{path}:{number}: {text!r} is not a finite number")
    return values


def _filled(values: NDArray[Any]) -> NDArray[Any]:
    """Missing values hold the one before; at the beginning, the first; zeros where a channel has none at all."""
    for column in values.T:
        there = np.flatnonzero(~np.isnan(column))
        if len(there) == 0:
            column[:] = 0
        elif len(there) < len(column):
            at = np.searchsorted(there, np.arange(len(column)), side="right") - 1
            column[:] = column[there[np.maximum(at, 0)]]
    return values
