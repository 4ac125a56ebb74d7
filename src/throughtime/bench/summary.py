"""What follows from the results: rows against what was measured elsewhere among them, least, mean and bar."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from throughtime.bench.bars import FASTEST, PEAK, bar_of
from throughtime.bench.comparison import Comparison

TORCH = {"LSTM": "nn.LSTM", "GRU": "nn.GRU", "Elman": "nn.RNN"}
LARGE_HIDDEN, LARGE_BATCH = 256, 32  # from there on the arithmetic has to decide


def against_fastest(results: Iterable[Comparison]) -> Iterator[Comparison]:
    """Training against torch.nn or JAX, whichever does better beside us; at sizes where both were measured."""
    results = list(results)
    others = {(r.cell, r.point): r for r in results if (r.what, r.peer) == ("training", "JAX")}
    for r in results:
        other = others.get((r.cell, r.point))
        if other is not None and r.what == "training" and r.peer == TORCH.get(r.cell):
            yield replace(min(r, other, key=lambda one: one.ratio), peer=FASTEST)


def against_peak(results: Iterable[Comparison], peak: float) -> Iterator[Comparison]:
    """Training against nothing but the fused multiply-adds it needs, at the machine's peak; large sizes."""
    for r in results:
        large = r.point.hidden >= LARGE_HIDDEN and r.point.batch >= LARGE_BATCH
        if large and r.what == "training" and r.peer == TORCH.get(r.cell):
            yield replace(r, peer=PEAK, theirs=r.operations / peak)


def derived(results: Sequence[Comparison], peak: float) -> list[Comparison]:
    """All of these."""
    return [*against_fastest(results), *against_peak(results, peak)]


def summary(results: Iterable[Comparison]) -> Iterator[dict[str, Any]]:
    """For each kind, cell and peer: the least ratio and the geometric mean over the points, and their bar if any."""
    groups: dict[tuple[str, str, str], list[Comparison]] = {}
    for result in results:
        groups.setdefault((result.what, result.cell, result.peer), []).append(result)
    for (what, cell, peer), group in groups.items():
        ratios = [result.ratio for result in group]
        least, mean = min(ratios), math.exp(sum(map(math.log, ratios)) / len(ratios))
        row = {"what": what, "cell": cell, "peer": peer, "least": least, "mean": mean, "points": len(ratios)}
        bar = bar_of(what, cell, peer)
        if bar is None:
            yield row | {"bar_least": None, "bar_mean": None, "met": None}
        else:
            yield row | {"bar_least": bar.least, "bar_mean": bar.mean, "met": bar.met(least, mean)}
