"""How fast it runs: the compiled backend against what users have otherwise, measured side by side."""

from throughtime.bench.measure import Machine, interleaved, machine, peak
from throughtime.bench.speed import GRID, Comparison, Point, compare, comparisons, point_named, summary

__all__ = [
    "GRID",
    "Comparison",
    "Machine",
    "Point",
    "compare",
    "comparisons",
    "interleaved",
    "machine",
    "peak",
    "point_named",
    "summary",
]
