"""Which backend takes a cell, and why the others do not."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from types import ModuleType

import torch

from throughtime.cells.cell import Cell
from throughtime.engine import reference, scan
from throughtime.engine.cpu import backend as cpu
from throughtime.engine.sequence import Sequence

# In the order in which "auto" tries them; the last takes any cell.
BACKENDS: dict[str, ModuleType] = {"cpu": cpu, "scan": scan, "reference": reference}


class SlowPathWarning(UserWarning):
    """A cell runs on a backend that is slower than it might be; the text says why."""


@dataclass(frozen=True)
class Plan:
    """How `unroll` would run a cell. ``print(plan)`` says it in words."""

    cell: str
    backend: str
    refusals: dict[str, str] = field(default_factory=dict)
    details: str = ""

    def __str__(self) -> str:
        lines = [f"{self.cell}: backend {self.backend}"]
        lines += [f"  not {name}: {why}" for name, why in self.refusals.items()]
        return "\n".join(lines) + ("\n" + self.details if self.details else "")


def explain(cell: Cell, backend: str = "auto") -> Plan:
    """The plan by which `unroll` would run the cell: the backend, why not another, and its stages.

    >>> from throughtime.cells import LRU
    >>> print(explain(LRU(3, 5)))
    LRU: backend scan
      not cpu: its state is complex

    Raises:
        ValueError: the backend is unknown, or named and unable to take the cell.
    """
    with torch.random.fork_rng(devices=[]):
        noise = cell.noise(1, 1)
    plan = _choose(cell, backend, None)
    if plan.backend != "cpu":
        return plan
    return Plan(plan.cell, plan.backend, plan.refusals, cpu.describe(cell, noise))


def choose(cell: Cell, backend: str, sequence: Sequence) -> Plan:
    """The plan for a sequence; warns where "auto" is left with the slow loop."""
    plan = _choose(cell, backend, sequence)
    if plan.backend == "reference" and backend == "auto" and not torch.compiler.is_compiling():
        why = plan.refusals["cpu"]
        warnings.warn(
            f"{plan.cell} runs step by step in plain PyTorch, which is slow: {why} "
            f"(backend='reference' says that this is meant)",
            SlowPathWarning,
            stacklevel=3,
        )
    return plan


def _choose(cell: Cell, backend: str, sequence: Sequence | None) -> Plan:
    name = type(cell).__name__
    if backend != "auto":
        if backend not in BACKENDS:
            raise ValueError(f"backend {backend!r} is unknown; known: auto, {', '.join(BACKENDS)}")
        why = BACKENDS[backend].refusal(cell, sequence)
        if why is not None:
            raise ValueError(f"backend {backend!r} cannot take {name}: {why}")
        return Plan(name, backend)
    refusals: dict[str, str] = {}
    for candidate, module in BACKENDS.items():
        why = module.refusal(cell, sequence)
        if why is None:
            return Plan(name, candidate, refusals)
        refusals[candidate] = why
    raise AssertionError("the reference backend takes any cell")
