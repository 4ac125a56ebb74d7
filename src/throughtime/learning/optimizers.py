"""Ways to descend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from throughtime.learning.training import Training


@dataclass(frozen=True)
class Way:
    """One way to descend: what makes it, and the learning rate it starts from where none is given."""

    rate: float
    make: Callable[[list[dict[str, Any]], Training], torch.optim.Optimizer]


def _rmsprop(groups: list[dict[str, Any]], training: Training) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(
        groups, lr=training.rate, alpha=training.rmsprop_decay, momentum=training.momentum, foreach=True
    )


def _sgd(groups: list[dict[str, Any]], training: Training) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=training.rate, momentum=training.momentum, fused=_fused(training))


def _adam(groups: list[dict[str, Any]], training: Training) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=training.rate, betas=(training.beta1, training.beta2), fused=_fused(training))


def _adamw(groups: list[dict[str, Any]], training: Training) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=training.rate, betas=(training.beta1, training.beta2), fused=_fused(training))


def _fused(training: Training) -> bool:
    """One kernel for the whole update; not where gradients are unscaled before they are clipped."""
    return training.precision != "16-mixed"


OPTIMIZERS: dict[str, Way] = {
    "rmsprop": Way(0.002, _rmsprop),
    "sgd": Way(0.1, _sgd),
    "adam": Way(0.002, _adam),
    "adamw": Way(0.002, _adamw),
}


def make_optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """The optimiser of a model's parameters. Weight decay is for matrices; biases and gains go without."""
    learning = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learning if p.dim() >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in learning if p.dim() < 2], "weight_decay": 0.0},
    ]
    return OPTIMIZERS[training.optimizer].make([group for group in groups if group["params"]], training)
