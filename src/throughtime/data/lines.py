"""Lines of a text file with their numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from throughtime.data.utf8 import read_chunks
from throughtime.errors import UserError

_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell the halves of a character apart; UTF-8 has no such thing


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file, from 1, without their ends (LF or CRLF).

    Raises:
        UserError: the file cannot be read, is binary or not UTF-8.
    """
    if path.is_dir():
        raise UserError(f"{path}: a folder, where a file is wanted; name a file in it")
    buffer, number = "", 0
    for text in read_chunks(path):
        *whole, buffer = (buffer + text).split("\n")
        for line in whole:
            number += 1
            yield number, line.removesuffix("\r")
    if buffer:
        yield number + 1, buffer.removesuffix("\r")


def blocks(lines: Iterable[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """Lines between empty lines, together."""
    block: list[tuple[int, str]] = []
    for number, line in lines:
        if line.strip():
            block.append((number, line))
        elif block:
            yield block
            block = []
    if block:
        yield block


def check_text(value: str, what: str) -> None:
    """
    Raises:
        UserError: ``what`` has half a character.
    """
    if half := _SURROGATE.search(value):
        raise UserError(f"{what} has half a character, \\u{ord(half[0]):04x}, which is not text")


def read_json_line(line: str, path: Path, number: int) -> Any:
    """The value that a line of JSON lines holds.

    Raises:
        UserError: it is no JSON.
    """
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, thousands of brackets
        why = getattr(error, "msg", error)
        raise UserError(f"{path}:{number}: not a line of JSON ({why}); one object a line is wanted") from error
