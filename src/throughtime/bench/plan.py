"""All that can be measured, by kind, and what cannot be here."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from throughtime.bench import alone, jax_layers, language, stepping
from throughtime.bench.batches import batches
from throughtime.bench.comparison import GRID, Item, Point
from throughtime.bench.growth import growths
from throughtime.bench.jax_layers import compare_with_jax
from throughtime.bench.speed import compare, compare_built_in, comparisons
from throughtime.bench.stepping import streams
from throughtime.errors import UserError
from throughtime.tasks.language_settings import Settings

SIZED = ("training", "forward", "jax")  # measured at sizes, of cells, that one can choose
FIXED = ("bidirectional", "ragged", "language", "writing", "streaming", "memory", "compile", "growth")
KINDS = (*SIZED, *FIXED)


def plan(
    only: Sequence[str] = (), cells: Sequence[str] = (), points: Sequence[Point] = ()
) -> tuple[list[Item], list[str]]:
    """What there is to measure, and a word for each thing that cannot be here.

    Args:
        only: kinds; all unless given, or those of chosen sizes where cells or points are.
        cells: names of subjects; all unless given.
        points: sizes; `GRID` unless given.

    Raises:
        UserError: a kind or cell is unknown, sizes are given for what has its own, or nothing is left to measure.
    """
    unknown = [kind for kind in only if kind not in KINDS]
    if unknown:
        raise UserError(f"--only is one or more of {', '.join(KINDS)}, not {unknown[0]!r}")
    set_sizes = [kind for kind in only if kind in FIXED]
    if set_sizes and (cells or points):
        raise UserError(f"{set_sizes[0]} is measured at set sizes; leave out --cells and --size")
    chosen = only or (SIZED if cells or points else KINDS)
    reasons = {"jax": jax_layers.missing, "writing": stepping.missing, "memory": alone.missing}
    absent = {kind: reasons[kind]() for kind in chosen if kind in reasons}
    items = _sized([kind for kind in chosen if kind in SIZED and not absent.get(kind)], cells, points or GRID)
    made = {
        "bidirectional": lambda: batches("bidirectional"),
        "ragged": lambda: batches("ragged"),
        "language": lambda: [
            Item("language", "LSTM", functools.partial(language.language, Settings(), language.UNITS))
        ],
        "writing": lambda: streams("writing"),
        "streaming": lambda: streams("streaming"),
        "memory": alone.memories,
        "compile": alone.compilations,
        "growth": growths,
    }
    for kind in chosen:
        if kind in FIXED and not absent.get(kind):
            items += made[kind]()
    told = [reason for reason in absent.values() if reason is not None]
    if not items and not told:
        raise UserError(f"{', '.join(chosen)} is measured of {', '.join(jax_layers.CELLS)} only")
    return items, told


def _sized(kinds: Sequence[str], cells: Sequence[str], points: Sequence[Point]) -> list[Item]:
    whats = [kind for kind in kinds if kind != "jax"]
    items = [
        Item(what, subject.name, functools.partial(compare, subject, point, what))
        for subject, point, what in comparisons(cells, points, whats=whats)
    ]
    items += [
        Item(what, subject.name, functools.partial(compare_built_in, subject, point, what))
        for subject, point, what in comparisons(cells, points, whats=whats)
        if subject.built_in
    ]
    if "jax" in kinds:
        items += [
            Item("jax", subject.name, functools.partial(compare_with_jax, subject, point, what))
            for subject, point, what in comparisons(cells, points)
            if subject.name in jax_layers.CELLS
        ]
    return items
