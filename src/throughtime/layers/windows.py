"""Each step with its neighbours."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from throughtime.engine.sequence import within


class Windows(nn.Module):
    r"""Word windows (Mesnil et al. 2013): each step's features beside those of its neighbours.

    .. math:: x'_t = [x_{t-k}; \dots; x_t; \dots; x_{t+k}]

    Beyond the ends of a sequence stand zeros.

    >>> Windows(3)(torch.tensor([[[1.0], [2.0], [9.0]]]), torch.tensor([2])).tolist()
    [[[0.0, 1.0, 2.0], [1.0, 2.0, 0.0], [2.0, 0.0, 0.0]]]

    Args:
        size: steps in a window, 2k + 1.

    Raises:
        ValueError: the size is not odd.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 1 or size % 2 == 0:
            raise ValueError(f"a window has an odd number of steps, not {size}")
        self.size = size

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """``x (B, T, I), lengths (B,) -> (B, T, size * I)``."""
        if self.size == 1:
            return x
        steps = x.shape[1]
        inside = within(lengths, steps)
        k = self.size // 2
        x = nn.functional.pad(x.masked_fill(~inside[..., None], 0), (0, 0, k, k))  # (B, T + 2k, I)
        return torch.cat([x[:, shift : shift + steps] for shift in range(self.size)], dim=-1)

    def extra_repr(self) -> str:
        return str(self.size)
