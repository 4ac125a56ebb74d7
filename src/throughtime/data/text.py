"""Where text comes from: a file, a folder, documents within files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from throughtime.data.lines import check_text, read_json_line
from throughtime.data.utf8 import read_chunks
from throughtime.errors import UserError

LONGEST_LINE = 1 << 15  # characters; a longer line is cut, so that memory stays bounded
_LINE = re.compile(rf"[^\n]{{0,{LONGEST_LINE - 1}}}\n|[^\n]{{1,{LONGEST_LINE}}}")


class Piece(NamedTuple):
    """A part of a text, in order."""

    text: str
    begins: bool  # a document begins with it


@dataclass(frozen=True)
class TextSource:
    r"""The text of a file, or of the files of a folder.

    A plain file is one running text. Documents are kept apart where a ``separator`` or a ``field`` is given, and
    the files of a folder are documents of their own.

    Args:
        path: a file or a folder.
        glob: which files of a folder; those whose name, or a folder's on the way, begins with a dot are left out.
        exclude: names, comma-separated, of files or folders within it that are left out; * and ? stand for anything.
        separator: what stands between two documents; it belongs to neither.
        field: the files are JSON lines, one document each, under this name: a string, or a list of lines.
        documents: a plain file is a document too (what a model of documents is evaluated on).
        without: a folder within it that is not read (where a run writes).

    Raises:
        UserError: nothing is there, both ways to tell documents apart are given, or, once read, a file is empty,
            binary, not UTF-8, or not the JSON asked for.
    """

    path: Path
    glob: str = "**/*"
    exclude: str = ""
    separator: str | None = None
    field: str | None = None
    documents: bool = False
    without: Path | None = None

    def __post_init__(self) -> None:
        if self.separator is not None and self.field is not None:
            raise UserError("give a document separator or a JSON field, not both")
        if self.separator == "":
            raise UserError("the document separator is empty; give the string that stands between two documents")

    @property
    def apart(self) -> bool:
        """Whether documents are kept apart."""
        return self.documents or self.separator is not None or self.field is not None or self.path.is_dir()

    def files(self) -> list[Path]:
        """The files, in the order of their names."""
        if not self.path.exists():
            raise UserError(f"{self.path}: no such file or folder")
        if not self.path.is_dir():
            if not self.path.is_file():
                raise UserError(f"{self.path}: a pipe or a device, but text is read twice; write it to a file first")
            return [self.path]
        try:
            found = sorted(path for path in self.path.glob(self.glob) if path.is_file() and not self._left_out(path))
        except (ValueError, NotImplementedError) as error:
            raise UserError(f"glob {self.glob!r} does not work: {error}") from error
        if not found:
            raise UserError(f"{self.path}: no file fits the glob {self.glob!r}; give another with --glob")
        return found

    def _left_out(self, path: Path) -> bool:
        if self.without is not None and path.resolve().is_relative_to(self.without.resolve()):
            return True
        patterns = [".*", *filter(None, self.exclude.split(","))]
        return any(fnmatchcase(part, pattern) for part in path.relative_to(self.path).parts for pattern in patterns)

    def pieces(self) -> Iterator[Piece]:
        """The text in pieces of bounded size; empty documents are left out."""
        empty = True
        for path in self.files():
            try:
                for piece in self._pieces_of(path):
                    empty = False
                    yield piece
            except UserError as error:
                if path == self.path:
                    raise
                raise UserError(f"{error}; or leave that file out with --glob or --exclude") from error
        if empty:
            raise UserError(f"{self.path}: empty; give a file with text in it")

    def _pieces_of(self, path: Path) -> Iterator[Piece]:
        if self.field is not None:
            return _fields(path, self.field)
        if self.separator is not None:
            return _separated(read_chunks(path), self.separator)
        return _whole(read_chunks(path), self.apart)


def _whole(chunks: Iterable[str], begins: bool) -> Iterator[Piece]:
    for text in chunks:
        yield Piece(text, begins)
        begins = False


def _separated(chunks: Iterable[str], separator: str) -> Iterator[Piece]:
    buffer, begins = "", True
    keep = len(separator) - 1  # the end of the buffer may be the beginning of a separator
    for text in chunks:
        *whole, buffer = (buffer + text).split(separator)
        for document in whole:
            if document:
                yield Piece(document, begins)
            begins = True
        ready = len(buffer) - keep
        if ready > 0:
            yield Piece(buffer[:ready], begins)
            buffer, begins = buffer[ready:], False
    if buffer:
        yield Piece(buffer, begins)


def _fields(path: Path, field: str) -> Iterator[Piece]:
    for number, line in enumerate(_lines(read_chunks(path)), start=1):
        if not line.strip():
            continue
        record = read_json_line(line, path, number)
        if not isinstance(record, dict) or field not in record:
            has = ", ".join(record) if isinstance(record, dict) else f"a {type(record).__name__}"
            raise UserError(f"{path}:{number}: no field {field!r} here (it has {has or 'none'}); name one with --field")
        value = record[field]
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            value = "\n".join(value)
        if not isinstance(value, str):
            raise UserError(f"{path}:{number}: field {field!r} is neither a string nor a list of lines")
        check_text(value, f"{path}:{number}: field {field!r}")
        if value:
            yield Piece(value, True)


def _lines(chunks: Iterable[str]) -> Iterator[str]:
    buffer = ""
    for text in chunks:
        *whole, buffer = (buffer + text).split("\n")
        yield from whole
    if buffer:
        yield buffer


def by_line(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The same text cut at the ends of its lines, wherever it was cut before: for units that are not characters.

    >>> [piece.text for piece in by_line([Piece("one\\ntw", True), Piece("o\\n", False)])]
    ['one\\n', 'two\\n']
    """
    buffer, begins = "", False
    for piece in pieces:
        if piece.begins:
            if buffer:
                yield Piece(buffer, begins)
            buffer, begins = "", True
        lines = _LINE.findall(buffer + piece.text)
        buffer = "" if not lines or lines[-1].endswith("\n") or len(lines[-1]) == LONGEST_LINE else lines.pop()
        for line in lines:
            yield Piece(line, begins)
            begins = False
    if buffer:
        yield Piece(buffer, begins)
