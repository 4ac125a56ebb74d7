"""How fast it runs: the compiled backend against what users have otherwise, measured side by side."""

from throughtime.bench.comparison import GRID, Comparison, Item, Point, point_named
from throughtime.bench.measure import Machine, interleaved, machine, peak
from throughtime.bench.plan import KINDS, plan
from throughtime.bench.summary import derived, summary

__all__ = [
    "GRID",
    "KINDS",
    "Comparison",
    "Item",
    "Machine",
    "Point",
    "derived",
    "interleaved",
    "machine",
    "peak",
    "plan",
    "point_named",
    "summary",
]
