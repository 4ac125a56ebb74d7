"""Recipes: what a published result takes, in a file; read, run and told."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from throughtime.errors import UserError
from throughtime.learning import Training, read_metrics
from throughtime.tasks import classify, label

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

JOBS: dict[str, Any] = {"classify": classify, "label": label}
_NAMES = {"title", "job", "train", "valid", "test", "bars", "published", "note", "settings", "training"}
RESULT = "result.json"


@dataclass(frozen=True)
class Recipe:
    """One published result: data, settings, and the figure to be reached."""

    name: str
    title: str
    job: str
    train: str  # relative to the folder of data, as the others
    test: str
    bars: Mapping[str, float]  # measure and figure, in per cent
    published: str | Mapping[str, str]  # what others reached: of every measure, or of each
    settings: Mapping[str, Any]
    training: Mapping[str, Any]
    valid: str | None = None
    note: str = ""

    def missing(self, data: Path) -> list[str]:
        """What of its data is absent."""
        wanted = [self.train, self.test] + ([self.valid] if self.valid else [])
        return [name for name in dict.fromkeys(wanted) if not (data / name).exists()]

    def made(self, data: Path, seed: int) -> tuple[Any, Training]:
        """The job's settings and those of training.

        Raises:
            UserError: a setting is out of range.
        """
        settings = JOBS[self.job].Settings(**self.settings, valid=str(data / self.valid) if self.valid else None)
        base = dataclasses.asdict(JOBS[self.job].TRAINING)
        bounds = {name: self.training.get(name) for name in ("steps", "epochs", "minutes")}
        if any(value is not None for value in bounds.values()):
            base.update(bounds)
        return settings, Training(**{**base, **self.training, "seed": seed})

    def command(self, data: str, out: str, seed: int) -> str:
        """The same on the command line."""
        options = ["--data", f"{data}/{self.train}", *(["--valid", f"{data}/{self.valid}"] if self.valid else [])]
        for name, value in {**self.settings, **self.training, "seed": seed}.items():
            spelled = name.replace("_", "-")
            if isinstance(value, bool):
                options.append(f"--{spelled}" if value else f"--no-{spelled}")
            else:
                options += [f"--{spelled}", str(value)]
        return shlex.join(["throughtime", "train", self.job, *options, "--out", out])

    def run(self, data: Path, out: Path, seed: int) -> dict[str, Any]:
        """Trains (or goes on training), and measures on the test data once; what was measured is kept.

        Raises:
            UserError: data, settings or folder will not do.
        """
        kept = out / RESULT
        if kept.exists():
            return dict(json.loads(kept.read_text(encoding="utf-8")))
        settings, training = self.made(data, seed)
        model = JOBS[self.job].train(data / self.train, out, settings, training, resume=True)
        figures = model.evaluate(data / self.test).to_json()
        result = {
            "seed": seed,
            **{name: 100 * figures[name] for name in self.bars},
            "seconds": read_metrics(out)[-1]["seconds"],
        }
        kept.write_text(json.dumps(result) + "\n", encoding="utf-8")
        return result


def read_recipe(path: Path) -> Recipe:
    """A recipe from its file.

    Raises:
        UserError: it cannot be read, or has other names in it than a recipe has.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: no recipe: {error}") from error
    unknown = sorted(content.keys() - _NAMES)
    if unknown:
        raise UserError(f"{path}: {unknown[0]!r} is nothing that a recipe has; it has {', '.join(sorted(_NAMES))}")
    absent = sorted({"title", "job", "train", "test", "bars", "published"} - content.keys())
    if absent:
        raise UserError(f"{path}: no {absent[0]!r} in it")
    if content["job"] not in JOBS:
        raise UserError(f"{path}: job {content['job']!r} is unknown; choose one of {', '.join(JOBS)}")
    published = content["published"]
    if not isinstance(published, str) and set(published) != set(content["bars"]):
        raise UserError(
            f"{path}: 'published' names other measures than 'bars'; give each bar its own, or one text for all"
        )
    known = {field.name for field in dataclasses.fields(JOBS[content["job"]].Settings)}
    for table, names in (("settings", known), ("training", {f.name for f in dataclasses.fields(Training)})):
        for name in content.get(table, {}):
            if name not in names:
                raise UserError(f"{path}: {name!r} is no setting of {table}")
    return Recipe(path.stem, **{"settings": {}, "training": {}, **content})


def page(rows: Sequence[tuple[Recipe, Sequence[Mapping[str, Any]], str]]) -> str:
    """The results as a page in Markdown: recipe, what was measured, and why it was left out, if so."""
    lines = [
        "# Reading sequences: results",
        "",
        "Written by `make reproduce DATA=folder`. Figures are per cent on the test data: the mean over the seeds, the",
        "lowest and the highest. Weights are those that were best on the validation data, or the last where a recipe",
        "keeps these; the test data are read once a seed.",
        "",
        "| data | measure | here | bar | published | minutes a seed | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for recipe, results, reason in rows:
        for measure, bar in recipe.bars.items():
            name = measure.replace("_", " ")
            published = recipe.published if isinstance(recipe.published, str) else recipe.published[measure]
            if not results:
                lines.append(f"| {recipe.title} | {name} | not run: {reason} | {bar} | {published} | | |")
                continue
            values = [result[measure] for result in results]
            minutes = statistics.mean(result["seconds"] for result in results) / 60
            spread = f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"
            lines.append(
                f"| {recipe.title} | {name} | {spread} | {bar} | {published} | {minutes:.1f} | {len(values)} |"
            )
    lines += ["", "## Commands", ""]
    for recipe, _, _ in rows:
        lines += [f"{recipe.title}:" + (f" {recipe.note}" if recipe.note else ""), "", "```"]
        lines += [recipe.command("DATA", f"runs/{recipe.name}", 1), "```", ""]
    return re.sub(r"\n+$", "\n", "\n".join(lines))
