"""The command line as a whole: ``throughtime COMMAND ...``."""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

import throughtime
from throughtime.cli.app import evaluate, generate, predict, root, train
from throughtime.cli.failing import Frame

# Modules that bring commands; a job's module brings `train JOB` and what a run of it knows.
MODULES = ("bench", "cells", "classify", "inspect", "label", "language", "reproduce", "study")

# What `throughtime --help` lists. It stands here so that the list does not wait for PyTorch, which the modules import.
LISTED = {
    "train": "Train a model; each job has its own options.",
    "evaluate": "Measure a trained model on data.",
    "predict": "Apply a trained model to data.",
    "generate": "Let a trained model write.",
    "inspect": "Draw what happens inside a trained model: gradients through time, memory, gates, states.",
    "demo": "Train a model on the source code of Python's own library, as found here, and let it write.",
    "cells": "List the cells: family, name, equation, parameters, source.",
    "reproduce": "Run the recipes of published results, and write down what comes out of them.",
    "study": "Put the same question to many cells.",
    "bench": "Time the compiled backend against torch.nn, JAX, ONNX Runtime and plain loops, turn by turn.",
}


@functools.cache
def load() -> None:
    """Imports what brings commands."""
    for name in MODULES:
        importlib.import_module(f"throughtime.cli.{name}")
    for name, group in {"train": train, "evaluate": evaluate, "generate": generate, "predict": predict}.items():
        if group.registered_commands:
            root.add_typer(group, name=name)


class Commands(Frame):
    """The outermost command: it lists commands without importing them, and imports them to run one."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(LISTED)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        known = self.commands.get(cmd_name)
        if known is None and cmd_name in LISTED:
            return TyperCommand(cmd_name, help=LISTED[cmd_name])
        return known

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        load()
        self.commands = typer.main.get_group(root).commands
        return super().resolve_command(ctx, args)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"throughtime {throughtime.__version__}")
        raise typer.Exit()


@root.callback(cls=Commands)
def throughtime_command(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Recurrent neural networks: train them, use them, look inside."""


def _in_a_line(message: Warning | str, *where: Any) -> None:
    """A warning to one who did not write the code that it comes from."""
    text = str(message).partition(" (backend=")[0]  # advice on an argument in Python
    print(f"throughtime: warning: {' '.join(text.split())}", file=sys.stderr)  # noqa: T201


def main() -> None:
    """What the console script calls."""
    warnings.showwarning = _in_a_line  # type: ignore[assignment]
    arguments = sys.argv[1:]
    if "--debug" in arguments:  # wherever it stands
        arguments.remove("--debug")
        arguments.insert(0, "--debug")
    root(arguments, prog_name="throughtime")
