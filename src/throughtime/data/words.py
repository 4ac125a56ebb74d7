"""Words as units."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from throughtime.data.text import Piece, by_line
from throughtime.data.vocabulary import SPECIAL, UNKNOWN, Vocabulary

# Chinese and Japanese are written without spaces: there, a word is one character.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf" ?(?:[{_UNSPACED}]|[^\W{_UNSPACED}]{{1,64}}|[^\w\s])|\s")


def split_words(text: str) -> list[str]:
    """A text's words and signs, each with the space before it; joined, they are the text.

    >>> split_words("To be, or 春眠?")
    ['To', ' be', ',', ' or', ' 春', '眠', '?']
    """
    return _WORD.findall(text)


class Words(Vocabulary):
    """Words and signs, the most frequent first."""

    unit = "word"

    def __init__(self, symbols: Sequence[str]) -> None:
        self.symbols = list(symbols)
        self._numbers = {word: number for number, word in enumerate(self.symbols, start=len(SPECIAL))}

    def encode(self, text: str) -> NDArray[Any]:
        words = split_words(text)
        return np.fromiter((self._numbers.get(word, UNKNOWN) for word in words), dtype=self.dtype, count=len(words))

    def unknown(self, text: str) -> list[str]:
        return list(dict.fromkeys(word for word in split_words(text) if word not in self._numbers))

    def prompt(self, text: str) -> tuple[list[int], list[str]]:
        """Where a word is known only with a space before it, or only without, it is taken as that."""
        numbers, missing = [], []
        for word in split_words(text):
            other = word[1:] if word.startswith(" ") else " " + word
            number = self._numbers.get(word, self._numbers.get(other))
            if number is None:
                missing.append(word)
            else:
                numbers.append(number)
        return numbers, list(dict.fromkeys(missing))

    def pieces(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        return by_line(pieces)

    @classmethod
    def learn(cls, pieces: Iterable[Piece], size: int | None = 10_000) -> Words:
        counts: Counter[str] = Counter()
        for piece in by_line(pieces):
            counts.update(split_words(piece.text))
        ranked = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(ranked[:size])

    def to_json(self) -> dict[str, Any]:
        return {"unit": self.unit, "symbols": self.symbols}

    @classmethod
    def from_json(cls, config: dict[str, Any]) -> Words:
        return cls(config["symbols"])
