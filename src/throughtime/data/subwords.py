"""Sub-words as units: byte-pair encoding, by the tokenizers library."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from throughtime.data.text import Piece, by_line
from throughtime.data.vocabulary import DOCUMENT, SPECIAL, UNKNOWN, Vocabulary
from throughtime.errors import UserError


class Subwords(Vocabulary):
    """Byte-pair encoding (Sennrich 2016) over bytes: no text is unknown to it.

    A unit may be a part of a character's bytes; a character is written once its last byte is there, and bytes that
    make none are written as U+FFFD.
    """

    unit = "bpe"

    def __init__(self, tokenizer: str) -> None:
        self._json = tokenizer
        self._tokenizer = _library().Tokenizer.from_str(tokenizer)
        self.symbols = [self._tokenizer.id_to_token(k) for k in range(self._tokenizer.get_vocab_size())]
        byte_of = {letter: byte for byte, letter in enumerate(_letters())}
        self._bytes = [bytes(byte_of[letter] for letter in symbol) for symbol in self.symbols]

    def encode(self, text: str) -> NDArray[Any]:
        numbers = self._tokenizer.encode(text.encode("utf-8", "replace").decode(), add_special_tokens=False).ids
        return (np.asarray(numbers, dtype=np.int64) + len(SPECIAL)).astype(self.dtype)

    def unknown(self, text: str) -> list[str]:
        return []

    def pieces(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        return by_line(pieces)

    def symbol(self, number: int) -> str:
        if number in (UNKNOWN, DOCUMENT):
            return super().symbol(number)
        return self._bytes[number - len(SPECIAL)].decode("utf-8", "replace")

    def writer(self) -> Callable[[int], str]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")

        def write(number: int) -> str:
            if number == DOCUMENT:
                return decoder.decode(b"", final=True)
            if number == UNKNOWN:
                return decoder.decode(b"", final=True) + super(Subwords, self).symbol(number)
            return decoder.decode(self._bytes[number - len(SPECIAL)])

        return write

    @classmethod
    def learn(cls, pieces: Iterable[Piece], size: int | None = 4_096) -> Subwords:
        library = _library()
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = library.trainers.BpeTrainer(
            vocab_size=4_096 if size is None else max(size, 256),
            show_progress=False,
            initial_alphabet=sorted(_letters()),
        )
        tokenizer.train_from_iterator((piece.text for piece in by_line(pieces)), trainer)
        return cls(tokenizer.to_str())

    def to_json(self) -> dict[str, Any]:
        return {"unit": self.unit, "tokenizer": json.loads(self._json)}

    @classmethod
    def from_json(cls, config: dict[str, Any]) -> Subwords:
        return cls(json.dumps(config["tokenizer"]))


def _library() -> ModuleType:
    try:
        import tokenizers
    except ImportError as error:
        raise UserError("--unit bpe needs the tokenizers library: pip install 'throughtime[bpe]'") from error
    return tokenizers


def _letters() -> list[str]:
    """The letter that stands for each byte in the library's byte-level tokens: itself where it can be printed."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
