"""Units of text and their numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from throughtime.data.text import Piece

UNKNOWN, DOCUMENT = 0, 1  # the first two numbers of every vocabulary
SPECIAL = ("<unk>", "<doc>")
_CODE_POINTS = 0x110000


class Vocabulary(ABC):
    """Units and numbers, both ways. 0 is <unk>, a unit never seen; 1 is <doc>, the border of a document.

    What has no unknown unit in it comes back as it went in: ``decode(encode(text)) == text``.
    """

    unit: ClassVar[str]
    symbols: Sequence[str]  # the units from number 2 on

    @property
    def size(self) -> int:
        return len(SPECIAL) + len(self.symbols)

    @property
    def dtype(self) -> type[np.unsignedinteger[Any]]:
        """The smallest whole number that holds every number of the vocabulary."""
        return np.uint8 if self.size <= 1 << 8 else np.uint16 if self.size <= 1 << 16 else np.uint32

    @abstractmethod
    def encode(self, text: str) -> NDArray[Any]:
        """The numbers of a text's units."""

    @abstractmethod
    def unknown(self, text: str) -> list[str]:
        """The units of a text that the vocabulary lacks, each once, in order."""

    def prompt(self, text: str) -> tuple[list[int], list[str]]:
        """The numbers of a text to write on from, and the units of it that cannot be taken."""
        return self.encode(text).tolist(), self.unknown(text)

    @classmethod
    @abstractmethod
    def learn(cls, pieces: Iterable[Piece], size: int | None) -> Vocabulary:
        """The vocabulary of a text: of all units, or the ``size`` most frequent ones."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """What `from_json` takes, ``unit`` among it."""

    @classmethod
    @abstractmethod
    def from_json(cls, config: dict[str, Any]) -> Vocabulary: ...

    def pieces(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """The text cut only where a cut changes no unit."""
        return iter(pieces)

    def writer(self) -> Callable[[int], str]:
        """What turns numbers into text one at a time, as they are generated."""
        return lambda number: "" if number == DOCUMENT else self.symbol(number)

    def symbol(self, number: int) -> str:
        """The unit of a number, as text; U+FFFD for an unknown one."""
        if number == UNKNOWN:
            return "\ufffd"
        return SPECIAL[DOCUMENT] if number == DOCUMENT else self.symbols[number - len(SPECIAL)]

    def decode(self, numbers: Iterable[int]) -> str:
        """The text of numbers; document borders are not written."""
        write = self.writer()
        return "".join(write(int(number)) for number in numbers) + write(DOCUMENT)


class Characters(Vocabulary):
    """Characters (code points), numbered by code point.

    >>> vocabulary = Characters("aβ春")
    >>> vocabulary.encode("春a?").tolist(), vocabulary.decode([4, 2])
    ([4, 2, 0], '春a')
    """

    unit = "char"

    def __init__(self, symbols: str) -> None:
        self.symbols = symbols
        codes = _codes(symbols)
        self._numbers = np.full(int(codes.max(initial=0)) + 2, UNKNOWN, dtype=self.dtype)  # its last is never known
        self._numbers[codes] = np.arange(len(SPECIAL), self.size)

    def encode(self, text: str) -> NDArray[Any]:
        return self._numbers[np.minimum(_codes(text), len(self._numbers) - 1)]

    def unknown(self, text: str) -> list[str]:
        known = set(self.symbols)
        return list(dict.fromkeys(character for character in text if character not in known))

    @classmethod
    def learn(cls, pieces: Iterable[Piece], size: int | None = None) -> Characters:
        counts = np.zeros(_CODE_POINTS, dtype=np.int64)
        for piece in pieces:
            counted = np.bincount(_codes(piece.text))
            counts[: len(counted)] += counted
        found = np.flatnonzero(counts)
        if size is not None:
            found = np.sort(found[np.argsort(-counts[found], kind="stable")[:size]])
        return cls("".join(map(chr, found)))

    def to_json(self) -> dict[str, Any]:
        return {"unit": self.unit, "symbols": self.symbols}

    @classmethod
    def from_json(cls, config: dict[str, Any]) -> Characters:
        return cls(config["symbols"])


def _codes(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
