"""``throughtime reproduce``: published results, from the recipes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from throughtime.cli.app import root
from throughtime.cli.reading import say
from throughtime.cli.recipes import Recipe, page, read_recipe
from throughtime.errors import UserError


@root.command("reproduce")
def reproduce(
    *,
    data: Annotated[Path, typer.Option("--data", help="The folder that holds the data sets.")],
    recipes: Annotated[Path, typer.Option(help="The folder of recipes, or one recipe.")] = Path("recipes"),
    out: Annotated[
        Path, typer.Option("--out", help="Where the runs go; what is there already is not run again.")
    ] = Path("runs/reproduce"),
    results: Annotated[Path, typer.Option(help="The page that is written.")] = Path("docs/results-reading.md"),
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each recipe, from seed 1 on.")] = 3,
) -> None:
    """Run the recipes of published results, and write down what comes out of them."""
    paths = sorted(recipes.glob("*.toml")) if recipes.is_dir() else [recipes]
    if not paths:
        raise UserError(f"{recipes}: no recipe in it; a recipe is a .toml file")
    rows: list[tuple[Recipe, list[Mapping[str, Any]], str]] = []
    for recipe in map(read_recipe, paths):
        missing = recipe.missing(data)
        reason = f"{', '.join(missing)} absent" if missing else ""
        rows.append((recipe, [], reason))
        if missing:
            say(f"{recipe.name}: left out, as {reason} in {data}")
            continue
        for seed in range(1, seeds + 1):
            result = recipe.run(data, out / recipe.name / f"seed-{seed}", seed)
            rows[-1][1].append(result)
            say(f"{recipe.name}, seed {seed}: " + ", ".join(f"{name} {result[name]:.2f}" for name in recipe.bars))
            _write(results, page(rows))
    _write(results, page(rows))
    say(f"results: {results}")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; the runs are kept") from error
