"""The rooms of the house: each imports only from itself and from those before it (docs/design.md)."""

import ast
from pathlib import Path

import pytest

import throughtime

HOUSE = Path(throughtime.__file__).parent
ROOMS = ["errors", "cells", "engine", "layers", "nn", "learning", "insight", "data", "tasks", "studies", "bench", "cli"]


def rooms_in(path):
    """The rooms that a file imports from, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "throughtime" and len(parts) > 1:
                yield parts[1], node.lineno


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_rooms_before_it(room):
    files = [HOUSE / f"{room}.py"] if (HOUSE / f"{room}.py").exists() else sorted((HOUSE / room).rglob("*.py"))
    assert files
    allowed = ROOMS[: ROOMS.index(room) + 1]
    wrong = [f"{file}:{line} imports {name}" for file in files for name, line in rooms_in(file) if name not in allowed]
    if room == "cli":  # the roof asks for the version as well
        wrong = [line for line in wrong if not line.endswith("__version__")]
    assert wrong == []


def test_every_room_is_on_the_list():
    found = {path.stem for path in HOUSE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert found - {"__init__", "__main__"} == set(ROOMS)
