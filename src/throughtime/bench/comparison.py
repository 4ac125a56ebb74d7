"""What is measured: ours beside theirs, at a size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from throughtime.errors import UserError


@dataclass(frozen=True)
class Point:
    """Sizes: B sequences of T steps, H hidden units and as many input features."""

    batch: int
    steps: int
    hidden: int


def point_named(text: str) -> Point:
    """The sizes in "B,T,H".

    >>> point_named("16,100,64")
    Point(batch=16, steps=100, hidden=64)

    Raises:
        UserError: the text is not three whole numbers of at least 1.
    """
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) for part in parts):
        raise UserError(f"a size is B,T,H, three whole numbers of at least 1 as in 16,100,64; not {text!r}")
    return Point(*map(int, parts))


GRID = tuple(
    Point(*sizes)
    for sizes in (
        (1, 100, 128), (1, 200, 512), (16, 100, 64), (16, 100, 128), (32, 100, 128), (32, 100, 256),
        (64, 128, 512), (16, 200, 1024), (128, 50, 256),
    )
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Ours against theirs. Less is better in both units."""

    what: str  # one of `plan.KINDS`
    cell: str
    peer: str
    point: Point
    ours: float
    theirs: float
    operations: float = 0.0  # floating-point operations of the matrix products; 0 where that says nothing
    unit: str = "s"  # or "bytes"

    @property
    def ratio(self) -> float:
        return self.theirs / self.ours


@dataclass(frozen=True)
class Item:
    """Something to measure: of which kind, what it is, and the function that does it in about so many seconds."""

    kind: str
    name: str
    measure: Callable[[float], list[Comparison]]
