"""The settings of a job as options."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer


def with_settings(settings: type[Any], panel: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gives a command every field of a dataclass as an option; its own function takes ``settings`` by keyword.

    The text of an option is under "help" in the field's metadata.
    """
    hints = get_type_hints(settings)
    options = {field.name: _option(field, hints[field.name], panel) for field in dataclasses.fields(settings)}

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def run(**given: Any) -> Any:
            values = {name: given.pop(name) for name in options}
            return command(**given, settings=settings(**values))

        own = [p for name, p in inspect.signature(command, eval_str=True).parameters.items() if name != "settings"]
        run.__signature__ = inspect.Signature([*own, *options.values()])  # type: ignore[attr-defined]
        del run.__wrapped__
        return run

    return decorate


def _option(field: dataclasses.Field[Any], hint: Any, panel: str) -> inspect.Parameter:
    name = "--" + field.name.replace("_", "-")
    names = [f"{name}/--no-{name[2:]}"] if hint is bool else [name]
    option = typer.Option(*names, help=field.metadata["help"], rich_help_panel=panel)
    annotation = Annotated[hint, option]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=annotation)
