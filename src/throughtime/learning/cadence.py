"""When things are due in a run: its end, validations, checkpoints, lines of metrics."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from throughtime.learning.schedules import Plateau, Position
from throughtime.learning.training import Training

_PARTS = 20  # validations in a run, unless epochs are shorter or validating is slow
_CHECKPOINT_SECONDS = 30.0
_LOG_SECONDS = 1.0
_CHECKPOINT_SHARE = 20  # a checkpoint takes at most so small a part of the time, 1 / 20
_VALIDATION_SHARE = 10  # and a validation


@dataclass
class Standing:
    """Where a run stands: plain numbers, all of which are in its checkpoint."""

    step: int = 0  # steps taken
    seconds: float = 0.0  # time used, over all its sittings
    items: int = 0  # items seen
    best: float | None = None  # the lowest first measure of a validation
    best_step: int = 0
    best_validation: dict[str, float] = field(default_factory=dict)
    since_best: int = 0  # validations without improvement
    validation: dict[str, float] = field(default_factory=dict)  # the last one
    validated_step: int = -1  # where it was
    validated_seconds: float = 0.0  # when it ended
    validation_takes: float = 0.0  # seconds
    checkpoint_seconds: float = 0.0  # when the last one was written
    checkpoint_takes: float = 0.0
    logged_step: int = 0
    logged_seconds: float = 0.0
    loss_since: float = 0.0  # sum over the items since the last line of metrics
    norm_since: float = 0.0  # sum over the steps since
    items_since: int = 0
    plateau: Plateau = field(default_factory=Plateau)
    metrics_position: int = 0
    stopped: str = ""  # why the run ended; "" while it has not

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Standing:
        return cls(**{**values, "plateau": Plateau(**values["plateau"])})


class Cadence:
    """Decides from where a run stands, and from nothing else, so that all processes decide alike."""

    def __init__(self, training: Training, steps_per_epoch: int) -> None:
        self.training = training
        self.total: int | None = training.steps
        if training.epochs is not None:
            self.total = math.ceil(training.epochs * steps_per_epoch - 1e-9)
        self.budget = None if training.minutes is None else training.minutes * 60.0
        self.validate_every = training.validate_every
        if self.validate_every is None and self.total is not None:
            self.validate_every = max(1, min(steps_per_epoch, math.ceil(self.total / _PARTS)))

    def share(self, standing: Standing) -> float:
        """How much of the run is behind, 0 to 1."""
        if self.total is not None:
            return min(1.0, standing.step / self.total)
        assert self.budget is not None
        return min(1.0, standing.seconds / self.budget)

    def position(self, standing: Standing) -> Position:
        return Position(standing.step, self.share(standing))

    def left(self, standing: Standing) -> float | None:
        """Seconds left, as far as can be told."""
        if self.budget is not None:
            return self.budget - standing.seconds
        share = self.share(standing)
        return None if share == 0 else standing.seconds * (1 - share) / share

    def over(self, standing: Standing, step_takes: float, validates: bool) -> str:
        """Why the run is over, or "". The last validation and checkpoint are within the minutes asked for."""
        if self.training.patience is not None and standing.since_best >= self.training.patience:
            return "patience"
        if self.total is not None:
            return "steps" if standing.step >= self.total else ""
        assert self.budget is not None
        to_come = step_takes + standing.checkpoint_takes
        if validates:
            to_come += standing.validation_takes
        return "minutes" if standing.seconds + to_come >= self.budget else ""

    def validation_due(self, standing: Standing) -> bool:
        if self.validate_every is not None:
            return standing.step % self.validate_every == 0
        assert self.budget is not None
        pause = max(self.budget / _PARTS, _VALIDATION_SHARE * standing.validation_takes)
        return standing.seconds - standing.validated_seconds >= pause

    def checkpoint_due(self, standing: Standing) -> bool:
        if self.training.checkpoint_every is not None:
            return standing.step % self.training.checkpoint_every == 0
        pause = max(_CHECKPOINT_SECONDS, _CHECKPOINT_SHARE * standing.checkpoint_takes)
        return standing.seconds - standing.checkpoint_seconds >= pause

    def log_due(self, standing: Standing) -> bool:
        if self.training.log_every is not None:
            return standing.step % self.training.log_every == 0
        return standing.seconds - standing.logged_seconds >= _LOG_SECONDS
