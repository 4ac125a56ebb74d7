"""Texts with a label each, from tables: CSV, TSV, JSON lines."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from throughtime.data.lines import check_text, numbered_lines, read_json_line
from throughtime.errors import UserError


class Row(NamedTuple):
    """A text and its label."""

    text: str
    label: str  # "" where there is none
    path: Path
    line: int

    @property
    def where(self) -> str:
        return f"{self.path}:{self.line}"


def read_table(path: Path, form: str, text: str, label: str | None) -> Iterator[Row]:
    """The rows of a file whose first line names the columns (CSV, TSV), or of JSON objects.

    Args:
        path: the file.
        form: "csv" (commas, quotes), "tsv" (tabs, no quotes) or "jsonl".
        text: the name of the column of texts.
        label: that of labels; None where there is none.

    Raises:
        UserError: a column is missing, a row has more or fewer columns than the first, or is not JSON.
    """
    wanted = {"text": text} if label is None else {"text": text, "label": label}
    for number, record in _RECORDS[form](path, wanted):
        value = record[text]
        if not isinstance(value, str):
            raise UserError(f"{path}:{number}: {text!r} is {_kind(value)}, where a text is wanted")
        found = "" if label is None else record[label]
        if isinstance(found, (dict, list)) or found is None or (label is not None and not str(found).strip()):
            raise UserError(f"{path}:{number}: {label!r} is {_kind(found)}, where a label is wanted")
        name = str(found).strip()
        if len(name.splitlines()) > 1:
            raise UserError(f"{path}:{number}: {label!r} has several lines, where a label has one")
        yield Row(value, name, path, number)


def _check_names(path: Path, number: int, names: Collection[Any], wanted: Mapping[str, str]) -> None:
    for kind, name in wanted.items():
        if name not in names:
            has = ", ".join(" ".join(str(name).split()) for name in names)
            raise UserError(
                f"{path}:{number}: no column {name!r} here (it has {has or 'none'}); name one with --{kind}-column"
            )


def _csv(path: Path, wanted: Mapping[str, str], tabs: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = (line + "\n" for _, line in numbered_lines(path))
    reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(lines, strict=True)
    csv.field_size_limit(1 << 27)
    names: list[str] | None = None
    begins = 1
    try:
        for cells in reader:
            line, begins = begins, reader.line_num + 1
            if not cells:
                continue
            if names is None:
                names = [cell.strip() for cell in cells]
                _check_names(path, line, names, wanted)
                for name in wanted.values():
                    if (count := names.count(name)) > 1:
                        raise UserError(f"{path}:{line}: {count} columns are named {name!r}; rename all but one")
                continue
            if len(cells) != len(names):
                raise UserError(
                    f"{path}:{line}: {len(cells)} columns, where the first line names {len(names)}"
                    + ("" if tabs else "; put quotes around a text that has commas")
                )
            yield line, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise UserError(f"{path}:{begins}: not CSV ({error}); check the quotes") from error


def _tsv(path: Path, wanted: Mapping[str, str]) -> Iterator[tuple[int, dict[str, Any]]]:
    return _csv(path, wanted, tabs=True)


def _jsonl(path: Path, wanted: Mapping[str, str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        record = read_json_line(line, path, number)
        if not isinstance(record, dict):
            raise UserError(f"{path}:{number}: {_kind(record)}, where a JSON object is wanted")
        _check_names(path, number, record, wanted)
        for name in wanted.values():
            if isinstance(record[name], str):
                check_text(record[name], f"{path}:{number}: {name!r}")
        yield number, record


_RECORDS = {"csv": _csv, "tsv": _tsv, "jsonl": _jsonl}


def _kind(value: Any) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        return "empty"
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return names.get(type(value), "a number")
