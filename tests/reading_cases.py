"""Small labelled data and the command line, for the tests of the jobs that read sequences."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from throughtime.cli.main import main

CITIES = ("boston", "denver", "new york", "san jose")
SMALL = ["--hidden", "7", "--embedding", "5", "--batch-size", "4"]


class Ended(NamedTuple):
    status: int
    out: str
    err: str


Run = Callable[..., Ended]


def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The command line as a function of its arguments."""

    def call(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["throughtime", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        status = ended.value.code
        assert status is None or isinstance(status, int)
        return Ended(status or 0, *capfd.readouterr())

    return call


def assert_told(ended: Ended, what: str) -> None:
    """One line says what is wrong; status 2; no traceback."""
    last = ended.err.splitlines()[-1]
    assert ended.status == 2
    assert re.search(what, last), ended.err
    assert last.startswith("throughtime: ")
    assert "Traceback" not in ended.err


def trips(count: int, seed: int = 1) -> list[tuple[list[str], list[str], str]]:
    """Words, slots and intents of queries like ATIS's."""
    drawn = random.Random(seed)
    found = []
    for _ in range(count):
        intent = drawn.choice(["flight", "fare"])
        words, labels = (["show", "flights"] if intent == "flight" else ["what", "cost"]), ["O", "O"]
        for role, before in (("from", "from"), ("to", "to")):
            city = drawn.choice(CITIES).split()
            words = [*words, before, *city]
            labels = [*labels, "O", f"B-{role}", *[f"I-{role}"] * (len(city) - 1)]
        found.append((words, labels, intent))
    return found


def put_parallel(folder: Path, examples: list[tuple[list[str], list[str], str]]) -> Path:
    folder.mkdir(parents=True)
    for name, k in (("seq.in", 0), ("seq.out", 1)):
        (folder / name).write_text("".join(" ".join(example[k]) + "\n" for example in examples), encoding="utf-8")
    (folder / "label").write_text("".join(example[2] + "\n" for example in examples), encoding="utf-8")
    return folder


def put_conll(path: Path, examples: list[tuple[list[str], list[str], str]]) -> Path:
    text = "\n".join(
        "".join(f"{w}\t{y}\n" for w, y in zip(words, labels, strict=True)) for words, labels, _ in examples
    )
    path.write_text(text, encoding="utf-8")
    return path
