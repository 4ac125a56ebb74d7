"""One vector for a sequence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from throughtime.engine.sequence import within

POOLINGS = ("last", "mean", "max", "attention")


class Pooling(nn.Module):
    r"""Pools over time, the real steps of each sequence alone.

    "last" takes what each direction has after its last real step: the forward half of the features at the end, the
    backward half at the beginning. "attention" (Yang et al. 2016) takes the mean weighted by

    .. math:: \alpha_t = \mathrm{softmax}_t(u^\top \tanh(W y_t + b))

    An empty sequence pools to zeros.

    >>> pooled, weights = Pooling("mean", 2)(torch.tensor([[[1.0, 2], [3, 4], [9, 9]]]), [2])
    >>> pooled.tolist(), weights
    ([[2.0, 3.0]], None)

    Args:
        kind: "last", "mean", "max" or "attention".
        size: features O.
        directions: 2 where the features are those of two directions, one after the other.

    Raises:
        ValueError: the kind is unknown, or the features of two directions are odd in number.
    """

    def __init__(self, kind: str, size: int, directions: int = 1) -> None:
        super().__init__()
        if kind not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {kind!r}")
        if size % directions:
            raise ValueError(f"{size} features are not those of {directions} directions")
        self.kind = kind
        self.directions = directions
        if kind == "attention":
            self.hidden = nn.Linear(size, size)
            self.context = nn.Linear(size, 1, bias=False)

    def forward(self, y: Tensor, lengths: Any) -> tuple[Tensor, Tensor | None]:
        """``y (B, T, O), lengths (B,) -> ((B, O), weights (B, T) of attention or None)``."""
        lengths = torch.as_tensor(lengths, device=y.device)
        batch, steps, size = y.shape
        if steps == 0:
            return y.new_zeros(batch, size), y.new_zeros(batch, 0) if self.kind == "attention" else None
        inside = within(lengths, steps)[..., None]  # (B, T, 1)
        some = (lengths > 0)[:, None]  # (B, 1)
        if self.kind == "last":
            at = (lengths - 1).clamp(min=0)
            last = y[torch.arange(batch, device=y.device), at]  # (B, O)
            if self.directions == 2:
                last = torch.cat([last[:, : size // 2], y[:, 0, size // 2 :]], dim=1)
            return last.masked_fill(~some, 0), None
        if self.kind == "mean":
            return y.masked_fill(~inside, 0).sum(1) / lengths.clamp(min=1)[:, None], None
        if self.kind == "max":
            return y.masked_fill(~inside, -torch.inf).amax(1).masked_fill(~some, 0), None
        scores = self.context(self.hidden(y).tanh()).masked_fill(~inside, -torch.inf)  # (B, T, 1)
        weights = scores.masked_fill(~some[..., None], 0).softmax(1).masked_fill(~inside, 0)
        return (weights * y.masked_fill(~inside, 0)).sum(1), weights[..., 0]

    def extra_repr(self) -> str:
        return repr(self.kind)
