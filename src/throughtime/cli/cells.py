"""``throughtime cells``: every built-in cell."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from throughtime.cells import CATALOGUE
from throughtime.cli.app import root

_PIPE_WIDTH = 200  # columns where there is no terminal to ask


@root.command("cells")
def cells(
    input_size: Annotated[int, typer.Option(min=1, help="Features of the input, for the count of parameters.")] = 128,
    hidden_size: Annotated[int, typer.Option(min=1, help="Hidden units, for the count of parameters.")] = 128,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the cells: family, name, equation, parameters, source."""
    rows: list[dict[str, Any]] = [
        {
            "family": entry.family,
            "name": entry.name,
            "equation": entry.equation,
            "parameters": entry.parameters(input_size, hidden_size),
            "source": entry.source,
        }
        for entry in CATALOGUE.values()
    ]
    if as_json:
        typer.echo(
            json.dumps({"input_size": input_size, "hidden_size": hidden_size, "cells": rows}, ensure_ascii=False)
        )
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    table = Table(caption=f"parameters for input size {input_size} and hidden size {hidden_size}")
    table.add_column("family")
    table.add_column("name", no_wrap=True)
    table.add_column("equation")
    table.add_column("parameters", justify="right")
    table.add_column("source")
    for row in rows:
        table.add_row(row["family"], row["name"], row["equation"], f"{row['parameters']:,}", row["source"])
    console.print(table)
