"""What the documentation shows, runs: every block of Python in it, and every example in a docstring."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import throughtime

ROOT = Path(__file__).parent.parent
PAGES = [path for name in ("README.md", "README.zh.md", "CONTRIBUTING.md") if (path := ROOT / name).exists()]
PAGES += sorted((ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
MODULES = ["throughtime"] + [
    module.name
    for module in pkgutil.walk_packages(throughtime.__path__, "throughtime.")
    if not module.name.endswith("__main__")  # importing that one runs the command line
]


def python_blocks(page):
    """Line and code of each block to be run; "python no-run" marks one that is not."""
    text = page.read_text(encoding="utf-8")
    for fence in FENCE.finditer(text):
        info = fence["info"].split()
        if info[:1] == ["python"] and info != ["python", "no-run"]:
            assert info == ["python"], f"{page.name}: a block is tagged {fence['info']!r}"
            yield text.count("\n", 0, fence.start("code")), fence["code"]


@pytest.mark.parametrize("page", [page for page in PAGES if any(python_blocks(page))], ids=lambda page: page.name)
def test_python_in_the_documentation_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "documentation"}
    for line, code in python_blocks(page):
        exec(compile("\n" * line + code, page, "exec"), namespace)  # so that a traceback names the page's own line


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0


def test_there_is_something_to_run():
    assert len(list(python_blocks(ROOT / "docs" / "shapes.md"))) > 10
    assert len(MODULES) > 20
