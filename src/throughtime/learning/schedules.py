r"""The course of the learning rate.

A schedule is a function of how far the run has come, not of how it got there: a run that is resumed, or bounded by
minutes, needs nothing else. Only `Plateau` has a memory, and that is plain numbers in the checkpoint.

.. math:: \eta(k) = \eta_{\max} \, \min(1, \mathrm{warm}(k)) \, \mathrm{schedule}(p)

with p the share of the run that is behind step k: of its steps, or of its time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from throughtime.learning.training import Training


@dataclass(frozen=True)
class Position:
    """How far a run has come: the number of the step to take, and the share (0 to 1) of the run behind it."""

    step: int
    share: float

    def passed(self, span: float) -> float:
        """How many times a span is behind: a share of the run where below 1, else steps."""
        return self.share / span if span < 1 else self.step / span


def constant(position: Position, training: Training) -> float:
    """1 throughout."""
    return 1.0


def cosine(position: Position, training: Training) -> float:
    """From 1 to ``final_rate`` along half a cosine."""
    return training.final_rate + (1 - training.final_rate) * (1 + math.cos(math.pi * position.share)) / 2


def linear(position: Position, training: Training) -> float:
    """From 1 to ``final_rate`` along a line."""
    return 1 + (training.final_rate - 1) * position.share


def step(position: Position, training: Training) -> float:
    """Times ``decay_factor`` each ``decay_every``."""
    return training.decay_factor ** math.floor(position.passed(training.decay_every) + 1e-9)


SCHEDULES: dict[str, Callable[[Position, Training], float]] = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
    "step": step,
    "plateau": constant,  # and what `Plateau` has learnt from the validations
}


def warm(position: Position, warmup: float) -> float:
    """The rise at the start: a line that reaches 1 at the end of the warm-up, and stays there."""
    if not warmup:
        return 1.0
    if warmup < 1:
        return min(1.0, position.share / warmup)
    return min(1.0, (position.step + 1) / warmup)


def rate_at(position: Position, training: Training, plateau: Plateau) -> float:
    """The learning rate of a step."""
    course = SCHEDULES[training.schedule](position, training)
    return training.rate * warm(position, training.warmup) * course * plateau.factor


@dataclass
class Plateau:
    """Lowers the learning rate when validation no longer improves; its fields are all its memory."""

    factor: float = 1.0
    since: int = 0

    def see(self, improved: bool, training: Training) -> None:
        """Takes note of a validation."""
        if training.schedule != "plateau":
            return
        self.since = 0 if improved else self.since + 1
        if self.since > training.plateau_patience:
            self.factor *= training.decay_factor
            self.since = 0
