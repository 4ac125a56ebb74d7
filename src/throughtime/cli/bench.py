"""``throughtime bench``: how fast it runs here, against what else there is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from throughtime.cli.app import root
from throughtime.errors import UserError

if TYPE_CHECKING:
    from throughtime.bench import Comparison

_PIPE_WIDTH = 140  # columns where there is no terminal to ask
_NAMES = ("run", "cell", "against")


@root.command("bench")
def bench(
    cells: Annotated[str, typer.Option(help="Cells, by comma; all unless given.")] = "",
    size: Annotated[
        list[str] | None, typer.Option(help="B,T,H, as often as there are sizes; a grid unless given.")
    ] = None,
    only: Annotated[
        str,
        typer.Option(
            help="Of training, forward, jax, bidirectional, ragged, language, writing, streaming, memory, compile and "
            "growth, by comma; all unless given."
        ),
    ] = "",
    seconds: Annotated[float, typer.Option(min=0.01, help="For each pair at each size.")] = 1.0,
    threads: Annotated[int, typer.Option(min=0, help="Of PyTorch; 0 for as many as it takes by itself.")] = 0,
    figure: Annotated[Path | None, typer.Option(help="A file (.png, .svg) for a figure of the ratios.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time the compiled backend against torch.nn, JAX, ONNX Runtime and plain loops, turn by turn."""
    import torch

    from throughtime.bench import derived, machine, peak, plan, point_named, summary

    if threads:
        torch.set_num_threads(threads)
    if figure is not None:
        _check_figure(figure)
    items, absent = plan(_parts(only), _parts(cells), [point_named(text) for text in size or ()])
    console = Console(stderr=True)
    for reason in absent:
        console.print(reason, markup=False, highlight=False, soft_wrap=True)
    ceiling = peak()
    shown = track(items, "measuring", console=console, disable=not console.is_terminal)
    measured = [result for item in shown for result in item.measure(seconds)]
    results = [*measured, *derived(measured, ceiling)]
    here, rows = machine(), list(summary(results))
    if figure is not None and measured:
        from throughtime.bench.figure import draw

        draw(measured, here).savefig(figure, dpi=150)
    if as_json:
        found = [asdict(r) | {"ratio": r.ratio, "share": _share(r, ceiling), "rate": _rate(r)} for r in results]
        told = {"machine": asdict(here), "peak": ceiling, "results": found, "summary": rows, "absent": absent}
        typer.echo(json.dumps(told))
        return
    out = Console()
    if not out.is_terminal:
        out = Console(width=_PIPE_WIDTH)
    out.print(_results(results, f"{here}; peak {ceiling / 1e9:.0f} GFLOP/s", ceiling))
    out.print(_summary(rows))


def _check_figure(path: Path) -> None:
    """Before anything is measured.

    Raises:
        UserError: no figure could be written there.
    """
    from matplotlib.figure import Figure

    known = Figure().canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in known:
        raise UserError(f"--figure {path}: name it after a kind that can be drawn, .png or .svg, say")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--figure {path}: there is no folder {path.absolute().parent}")


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _share(r: Comparison, ceiling: float) -> float | None:
    """Of the machine's peak."""
    return r.operations / r.ours / ceiling if r.operations else None


def _rate(r: Comparison) -> float | None:
    """Steps of all sequences a second: of a text, its units."""
    return r.point.batch * r.point.steps / r.ours if r.unit == "s" and r.operations else None


def _results(results: Sequence[Comparison], title: str, ceiling: float) -> Table:
    table = Table(title=title, caption="memory is in MiB")
    for name in (*_NAMES, "B", "T", "H", "ms", "theirs", "ratio", "of peak"):
        table.add_column(name, justify="left" if name in _NAMES else "right")
    for r in results:
        p, scale, share = r.point, 2**-20 if r.unit == "bytes" else 1e3, _share(r, ceiling)
        table.add_row(
            r.what, r.cell, r.peer, str(p.batch), str(p.steps), str(p.hidden), f"{r.ours * scale:.4g}",
            f"{r.theirs * scale:.4g}", f"{r.ratio:.2f}", "" if share is None else f"{share:.2f}",
        )  # fmt: skip
    return table


def _summary(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(
        title="times as fast, or as little: the least over the sizes, and the geometric mean; what they shall be"
    )
    for name in (*_NAMES, "least", "bar", "mean", "bar", "met"):
        table.add_column(name, justify="left" if name in _NAMES else "right")
    for row in rows:
        least, mean = ("" if row[bar] is None else f"{row[bar]:.2f}" for bar in ("bar_least", "bar_mean"))
        met = {None: "", True: "yes", False: "no"}[row["met"]]
        table.add_row(
            row["what"], row["cell"], row["peer"], f"{row['least']:.2f}", least, f"{row['mean']:.2f}", mean, met
        )
    return table
