"""What a text costs a model: the mean of -ln p(next unit)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from throughtime.data import IGNORED, UNKNOWN, Numbers, Window, side_by_side
from throughtime.learning import Loss
from throughtime.tasks.network import NextUnit

_NUMBERS = 1 << 24  # logits that a measurement holds at a time, at most


@dataclass(frozen=True)
class Evaluation:
    """How well a model foretells a text."""

    nats: float  # a unit, the mean
    units: int  # foretold; all but the first, and the ends of documents
    unknown: int  # units among them that the model's vocabulary lacks

    @property
    def bits(self) -> float:
        return self.nats / math.log(2)

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats) if self.nats < 700 else math.inf

    def to_json(self) -> dict[str, float]:
        measures = {"nats": self.nats, "bits": self.bits, "perplexity": self.perplexity}
        return {**measures, "units": self.units, "unknown": self.unknown}


def loss_of(network: nn.Module, window: Window, state: Any) -> Loss:
    """The mean of -ln p(next unit), in nats, over the targets that count."""
    device = next(network.parameters()).device
    inputs, targets = window.inputs.to(device), window.targets.to(device)
    resets = None if window.resets is None else window.resets.to(device)
    logits, state = network(inputs, None if window.first else state, resets)
    total = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return Loss(total / max(window.counted, 1), window.counted, state)


@torch.no_grad()
def measure(network: NextUnit, numbers: Numbers, streams: int = 1, warm_up: int = 0) -> Evaluation:
    """What a text costs; with one stream, the state is carried over the whole of it."""
    total, units, unknown, state = 0.0, 0, 0, None
    window = max(1, min(4096, _NUMBERS // network.output.out_features) // streams)
    for part in side_by_side(numbers, streams, window, warm_up):
        loss = loss_of(network, part, state)
        total, units, state = total + float(loss.mean) * loss.count, units + loss.count, loss.state
        unknown += int((part.targets == UNKNOWN).sum())
    return Evaluation(total / units, units, unknown)
