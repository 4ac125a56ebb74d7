"""The classification job: from files to a model that classifies, through the command line and from Python."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from reading_cases import SMALL, Run, assert_told, command
from throughtime.errors import UserError
from throughtime.learning import Training
from throughtime.tasks import classify
from throughtime.tasks.classify import ClassifyModel, Settings
from throughtime.tasks.classify_data import FORMATS, SERIES
from throughtime.tasks.classify_report import steps_that_count

GOOD, BAD, REST = ("fine", "lovely", "great"), ("dull", "awful", "poor"), ("a", "film", "the", "plot", "was")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    return command(monkeypatch, capfd)


def reviews(count: int, seed: int = 1) -> list[tuple[str, str]]:
    drawn = random.Random(seed)
    found = []
    for _ in range(count):
        label = drawn.choice(["good", "bad"])
        words = drawn.choices(REST, k=drawn.randint(1, 8))
        words.insert(drawn.randint(0, len(words)), drawn.choice(GOOD if label == "good" else BAD))
        found.append((" ".join(words), label))
    return found


def put_csv(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reviews")
    data = put_csv(folder / "train.csv", reviews(120))
    settings = Settings(hidden=10, embedding=8, batch_size=8, pooling="attention")
    training = Training(epochs=12, optimizer="adam", learning_rate=0.02, clip_norm=5)
    classify.train(data, folder / "run", settings, training)
    return folder / "run"


def test_from_a_table_to_classes(trained: Path, tmp_path: Path, run: Run) -> None:
    assert {path.name for path in trained.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "metrics.jsonl",
        "report.html",
    }
    test = put_csv(tmp_path / "test.csv", reviews(40, seed=5))
    scores = json.loads(run("evaluate", trained, "--data", test, "--json").out)
    assert scores["accuracy"] > 0.9
    assert scores["examples"] == 40
    assert set(scores["classes"]) == {"good", "bad"}
    lines = tmp_path / "lines"
    lines.write_text("a lovely film\n\nthe plot was awful\n", encoding="utf-8")
    told = run("predict", trained, "--input", lines).out.splitlines()
    assert [line.split("\t")[0] for line in told][::2] == ["good", "bad"]
    found = [json.loads(line) for line in run("predict", trained, "--input", lines, "--json").out.splitlines()]
    assert len(found) == 3  # an empty line is classified too
    for one in found:
        assert sum(one["probabilities"].values()) == pytest.approx(1)
        assert one["probability"] == max(one["probabilities"].values())


def test_the_same_data_in_other_tables(trained: Path, tmp_path: Path) -> None:
    model = classify.load(trained)
    rows = reviews(20, seed=7)
    found = model.evaluate(put_csv(tmp_path / "test.csv", rows))
    tsv = tmp_path / "test.tsv"
    tsv.write_text("label\ttext\n" + "".join(f"{label}\t{text}\n" for text, label in rows), encoding="utf-8")
    jsonl = tmp_path / "test.jsonl"
    jsonl.write_text("\n".join(json.dumps({"text": t, "label": y}) for t, y in rows), encoding="utf-8")
    assert model.evaluate(tsv) == found
    assert model.evaluate(jsonl) == found


def test_texts_are_read_from_tables_without_labels(trained: Path, tmp_path: Path, run: Run) -> None:
    texts = [text for text, _ in reviews(9, seed=7)]
    lines = tmp_path / "lines"
    lines.write_text("\n".join(texts) + "\n", encoding="utf-8")
    wanted = run("predict", trained, "--input", lines).out
    table = tmp_path / "new.csv"
    table.write_text("id,text\n" + "".join(f'{k},"{text}"\n' for k, text in enumerate(texts)), encoding="utf-8")
    jsonl = tmp_path / "new.jsonl"
    jsonl.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    for path in (table, jsonl):
        assert run("predict", trained, "--input", path).out == wanted
    assert run("predict", trained, "--input", jsonl.rename(tmp_path / "new"), "--format", "jsonl").out == wanted
    as_lines = run("predict", trained, "--input", table, "--format", "lines").out
    assert len(as_lines.splitlines()) == 10  # with the first, which names the columns
    table.write_text("id,words\n1,fine\n", encoding="utf-8")
    assert_told(run("predict", trained, "--input", table), r"new.csv:1: no column 'text' here \(it has id, words\)")
    assert_told(run("predict", trained, "--input", table, "--format", "xml"), "format 'xml' is unknown; choose one of")


def test_attention_is_drawn_over_the_words(trained: Path) -> None:
    model = classify.load(trained)
    (example,) = model.examples(["the film was a lovely the plot"])
    shades = steps_that_count(model, example, "good")
    assert len(shades) == 7
    assert max(shades) == pytest.approx(0.7)
    page = (trained / "report.html").read_text(encoding="utf-8")
    assert "the weights of attention" in page or "There is none on the validation data." in page


def test_saliency_is_the_gradient_in_eval_mode() -> None:
    settings = Settings(hidden=6, embedding=5, bidirectional=False, pooling="last")
    index = settings.index([("a", "b", "c")])
    torch.manual_seed(1)
    network = classify._network(settings, index, 0, 2)
    model = ClassifyModel(network, index, 0, ["x", "y"], "csv", settings)
    shades = steps_that_count(model, model.examples(["a b c a"])[0], "y")
    assert len(shades) == 4
    assert min(shades) > 0
    assert max(shades) == pytest.approx(0.7)


def test_trees_with_their_phrases(tmp_path: Path, run: Run) -> None:
    lines = ["(4 (2 a) (4 (4 lovely) (2 film)))", "(0 (2 a) (0 (0 awful) (2 film)))", "(2 (2 a) (2 film))"] * 8
    data = tmp_path / "trees.txt"
    data.write_text("\n".join(lines), encoding="utf-8")
    options = [*SMALL, "--epochs", 3, "--phrases", "--binary", "--valid", data]
    assert run("train", "classify", "--data", data, "--out", tmp_path / "run", *options).status == 0
    model = classify.load(tmp_path / "run")
    assert model.labels == ["negative", "positive"]
    assert [len(model.settings.read(data, part)[1]) for part in ("train", "test")] == [48, 16]
    assert model.read(data)[0].words == ("a", "lovely", "film")
    told = run("predict", tmp_path / "run", "--input", data, "--format", "trees").out.splitlines()
    assert len(told) == 24  # the neutral ones too
    (example,) = model.examples(["a film that 's fine"])
    assert example.words == ("a", "film", "that", "'s", "fine")


def test_series(tmp_path: Path, run: Run) -> None:
    drawn = np.random.default_rng(1)
    lines = []
    for k in range(60):
        label = "up" if k % 2 else "down"
        one = np.cumsum(drawn.normal(0.5 if k % 2 else -0.5, 1, drawn.integers(4, 12)))
        lines.append(",".join(f"{v:.3f}" for v in one) + ":" + ",".join("7" for _ in one) + ":" + label)
    data = tmp_path / "train.ts"
    data.write_text("@classLabel true up down\n@data\n" + "\n".join(lines), encoding="utf-8")
    options = ["--hidden", 8, "--epochs", 10, "--learning-rate", 0.02, "--jitter", 0.1, "--stretch", 0.1, "--window", 3]
    assert run("train", "classify", "--data", data, "--out", tmp_path / "run", *options).status == 0
    scores = json.loads(run("evaluate", tmp_path / "run", "--data", data, "--json").out)
    assert scores["accuracy"] > 0.8
    told = run("predict", tmp_path / "run", "--input", data).out.splitlines()
    assert len(told) == 60
    data.write_text("@classLabel false\n@data\n1,2:7,7\n", encoding="utf-8")
    assert len(run("predict", tmp_path / "run", "--input", data).out.splitlines()) == 1
    values = tmp_path / "values"
    values.write_text("1,2,3:7,7,7\n", encoding="utf-8")
    assert run("predict", tmp_path / "run", "--input", values).out.split("\t")[0] in ("up", "down")
    values.write_text("1,2,3\n", encoding="utf-8")
    assert_told(
        run("predict", tmp_path / "run", "--input", values), "input:1: 1 channels, where the training data have 2"
    )
    features = classify.load(tmp_path / "run").network.features
    assert isinstance(features, classify.SeriesFeatures)
    assert float(features.mean[1]) == 7


def put_images(folder: Path, part: str, images: np.ndarray, labels: np.ndarray) -> None:
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
        path = folder / f"{part}-{kind}-ubyte.gz"
        path.write_bytes(gzip.compress(head + array.astype(np.uint8).tobytes()))


@pytest.mark.parametrize("way", ["--rows-as-time", "--no-rows-as-time"])
def test_images(tmp_path: Path, run: Run, way: str) -> None:
    images, labels = np.zeros((40, 6, 6)), np.arange(40) % 2
    for k, label in enumerate(labels):
        images[k, 1 + 2 * label : 3 + 2 * label, 1:5] = 255
    put_images(tmp_path, "train", images, labels)
    put_images(tmp_path, "t10k", images[:10], labels[:10])
    options = ["--hidden", 8, "--epochs", 2, "--shift", 1, "--rotate", 5, "--zoom", 0.1, "--bend", 0.5, way]
    ended = run("train", "classify", "--data", tmp_path, "--format", "idx", "--out", tmp_path / "run", *options)
    assert ended.status == 0
    model = classify.load(tmp_path / "run")
    assert model.channels == (6 if way == "--rows-as-time" else 1)
    assert json.loads(run("evaluate", tmp_path / "run", "--data", tmp_path, "--json").out)["examples"] == 10
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    assert len(run("predict", tmp_path / "run", "--input", tmp_path).out.splitlines()) == 10


def test_images_are_changed_as_images(tmp_path: Path) -> None:
    images = np.random.default_rng(1).integers(0, 256, (9, 4, 9))  # as many pixels as a square has
    put_images(tmp_path, "train", images, np.arange(9) % 2)
    seen = []
    for rows in (True, False):
        settings = classify.Settings(hidden=3, shift=1, rotate=20, zoom=0.1, bend=0.3, format="idx", rows_as_time=rows)
        model = classify.train(tmp_path, tmp_path / f"run-{rows}", settings, Training(steps=1))
        examples = model.read(tmp_path / "train-images-idx3-ubyte.gz")
        changed = model.inputs(examples, np.random.default_rng(1))
        assert not torch.equal(changed.values, model.inputs(examples).values)
        assert model.inputs([], np.random.default_rng(1)).values.shape[0] == 0
        seen.append(changed.values.reshape(9, 4, 9))
    torch.testing.assert_close(*seen)
    wanted = settings.warp(torch.from_numpy(images).float() / 255, np.random.default_rng(1))
    torch.testing.assert_close(seen[0], wanted)


def test_validation_data_of_another_kind_are_told(tmp_path: Path, run: Run) -> None:
    put_images(tmp_path, "train", np.ones((8, 2, 2)), np.arange(8) % 2)
    (tmp_path / "a.csv").write_text("text,label\na,0\nb,1\nc,0\nd,1\n", encoding="utf-8")
    for data, valid, what in (
        (tmp_path, "a.csv", "csv files are not"),
        (tmp_path / "a.csv", "train-images-idx3-ubyte.gz", "idx"),
    ):
        ended = run("train", "classify", "--data", data, "--valid", tmp_path / valid, "--out", tmp_path / "run")
        assert_told(ended, f"{valid}: {what}")
        assert not (tmp_path / "run").exists()


def test_what_is_wrong_with_the_data_is_told(tmp_path: Path, run: Run) -> None:
    def told(text: str | bytes, what: str, *options: object, name: str = "bad.csv") -> None:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        ended = run("train", "classify", "--data", path, "--out", tmp_path / "bad", *SMALL, "--steps", 1, *options)
        assert_told(ended, what)
        assert not (tmp_path / "bad").exists()

    told("text,label\na,b\nc\n", r"bad.csv:3: 1 columns, where the first line names 2")
    told(b"text,label\na,b\n" + "é,b\n".encode("latin-1"), r"bad.csv:3: not UTF-8")
    told("text,label\na,x\nb,x\n", "all examples are of the class 'x'")
    told("text,label\na,x\nb,y\n", "one example of each class, none to validate on")
    told(
        "text,label\na,x\nb,y\n",
        "bad.csv: zoom is for images, not for csv; leave it out",
        "--zoom",
        0.1,
    )
    told("text,label\na,x\nb,y\n", "jitter is for series, not for csv; leave it out", "--jitter", 0.1)
    told("text,label\na,x\nb,y\n", "rotate must be from 0 to 180 degrees, not 200", "--rotate", 200)
    told("text,label\na,x\nb,y\n", "bend must be from 0 to 1000, not -1.0", "--bend", -1)
    told("text,label\na,x\nb,y\n", "zoom must be at least 0 and below 1, not 1", "--zoom", 1)
    told("words,label\na,x\n", r"no column 'text' here \(it has words, label\); name one with --text-column")
    told("text,label\na,x\n", r"no column 'kind' here", "--label-column", "kind")
    told("text,label\na,x\n", "column 'text' cannot be both text and label", "--label-column", "text")
    told("text,label\n", "no example in it")
    told("a b c\n", "its name does not say what it is; give --format", name="plain")
    told("(9 a)\n", "bad.trees:1: '9' is no sentiment", "--format", "trees", "--binary", name="bad.trees")
    told("text,label\na,x\n", "pooling must be one of", "--pooling", "sum")
    assert_told(run("train", "classify", "--data", tmp_path / "none.csv", "--out", tmp_path / "bad"), "no such file")


def test_a_class_with_one_example_is_learned_and_an_unseen_one_counted(tmp_path: Path, run: Run) -> None:
    data = put_csv(tmp_path / "train.csv", [*reviews(30), ("so so", "mixed")])
    assert run("train", "classify", "--data", data, "--out", tmp_path / "run", *SMALL, "--steps", 2).status == 0
    model = classify.load(tmp_path / "run")
    assert model.labels == ["bad", "good", "mixed"]
    scores = model.evaluate(put_csv(tmp_path / "test.csv", [("a film", "odd"), ("a lovely film", "good")]))
    assert scores.unseen == 1
    assert scores.accuracy <= 0.5
    assert scores.classes["odd"]["recall"] == 0


def test_a_text_of_many_words(trained: Path) -> None:
    model = classify.load(trained)
    (found,) = model.predict(model.examples(["the film was lovely " * 25_000]))
    assert found.label == "good"


def test_text_for_a_model_of_series_is_told(trained: Path, tmp_path: Path, run: Run) -> None:
    data = tmp_path / "x.ts"
    data.write_text("@data\n1,2:a\n", encoding="utf-8")
    assert_told(
        run("evaluate", trained, "--data", data), "ts files are not what this model was trained on, which is text"
    )


@pytest.mark.parametrize("form", FORMATS)
def test_what_has_no_meaning_for_a_format_is_told(form: str) -> None:
    Settings(hidden=3, embedding=3).check_form(form, "data")
    own = {"idx": {"shift": 1, "jitter": 0.1}, "ts": {"stretch": 0.1}, "trees": {"binary": True, "lower": True}}
    Settings(**own.get(form, {"unit": "char", "vectors": "file"})).check_form(form, "data")  # type: ignore[arg-type]
    others: list[dict[str, object]] = [{"bend": 0.5}, {"rows_as_time": False}] if form != "idx" else [{"digits": True}]
    others += [{"phrases": True}] if form != "trees" else [{"unit": "char"}]
    others += [{"characters": True}] if form in SERIES else [{"jitter": 0.1}]
    for other in others:
        name = next(iter(other)).replace("_", " ")
        with pytest.raises(UserError, match=f"^data: {name} is for .*, not for {form}; leave it out"):
            Settings(**other).check_form(form, "data")  # type: ignore[arg-type]
