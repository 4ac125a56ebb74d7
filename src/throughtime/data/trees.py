"""Phrase trees in brackets, with a label at each node (Penn Treebank style; Stanford Sentiment Treebank)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from throughtime.data.lines import numbered_lines
from throughtime.errors import UserError

_PART = re.compile(r"[()]|[^\s()]+")


class Phrase(NamedTuple):
    """A node of a tree: its label and the words below it."""

    label: str
    words: tuple[str, ...]
    path: Path
    line: int
    whole: bool  # the root: the sentence

    @property
    def where(self) -> str:
        return f"{self.path}:{self.line}"


def read_trees(path: Path) -> Iterator[list[Phrase]]:
    """The phrases of each tree, one tree a line; the sentence comes last.

    Raises:
        UserError: brackets do not match, or a node has no label or no word.
    """
    for number, line in numbered_lines(path):
        if line.strip():
            yield _phrases(path, number, line)


def _phrases(path: Path, number: int, line: str) -> list[Phrase]:
    where = f"{path}:{number}"
    words: list[str] = []
    found: list[Phrase] = []
    open_: list[tuple[str, int]] = []  # labels, and where their words begin
    awaits_label = False
    for part in _PART.findall(line):
        if awaits_label:
            if part in "()":
                raise UserError(f"{where}: a bracket opens without a label; (LABEL word) is wanted")
            open_.append((part, len(words)))
            awaits_label = False
        elif part == "(":
            if found and found[-1].whole:
                raise UserError(f"{where}: more than one tree; one a line is wanted")
            awaits_label = True
        elif not open_:
            raise UserError(f"{where}: {part!r} stands outside of all brackets")
        elif part == ")":
            label, start = open_.pop()
            if start == len(words):
                raise UserError(f"{where}: the node {label!r} has no word")
            found.append(Phrase(label, tuple(words[start:]), path, number, not open_))
        else:
            words.append(part.replace("-LRB-", "(").replace("-RRB-", ")"))
    if open_ or awaits_label or not found:
        raise UserError(f"{where}: {len(open_) + awaits_label} brackets are not closed")
    return found
