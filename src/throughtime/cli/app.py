"""The commands that jobs plug into.

A job's module (``cli/language.py``, say) adds its commands to these; `throughtime.cli.main` imports the modules::

    @train.command("language")
    @with_training(Training(minutes=3))                 # from throughtime.cli.options
    def train_language(text: ..., out: ..., *, training: Training, resume: bool) -> None: ...

    @evaluate.command("language")                       # throughtime evaluate RUN ...: the run says which job it is
    def evaluate_language(run: Path, ...) -> None: ...
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from throughtime.cli.failing import Frame
from throughtime.errors import UserError


class OnRun(TyperGroup):
    """``COMMAND RUN ...``: the job that the run folder names says which command it is, and so which options."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        from throughtime.learning.run_folder import CONFIG

        runs = [k for k, arg in enumerate(args) if (Path(arg) / CONFIG).is_file()]
        if runs:
            args = [args[runs[0]], *args[: runs[0]], *args[runs[0] + 1 :]]
        elif args and args[0].startswith("-") and args[0] not in ctx.help_option_names:
            raise UserError(
                f"no folder of a run among the arguments; give it first: throughtime {ctx.info_name} RUN "
                f"{args[0].split('=')[0]} ..."
            )
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        from throughtime.learning.run_folder import load_config

        run = args[0]
        job = load_config(Path(run)).job
        command = self.get_command(ctx, job)
        if command is None:
            raise UserError(f"{run} is a run of {job!r}, which knows no `{ctx.info_name}`; see `throughtime --help`")
        return job, command, args

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Without a run, the options of each job."""
        for job, command in self.commands.items():
            name = ctx.info_name if len(self.commands) == 1 else f"{ctx.info_name} ({job})"
            command.format_help(typer.Context(command, info_name=name, parent=ctx.parent), formatter)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return ["RUN", "[OPTIONS]"]


_OPTIONS: dict[str, Any] = {
    "no_args_is_help": True,
    "add_completion": False,
    "pretty_exceptions_enable": False,
}

root = typer.Typer(cls=Frame, name="throughtime", **_OPTIONS)  # commands that are no job: cells, demo
train = typer.Typer(help="Train a model; each job has its own options.", **_OPTIONS)
evaluate = typer.Typer(cls=OnRun, help="Measure a trained model on data.", **_OPTIONS)
generate = typer.Typer(cls=OnRun, help="Let a trained model write.", **_OPTIONS)
predict = typer.Typer(cls=OnRun, help="Apply a trained model to data.", **_OPTIONS)
