"""Labelled sentences, from the files that hold them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from throughtime.data.lines import blocks, numbered_lines
from throughtime.data.spans import segments_of
from throughtime.errors import UserError


class Sentence(NamedTuple):
    """Words with a label each."""

    words: tuple[str, ...]
    labels: tuple[str, ...]  # one a word; () where the file has none
    intent: str  # the label of the whole; "" where the file has none
    path: Path
    line: int  # where it begins
    extras: tuple[tuple[str, ...], ...] = ()  # further columns, one value a word in each

    @property
    def where(self) -> str:
        return f"{self.path}:{self.line}"


@dataclass(frozen=True)
class Columns:
    """Where in a line words and labels stand.

    Args:
        word: the column of words, counted from 1; from the end where negative. 0: the format's own.
        label: the same for labels.
        strip_digit: each word ends in a digit that is not its own (WeiboNER).
        segment: labels are the borders of words: what is labelled is their characters, as B M E S.
        extra: further columns that are read, counted as the others.
        keep_digit: the digit that is stripped is a further column, the last.
        labelled: whether labels are wanted; without them the column may be missing.
        width: the columns of a line that has its label, where that must be known to find a column that is counted from
            the end in lines without labels.
    """

    word: int = 0
    label: int = 0
    strip_digit: bool = False
    segment: bool = False
    extra: tuple[int, ...] = ()
    keep_digit: bool = False
    labelled: bool = True
    width: int = 0

    @property
    def from_end(self) -> bool:
        """Whether a column that is read besides the label is counted from the end."""
        return any(column < 0 for column in (self.word, *self.extra))


def read_conll(path: Path, columns: Columns) -> Iterator[Sentence]:
    """Columns parted by tabs (or else white space), an empty line between sentences; CoNLL 2000, 2002, 2003.

    The first column is the word, the last its label, unless told otherwise. Lines of ``-DOCSTART-`` and, before the
    first word of a sentence, lines that begin with ``#`` and have no other column are left out.

    Raises:
        UserError: a line has another number of columns than the first of its sentence, or lacks one that is wanted.
    """
    for rows in _conll_rows(path):
        if columns.from_end and columns.width and not columns.labelled:
            rows = [(number, _in_place(path, number, cells, columns)) for number, cells in rows]
        yield _sentence(path, rows, columns, 1, -1)


def width_of_conll(path: Path) -> int:
    """The columns of a file's first sentence; 0 where there is none."""
    return next((len(rows[0][1]) for rows in _conll_rows(path)), 0)


def _conll_rows(path: Path) -> Iterator[list[tuple[int, list[str]]]]:
    """The numbered lines of each sentence, in columns, as many in each."""
    for block in blocks(numbered_lines(path)):
        rows: list[tuple[int, list[str]]] = []
        for number, line in block:
            cells = line.split("\t") if "\t" in line else line.split()
            if cells[0] == "-DOCSTART-" or (not rows and line.startswith("#") and len(cells) == 1):
                continue
            if not rows and line.startswith("# ") and "\t" not in line:
                continue
            if rows and len(cells) != len(rows[0][1]):
                raise UserError(
                    f"{path}:{number}: {_counted(cells)}, where line {rows[0][0]} of the same sentence has "
                    f"{len(rows[0][1])}; give each word the same columns, and an empty line between sentences"
                )
            rows.append((number, cells))
        if rows:
            yield rows


def _in_place(path: Path, number: int, cells: list[str], columns: Columns) -> list[str]:
    """The cells of a line where they would stand if it had its label."""
    if len(cells) == columns.width:
        return cells
    if len(cells) != columns.width - 1:
        raise UserError(
            f"{path}:{number}: {_counted(cells)}, and with labels there were {columns.width} in the training data; "
            "columns are counted from the end here, so give as many, or one less without labels"
        )
    label = columns.label or -1
    at = label - 1 if label > 0 else label + columns.width
    return [*cells[:at], "", *cells[at:]]


def read_conllu(path: Path, columns: Columns) -> Iterator[Sentence]:
    """CoNLL-U (Universal Dependencies): ten columns parted by tabs.

    The second is the word, the fourth its part of speech, the label unless told otherwise. Comments, multi-word tokens
    (``3-4``) and empty nodes (``5.1``) are left out.

    Raises:
        UserError: a line has not ten columns.
    """
    for block in blocks(numbered_lines(path)):
        rows = []
        for number, line in block:
            if line.startswith("#"):
                continue
            cells = line.split("\t")
            if len(cells) != 10:
                raise UserError(f"{path}:{number}: {_counted(cells)}; CoNLL-U has 10, parted by tabs")
            if cells[0].isdigit():
                rows.append((number, cells))
        if rows:
            yield _sentence(path, rows, columns, 2, 4)


def read_parallel(path: Path, columns: Columns) -> Iterator[Sentence]:
    """A folder of ``seq.in`` (words), ``seq.out`` (their labels) and, where there is one, ``label`` (the intent).

    One sentence a line in each; a line without words is an empty sentence, but where it has no intent and labels are
    wanted, nothing.

    Raises:
        UserError: a file is missing, or the lines do not match.
    """
    if not path.is_dir():
        raise UserError(f"{path}: not a folder; the parallel format is a folder with seq.in and seq.out")
    inputs = list(numbered_lines(path / "seq.in"))
    if not columns.labelled:
        yield from (Sentence(tuple(line.split()), (), "", path / "seq.in", n) for n, line in inputs)
        return
    outputs = list(numbered_lines(path / "seq.out"))
    intents = list(numbered_lines(path / "label")) if (path / "label").exists() else None
    for name, lines in {"seq.out": outputs, "label": intents}.items():
        if lines is not None and len(lines) != len(inputs):
            raise UserError(
                f"{path / name}:{min(len(lines), len(inputs)) + 1}: {len(lines)} lines, where seq.in has {len(inputs)};"
                " give each sentence a line in both"
            )
    for k, (number, line) in enumerate(inputs):
        words, labels = tuple(line.split()), tuple(outputs[k][1].split())
        if len(words) != len(labels):
            raise UserError(
                f"{path / 'seq.out'}:{number}: {len(labels)} labels for the {len(words)} words of seq.in; give one each"
            )
        intent = intents[k][1].strip() if intents is not None else ""
        if words or intent:
            yield Sentence(words, labels, intent, path / "seq.in", number)


