"""How fast it runs: the compiled backend against what users have otherwise, measured side by side."""

from throughtime.bench.batches import batches
from throughtime.bench.measure import Machine, interleaved, machine, peak
from throughtime.bench.speed import (
    GRID,
    Comparison,
    Point,
    against_built_in,
    compare,
    comparisons,
    point_named,
    summary,
)
from throughtime.bench.stepping import Stream, missing, streams

__all__ = [
    "GRID",
    "Comparison",
    "Machine",
    "Point",
    "Stream",
    "against_built_in",
    "batches",
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
