"""From numbered words to the input of a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from throughtime.layers.characters import CharacterFeatures
from throughtime.layers.dropout import LockedDropout
from throughtime.layers.windows import Windows


class Tokens(NamedTuple):
    """A batch of sentences as numbers; 0 is <unk> everywhere."""

    words: Tensor  # (B, T)
    lengths: Tensor  # (B,)
    pairs: Tensor | None = None  # (B, T): a word and the next, numbered as one
    letters: Tensor | None = None  # (W, C): the distinct words of the batch, spelled
    letter_counts: Tensor | None = None  # (W,)
    spelled: Tensor | None = None  # (B, T): which of them each word is
    extras: Tensor | None = None  # (B, T, K): values of K further columns


class TokenFeatures(nn.Module):
    """Embedded words, with their spelling, the pair with the next word, and their neighbours, where asked for.

    >>> tokens = Tokens(torch.tensor([[3, 1, 0]]), torch.tensor([2]))
    >>> TokenFeatures(5, 4, window=3)(tokens).shape
    torch.Size([1, 3, 12])

    Args:
        words: how many words there are, <unk> among them.
        embedding: features of each.
        pairs: how many pairs of words there are; 0 for none. Each has as many features as a word.
        letters: how many letters; 0 for none.
        letter_embedding: features of an embedded letter.
        letter_hidden: units of each direction of the network that reads letters.
        window: steps each step sees, itself in the middle; odd.
        dropout: the chance of a feature to be dropped, in training.
        locked: a feature that is dropped is at all steps of the sequence.
        cell: of the network that reads letters.
        extras: how many values each further column has, the unknown one among them.
        extra_embedding: features of each.
    """

    def __init__(
        self,
        words: int,
        embedding: int,
        *,
        pairs: int = 0,
        letters: int = 0,
        letter_embedding: int = 30,
        letter_hidden: int = 25,
        window: int = 1,
        dropout: float = 0.0,
        locked: bool = False,
        cell: str = "lstm",
        extras: Sequence[int] = (),
        extra_embedding: int = 20,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(words, embedding)
        nn.init.normal_(self.words.weight, std=embedding**-0.5)
        self.pairs: nn.Embedding | None = None
        if pairs:
            self.pairs = nn.Embedding(pairs, embedding)
            nn.init.normal_(self.pairs.weight, std=embedding**-0.5)
        self.letters = CharacterFeatures(letters, letter_embedding, letter_hidden, cell) if letters else None
        self.extras = nn.ModuleList(nn.Embedding(values, extra_embedding) for values in extras)
        self.dropout = LockedDropout(dropout) if locked else nn.Dropout(dropout)
        self.windows = Windows(window)
        size = embedding * (2 if pairs else 1) + (self.letters.output_size if self.letters is not None else 0)
        size += extra_embedding * len(self.extras)
        self.output_size = size * window

    def forward(self, tokens: Tokens) -> Tensor:
        """``Tokens -> (B, T, O)``."""
        return self.spread(self.embed(tokens), tokens.lengths)

    def embed(self, tokens: Tokens) -> Tensor:
        """Each step's own features, (B, T, .): what saliency is taken by."""
        parts = [self.words(tokens.words)]
        if self.pairs is not None:
            assert tokens.pairs is not None
            parts.append(self.pairs(tokens.pairs))
        if self.letters is not None:
            assert tokens.letters is not None
            assert tokens.letter_counts is not None
            assert tokens.spelled is not None
            parts.append(self.letters(tokens.letters, tokens.letter_counts)[tokens.spelled])
        if self.extras:
            assert tokens.extras is not None
            parts += [extra(column) for extra, column in zip(self.extras, tokens.extras.unbind(-1), strict=True)]
        return torch.cat(parts, dim=-1)

    def spread(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Dropout, and each step beside its neighbours."""
        return self.windows(self.dropout(x), lengths)

    def set_vectors(self, rows: Tensor, vectors: Tensor, frozen: bool) -> None:
        """Puts pretrained vectors (N, E) at rows (N,); frozen, no word's vector is learned any more.

        Raises:
            ValueError: the vectors are of another size.
        """
        if vectors.shape[1] != self.words.embedding_dim:
            raise ValueError(f"vectors of {vectors.shape[1]} numbers for an embedding of {self.words.embedding_dim}")
        with torch.no_grad():
            self.words.weight[rows] = vectors.to(self.words.weight)
        self.words.weight.requires_grad_(not frozen)
