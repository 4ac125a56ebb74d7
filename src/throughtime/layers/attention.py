"""What each step draws from all others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from throughtime.engine.sequence import within


class SelfAttention(nn.Module):
    r"""Each step's view of the whole sequence (Vaswani et al. 2017), with one head.

    .. math:: a_t = \sum_s \mathrm{softmax}_s\!\left(\frac{(Q x_t)^\top K x_s}{\sqrt{d}}\right) V x_s

    over the real steps s. The order of steps plays no part: it is for beside a recurrent network, which knows the order
    (Qin et al. 2019). Time grows with the square of the steps. An empty sequence has zeros.

    >>> import torch
    >>> attention = SelfAttention(3, 4)
    >>> x, lengths = torch.randn(2, 5, 3), torch.tensor([5, 2])
    >>> a = attention(x, lengths)
    >>> a.shape, a[1, :2].allclose(attention(x[1:, :2], lengths[1:])[0], atol=1e-6)
    (torch.Size([2, 5, 4]), True)

    Args:
        size: features I of a step.
        output_size: features d of what is drawn.
    """

    def __init__(self, size: int, output_size: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(size, output_size, bias=False) for _ in range(3))

    def forward(self, x: Tensor, lengths: Any) -> Tensor:
        """``x (B, T, I), lengths (B,) -> (B, T, d)``; what padding draws means nothing."""
        lengths = torch.as_tensor(lengths, device=x.device)
        real = within(lengths, x.shape[1])  # (B, T)
        x = x.masked_fill(~real[..., None], 0)
        seen = (real | (lengths == 0)[:, None])[:, None, None]  # (B, 1, 1, T): zeros, where there is nothing
        q, k, v = (made(x)[:, None] for made in (self.query, self.key, self.value))  # (B, 1, T, d)
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)[:, 0]
