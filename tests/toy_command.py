"""The command line with the toy problem as a job of its own: ``python toy_command.py train toy --out RUN ...``."""

import errno
import os
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

from throughtime.cli import app
from throughtime.cli.options import with_training
from throughtime.learning import Training, begin_run, fit
from toy_problem import Toy


@app.train.command("toy")
@with_training(Training(steps=7, optimizer="adam", learning_rate=0.05))
def train_toy(*, out: Annotated[Path, typer.Option()], training: Training, resume: bool) -> None:
    """Train the toy problem."""
    begin_run(out, "toy", {}, resume=resume)
    result = fit(Toy(), out, training, resume=resume)
    typer.echo(f"{result.steps} steps")


@app.evaluate.command("toy")
def evaluate_toy(run: Path, factor: Annotated[float, typer.Option("--factor")] = 1.0) -> None:
    """Evaluate the toy problem."""
    typer.echo(f"{run.name} by {factor}")


@app.root.command("fail")
def fail(how: str) -> None:
    """End in some way."""
    if how == "system":
        Path("/nowhere/at/all").read_text()
    if how == "memory":
        torch.empty(1 << 50)
    if how == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if how == "defect":
        raise RuntimeError("a defect")
    if how == "writing":
        for k in range(100_000):
            sys.stdout.write(f"line {k}\n")


if __name__ == "__main__":
    from throughtime.cli.main import main

    main()
