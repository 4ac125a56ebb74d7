"""Keeping gradients that explode within bounds (Pascanu, Mikolov & Bengio 2013)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def global_norm(gradients: Sequence[Tensor]) -> Tensor:
    r"""The Euclidean norm of all gradients as one vector: \|g\| = \sqrt{\sum_i \|g_i\|^2}; a scalar.

    >>> global_norm([torch.tensor([3.0]), torch.tensor([[4.0]])])
    tensor(5.)
    """
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))


def clip_by_norm(gradients: Sequence[Tensor], norm: Tensor, threshold: float) -> None:
    r"""Scales all gradients alike, in place, so that their global norm is at most a threshold.

    .. math:: g \leftarrow g \, \min(1, \theta / \|g\|)

    Args:
        gradients: the gradients.
        norm: their `global_norm`.
        threshold: θ.
    """
    if norm.device.type == "cpu" and float(norm) <= threshold:
        return
    factor = (threshold / (norm + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor)


def clip_by_value(gradients: Sequence[Tensor], threshold: float) -> None:
    r"""Cuts every entry to [-θ, θ], in place. Unlike `clip_by_norm`, it changes the gradient's direction."""
    for gradient in gradients:
        gradient.clamp_(-threshold, threshold)
