"""The command line as a whole: ``throughtime COMMAND ...``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import throughtime
from throughtime.cli import cells, language, study
from throughtime.cli.app import evaluate, generate, predict, root, train

# Modules that bring commands; a job's module brings `train JOB` and what a run of it knows.
COMMANDS = (cells, language, study)

for name, group in {"train": train, "evaluate": evaluate, "generate": generate, "predict": predict}.items():
    if group.registered_commands:
        root.add_typer(group, name=name)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"throughtime {throughtime.__version__}")
        raise typer.Exit()


@root.callback()
def throughtime_command(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Recurrent neural networks: train them, use them, look inside."""


def main() -> None:
    """What the console script calls."""
    arguments = sys.argv[1:]
    if "--debug" in arguments:  # wherever it stands
        arguments.remove("--debug")
        arguments.insert(0, "--debug")
    root(arguments, prog_name="throughtime")
