"""What the jobs that read sequences share: settings, and the network that reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from throughtime.cells.catalogue import CATALOGUE, cell_named
from throughtime.data.index import WordIndex
from throughtime.data.vectors import read_vectors
from throughtime.errors import UserError
from throughtime.layers import Recurrent, TokenFeatures, Tokens, Windows


def setting(default: Any, text: str) -> Any:
    """A setting's default and its text, which the command line shows."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class ReadingSettings:
    """What is read and what is built. The text of each setting is in its field's metadata.

    Raises:
        UserError: a setting is out of range, or a name unknown.
    """

    format: str = setting("auto", "The format of the files; see the documentation.")
    valid: str | None = setting(None, "A file to validate on; by default a part of the training data, drawn by seed.")
    valid_fraction: float = setting(0.1, "How much of the training data that part is.")

    cell: str = setting("lstm", "The cell; `throughtime cells` lists them.")
    hidden: int = setting(128, "Hidden units of each layer and direction.")
    layers: int = setting(1, "Layers.")
    bidirectional: bool = setting(True, "Read from both ends.")
    embedding: int = setting(100, "Features of an embedded word.")
    window: int = setting(1, "Steps that each step sees, itself in the middle (Mesnil et al. 2013); odd.")
    pairs: bool = setting(False, "Embed each word with the next one too (pairs of characters in Chinese).")
    characters: bool = setting(False, "Read the letters of each word by a recurrent network of their own.")
    character_hidden: int = setting(25, "Units of each direction of that network.")
    dropout: float = setting(0.5, "Dropout of the layers' outputs.")
    embedding_dropout: float = setting(0.3, "Dropout of the embedded words.")
    locked_dropout: bool = setting(False, "What is dropped is so at all steps of a sequence (Gal & Ghahramani 2016).")

    lower: bool = setting(False, "Take words in lower case (their letters stay).")
    digits: bool = setting(False, "Take every digit as 0.")
    vocabulary_size: int | None = setting(None, "Words kept, the most frequent; all by default.")
    min_count: int = setting(1, "How often a word must come to be kept.")
    forget_rare: float = setting(0.5, "The chance of a word seen once to be taken as unknown, in training.")
    vectors: str | None = setting(None, "Pretrained vectors, in the text format of word2vec or GloVe.")
    freeze: bool = setting(False, "Leave the words' vectors as they are.")

    batch_size: int = setting(32, "Sequences in a batch.")

    def __post_init__(self) -> None:
        if self.cell not in CATALOGUE:
            raise UserError(f"cell {self.cell!r} is unknown; `throughtime cells` lists those there are")
        for name in ("hidden", "layers", "embedding", "window", "character_hidden", "min_count", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{_spelled(name)} must be at least 1, not {getattr(self, name)}")
        if self.vocabulary_size is not None and self.vocabulary_size < 1:
            raise UserError(f"vocabulary size must be at least 1, not {self.vocabulary_size}")
        if self.window % 2 == 0:
            raise UserError(f"a window has an odd number of steps, not {self.window}")
        for name in ("dropout", "embedding_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{_spelled(name)} must be at least 0 and below 1, not {getattr(self, name):g}")
        if not 0 <= self.forget_rare <= 1:
            raise UserError(f"forget rare must be at least 0 and at most 1, not {self.forget_rare:g}")
        if not 0 < self.valid_fraction < 1:
            raise UserError(f"valid fraction must be above 0 and below 1, not {self.valid_fraction:g}")
        if self.freeze and self.vectors is None:
            raise UserError("there are no vectors to freeze; give a file of them with --vectors")

    def index(self, sentences: Sequence[Sequence[str]], extras: Sequence[Sequence[str]] = ()) -> WordIndex:
        """Numbers for the words of the training data, and for the values of its further columns."""
        return WordIndex.learn(
            sentences,
            size=self.vocabulary_size,
            min_count=self.min_count,
            pairs=self.pairs,
            letters=self.characters,
            lower=self.lower,
            digits=self.digits,
            extras=extras,
        )

    def token_features(self, index: WordIndex) -> TokenFeatures:
        return TokenFeatures(
            len(index.words) + 1,
            self.embedding,
            pairs=0 if index.pairs is None else len(index.pairs) + 1,
            letters=0 if index.letters is None else len(index.letters) + 1,
            letter_hidden=self.character_hidden,
            window=self.window,
            dropout=self.embedding_dropout,
            locked=self.locked_dropout,
            extras=[len(values) + 1 for values in index.extras],
        )

    def use_vectors(self, features: TokenFeatures, index: WordIndex) -> None:
        """Gives the words that have one their pretrained vector.

        Raises:
            UserError: the file is no file of vectors, has vectors of another size, or none for any word.
        """
        if self.vectors is None:
            return
        words, vectors = read_vectors(Path(self.vectors), _Normal(index))
        if vectors.shape[1] != self.embedding:
            size = vectors.shape[1]
            raise UserError(f"{self.vectors}: its vectors have {size} numbers; give --embedding {size}")
        if not words:
            raise UserError(f"{self.vectors}: no vector for any word of the training data; is it of another language?")
        rows = torch.tensor([index.number(word) for word in words])
        features.set_vectors(rows, torch.from_numpy(vectors), self.freeze)

    def recurrent(self, input_size: int) -> Recurrent:
        return Recurrent(cell_named(self.cell), input_size, self.hidden, self.layers, self.bidirectional, self.dropout)


class _Normal:
    """The words of an index, however they are written."""

    def __init__(self, index: WordIndex) -> None:
        self.index = index

    def __contains__(self, word: object) -> bool:
        return isinstance(word, str) and self.index.number(word) > 0


class Frames(NamedTuple):
    """A batch of series."""

    values: Tensor  # (B, T, C)
    lengths: Tensor  # (B,)


class SeriesFeatures(nn.Module):
    """Numbers over time, scaled by the mean and deviation of the training data, each step beside its neighbours.

    >>> SeriesFeatures(2, window=3)(Frames(torch.zeros(4, 7, 2), torch.tensor([7, 1, 0, 3]))).shape
    torch.Size([4, 7, 6])
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int, window: int = 1) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))
        self.windows = Windows(window)
        self.output_size = channels * window

    def measure(self, series: Iterable[Tensor]) -> None:
        """Takes mean and deviation of each channel from series (T, C)."""
        values = torch.cat(list(series))  # (N, C)
        if len(values) == 0:
            return
        self.mean.copy_(values.mean(0))
        self.deviation.copy_(values.std(0, correction=0).clamp(min=1e-6))

    def forward(self, frames: Frames) -> Tensor:
        """``Frames -> (B, T, O)``."""
        return self.spread(self.embed(frames), frames.lengths)

    def embed(self, frames: Frames) -> Tensor:
        return (frames.values - self.mean) / self.deviation

    def spread(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.windows(x, lengths)


def tokens_of(
    index: WordIndex,
    sentences: Sequence[Sequence[str]],
    device: torch.device | None = None,
    extras: Sequence[Sequence[Sequence[str]]] = (),
) -> Tokens:
    """Sentences as a network takes them, on its device; ``extras`` as `WordIndex.encode` has them."""
    return moved(Tokens(*index.encode(sentences, extras=extras)), device)


def moved(batch: Any, device: torch.device | None) -> Any:
    """A named tuple's tensors on a device."""
    if device is None or device.type == "cpu":
        return batch
    return type(batch)(*(value.to(device) if isinstance(value, Tensor) else value for value in batch))


def _spelled(name: str) -> str:
    return name.replace("_", " ")
