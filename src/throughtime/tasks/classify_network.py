"""A recurrent network that gives a sequence a class."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from throughtime.layers import Pooling, Recurrent, TokenFeatures
from throughtime.tasks.reading import SeriesFeatures


class Classifier(nn.Module):
    """Features of steps, layers of a cell, one vector for the sequence, and scores of classes.

    Args:
        features: of words or numbers.
        recurrent: what reads them.
        pooling: over time.
        classes: how many there are.
        dropout: of what is read, and of what is pooled.
    """

    def __init__(
        self,
        features: TokenFeatures | SeriesFeatures,
        recurrent: Recurrent,
        pooling: Pooling,
        classes: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.features = features
        self.recurrent = recurrent
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(recurrent.output_size, classes)

    def forward(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        """``Tokens or Frames -> (scores (B, N), weights of attention (B, T) or None)``."""
        return self.judge(self.features.embed(batch), batch.lengths)

    def judge(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor | None]:
        """The same from embedded steps (B, T, .)."""
        pooled, weights = self.pooling(self._read(x, lengths), lengths)
        return self.output(self.dropout(pooled)), weights

    def scores(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The scores (B, T, N) that each of the embedded steps would have as what is pooled."""
        return self.output(self._read(x, lengths))

    def _read(self, x: Tensor, lengths: Tensor) -> Tensor:
        y, _ = self.recurrent(self.features.spread(x, lengths), lengths=lengths)
        return y  # (B, T, O)
