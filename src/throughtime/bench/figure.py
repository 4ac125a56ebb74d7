"""The ratios as a figure."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from throughtime.bench.comparison import Comparison
from throughtime.bench.measure import Machine
from throughtime.insight.figures import colour, finish, legend, new_figure

_TICKS = [0.5, 1, 2, 5, 10, 20]


def draw(results: Sequence[Comparison], here: Machine) -> Figure:
    """Times as fast as the peer (as little memory), by size: a panel for each kind, and one for kinds of one size."""
    whats = list(dict.fromkeys(result.what for result in results))
    kinds = {what: [result for result in results if result.what == what] for what in whats}
    single = [what for what in whats if len({result.point for result in kinds[what]}) == 1]
    single += [what for what in whats if what == "writing" and what not in single]  # each has a size of its own
    panelled = [what for what in whats if what not in single]
    figure, panels = new_figure(len(panelled) + bool(single), 1, width=8.0)
    for axes, what in zip(panels, panelled, strict=False):
        _by_size(axes, what, kinds[what])
    if single:
        _by_name(panels[-1], [result for what in single for result in kinds[what]])
    figure.suptitle(str(here), fontsize=8, x=0.99, ha="right")
    return figure


def _by_size(axes: Axes, what: str, results: Sequence[Comparison]) -> None:
    points = list(dict.fromkeys(result.point for result in results))
    for k, (cell, peer) in enumerate(dict.fromkeys((result.cell, result.peer) for result in results)):
        ratios = {result.point: result.ratio for result in results if (result.cell, result.peer) == (cell, peer)}
        places = [points.index(point) for point in ratios]
        axes.plot(places, list(ratios.values()), "o-", color=colour(k), label=f"{cell} against {peer}")
    axes.axhline(1, color="0.6", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_yticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
    axes.minorticks_off()
    axes.set_xticks(range(len(points)), [f"{p.batch},{p.steps},{p.hidden}" for p in points], fontsize=7)
    finish(axes, f"{what}, times as {'little' if results[0].unit == 'bytes' else 'fast'}", "B, T, H", "")
    legend(axes)


def _by_name(axes: Axes, results: Sequence[Comparison]) -> None:
    places = range(len(results))
    axes.barh(places, [result.ratio for result in results], height=0.6, color=colour(0))
    axes.axvline(1, color="0.6", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
    axes.minorticks_off()
    axes.set_yticks(places, [f"{r.what}: {r.cell} against {r.peer}" for r in results], fontsize=7)
    axes.invert_yaxis()
    finish(axes, "one size each, times as fast", "", "")
