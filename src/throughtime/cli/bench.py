"""``throughtime bench``: how fast it runs here, against torch.nn and plain loops."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from throughtime.cli.app import root
from throughtime.errors import UserError

if TYPE_CHECKING:
    from throughtime.bench import Comparison

_PIPE_WIDTH = 140  # columns where there is no terminal to ask


@root.command("bench")
def bench(
    cells: Annotated[str, typer.Option(help="Cells, by comma; all unless given.")] = "",
    size: Annotated[
        list[str] | None, typer.Option(help="B,T,H, as often as there are sizes; a grid unless given.")
    ] = None,
    only: Annotated[
        str,
        typer.Option(help="training, forward, bidirectional, ragged, writing or streaming; all unless given."),
    ] = "",
    seconds: Annotated[float, typer.Option(min=0.01, help="For each pair at each size.")] = 1.0,
    threads: Annotated[int, typer.Option(min=0, help="Of PyTorch; 0 for as many as it takes by itself.")] = 0,
    figure: Annotated[Path | None, typer.Option(help="A file (.png, .svg) for a figure of the ratios.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time the compiled backend against torch.nn and plain loops, turn by turn."""
    import torch

    from throughtime.bench import (
        GRID,
        against_built_in,
        batches,
        compare,
        comparisons,
        machine,
        missing,
        peak,
        point_named,
        streams,
        summary,
    )

    sized, fixed = ("training", "forward"), ("bidirectional", "ragged", "writing", "streaming")
    if only not in ("", *sized, *fixed):
        raise UserError(f"--only is one of {', '.join((*sized, *fixed))}, not {only!r}")
    if only in fixed and (cells or size):
        raise UserError(f"{only} is measured at set sizes; leave out --cells and --size")
    if threads:
        torch.set_num_threads(threads)
    plan: list[Callable[[float], Comparison]] = []
    if only not in fixed:
        compared = comparisons(
            [name.strip() for name in cells.split(",") if name.strip()],
            [point_named(text) for text in size] if size else GRID,
            whats=(only,) if only else sized,
        )
        plan += [functools.partial(compare, *these) for these in compared]
    console = Console(stderr=True)
    if only not in sized and not cells and not size:
        plan += [item.time for item in (*batches(only), *streams(only))]
        reason = missing()
        if reason is not None and only in ("", "writing"):
            console.print(reason, markup=False, highlight=False, soft_wrap=True)
    ceiling = peak()
    results = [time(seconds) for time in track(plan, "measuring", console=console, disable=not console.is_terminal)]
    results += list(against_built_in(results))
    here, rows = machine(), list(summary(results))
    if figure is not None:
        from throughtime.bench.figure import draw

        draw(results, here).savefig(figure, dpi=150)
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "machine": asdict(here),
                    "peak": ceiling,
                    "results": [
                        asdict(r) | {"ratio": r.ratio, "share": r.operations / r.ours / ceiling} for r in results
                    ],
                    "summary": rows,
                }
            )
        )
        return
    out = Console()
    if not out.is_terminal:
        out = Console(width=_PIPE_WIDTH)
    table = Table(title=f"{here}; peak {ceiling / 1e9:.0f} GFLOP/s")
    for name in ("run", "cell", "against", "B", "T", "H", "ms", "theirs", "ratio", "of peak"):
        table.add_column(name, justify="left" if name in ("run", "cell", "against") else "right")
    for r in results:
        p = r.point
        table.add_row(
            r.what, r.cell, r.peer, str(p.batch), str(p.steps), str(p.hidden), f"{r.ours * 1e3:.2f}",
            f"{r.theirs * 1e3:.2f}", f"{r.ratio:.2f}", f"{r.operations / r.ours / ceiling:.2f}",
        )  # fmt: skip
    out.print(table)
    table = Table(title="times as fast: the least over the sizes, and the geometric mean")
    for name in ("run", "cell", "against", "least", "mean"):
        table.add_column(name, justify="left" if name in ("run", "cell", "against") else "right")
    for row in rows:
        table.add_row(row["what"], row["cell"], row["peer"], f"{row['least']:.2f}", f"{row['mean']:.2f}")
    out.print(table)
