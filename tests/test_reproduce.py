"""Recipes of published results: read, run and told."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import pytest

from reading_cases import Run, assert_told, command, put_parallel, trips
from throughtime.cli.recipes import JOBS, read_recipe

RECIPES = sorted((Path(__file__).parent.parent / "recipes").glob("*.toml"))
RECIPE = """
title = "Trips"
job = "label"
train = "trips/train"
valid = "trips/valid"
test = "trips/test"
published = "none"
bars = { f1 = 50.0 }
settings = { hidden = 6, embedding = 5 }
training = { steps = 3 }
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    return command(monkeypatch, capfd)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipes_name_what_there_is(path: Path) -> None:
    recipe = read_recipe(path)
    settings, training = recipe.made(Path("data"), seed=2)
    assert training.seed == 2
    defaults = JOBS[recipe.job].Settings()
    for name, value in recipe.settings.items():
        assert getattr(settings, name) == value
        assert value != getattr(defaults, name), f"{name} is the default: a recipe names nothing else than what matters"
    figures = {field.name for field in dataclasses.fields(JOBS[recipe.job].Scores)}
    assert recipe.bars.keys() <= figures
    words = shlex.split(recipe.command("D", "R", 1))
    assert words[:3] == ["throughtime", "train", recipe.job]
    assert words[-2:] == ["--out", "R"]


def test_recipes_are_run_once_and_told(tmp_path: Path, run: Run) -> None:
    for part, seed in (("train", 1), ("valid", 2), ("test", 3)):
        put_parallel(tmp_path / "data" / "trips" / part, trips(10, seed))
    folder = tmp_path / "recipes"
    folder.mkdir()
    each = RECIPE.replace('published = "none"', 'published = { f1 = "12.34" }')
    (folder / "trips.toml").write_text(each, encoding="utf-8")
    (folder / "other.toml").write_text(RECIPE.replace("trips/", "none/").replace("Trips", "Other"), encoding="utf-8")
    page = tmp_path / "docs" / "results.md"
    call = [
        "reproduce",
        "--data",
        tmp_path / "data",
        "--recipes",
        folder,
        "--out",
        tmp_path / "runs",
        "--results",
        page,
    ]
    ended = run(*call, "--seeds", 2)
    assert ended.status == 0
    assert "other: left out, as none/train, none/test, none/valid absent" in ended.out
    assert "trips, seed 2: f1 " in ended.out
    told = page.read_text(encoding="utf-8")
    assert "| Trips | f1 | " in told
    assert "| 50.0 | 12.34 |" in told
    assert "| Other | f1 | not run: none/train" in told
    assert "| 50.0 | none |" in told
    assert "throughtime train label --data DATA/trips/train --valid DATA/trips/valid --hidden 6" in told
    before = (tmp_path / "runs" / "trips" / "seed-1" / "model.safetensors").stat().st_mtime_ns
    again = run(*call, "--seeds", 2)
    assert page.read_text(encoding="utf-8") == told
    assert again.out == ended.out
    assert (tmp_path / "runs" / "trips" / "seed-1" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("hidden = 6", "hiden = 6"), "'hiden' is no setting of settings"),
        (("steps = 3", "stepps = 3"), "'stepps' is no setting of training"),
        (('job = "label"', 'job = "labell"'), "job 'labell' is unknown"),
        (('title = "Trips"', 'name = "Trips"'), "'name' is nothing that a recipe has"),
        (('title = "Trips"', ""), "no 'title' in it"),
        (("title =", "title"), "no recipe: "),
        (('published = "none"', 'published = { accuracy = "1" }'), "'published' names other measures than 'bars'"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_told(tmp_path: Path, run: Run, change: tuple[str, str], told: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(RECIPE.replace(*change), encoding="utf-8")
    assert_told(run("reproduce", "--data", tmp_path, "--recipes", path, "--results", tmp_path / "page.md"), told)
