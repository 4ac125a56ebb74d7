"""``throughtime inspect`` on a run of each job."""

import pytest
import torch

from reading_cases import put_conll, put_parallel, trips
from throughtime.cli import inspect as command
from throughtime.errors import UserError
from throughtime.learning import Training
from throughtime.tasks import classify, label, language
from throughtime.tasks.language import Settings
from throughtime.tasks.reading_inside import Steps, along_labelled


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "text.txt").write_text('He said "no" and left.\n' * 300, encoding="utf-8")
    settings = Settings(cell="gru", hidden=8, layers=1)
    language.train(folder / "text.txt", folder / "run", settings, Training(steps=3))
    return folder / "run"


def test_a_run_is_looked_into(run, tmp_path, capsys):
    command.inspect(run, length=20)
    assert "Gradients through time" in (run / "inside.html").read_text(encoding="utf-8")
    command.inspect(run, run.parent / "text.txt", length=30, out=tmp_path / "in.html")
    assert "Units that follow quotes" in (tmp_path / "in.html").read_text(encoding="utf-8")
    assert capsys.readouterr().out.splitlines() == [str(run / "inside.html"), str(tmp_path / "in.html")]


def test_what_cannot_be_read_is_told(run, tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"abc\xff\xfe" * 50)
    (tmp_path / "short.txt").write_text("abc", encoding="utf-8")
    for name, message in (("none.txt", "cannot be read"), ("bad.txt", "not UTF-8"), ("short.txt", "too few")):
        with pytest.raises(UserError, match=message):
            command.inspect(run, tmp_path / name)
    with pytest.raises(UserError):
        command.inspect(tmp_path / "nowhere")


@pytest.fixture(scope="module")
def reading(tmp_path_factory):
    """Runs that label words, with validation data of their own and without."""
    folder = tmp_path_factory.mktemp("reading")
    put_parallel(folder / "train", trips(20))
    put_parallel(folder / "valid", trips(5, seed=2))
    for name, valid in (("own", None), ("given", str(folder / "valid"))):
        settings = label.Settings(hidden=6, embedding=5, characters=True, crf=True, scheme="bioes", valid=valid)
        label.train(folder / "train", folder / name, settings, Training(steps=2))
    return folder


def test_a_labelling_run_is_looked_into(reading, tmp_path, capsys):
    command.inspect(reading / "given")
    page = (reading / "given" / "inside.html").read_text(encoding="utf-8")
    assert "Gradients through time" in page
    assert page.count("How long an input is remembered") == 2  # both directions
    (tmp_path / "text").write_text("show flights from 纽约 to boston\n", encoding="utf-8")
    command.inspect(reading / "own", tmp_path / "text", out=tmp_path / "in.html")
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "in.html")


def test_the_longest_sentence_is_read_with_its_labels(reading, tmp_path):
    model = label.load(reading / "given")
    sentences = [(words, labels, "") for words, labels, _ in trips(9, seed=3)]
    longest = max(sentences, key=lambda sentence: len(sentence[0]))
    along = along_labelled(model, None, put_conll(tmp_path / "test.conll", sentences), 100)
    assert along.pieces == longest[0]
    wanted = label.rewritten(longest[1], "bioes")
    assert [model.labels[k] for k in along.target[0].tolist()] == wanted
    scores, _ = model.network(model.tokens([model.sentence(" ".join(longest[0]))]))
    torch.testing.assert_close(along.network(along.x), scores)
    assert isinstance(along.network, Steps)
    cut = along_labelled(model, None, tmp_path / "test.conll", 5)
    assert (cut.pieces, cut.x.shape[1]) == (longest[0][:5], 5)


def test_a_classifying_run_is_looked_into(tmp_path):
    for name, row in (("a.csv", "{},{}\n"), ("b.ts", "{}:{}\n")):
        head = "text,label\n" if name == "a.csv" else "@data\n"
        step = (lambda k: f"w{k} ") if name == "a.csv" else (lambda k: f"{k},")
        texts = ["".join(map(step, range(k, k + 8))).rstrip(" ,") for k in range(12)]
        (tmp_path / name).write_text(
            head + "".join(row.format(text, "xy"[k % 2]) for k, text in enumerate(texts)), encoding="utf-8"
        )
        run = tmp_path / f"run-{name}"
        settings = classify.Settings(hidden=6, embedding=5, valid=str(tmp_path / name), bidirectional=False)
        classify.train(tmp_path / name, run, settings, Training(steps=2))
        command.inspect(run)
        assert "Gradients through time" in (run / "inside.html").read_text(encoding="utf-8")


def test_what_cannot_be_looked_into_is_told(reading, run, tmp_path):
    (tmp_path / "short").write_text("show flights\n", encoding="utf-8")
    for where, text, data, message in (
        (reading / "own", None, None, "set its validation data aside itself; say what to read, with --data or --text"),
        (reading / "own", tmp_path / "short", None, "short: 2 steps are too few to look into; give at least 5"),
        (reading / "own", tmp_path / "short", reading / "valid", "one of --text and --data says what to read"),
        (reading / "own", None, tmp_path / "none", "none: no such file"),
        (run, None, reading / "valid", "a run of 'language', which reads a text: give it with --text"),
    ):
        with pytest.raises(UserError, match=message):
            command.inspect(where, text, data)
    (reading / "valid").rename(tmp_path / "gone")
    with pytest.raises(UserError, match="the run's validation data are not there; say what to read"):
        command.inspect(reading / "given")
