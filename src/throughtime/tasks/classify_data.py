"""Examples to classify, from the files that hold them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from throughtime.data.idx import read_images
from throughtime.data.lines import numbered_lines
from throughtime.data.series import read_ts
from throughtime.data.tables import read_table
from throughtime.data.trees import read_trees
from throughtime.data.words import split_words
from throughtime.errors import UserError

TEXTS = ("csv", "tsv", "jsonl", "trees")
SERIES = ("idx", "ts")
FORMATS = (*TEXTS, *SERIES)
_SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl", ".ts": "ts"}
_SENTIMENTS = {"0": "negative", "1": "negative", "3": "positive", "4": "positive"}


class Example(NamedTuple):
    """A sequence and its class: words, or numbers over time."""

    words: tuple[str, ...]
    values: NDArray[Any] | None  # (T, C)
    label: str  # "" where there is none
    where: str  # file:line
    columns: int = 0  # of an image, which is read row by row or pixel by pixel

    @property
    def length(self) -> int:
        return len(self.words) if self.values is None else len(self.values)


class How(NamedTuple):
    """How files are read; see the job's settings."""

    text: str = "text"
    label: str | None = "label"
    unit: str = "word"
    rows_as_time: bool = True
    phrases: bool = False
    binary: bool = False


def read_examples(path: Path, form: str, part: str, how: How) -> tuple[str, list[Example]]:
    """The format of a file ("auto" goes by name and first line) and its examples.

    Args:
        path: a file, or a folder of IDX files.
        form: a name of `FORMATS`, or "auto".
        part: "train", "valid" or "test": which files of a folder, and whether phrases of trees are wanted.
        how: the job's settings.

    Raises:
        UserError: the file is missing, empty, or not of the format.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    form = format_of(path) if form == "auto" else form
    found = list(_read(path, form, part, how))
    if not found:
        raise UserError(f"{path}: no example in it; is it of the {form} format? name another with --format")
    return form, found


def format_by_name(path: Path) -> str | None:
    """What a file is, where its name says so."""
    return "idx" if path.is_dir() or "idx3" in path.name else _SUFFIXES.get(path.suffix)


def format_of(path: Path) -> str:
    """What a file looks like.

    Raises:
        UserError: that cannot be told.
    """
    named = format_by_name(path)
    if named is not None:
        return named
    first = next((line for _, line in numbered_lines(path) if line.strip()), "")
    if first.startswith("("):
        return "trees"
    if first.startswith("{"):
        return "jsonl"
    raise UserError(f"{path}: its name does not say what it is; give --format: {', '.join(FORMATS)}")


def words_of_text(text: str, unit: str) -> tuple[str, ...]:
    """What a text is read by: its words and signs, or its characters.

    >>> words_of_text("Not bad, 真好", "word")
    ('Not', 'bad', ',', '真', '好')
    """
    if unit == "char":
        return tuple(text)
    return tuple(word for word in (part.strip() for part in split_words(text)) if word)


def _read(path: Path, form: str, part: str, how: How) -> Iterator[Example]:
    if form == "idx":
        yield from _images(path, part, how)
    elif form == "ts":
        for series in read_ts(path, labelled=how.label is not None):
            yield Example((), series.values, series.label, series.where)
    elif form == "trees":
        yield from _trees(path, part, how)
    else:
        for row in read_table(path, form, how.text, how.label):
            yield Example(words_of_text(row.text, how.unit), None, row.label, row.where)


def _images(path: Path, part: str, how: How) -> Iterator[Example]:
    images, labels = read_images(path, part, labelled=how.label is not None)
    values = images.astype(np.float32) / 255
    if not how.rows_as_time:
        values = values.reshape(len(values), -1, 1)
    names = [""] * len(images) if labels is None else list(map(str, labels.tolist()))
    for k, (image, name) in enumerate(zip(values, names, strict=True)):
        yield Example((), image, name, f"{path} image {k}", images.shape[2])


def _trees(path: Path, part: str, how: How) -> Iterator[Example]:
    """Phrases that come twice in a tree, as under a node with one child, are taken once."""
    for tree in read_trees(path):
        if how.label is None:
            yield Example(tree[-1].words, None, "", tree[-1].where)
            continue
        wanted = tree if how.phrases and part == "train" else tree[-1:]
        seen = set()
        for phrase in reversed(wanted):
            label = phrase.label
            if how.binary:
                if label not in ("0", "1", "2", "3", "4"):
                    raise UserError(f"{phrase.where}: {label!r} is no sentiment from 0 to 4; leave out --binary")
                label = _SENTIMENTS.get(label, "")
            if label and (phrase.words, label) not in seen:
                seen.add((phrase.words, label))
                yield Example(phrase.words, None, label, phrase.where)
