"""``throughtime inspect`` on a run of each job."""

import dataclasses

import pytest
import torch

from reading_cases import put_conll, put_parallel, trips
from throughtime.cli import inspect as command
from throughtime.errors import UserError
from throughtime.learning import Training, save_model
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


def test_a_model_that_cannot_write_is_looked_into_along_a_text(tmp_path):
    (tmp_path / "text.txt").write_text("He left.\n" * 300, encoding="utf-8")
    settings = Settings(cell="irnn", hidden=8, layers=1, valid_units=100)
    model = language.train(tmp_path / "text.txt", tmp_path / "run", settings, Training(steps=1))
    with torch.no_grad():
        dict(model.network.named_parameters())["recurrent.forward_cells.0.recurrent.weight"].mul_(1e4)
    save_model(tmp_path / "run", model.network)
    with pytest.raises(
        UserError, match=r"the model cannot write what to look along \(.*\); give it a text with --text"
    ):
        command.inspect(tmp_path / "run", length=30)
    command.inspect(tmp_path / "run", tmp_path / "text.txt", length=30)
    page = (tmp_path / "run" / "inside.html").read_text(encoding="utf-8")
    assert "The state of layer 0 is no longer finite after" in page


@pytest.fixture(scope="module")
def reading(tmp_path_factory):
    """Runs that label words, with validation data of their own and without."""
    folder = tmp_path_factory.mktemp("reading")
    put_parallel(folder / "train", trips(20))
    put_parallel(folder / "valid", trips(5, seed=2))
    for name, valid, attention in (("own", None, 0), ("given", str(folder / "valid"), 3)):
        settings = label.Settings(
            hidden=6, embedding=5, characters=True, crf=True, scheme="bioes", valid=valid, self_attention=attention
        )
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
    run = reading / "given"
    along = along_labelled(model, run, None, put_conll(tmp_path / "test.conll", sentences), 100)
    assert along.pieces == longest[0]
    wanted = label.rewritten(longest[1], "bioes")
    assert [model.labels[k] for k in along.target[0].tolist()] == wanted
    scores, _ = model.network(model.tokens([model.sentence(" ".join(longest[0]))]))
    torch.testing.assert_close(along.network(along.x), scores)
    assert isinstance(along.network, Steps)
    assert along.network.attention is model.network.attention is not None
    assert along.network.double()(along.x.double()).dtype == torch.float64  # all that computes goes along
    along.network.float()
    cut = along_labelled(model, run, None, tmp_path / "test.conll", 5)
    assert (cut.pieces, cut.x.shape[1]) == (longest[0][:5], 5)


def test_validation_data_that_a_run_set_aside_are_found_again(reading, tmp_path):
    kept = []

    class Problem(label.LabelProblem):
        def __init__(self, model, training, held_out, seed):
            kept.append(held_out)
            super().__init__(model, training, held_out, seed)

    put_parallel(tmp_path / "train", trips(40))
    settings = label.Settings(hidden=6, embedding=5, valid_fraction=0.05)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label, "LabelProblem", Problem)
        label.train(tmp_path / "train", tmp_path / "run", settings, Training(steps=2, seed=5))
    longest = max(kept[0], key=lambda sentence: len(sentence.words))
    along = along_labelled(label.load(tmp_path / "run"), tmp_path / "run", None, None, 100)
    assert along.pieces == list(longest.words)
    command.inspect(tmp_path / "run")
    lines = (tmp_path / "train" / "seq.in").read_text(encoding="utf-8").replace("from", "off")
    (tmp_path / "train" / "seq.in").write_text(lines, encoding="utf-8")
    with pytest.raises(UserError, match="train: no longer what the run was trained and validated on; say what to read"):
        command.inspect(tmp_path / "run")
    (tmp_path / "train").rename(tmp_path / "gone")
    with pytest.raises(UserError, match=r"train: the run's training data, .* are not there; say what to"):
        command.inspect(tmp_path / "run")
    (tmp_path / "run" / "held_out.json").unlink()  # as in a run of an older version
    with pytest.raises(UserError, match="run does not say which of its training data it set aside to validate on; say"):
        command.inspect(tmp_path / "run")


