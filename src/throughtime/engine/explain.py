"""Which backend takes a cell, and why the others do not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import ModuleType

import torch

from throughtime.cells.cell import Cell
from throughtime.engine import hoisting, reference, scan
from throughtime.engine.cpu import backend as cpu
from throughtime.engine.sequence import Result, Sequence

# In the order in which "auto" tries them; the last takes any cell.
BACKENDS: dict[str, ModuleType] = {"cpu": cpu, "scan": scan, "hoisted": hoisting, "reference": reference}
LOOPS = ("hoisted", "reference")


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
    >>> print(explain(LRU(3, 5), "scan"))
    LRU: backend scan

    Raises:
        ValueError: the backend is unknown, or named and unable to take the cell.
    """
    plan = _plan(cell, backend)
    if plan.backend not in ("cpu", "hoisted"):
        return plan
    with torch.random.fork_rng(devices=[]):
        return replace(plan, details=BACKENDS[plan.backend].describe(cell))


def choose(cell: Cell, backend: str, sequence: Sequence) -> Callable[[bool], Result]:
    """How a sequence is run, given whether all states are asked for; warns where "auto" is left with the slow loop."""
    refusals: dict[str, str] = {}
    for name in _candidates(backend):
        offered = BACKENDS[name].offer(cell, sequence)
        if not isinstance(offered, str):
            if name in LOOPS and backend == "auto" and not torch.compiler.is_compiling():
                warnings.warn(
                    f"{type(cell).__name__} runs step by step in plain PyTorch, which is slow: {refusals['cpu']} "
                    f"(backend='reference' says that this is meant)",
                    SlowPathWarning,
                    stacklevel=4,
                )
            return offered
        refusals[name] = offered
    raise _unable(cell, backend, refusals)


def _plan(cell: Cell, backend: str) -> Plan:
    refusals: dict[str, str] = {}
    for name in _candidates(backend):
        why = BACKENDS[name].refusal(cell)
        if why is None:
            return Plan(type(cell).__name__, name, refusals)
        refusals[name] = why
    raise _unable(cell, backend, refusals)


def _candidates(backend: str) -> list[str]:
    if backend == "auto":
        return list(BACKENDS)
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is unknown; known: auto, {', '.join(BACKENDS)}")
    return [backend]


def _unable(cell: Cell, backend: str, refusals: dict[str, str]) -> ValueError:
    return ValueError(f"backend {backend!r} cannot take {type(cell).__name__}: {refusals[backend]}")
