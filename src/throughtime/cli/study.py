"""``throughtime study memory``: which cell holds which lag."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from throughtime.cli.app import root
from throughtime.errors import UserError
from throughtime.learning.storage import full_disk_told

study = typer.Typer(
    help="Put the same question to many cells.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@study.callback()
def _study() -> None:
    """Put the same question to many cells."""


@study.command("memory")
def memory(
    out: Annotated[Path, typer.Option(help="Folder for results.jsonl, table.md and figure.png.")] = Path("runs/memory"),
    cells: Annotated[str, typer.Option(help="Cells, by comma; by default a choice of each family.")] = "",
    tasks: Annotated[str, typer.Option(help="Tasks, by comma; all by default.")] = "",
    lengths: Annotated[str, typer.Option(help="Lengths in steps, by comma.")] = "50,100,200",
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds.")] = 3,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="For all that is still to run; by default as long as it takes.")
    ] = None,
    hidden: Annotated[int, typer.Option(min=1, help="Hidden units.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Sequences a training step.")] = 32,
    rate: Annotated[float, typer.Option(min=1e-9, help="Adam's learning rate.")] = 2e-3,
    clip: Annotated[float, typer.Option(min=1e-9, help="The norm that gradients are clipped to.")] = 1.0,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each case at most.")] = 20_000,
    check: Annotated[int, typer.Option(min=1, help="Steps between two measurements.")] = 200,
) -> None:
    """Train cells on problems with long lags: adding, copying, order, parity, recall, multiplication.

    Give the same command again to go on where it stopped; cells, tasks, lengths and seeds may be added.
    """
    # here, as they bring matplotlib, which other commands need not wait for
    from throughtime.studies import memory as run

    console = Console(stderr=True)
    status = console.status("") if console.is_terminal else None

    def watch(progress: run.Progress) -> None:
        case = progress.case
        left = "" if math.isnan(progress.estimate) else f", about {_duration(progress.estimate)} left"
        where = f"{progress.done + 1} of {progress.total}: {case.cell} on {case.task} {case.length}, seed {case.seed}"
        if status is not None:
            scored = f", step {progress.step:,}, score {progress.score:.4g}" if progress.step else ""
            status.update(where + scored + left)
        elif not progress.step:
            console.print(where + left, soft_wrap=True)

    results = out / "results.jsonl"
    if status is not None:
        status.start()
    try:
        outcomes = run.memory_study(
            results,
            cells=_names(cells) or run.DEFAULT_CELLS,
            tasks=_names(tasks) or run.DEFAULT_TASKS,
            lengths=_whole_numbers(lengths),
            seeds=range(1, seeds + 1),
            settings=run.Settings(hidden, batch, rate, clip, steps, check),
            minutes=minutes,
            watch=watch,
        )
    except KeyboardInterrupt:
        console.print(f"stopped; what is done is in {results}: the same command goes on from there", soft_wrap=True)
        raise
    finally:
        if status is not None:
            status.stop()
    text = run.table(outcomes)
    with full_disk_told(out):
        (out / "table.md").write_text(text, encoding="utf-8")
        run.figure(outcomes).savefig(out / "figure.png", dpi=110)
    typer.echo(text)
    console.print(f"{out / 'table.md'} and {out / 'figure.png'} are written", soft_wrap=True)


@study.command("temporal-order")
def temporal_order(
    out: Annotated[Path, typer.Option(help="Folder for results.jsonl, the network and figure.png.")] = Path(
        "runs/temporal-order"
    ),
    shortest: Annotated[int, typer.Option(min=10, help="The shortest sequences trained on.")] = 50,
    longest: Annotated[int, typer.Option(min=10, help="The longest sequences trained on.")] = 100,
    steps: Annotated[int, typer.Option(min=1, help="Training steps at most.")] = 150_000,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="For training; by default as long as the steps take.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences a training step.")] = 20,
    rate: Annotated[float, typer.Option(min=1e-9, help="Learning rate.")] = 0.001,
    cool: Annotated[float, typer.Option(min=0, max=1, help="The share of the steps in which it falls to 0.")] = 0.7,
    momentum: Annotated[float, typer.Option(min=0, max=0.999, help="Momentum.")] = 0.9,
    clip: Annotated[float, typer.Option(min=1e-9, help="The norm that gradients are clipped to.")] = 1.0,
    weight: Annotated[float, typer.Option(min=0, help="Weight of the vanishing-gradient regulariser.")] = 50.0,
    radius: Annotated[float, typer.Option(min=0.01, help="The spectral radius to begin with.")] = 0.95,
    count: Annotated[int, typer.Option(min=1, help="Sequences to test on at each length.")] = 10_000,
    check: Annotated[int, typer.Option(min=1, help="Steps between two measurements.")] = 250,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and data.")] = 1,
) -> None:
    """Train one tanh network of 50 units on short sequences and test it on long ones (Pascanu et al. 2013).

    Training ends when 50,000 sequences of the longest length have no error. Give the same command again to go on where
    it stopped; the figure has all results of the folder.
    """
    from throughtime.studies import temporal_order as order
    from throughtime.studies.lines import append_line, check_writable

    if shortest > longest:
        raise UserError(f"--shortest {shortest} is above --longest {longest}")
    results = out / "results.jsonl"
    check_writable(results)
    before = order.read_results(results)
    console = Console(stderr=True)
    recipe = order.Recipe(
        shortest=shortest,
        longest=longest,
        batch=batch,
        steps=steps,
        rate=rate,
        cool=cool,
        momentum=momentum,
        clip=clip,
        weight=weight,
        radius=radius,
        seed=seed,
    )

    def tell(step: int, error: float, left: float) -> None:
        console.print(
            f"step {step:,}: {error:.1%} wrong at {longest} steps, at most {_duration(left)} left",
            highlight=False,
            soft_wrap=True,
        )

    result = order.study_temporal_order(
        recipe,
        minutes=math.inf if minutes is None else minutes,
        count=count,
        check=check,
        kept=out / f"{order.name_of(recipe)}.safetensors",
        tell=tell,
    )
    append_line(results, result)
    latest = {one.recipe: one for one in [*before, result]}  # what was trained further counts once
    with full_disk_told(out / "figure.png"):
        order.order_figure(list(latest.values())).savefig(out / "figure.png", dpi=110)
    ended = "without an error in training's last test" if result.solved else "not yet without errors"
    typer.echo(f"{result.steps:,} steps in {_duration(result.seconds)} of computing, {ended}")
    for length, error in result.errors.items():
        typer.echo(f"length {length}: {round(error * result.tested):,} of {result.tested:,} wrong")


root.add_typer(study, name="study")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _whole_numbers(text: str) -> list[int]:
    names = _names(text)
    if not names or not all(name.isdigit() and int(name) > 0 for name in names):
        raise UserError(f"lengths must be whole numbers by comma, like 50,100; not {text!r}")
    return [int(name) for name in names]


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"
