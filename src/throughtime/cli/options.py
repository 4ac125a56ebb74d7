"""The settings of training as options, declared once for every job."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

from throughtime.learning.training import BOUNDS, Training

PANEL = "Training"


def with_training(defaults: Training) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gives a command every setting of `Training` as an option, and ``--resume``.

    The command's own function takes ``training: Training`` and ``resume: bool`` by keyword; on the command line the
    two stand as ``--learning-rate``, ``--clip-norm`` and so on, each with the job's own default.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def run(*args: Any, **kwargs: Any) -> Any:
            values = {name: kwargs.pop(name) for name in settings}
            if all(values[name] is None for name in BOUNDS):
                values.update({name: getattr(defaults, name) for name in BOUNDS})
            return command(*args, **kwargs, training=Training(**values))

        own = inspect.signature(command, eval_str=True).parameters
        clash = sorted(set(own) & settings.keys())
        if clash:
            raise TypeError(f"{command.__name__} and the settings of training both have {clash[0]!r}")
        parameters = [p.replace(kind=p.KEYWORD_ONLY) for name, p in own.items() if name not in ("training", "resume")]
        parameters += [*settings.values(), _RESUME]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        del run.__wrapped__
        return run

    hints = get_type_hints(Training)
    settings = {f.name: _option(f, hints[f.name], defaults) for f in dataclasses.fields(Training)}
    return decorate


_RESUME = inspect.Parameter(
    "resume",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[
        bool, typer.Option("--resume", help="Go on where the run in this folder stopped.", rich_help_panel=PANEL)
    ],
)


def _option(field: dataclasses.Field[Any], hint: Any, defaults: Training) -> inspect.Parameter:
    text = field.metadata["help"]
    default = getattr(defaults, field.name)
    if field.name in BOUNDS:
        if default is not None:
            text += f" The default: {default:g}."
        default = None
    name = "--" + field.name.replace("_", "-")
    names = [f"{name}/--no-{name[2:]}"] if hint is bool else [name]
    option = typer.Option(*names, help=text, rich_help_panel=PANEL)
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, option]
    )
