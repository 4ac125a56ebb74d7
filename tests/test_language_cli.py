"""The language job through the command line, and what goes wrong told in one line."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reading_cases import Ended, Run, command
from throughtime.tasks import language

SMALL = ["--hidden", "10", "--embedding", "6", "--batch-size", "4", "--window", "9", "--steps", "3"]
POEM = "春夏秋冬山\n水花月人天\n日一風雲海\n江河草木石"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    return command(monkeypatch, capfd)


@pytest.fixture(scope="module")
def prose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prose") / "text"
    path.write_text("".join(random.Random(1).choices("abc de,\n", k=1500)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(prose: Path) -> Path:
    settings = language.Settings(hidden=10, embedding=6, batch_size=4, window=9)
    language.train(prose, prose.parent / "run", settings, language.TRAINING.bounded(steps=3))
    return prose.parent / "run"


@pytest.fixture(scope="module")
def poet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("poet")
    lines = [json.dumps({"lines": POEM.split("\n")[k % 2 :]}, ensure_ascii=False) for k in range(30)]
    (folder / "poems.jsonl").write_text("\n".join(lines), encoding="utf-8")
    settings = language.Settings(hidden=10, embedding=6, batch_size=4, window=9, field="lines")
    language.train(folder / "poems.jsonl", folder / "run", settings, language.TRAINING.bounded(steps=3))
    return folder / "run"


def assert_told(ended: Ended, what: str, out: str = "") -> None:
    """One line says what is wrong, behind any lines of progress; status 2; no traceback."""
    assert ended.status == 2
    assert re.search(what, ended.err.splitlines()[-1]), ended.err
    assert ended.err.splitlines()[-1].startswith("throughtime: ")
    assert ended.err.count("throughtime: ") == 1
    assert "Traceback" not in ended.err
    assert ended.out == out


def test_from_a_text_to_a_model_that_writes(prose: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "run"
    assert run("train", "language", "--text", prose, "--out", out, "--cell", "gru-cho", *SMALL).status == 0
    assert {path.name for path in out.iterdir()} >= {"config.json", "model.safetensors", "metrics.jsonl", "report.html"}
    ended = run("evaluate", out, "--text", prose, "--json")
    assert ended.status == 0
    measures = json.loads(ended.out)
    assert list(measures) == ["nats", "bits", "perplexity", "units", "unknown"]
    assert measures["units"] == 1499
    assert measures["nats"] == language.load(out).evaluate(prose).nats
    told = run("evaluate", out, "--text", prose).out
    assert f"nats       {measures['nats']:.4f}\n" in told
    assert "units      1,499\n" in told

    written = run("generate", out, "--prompt", "abc", "--length", 50, "--seed", 4)
    assert written.status == 0
    text = "".join(language.load(out).generate("abc", length=50, seed=4))
    assert written.out == "abc" + text + ("" if text.endswith("\n") else "\n")
    assert run("generate", out, "--prompt", "abc", "--length", 50, "--seed", 4) == written
    assert len(run("generate", out, "--beam", 3, "--length", 30).out.removesuffix("\n")) in (29, 30)
    assert len(run("generate", out, "--top-k", 2, "--top-p", 0.9, "--temperature", 1.2).out) in (500, 501)


def test_a_run_within_the_text_is_not_read_as_text(prose: Path, tmp_path: Path, run: Run) -> None:
    for name in ("one", "two"):
        shutil.copy(prose, tmp_path / name)
    for more in ([], ["--resume", "--steps", "5"]):
        ended = run("train", "language", "--text", tmp_path, "--out", tmp_path / "run", *SMALL, *more)
        assert ended.status == 0, ended.err
    measures = json.loads(run("evaluate", tmp_path / "run", "--text", tmp_path, "--json").out)
    assert measures["units"] == 2 * (len(prose.read_text(encoding="utf-8")) + 1)  # two documents, and their ends


def test_what_the_monitor_sees_is_said_and_kept(prose: Path, tmp_path: Path, run: Run) -> None:
    options = ["--cell", "elman", "--clip-norm", "0", "--optimizer", "sgd", "--learning-rate", "1e-9"]
    ended = run("train", "language", "--text", prose, "--out", tmp_path / "run", *SMALL, "--window", "30", *options)
    assert ended.status == 0, ended.err
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert "flow layer 0 h" in records[-1]
    said = [text for record in records for text in record.get("monitor", [])]
    assert any("gradients vanish" in text for text in said)
    assert all(f"warning: {text}" in ended.err for text in said)
    assert "The monitor said: after 1 training step, gradients vanish" in (tmp_path / "run" / "report.html").read_text()


def test_settings_reach_the_model(prose: Path, tmp_path: Path, run: Run) -> None:
    options = "--unit word --vocabulary-size 4 --cell elman --layers 2 --dropout 0.25 --embedding-dropout 0.5 --tied"
    options += " --no-shift --valid-fraction 0.3 --valid-units 77"
    ended = run("train", "language", "--text", prose, "--out", tmp_path / "run", *SMALL, *options.split())
    assert ended.status == 0, ended.err
    model = language.load(tmp_path / "run")
    wanted = language.Settings(
        unit="word",
        vocabulary_size=4,
        cell="elman",
        layers=2,
        dropout=0.25,
        embedding_dropout=0.5,
        tied=True,
        shift=False,
        valid_fraction=0.3,
        valid_units=77,
        hidden=10,
        embedding=6,
        batch_size=4,
        window=9,
    )
    assert model.settings == wanted
    assert model.vocabulary.size == 6
    assert model.network.output.weight is model.network.embedding.weight
    assert model.network.recurrent.num_layers == 2
    assert (model.network.dropout.p, model.network.embedding_dropout.p) == (0.25, 0.5)


def test_documents_of_a_folder(tmp_path: Path, run: Run) -> None:
    for name in ("a.py", "b.py", "c.txt", "old/d.py"):
        (tmp_path / "code" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "code" / name).write_text(f"# {name}\n" + "x = y\n" * 20)
    arguments = ["--text", tmp_path / "code", "--glob", "**/*.py", "--exclude", "old", "--valid-fraction", 0.4]
    assert run("train", "language", "--out", tmp_path / "run", *arguments, *SMALL).status == 0
    model = language.load(tmp_path / "run")
    assert model.documents
    assert "t" not in model.vocabulary.symbols  # c.txt
    assert "d" not in model.vocabulary.symbols  # old/d.py
    one = json.loads(run("evaluate", tmp_path / "run", "--text", tmp_path / "code" / "a.py", "--json").out)
    assert one["units"] == 7 + 6 * 20 + 1  # a file is a document of its own
    both = json.loads(run("evaluate", tmp_path / "run", "--text", tmp_path / "code", "--json").out)
    assert both["units"] == 2 * one["units"]


def test_a_separator_may_be_written_with_escapes(tmp_path: Path, run: Run) -> None:
    (tmp_path / "poems").write_text("\n\n".join([POEM] * 9), encoding="utf-8")
    arguments = ["--text", tmp_path / "poems", "--document-separator", r"\n\n"]
    assert run("train", "language", "--out", tmp_path / "run", *arguments, *SMALL).status == 0
    measures = json.loads(run("evaluate", tmp_path / "run", "--text", tmp_path / "poems", "--json").out)
    assert measures["units"] == 9 * (len(POEM) + 1)


def test_poems_keep_their_form(poet: Path, run: Run) -> None:
    written = run("generate", poet, "--heads", "春夏秋冬", "--lines", 4, "--line-length", 7, "--count", 20)
    poems = written.out.removesuffix("\n").split("\n\n")
    assert len(set(poems)) > 1
    for poem in poems:
        assert [line[0] for line in poem.split("\n")] == list("春夏秋冬")
        assert [len(line) for line in poem.split("\n")] == [7] * 4
    assert len(poems) == 20
    marked = run("generate", poet, "--prompt", "春", "--lines", 2, "--line-length", 5)
    assert re.fullmatch("春\\w{4}\n\\w{5}\n", marked.out)


def test_another_way_of_evaluating_documents(poet: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "plain").write_text(POEM + "==" + POEM, encoding="utf-8")
    arguments = ["--text", tmp_path / "plain", "--document-separator", "==", "--json"]
    assert json.loads(run("evaluate", poet, *arguments).out)["units"] == 2 * (len(POEM) + 1)
    (tmp_path / "other.jsonl").write_text(json.dumps({"poem": POEM}))
    arguments = ["--text", tmp_path / "other.jsonl", "--field", "poem", "--json"]
    assert json.loads(run("evaluate", poet, *arguments).out)["units"] == len(POEM) + 1


def test_the_demo_ends_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    library = tmp_path / "library"
    for name in ("a.py", "b.py", "site-packages/c.py", "test/d.py"):
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_text("def f(x):\n    return x\n" * 500 + name[0])
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(library))
    ended = run("demo", "--out", tmp_path / "run", "--minutes", 0.01)
    assert ended.status == 0, ended.err
    assert ended.out.startswith("def ")
    assert (tmp_path / "run" / "report.html").exists()
    assert not {"c", "s"} & set(language.load(tmp_path / "run").vocabulary.symbols)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "text: empty; give a file with text"),
        (b"ab\ncd\0ef" * 50, "text:2: a zero byte: a binary file"),
        (b"ab\ncd\xe9ef\n" * 50, "text:2: not UTF-8 at byte 5 .*convert it"),
        ("ab\ncd".encode("utf-16"), "UTF-16"),
        (b"short", "has 5 units, and one window takes 10: give a longer text or a smaller --window"),
        (b"x", "the text has 1 unit"),
    ],
)
def test_a_text_that_will_not_do_is_told(content: bytes, told: str, trained: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "text").write_bytes(content)
    assert_told(run("train", "language", "--text", tmp_path / "text", "--out", tmp_path / "run", *SMALL), told)
    assert not (tmp_path / "run").exists()
    if content not in (b"short",):
        assert_told(run("evaluate", trained, "--text", tmp_path / "text"), told)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--text none", "none: no such file or folder"),
        ("--text /dev/null", "/dev/null: a pipe or a device"),
        ("--text folder", "folder: no file fits the glob"),
        ("--text text --field lines", r"text:1: not a line of JSON"),
        ("--text text --field lines --document-separator x", "not both"),
        ("--text halves --field text", r"halves:2: field 'text' has half a character, \\ud83d"),
        ("--text text --document-separator ---", "the text is one document.*what stands between documents"),
        ("--text text --batch-size 1000", "a batch of 1000 streams is more than the text has units, 450"),
        ("--text text --out text/run", "text is a file|Not a directory; check the folder"),
        ("--text text --cell lstmm", "cell 'lstmm' is unknown; `throughtime cells`"),
        ("--text text --unit letters", "choose one of char, word, bpe"),
        ("--text text --hidden 0", "hidden must be at least 1"),
        ("--text text --valid none", "none: no such file"),
        ("--text text --valid one", "one has 1 units|validation text has 1 units"),
        ("--text text --out text", "text is a file"),
    ],
)
def test_what_cannot_be_trained_is_told(
    arguments: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("text").write_text("some text " * 50)
    Path("one").write_text("s")
    Path("halves").write_text('{"text": "whole \\ud83d\\ude00"}\n{"text": "half \\ud83d"}\n')
    given = arguments if "--out" in arguments else arguments + " --out run"
    assert_told(run("train", "language", *SMALL, *given.split()), told)
    assert not Path("run").exists()


def test_a_run_is_not_trained_over(prose: Path, trained: Path, run: Run) -> None:
    before = (trained / "model.safetensors").read_bytes()
    assert_told(run("train", "language", "--text", prose, "--out", trained, *SMALL), "holds a run already")
    assert (trained / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--prompt ab春?", "did not have: '春', '\\?'; leave them out"),
        ("--beam 2 --top-k 3", "a beam search draws nothing"),
        ("--beam 2 --count 3", "one result"),
        ("--lines 2 --length 9", "a form has a length of its own"),
        ("--line-length 5", "how many lines"),
        ("--lines 2 --line-length 3 --heads 春夏", "did not have: '春', '夏'"),
        ("--temperature -1", "temperature must be at least 0"),
        ("--top-p 2", "top-p must be above 0"),
        ("--length 0", "length must be at least 1"),
    ],
)
def test_what_cannot_be_written_is_told(arguments: str, told: str, trained: Path, run: Run) -> None:
    assert_told(run("generate", trained, *arguments.split()), told)


def test_unknown_characters_are_counted_when_evaluating(trained: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "text").write_text("abc春?de", encoding="utf-8")
    assert json.loads(run("evaluate", trained, "--text", tmp_path / "text", "--json").out)["unknown"] == 2
    assert "unknown    2 (not in the vocabulary" in run("evaluate", trained, "--text", tmp_path / "text").out


def newer(path: Path) -> None:
    text = path.read_bytes()
    assert text.count(b'"version": 1') == 1 or b'\\"version\\": 1' in text
    path.write_bytes(text.replace(b'version": 1', b'version": 9').replace(b'version\\": 1', b'version\\": 9'))


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (Path.unlink, "no config.json|has no model.safetensors|missing|does not exist|no such|not the folder of a run"),
        (cut, "damaged"),
        (flipped, "damaged"),
        (newer, "version 9"),
    ],
)
def test_a_harmed_run_is_told(
    name: str, harm: Callable[[Path], Any], told: str, trained: Path, prose: Path, tmp_path: Path, run: Run
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    harm(tmp_path / "run" / name)
    for arguments in (["generate", tmp_path / "run"], ["evaluate", tmp_path / "run", "--text", prose]):
        ended = run(*arguments)
        assert_told(ended, told)
        assert str(tmp_path / "run") in ended.err


def test_a_missing_run_is_told(tmp_path: Path, prose: Path, run: Run) -> None:
    assert_told(run("generate", tmp_path / "none"), "none does not exist")
    assert_told(run("evaluate", tmp_path / "none", "--text", prose), "none does not exist")


def test_a_loss_that_is_no_number_is_told(prose: Path, tmp_path: Path, run: Run) -> None:
    arguments = ["--text", prose, "--out", tmp_path / "run", "--optimizer", "sgd", "--learning-rate", "1e30"]
    ended = run("train", "language", *SMALL, *arguments, "--clip-norm", 0, "--cell", "irnn", "--steps", 50)
    assert_told(ended, "not finite|NaN|nan")


def child(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "throughtime", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options
    )


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a process are set by resource")
def test_a_full_disk_is_told(prose: Path, tmp_path: Path) -> None:
    import resource

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))  # a file that grows past it cannot be written

    arguments = ["train", "language", "--text", prose, "--out", tmp_path / "run", *SMALL]
    with child(*arguments, preexec_fn=limited) as process:
        out, err = process.communicate(timeout=60)
    assert_told(Ended(process.returncode, out, err), "cannot write .*make room")


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for a child alone")
def test_an_interrupted_run_says_how_to_go_on(prose: Path, tmp_path: Path) -> None:
    arguments = ["train", "language", "--text", prose, "--out", tmp_path / "run", *SMALL]
    with child(*arguments, "--steps", 100_000, "--checkpoint-every", 5) as process:
        while not (tmp_path / "run" / "checkpoint").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "--resume" in err.splitlines()[-1]
    with child(*arguments, "--steps", 3, "--resume") as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


def test_text_reaches_a_pipe_as_it_is_written_and_in_utf8(poet: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "throughtime", "generate", str(poet), "--lines", "4", "--line-length", "500000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        first = process.stdout.read(30).decode()  # it would take minutes to write it all
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read().decode()
    assert len(first) == 10
    assert set(first) <= set(POEM)
    assert err == ""
    assert process.returncode == 141
