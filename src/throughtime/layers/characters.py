"""What a word looks like, read letter by letter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from throughtime.cells.catalogue import cell_named
from throughtime.layers.recurrent import Recurrent


class CharacterFeatures(nn.Module):
    """Features of words from their letters (Ling et al. 2015): the last outputs of a network in both directions.

    >>> spelled = torch.tensor([[4, 2, 0], [1, 3, 2]])
    >>> CharacterFeatures(9, 5, 7)(spelled, torch.tensor([2, 3])).shape
    torch.Size([2, 14])

    Args:
        size: letters in the vocabulary.
        embedding: features of an embedded letter.
        hidden: units of each direction; the features are twice as many.
        cell: a name of the catalogue.
    """

    def __init__(self, size: int, embedding: int, hidden: int, cell: str = "lstm") -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, embedding)
        self.recurrent = Recurrent(cell_named(cell), embedding, hidden, bidirectional=True)
        self.output_size = self.recurrent.output_size

    def forward(self, letters: Tensor, lengths: Tensor) -> Tensor:
        """``letters (W, C), lengths (W,) -> (W, O)``: of a batch's distinct words, each once."""
        y, _ = self.recurrent(self.embedding(letters), lengths=lengths)  # (W, C, O)
        half = self.output_size // 2
        rows = torch.arange(len(letters), device=y.device)
        return torch.cat([y[rows, (lengths - 1).clamp(min=0), :half], y[:, 0, half:]], dim=1)
