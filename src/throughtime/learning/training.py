"""The settings of a training run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from throughtime.errors import UserError
from throughtime.learning.optimizers import OPTIMIZERS
from throughtime.learning.schedules import SCHEDULES

BOUNDS = ("steps", "epochs", "minutes")
KEEPS = ("best", "last")
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("32-true", "64-true", "bf16-mixed", "16-mixed")
MAY_NOT_CHANGE = ("optimizer", "average_weights", "keep", "precision", "seed")  # on resuming: it would be another run


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Training:
    """How to train: plain numbers and names, so that they can be kept as JSON and offered as options.

    >>> Training(steps=1000, optimizer="adam").rate
    0.002

    Exactly one of ``steps``, ``epochs`` and ``minutes`` bounds the run. The text of each setting is in its field's
    metadata, where the command line finds it too.

    Raises:
        UserError: a setting is out of range, a name unknown, or the bounds are none or several.
    """

    steps: int | None = _setting(None, "Stop after so many steps.")
    epochs: float | None = _setting(None, "Stop after so many passes over the data.")
    minutes: float | None = _setting(None, "Stop after so many minutes, validation and checkpoints included.")

    optimizer: str = _setting("rmsprop", f"How to descend: {', '.join(OPTIMIZERS)}.")
    learning_rate: float | None = _setting(
        None,
        "The highest learning rate; by default " + ", ".join(f"{o.rate} for {n}" for n, o in OPTIMIZERS.items()) + ".",
    )
    weight_decay: float = _setting(0.0, "Weight decay of matrices (decoupled in adamw, an L2 penalty elsewhere).")
    momentum: float = _setting(0.0, "Momentum of rmsprop and sgd.")
    rmsprop_decay: float = _setting(0.95, "What rmsprop keeps of its mean square at each step.")
    beta1: float = _setting(0.9, "What adam and adamw keep of their mean at each step.")
    beta2: float = _setting(0.99, "What adam and adamw keep of their mean square at each step.")
    average_weights: float | None = _setting(
        None,
        "Validate, and end with, a mean of the weights that keeps this share of itself at each step, such as 0.99.",
    )

    schedule: str = _setting("constant", f"The course of the learning rate: {', '.join(SCHEDULES)}.")
    warmup: float = _setting(0.0, "The learning rate's rise at the start: a share of the run below 1, steps from 1 on.")
    final_rate: float = _setting(0.0, "Where cosine and linear end, as a share of the learning rate.")
    decay_factor: float = _setting(0.5, "What step and plateau multiply the learning rate by.")
    decay_every: float = _setting(0.25, "How often step does so: a share of the run below 1, steps from 1 on.")
    plateau_patience: int = _setting(2, "Validations without improvement before plateau does so.")

    clip_norm: float | None = _setting(1.0, "Scale gradients down to this global norm; 0 turns it off.")
    clip_value: float | None = _setting(None, "Cut each gradient's entries to this size, before the norm is taken.")

    validate_every: int | None = _setting(
        None, "Steps between validations; by default every epoch or a twentieth of the run, whichever is shorter."
    )
    patience: int | None = _setting(None, "Stop after so many validations without improvement; never by default.")
    keep: str = _setting("best", "The weights to end with: best by validation (where there is one), or last.")
    checkpoint_every: int | None = _setting(None, "Steps between checkpoints; by default about every 30 seconds.")
    log_every: int | None = _setting(None, "Steps between lines of metrics.jsonl; by default about every second.")

    device: str = _setting("auto", f"Where to compute: {', '.join(DEVICES)}.")
    precision: str = _setting("32-true", f"Numbers to compute with: {', '.join(PRECISIONS)}.")
    seed: int = _setting(1, "Seed of everything drawn at random.")
    deterministic: bool = _setting(False, "Refuse operations whose results vary from run to run.")

    def __post_init__(self) -> None:
        bounds = [name for name in BOUNDS if getattr(self, name) is not None]
        if len(bounds) != 1:
            given = " and ".join(bounds) or "none"
            raise UserError(f"exactly one of steps, epochs and minutes bounds a run; {given} given")
        for name, names in (
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("device", DEVICES),
            ("precision", PRECISIONS),
            ("keep", KEEPS),
        ):
            if getattr(self, name) not in names:
                raise UserError(f"{spelled(name)} must be one of {', '.join(names)}, not {getattr(self, name)!r}")
        for name, low, low_open, high in _RANGES:
            value = getattr(self, name)
            if value is None:
                continue
            if not (low < value if low_open else low <= value) or not value < high:
                sign = "above" if low_open else "at least"
                below = "" if high == float("inf") else f" and below {high:g}"
                raise UserError(f"{spelled(name)} must be {sign} {low:g}{below}, not {value:g}")

    @property
    def rate(self) -> float:
        """The learning rate: the one given, or the optimiser's own."""
        return OPTIMIZERS[self.optimizer].rate if self.learning_rate is None else self.learning_rate

    def to_json(self) -> dict[str, Any]:
        """The settings as plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Training:
        """The settings from plain values, as `to_json` gives them; what is not named has its default.

        Raises:
            UserError: a name is unknown.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UserError(f"{unknown[0]!r} is not a setting of training")
        return cls(**values)

    def bounded(self, **bound: float | None) -> Training:
        """The same settings with another bound.

        >>> Training(minutes=3).bounded(steps=10).minutes
        """
        changes: dict[str, Any] = {**dict.fromkeys(BOUNDS), **bound}
        return dataclasses.replace(self, **changes)


_INFINITY = float("inf")
_RANGES = (  # name, low, whether low itself is out, high (out)
    ("steps", 1, False, _INFINITY),
    ("epochs", 0, True, _INFINITY),
    ("minutes", 0, True, _INFINITY),
    ("learning_rate", 0, True, _INFINITY),
    ("weight_decay", 0, False, _INFINITY),
    ("momentum", 0, False, 1),
    ("rmsprop_decay", 0, False, 1),
    ("beta1", 0, False, 1),
    ("beta2", 0, False, 1),
    ("average_weights", 0, True, 1),
    ("warmup", 0, False, _INFINITY),
    ("final_rate", 0, False, _INFINITY),
    ("decay_factor", 0, True, 1),
    ("decay_every", 0, True, _INFINITY),
    ("plateau_patience", 0, False, _INFINITY),
    ("clip_norm", 0, False, _INFINITY),
    ("clip_value", 0, True, _INFINITY),
    ("validate_every", 1, False, _INFINITY),
    ("patience", 1, False, _INFINITY),
    ("checkpoint_every", 1, False, _INFINITY),
    ("log_every", 1, False, _INFINITY),
    ("seed", 0, False, 2**63),
)


def spelled(name: str) -> str:
    """A setting's name in words."""
    return name.replace("_", " ")