def test_data_without_labels_are_looked_into(reading, tmp_path):
    put_parallel(tmp_path / "bare", trips(9, seed=3))
    (tmp_path / "bare" / "seq.out").unlink()
    command.inspect(reading / "own", data=tmp_path / "bare", unlabelled=True, out=tmp_path / "in.html")
    assert "Gradients through time" in (tmp_path / "in.html").read_text(encoding="utf-8")
    with pytest.raises(UserError, match=r"seq\.out"):
        command.inspect(reading / "own", data=tmp_path / "bare")
    with pytest.raises(UserError, match="--unlabelled is said of --data; give that too"):
        command.inspect(reading / "own", unlabelled=True)


def test_columns_from_the_end_are_found_without_labels(tmp_path):
    """Lines are: a number, the word, what kind of word, the label."""
    drawn = [(words, [word[0] for word in words], labels) for words, labels, _ in trips(12)]

    def put(name, *columns):
        text = "\n".join(
            "".join("\t".join(["7", *(str(row[k]) for k in columns)]) + "\n" for row in zip(*one, strict=True))
            for one in drawn
        )
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    settings = label.Settings(hidden=6, embedding=5, word_column=-3, extra_columns="-2")
    model = label.train(put("train", 0, 1, 2), tmp_path / "run", settings, Training(steps=2))
    loaded = label.load(tmp_path / "run")
    wanted = model.read(tmp_path / "train", labelled=False)
    assert [(list(s.words), list(s.extras[0])) for s in wanted] == [(words, kinds) for words, kinds, _ in drawn]
    bare = loaded.read(put("bare", 0, 1), labelled=False)
    assert [(s.words, s.extras, s.labels) for s in bare] == [(s.words, s.extras, ()) for s in wanted]
    along = along_labelled(loaded, tmp_path / "run", None, tmp_path / "bare", 100, labelled=False)
    assert along.pieces == max((words for words, _, _ in drawn), key=len)
    with pytest.raises(UserError, match="words:1: 2 columns, and with labels there were 4 in the training data"):
        loaded.read(put("words", 0), labelled=False)


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
        settings = dataclasses.replace(settings, valid=None, valid_fraction=0.2)
        classify.train(tmp_path / name, tmp_path / f"own-{name}", settings, Training(steps=2, seed=3))
        command.inspect(tmp_path / f"own-{name}")
        (path := tmp_path / name).write_text(path.read_text(encoding="utf-8").replace("6", "5"), encoding="utf-8")
        with pytest.raises(UserError, match="no longer what the run was trained and validated on"):
            command.inspect(tmp_path / f"own-{name}")


def test_a_table_without_labels_is_looked_into(tmp_path):
    texts = [" ".join(f"w{j}" for j in range(k, k + 8)) for k in range(12)]
    for name, head, more in (("a.csv", "text,label", ",x ,y"), ("bare.csv", "text,id", ",1 ,2")):
        ends = more.split()
        rows = "".join(f"{text}{ends[k % 2]}\n" for k, text in enumerate(texts))
        (tmp_path / name).write_text(f"{head}\n{rows}", encoding="utf-8")
    classify.train(tmp_path / "a.csv", tmp_path / "run", classify.Settings(hidden=6, embedding=5), Training(steps=2))
    command.inspect(tmp_path / "run", data=tmp_path / "bare.csv", unlabelled=True)
    assert "Gradients through time" in (tmp_path / "run" / "inside.html").read_text(encoding="utf-8")
    with pytest.raises(UserError, match="no column 'label' here"):
        command.inspect(tmp_path / "run", data=tmp_path / "bare.csv")


def test_what_cannot_be_looked_into_is_told(reading, run, tmp_path):
    (tmp_path / "short").write_text("show flights\n", encoding="utf-8")
    for where, text, data, message in (
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
