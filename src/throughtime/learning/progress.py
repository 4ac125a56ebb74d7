"""Telling how a run goes: live in a terminal, in plain lines elsewhere. On stderr; stdout is for results."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

_LIVE_SECONDS = 0.5  # between looks at a terminal
_LINE_SECONDS = 15.0  # between plain lines
_VALIDATION_SECONDS = 1.0  # between plain lines that tell of a validation
_BAR = 1000


class Teller:
    """Tells of a run. Made for the first process; a quiet one tells nothing.

    Args:
        items: what is counted ("characters").
        console: where to tell; stderr unless given.
    """

    def __init__(self, items: str, console: Console | None = None, quiet: bool = False) -> None:
        self.items = items
        self.console = console or Console(stderr=True, quiet=quiet)
        self.quiet = quiet
        self.live = self.console.is_terminal and not quiet
        self.seconds = _LIVE_SECONDS if self.live else _LINE_SECONDS
        self._last = time.monotonic() - (self.seconds - 2.0)  # a first word soon
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def begin(self, share: float) -> None:
        """Opens the bar, in a terminal."""
        if self.live:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                TextColumn("{task.fields[left]}"),
                console=self.console,
                auto_refresh=False,
                transient=True,
            )
            self._task = self._progress.add_task("", total=_BAR, completed=int(_BAR * share), left="")
            self._progress.start()

    def due(self) -> bool:
        """Whether it is time for another word."""
        return not self.quiet and time.monotonic() - self._last >= self.seconds

    def word(self, record: Mapping[str, Any], share: float, left: float | None) -> None:
        """How it stands: a turn of the bar, or a line."""
        self._last = time.monotonic()
        text = describe(record, self.items)
        if self._progress is not None:
            self._progress.update(self._task, completed=int(_BAR * share), description=text, left=_span(left) + " left")
            self._progress.refresh()
        else:
            self.line(f"{text}  {_span(left)} left")

    def validated(self, record: Mapping[str, Any], share: float, left: float | None) -> None:
        """A line that stays, also above a bar."""
        if self._progress is None:
            if time.monotonic() - self._last >= _VALIDATION_SECONDS:
                self.word(record, share, left)
        else:
            self.line(describe(record, self.items))
            self.word(record, share, left)

    def finished(self, steps: int, seconds: float, validation: Mapping[str, float], step: int, model: Path) -> None:
        """The last line."""
        measures = ", ".join(f"validation {name} {value:.4f}" for name, value in validation.items())
        kept = f"; kept the weights of step {step:,}: {measures}" if measures else ""
        self.line(f"{steps:,} steps in {_span(seconds)}{kept}; the model is {model}")

    def line(self, text: str) -> None:
        """A line that stays."""
        if not self.quiet:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Takes the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def describe(record: Mapping[str, Any], items: str) -> str:
    """A record of the metrics in words.

    >>> describe({"step": 1200, "loss": 1.5, "validation_nats": 1.6, "learning_rate": 0.002}, "characters")
    'step 1,200  loss 1.5000  validation nats 1.6000  learning rate 0.002'
    """
    parts = [f"step {record['step']:,}"]
    if record.get("loss") is not None:
        parts.append(f"loss {record['loss']:.4f}")
    parts += [
        f"validation {name[len('validation_') :]} {value:.4f}"
        for name, value in record.items()
        if name.startswith("validation_")
    ]
    if "learning_rate" in record:
        parts.append(f"learning rate {record['learning_rate']:.3g}")
    if record.get("items_per_second"):
        parts.append(f"{record['items_per_second']:,.0f} {items}/s")
    return "  ".join(parts)


def _span(seconds: float | None) -> str:
    """A span of time.

    >>> _span(75), _span(4000), _span(None)
    ('1:15', '1:06:40', '?')
    """
    if seconds is None:
        return "?"
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
