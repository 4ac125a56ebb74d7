"""More labelled sentences than there are: spans in the place of others of their kind."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from throughtime.data.sentences import Sentence
from throughtime.data.spans import Span, labels_of, spans_of


class _Piece(NamedTuple):
    """The words of a span, and what further columns have beside them."""

    words: tuple[str, ...]
    extras: tuple[tuple[str, ...], ...]


class SpanSwap:
    """Puts spans of other sentences in the place of a sentence's own, each of its kind (Dai & Adel 2020).

    >>> from pathlib import Path
    >>> sentences = [Sentence(("to", "new", "york"), ("O", "B-city", "I-city"), "", Path("x"), 1),
    ...              Sentence(("in", "rome"), ("O", "B-city"), "", Path("x"), 2)]
    >>> swap = SpanSwap(sentences[:1], "bio")
    >>> found = swap(sentences[1], 1.0, np.random.default_rng(1))
    >>> found.words, found.labels
    (('in', 'new', 'york'), ('O', 'B-city', 'I-city'))

    Args:
        sentences: whose spans are taken.
        scheme: that labels are written in afterwards.
    """

    def __init__(self, sentences: Iterable[Sentence], scheme: str) -> None:
        self.scheme = scheme
        self._kinds: dict[str, list[_Piece]] = {}
        for sentence in sentences:
            for span in spans_of(sentence.labels):
                self._kinds.setdefault(span.kind, []).append(_cut(sentence, span.start, span.stop))

    def __call__(self, sentence: Sentence, chance: float, drawn: np.random.Generator) -> Sentence:
        """The sentence with each span swapped with that chance; the more often a span comes, the likelier."""
        pieces: list[_Piece] = []
        spans: list[Span] = []
        at = length = 0
        for span in spans_of(sentence.labels):
            others = self._kinds.get(span.kind, [])
            swapped = drawn.random() < chance and len(others) > 0
            piece = others[drawn.integers(len(others))] if swapped else _cut(sentence, span.start, span.stop)
            length += span.start - at
            spans.append(Span(span.kind, length, length + len(piece.words)))
            length += len(piece.words)
            pieces += [_cut(sentence, at, span.start), piece]
            at = span.stop
        pieces.append(_cut(sentence, at, len(sentence.words)))
        words = tuple(word for piece in pieces for word in piece.words)
        extras = tuple(
            tuple(value for piece in pieces for value in piece.extras[column]) for column in range(len(sentence.extras))
        )
        return sentence._replace(words=words, labels=tuple(labels_of(spans, len(words), self.scheme)), extras=extras)


def _cut(sentence: Sentence, start: int, stop: int) -> _Piece:
    return _Piece(sentence.words[start:stop], tuple(values[start:stop] for values in sentence.extras))
