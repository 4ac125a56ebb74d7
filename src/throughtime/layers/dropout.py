"""Dropout that holds through time."""

from __future__ import annotations

from torch import Tensor, nn


class LockedDropout(nn.Module):
    """Drops the same features at all steps of a sequence (Gal & Ghahramani 2016), others in each sequence.

    >>> import torch
    >>> y = LockedDropout(0.5)(torch.ones(1, 3, 8))
    >>> bool((y[:, 0] == y[:, 2]).all()), LockedDropout(0.5).eval()(y) is y
    (True, True)

    Args:
        p: the chance of a feature to be dropped, in training; those that stay are scaled by 1 / (1 - p).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, y: Tensor) -> Tensor:
        """``(B, T, O) -> (B, T, O)``."""
        if not self.training or not self.p:
            return y
        return y * y.new_empty(y.shape[0], 1, y.shape[2]).bernoulli_(1 - self.p).div_(1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"
