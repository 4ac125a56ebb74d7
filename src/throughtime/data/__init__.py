"""From files to batches."""

from throughtime.data.numbers import Numbers, encode_pieces, encode_to_disk
from throughtime.data.streams import IGNORED, Streams, Window, side_by_side
from throughtime.data.text import Piece, TextSource
from throughtime.data.units import UNITS, learn_vocabulary, vocabulary_from
from throughtime.data.vocabulary import DOCUMENT, UNKNOWN, Characters, Vocabulary

__all__ = [
    "DOCUMENT",
    "IGNORED",
    "UNITS",
    "UNKNOWN",
    "Characters",
    "Numbers",
    "Piece",
    "Streams",
    "TextSource",
    "Vocabulary",
    "Window",
    "encode_pieces",
    "encode_to_disk",
    "learn_vocabulary",
    "side_by_side",
    "vocabulary_from",
]
