"""The ratios as a figure."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from throughtime.bench.measure import Machine
from throughtime.bench.speed import Comparison
from throughtime.insight.figures import colour, finish, legend, new_figure


def draw(results: Sequence[Comparison], here: Machine) -> Figure:
    """Times as fast as the peer, by size: one panel for training, one for the way forward alone."""
    whats = list(dict.fromkeys(result.what for result in results))
    points = list(dict.fromkeys(result.point for result in results))
    figure, panels = new_figure(len(whats), 1, width=8.0)
    for axes, what in zip(panels, whats, strict=True):
        names = list(dict.fromkeys((r.cell, r.peer) for r in results if r.what == what))
        for k, (cell, peer) in enumerate(names):
            ratios = {r.point: r.ratio for r in results if (r.what, r.cell) == (what, cell)}
            places = [points.index(point) for point in ratios]
            axes.plot(places, list(ratios.values()), "o-", color=colour(k), label=f"{cell} against {peer}")
        axes.axhline(1, color="0.6", linewidth=0.8)
        axes.set_yscale("log")
        axes.set_yticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
        axes.minorticks_off()
        axes.set_xticks(range(len(points)), [f"{p.batch},{p.steps},{p.hidden}" for p in points], fontsize=7)
        finish(axes, f"{what}, times as fast", "B, T, H", "")
        legend(axes)
    figure.suptitle(str(here), fontsize=8, x=0.99, ha="right")
    return figure
