"""A text as numbers, on disk: memory stays bounded however long the text."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from throughtime.data.disk import OnDisk
from throughtime.data.text import TextSource
from throughtime.data.vocabulary import DOCUMENT, UNKNOWN, Vocabulary
from throughtime.errors import UserError

_SCAN = 1 << 20  # numbers looked at together


@dataclass(frozen=True)
class Numbers:
    """The units of a text, numbered. Where documents are apart, <doc> stands before each and after the last."""

    ids: NDArray[Any] | OnDisk  # (N,)
    documents: bool
    unknown: int = 0  # how many of them are <unk>
    digest: str = ""  # tells whether another text is the same

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Units ``start ... stop - 1``."""
        return np.asarray(self.ids[start:stop])

    def split(self, last: float) -> tuple[Numbers, Numbers]:
        """The text without its last part, and that part; between documents where there are any."""
        cut = len(self.ids) - round(len(self.ids) * last)
        if not self.documents:
            return Numbers(self.ids[:cut], False), Numbers(self.ids[cut:], False)
        cut = self._border(cut)
        return Numbers(self.ids[: cut + 1], True), Numbers(self.ids[cut:], True)

    def head(self, count: int) -> Numbers:
        """The first ``count`` units."""
        return self if count >= len(self.ids) else Numbers(self.ids[:count], self.documents)

    def _border(self, cut: int) -> int:
        """The border of documents nearest to ``cut`` from above, or else from below; neither end of the text."""
        cut = min(max(cut, 1), len(self.ids) - 1)
        for start in range(cut, len(self.ids) - 1, _SCAN):
            found = np.flatnonzero(self.read(start, min(start + _SCAN, len(self.ids) - 1)) == DOCUMENT)
            if len(found):
                return start + int(found[0])
        for stop in range(cut, 1, -_SCAN):
            start = max(1, stop - _SCAN)
            found = np.flatnonzero(self.read(start, stop) == DOCUMENT)
            if len(found):
                return start + int(found[-1])
        raise UserError(
            "the text is one document, so that none is left for validation: see what stands between documents, or "
            "give another text with --valid"
        )


def encode_pieces(source: TextSource, vocabulary: Vocabulary) -> Iterator[NDArray[Any]]:
    """A text's numbers, piece after piece, with the borders of its documents."""
    border = np.array([DOCUMENT], dtype=vocabulary.dtype)
    for piece in vocabulary.pieces(source.pieces()):
        if piece.begins:
            yield border
        yield vocabulary.encode(piece.text)
    if source.apart:
        yield border


def encode_to_disk(source: TextSource, vocabulary: Vocabulary) -> Numbers:
    """The numbers of a text, in a temporary file that goes when the last user of them does.

    Raises:
        UserError: the text cannot be read, or the disk is full.
    """
    digest = hashlib.sha256()
    unknown = 0

    def looked_at() -> Iterator[NDArray[Any]]:
        nonlocal unknown
        for ids in encode_pieces(source, vocabulary):
            digest.update(ids.tobytes())
            unknown += int(np.count_nonzero(ids == UNKNOWN))
            yield ids

    try:
        stored = OnDisk(looked_at(), vocabulary.dtype)
    except OSError as error:
        where = tempfile.gettempdir()
        raise UserError(
            f"cannot write the text's numbers to {where}: {error.strerror}; set TMPDIR to a disk with room"
        ) from error
    return Numbers(stored, source.apart, unknown, digest.hexdigest())
