"""A class for a sequence, voted for by its steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from throughtime.engine.sequence import within


class Votes(nn.Module):
    r"""Each step says which class the whole sequence is of, and counts alike (after Qin et al. 2019).

    .. math:: p(c) = \frac{1}{T} \sum_t p_t(c), \qquad p_t = \mathrm{softmax}(W y_t + b)

    They learn one by one, from the mean of :math:`-\ln p_t(c)`, so that no few steps come to settle the class alone, as
    they can where steps are pooled first. Departing from the paper, steps give their probabilities and not one voice
    each, and what they say is not read by what labels the steps. An empty sequence is judged by b alone.

    >>> import torch
    >>> votes = Votes(8, 3)
    >>> y, lengths = torch.randn(2, 5, 8), torch.tensor([5, 2])
    >>> votes(y, lengths).exp().sum(1).allclose(torch.ones(2)), votes.cost(y, lengths, torch.tensor([2, 0])).shape
    (True, torch.Size([]))

    Args:
        size: features O of a step.
        classes: how many there are.
    """

    def __init__(self, size: int, classes: int) -> None:
        super().__init__()
        self.output = nn.Linear(size, classes)

    def forward(self, y: Tensor, lengths: Any) -> Tensor:
        """``y (B, T, O), lengths (B,) -> ln p (B, classes)``."""
        said, shares = self._said(y, lengths)
        return (said + shares.log()).logsumexp(1)

    def cost(self, y: Tensor, lengths: Any, classes: Tensor) -> Tensor:
        """``y (B, T, O), lengths (B,), classes (B,) -> ()``: the sum over sequences of their steps' mean cost."""
        said, shares = self._said(y, lengths)
        own = said.gather(-1, classes[:, None, None].expand(-1, said.shape[1], 1))  # (B, T, 1)
        return -(own * shares).sum()

    def _said(self, y: Tensor, lengths: Any) -> tuple[Tensor, Tensor]:
        """What each step says, ln p_t (B, T, classes), and its share in the whole (B, T, 1): none past the length."""
        lengths = torch.as_tensor(lengths, device=y.device)
        y = y if y.shape[1] else y.new_zeros(len(y), 1, y.shape[2])
        inside = within(lengths.clamp(min=1), y.shape[1])[..., None]  # (B, T, 1)
        real = within(lengths, y.shape[1])[..., None]
        said = self.output(y.masked_fill(~real, 0)).log_softmax(-1)
        return said, inside / lengths.clamp(min=1)[:, None, None]
