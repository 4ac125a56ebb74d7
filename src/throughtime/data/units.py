"""Which units there are, by name."""

from __future__ import annotations

from typing import Any

from throughtime.data.subwords import Subwords
from throughtime.data.text import TextSource
from throughtime.data.vocabulary import Characters, Vocabulary
from throughtime.data.words import Words
from throughtime.errors import UserError

UNITS: dict[str, type[Vocabulary]] = {"char": Characters, "word": Words, "bpe": Subwords}
USUAL_SIZE: dict[str, int | None] = {"char": None, "word": 10_000, "bpe": 4_096}


def learn_vocabulary(source: TextSource, unit: str, size: int | None = None) -> Vocabulary:
    """The vocabulary of a text, of at most ``size`` units; of the usual number for the unit where None.

    Raises:
        UserError: the unit is unknown, the size below 1, or the text cannot be read.
    """
    if unit not in UNITS:
        raise UserError(f"unit {unit!r} is unknown; choose one of {', '.join(UNITS)}")
    if size is not None and size < 1:
        raise UserError(f"a vocabulary has at least 1 unit, not {size}")
    return UNITS[unit].learn(source.pieces(), USUAL_SIZE[unit] if size is None else size)


def vocabulary_from(config: dict[str, Any]) -> Vocabulary:
    """The vocabulary that `Vocabulary.to_json` described."""
    return UNITS[config["unit"]].from_json(config)
