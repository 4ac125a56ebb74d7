"""How fast it runs: the compiled backend against what users have otherwise, measured side by side."""

from throughtime.bench.measure import Machine, interleaved, machine, peak
from throughtime.bench.speed import GRID, Comparison, Point, compare, comparisons, point_named, summary
from throughtime.bench.stepping import Stream, missing, streams

__all__ = [
    "GRID",
    "Comparison",
    "Machine",
    "Point",
    "Stream",
    "compare",
    "comparisons",
    "interleaved",
    "machine",
    "missing",
    "peak",
    "point_named",
    "streams",
    "summary",
]
