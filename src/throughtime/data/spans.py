"""Spans (names, slots, words) and the labels of words that spell them: BIO, BIOES, BMES."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SCHEMES = ("bio", "bioes", "bmes", "none")
_PREFIXES = {"bio": "BI", "bioes": "BIES", "bmes": "BMES"}
_BEGINS, _ENDS = "BS", "ES"


class Span(NamedTuple):
    """Words ``start ... stop - 1``."""

    kind: str
    start: int
    stop: int


def split_label(label: str) -> tuple[str, str]:
    """A label's prefix and kind: ``"B-PER" -> ("B", "PER")``, ``"O" -> ("O", "")``."""
    prefix, _, kind = label.partition("-")
    return prefix, kind


def scheme_of(labels: Iterable[str]) -> str:
    """The scheme that labels are written in; "none" where they are no spans.

    >>> scheme_of(["O", "B-PER", "I-PER"]), scheme_of(["B", "E", "S"]), scheme_of(["NN", "VB"])
    ('bio', 'bmes', 'none')
    """
    labels = set(labels)
    prefixes = {split_label(label)[0] for label in labels}
    bare = {label for label in labels if label != "O" and "-" not in label}
    if not prefixes - set("BMES") and bare == labels:
        return "bmes"
    if bare or not prefixes <= set("BIOMES"):
        return "none"
    if "M" in prefixes:
        return "bmes"
    return "bioes" if prefixes & set("ES") else "bio"


def spans_of(labels: Sequence[str]) -> list[Span]:
    """The spans that labels spell, in any scheme, read as the CoNLL scorer reads them.

    A span begins at B or S, or where the kind changes, or at an I, M or E after an O, E or S.

    >>> [tuple(span) for span in spans_of(["B-x", "I-x", "I-y", "O", "E-x", "S"])]
    [('x', 0, 2), ('y', 2, 3), ('x', 4, 5), ('', 5, 6)]
    """
    found: list[Span] = []
    start, before = -1, ("O", "")
    for k, label in enumerate([*labels, "O"]):
        prefix, kind = split_label(label)
        here = prefix in "BIMES"
        goes_on = here and start >= 0 and before[0] not in _ENDS and prefix not in _BEGINS and kind == before[1]
        if start >= 0 and not goes_on:
            found.append(Span(before[1], start, k))
            start = -1
        if here and not goes_on:
            start = k
        before = (prefix, kind)
    return found


def labels_of(spans: Iterable[Span], length: int, scheme: str) -> list[str]:
    """The labels of so many words that spell spans.

    >>> labels_of([Span("x", 1, 3)], 4, "bioes")
    ['O', 'B-x', 'E-x', 'O']
    """
    labels = ["O"] * length
    for kind, start, stop in spans:
        tail = "-" + kind if kind else ""
        inside = "M" if scheme == "bmes" else "I"
        for k in range(start, stop):
            labels[k] = inside + tail
        labels[start] = "B" + tail
        if scheme != "bio":
            labels[stop - 1] = ("S" if stop == start + 1 else "E") + tail
    return labels


def segments_of(words: Iterable[str]) -> tuple[str, ...]:
    """B M E S of the characters of words.

    >>> segments_of(["春眠", "不", "觉得晓"])
    ('B', 'E', 'S', 'B', 'M', 'E')
    """
    return tuple(label for word in words for label in _segment(len(word)))


def words_of(characters: Sequence[str], labels: Sequence[str]) -> list[str]:
    """Words from characters and their B M E S: one begins at B or S, and one ends before it or at E or S.

    >>> words_of("春眠不觉晓", ["B", "E", "S", "M", "E"])
    ['春眠', '不', '觉晓']
    """
    words: list[str] = []
    ended = True
    for character, label in zip(characters, labels, strict=True):
        if ended or label in _BEGINS:
            words.append(character)
        else:
            words[-1] += character
        ended = label in _ENDS
    return words


def may_follow(labels: Sequence[str], scheme: str) -> tuple[Tensor, Tensor, Tensor]:
    """Which labels may follow one another, begin and end in a scheme: (L, L), (L,), (L,) bool, for `layers.CRF`.

    >>> may_follow(["O", "B-x", "I-x"], "bio")[0].tolist()
    [[True, True, False], [True, True, True], [True, True, True]]
    """
    size = len(labels)
    if scheme == "none":
        return torch.ones(size, size, dtype=torch.bool), torch.ones(size).bool(), torch.ones(size).bool()
    split = [split_label(label) for label in labels]
    free = torch.tensor([prefix in ("O", "B", "S") for prefix, _ in split])  # may stand where no span is open
    closed = torch.tensor([prefix in ("O", "E", "S") or scheme == "bio" for prefix, _ in split])  # leaves none open
    goes_on = torch.tensor(
        [[first in "BIM" and second in "IME" and kind == other for second, other in split] for first, kind in split]
    )
    return goes_on | (closed[:, None] & free), free, closed


def _segment(length: int) -> list[str]:
    return ["S"] if length == 1 else ["B", *["M"] * (length - 2), "E"]