def read_segmented(path: Path, columns: Columns) -> Iterator[Sentence]:
    """A sentence a line, its words parted by white space; characters are labelled B M E S.

    An empty line is an empty sentence, or nothing where labels are wanted.
    """
    for number, line in numbered_lines(path):
        words = line.split()
        if words or not columns.labelled:
            yield Sentence(tuple("".join(words)), segments_of(words), "", path, number)


FORMATS: dict[str, Callable[[Path, Columns], Iterator[Sentence]]] = {
    "conll": read_conll,
    "conllu": read_conllu,
    "parallel": read_parallel,
    "segmented": read_segmented,
}


_SUFFIXES = {".conll": "conll", ".conllu": "conllu", ".seg": "segmented"}


def read_sentences(path: Path, form: str = "auto", columns: Columns | None = None) -> list[Sentence]:
    """The sentences of a file; "auto" goes by its name and its first lines.

    Raises:
        UserError: the file is missing, has no sentence, or is not of the format.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if form == "auto":
        form = format_of(path)
    if form not in FORMATS:
        raise UserError(f"format {form!r} is unknown; choose one of auto, {', '.join(FORMATS)}")
    found = list(FORMATS[form](path, columns or Columns()))
    if not found:
        raise UserError(f"{path}: no sentence in it; is it of the {form} format? name another with --format")
    return found


def format_by_name(path: Path) -> str | None:
    """What a file is, where its name says so."""
    return "parallel" if path.is_dir() else _SUFFIXES.get(path.suffix)


def format_of(path: Path) -> str:
    """What a file is by its name, or what it looks like; CoNLL-U may be named .conll too."""
    named = format_by_name(path)
    if named not in (None, "conll"):
        return named
    lines = ((number, line) for number, line in numbered_lines(path) if not line.startswith("#"))
    first = next(blocks(lines), [])
    return "conllu" if _looks_like_conllu([line.split("\t") for _, line in first]) else "conll"


def _looks_like_conllu(rows: list[list[str]]) -> bool:
    """Ten columns, in the first of which a sentence's words are counted."""
    numbered = all(len(cells) == 10 and re.fullmatch(r"\d+([-.]\d+)?", cells[0]) for cells in rows)
    return bool(rows) and numbered and re.fullmatch(r"1|1-\d+|0\.\d+", rows[0][0]) is not None


def _sentence(path: Path, rows: list[tuple[int, list[str]]], columns: Columns, word: int, label: int) -> Sentence:
    words = _column(path, rows, columns.word or word)
    extras = [tuple(_column(path, rows, column)) for column in columns.extra]
    if columns.labelled and not columns.segment:
        _check_columns(path, *rows[0], columns.word or word, columns.label or label, columns.extra)
    if columns.strip_digit:
        for (number, _), word_ in zip(rows, words, strict=True):
            if len(word_) < 2 or not word_[-1].isdigit():
                raise UserError(f"{path}:{number}: {word_!r} has no digit at its end, which --strip-digit is for")
        if columns.keep_digit:
            extras.append(tuple(word_[-1] for word_ in words))
        words = [word_[:-1] for word_ in words]
    line = rows[0][0]
    if columns.segment:
        return Sentence(tuple("".join(words)), segments_of(words) if columns.labelled else (), "", path, line)
    labels = tuple(_column(path, rows, columns.label or label)) if columns.labelled else ()
    return Sentence(tuple(words), labels, "", path, line, tuple(extras))


def _check_columns(path: Path, number: int, cells: list[str], word: int, label: int, extra: Sequence[int]) -> None:
    """A label that is read as a word or beside it would tell itself."""

    def place(column: int) -> int:
        return column - 1 if column > 0 else column + len(cells)

    if place(word) == place(label) and len(cells) > 1:
        raise UserError(f"{path}:{number}: column {label} is to be both word and label; give another --label-column")
    known = {place(word): "word", place(label): "label"}
    for column in extra:
        if place(column) in known:
            raise UserError(
                f"{path}:{number}: further column {column} is that of the {known[place(column)]}; give other columns"
            )
        known[place(column)] = "further column before it"


def _column(path: Path, rows: list[tuple[int, list[str]]], column: int) -> list[str]:
    values = []
    for number, cells in rows:
        at = column - 1 if column > 0 else column + len(cells)
        if not 0 <= at < len(cells) or (column == -1 and len(cells) == 1):
            raise UserError(
                f"{path}:{number}: {_counted(cells)}, so there is no column {column}; a word and its label are wanted"
            )
        if not cells[at].strip():
            raise UserError(f"{path}:{number}: column {column} is empty; give a word and its label")
        values.append(cells[at].strip())
    return values


def _counted(cells: list[str]) -> str:
    return f"{len(cells)} column" + "s" * (len(cells) != 1)
