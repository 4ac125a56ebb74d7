"""Which backend takes a cell, and why the others do not."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType

from throughtime.cells.cell import Cell
from throughtime.engine import reference, scan

# In the order in which "auto" tries them; the last takes any cell.
BACKENDS: dict[str, ModuleType] = {"scan": scan, "reference": reference}


class SlowPathWarning(UserWarning):
    """A cell runs on a backend that is slower than it might be; the text says why."""


@dataclass(frozen=True)
class Plan:
    """How `unroll` would run a cell. ``print(plan)`` says it in words."""

    cell: str
    backend: str
    refusals: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.cell}: backend {self.backend}"]
        lines += [f"  not {name}: {why}" for name, why in self.refusals.items()]
        return "\n".join(lines)


def explain(cell: Cell, backend: str = "auto") -> Plan:
    """The plan by which `unroll` would run the cell.

    >>> from throughtime.cells import MinGRU
    >>> print(explain(MinGRU(3, 5)))
    MinGRU: backend scan

    Raises:
        ValueError: the backend is unknown, or named and unable to take the cell.
    """
    name = type(cell).__name__
    if backend != "auto":
        if backend not in BACKENDS:
            raise ValueError(f"backend {backend!r} is unknown; known: auto, {', '.join(BACKENDS)}")
        why = BACKENDS[backend].refusal(cell)
        if why is not None:
            raise ValueError(f"backend {backend!r} cannot take {name}: {why}")
        return Plan(name, backend)
    refusals: dict[str, str] = {}
    for candidate, module in BACKENDS.items():
        why = module.refusal(cell)
        if why is None:
            return Plan(name, candidate, refusals)
        refusals[candidate] = why
    raise AssertionError("the reference backend takes any cell")
