"""What a text costs a model: the mean of -ln p(next unit)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from throughtime.data import UNKNOWN, Numbers, Window, side_by_side
from throughtime.learning import Loss
from throughtime.tasks.network import NextUnit

_ROWS = 4096  # units that a measurement takes at a time


@dataclass(frozen=True)
class Evaluation:
    """How well a model foretells a text."""

    nats: float  # a unit, the mean
    units: int  # foretold: all but the first; with documents apart, all of them and each one's end
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


def loss_of(network: NextUnit, window: Window, state: Any) -> Loss:
    """The mean of -ln p(next unit), in nats, over the targets that count."""
    device = next(network.parameters()).device
    inputs, targets = window.inputs.to(device), window.targets.to(device)
    resets = None if window.resets is None else window.resets.to(device)
    total, state = network.cost(inputs, targets, None if window.first else state, resets)
    return Loss(total / max(window.counted, 1), window.counted, state)


@torch.no_grad()
def measure(network: NextUnit, numbers: Numbers, streams: int = 1, warm_up: int = 0) -> Evaluation:
    """What a text costs; with one stream, the state is carried over the whole of it."""
    total, units, unknown, state = 0.0, 0, 0, None
    window = max(1, _ROWS // streams)
    for part in side_by_side(numbers, streams, window, warm_up):
        loss = loss_of(network, part, state)
        total, units, state = total + float(loss.mean) * loss.count, units + loss.count, loss.state
        unknown += int((part.targets == UNKNOWN).sum())
    return Evaluation(total / units, units, unknown)
