"""Pretrained word vectors in the text format of word2vec and GloVe."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from throughtime.data.lines import numbered_lines
from throughtime.errors import UserError


def read_vectors(path: Path, wanted: Container[str]) -> tuple[list[str], NDArray[np.float32]]:
    """The vectors of the wanted words: words (N,) and vectors (N, E). Others cost no memory.

    Each line is a word and its numbers, parted by spaces (a word may have spaces in it itself); word2vec's first
    line, two counts, is left out. Of a word that comes twice, the first is taken.

    Raises:
        UserError: a line is no vector, or of another size than the first.
    """
    words: list[str] = []
    vectors: list[NDArray[np.float32]] = []
    seen: set[str] = set()
    size = 0
    for number, line in numbered_lines(path):
        parts = line.rstrip().split(" ")
        if number == 1 and len(parts) == 2 and all(part.isdigit() for part in parts):
            size = int(parts[1])
            continue
        if not line.strip():
            continue
        size = size or len(parts) - 1
        word = " ".join(parts[:-size])
        if len(parts) < size + 1 or size < 1:
            raise UserError(f"{path}:{number}: {len(parts) - 1} numbers, where {size} are wanted; one vector a line")
        if word in seen or word not in wanted:
            continue
        try:
            vector = np.array(parts[-size:], dtype=np.float32)
        except ValueError as error:
            raise UserError(f"{path}:{number}: not a word and {size} numbers ({error})") from error
        seen.add(word)
        words.append(word)
        vectors.append(vector)
    if size == 0:
        raise UserError(f"{path}:1: no vectors in it; a word and its numbers in each line are wanted")
    return words, np.stack(vectors) if vectors else np.zeros((0, size), dtype=np.float32)
