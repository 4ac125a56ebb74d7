"""The labelling job: from files to a model that labels, through the command line and from Python."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reading_cases import SMALL, Run, assert_told, command, put_conll, put_parallel, trips
from throughtime.data.sentences import Sentence, read_sentences
from throughtime.data.spans import spans_of
from throughtime.data.streams import IGNORED
from throughtime.errors import UserError
from throughtime.layers import Tokens
from throughtime.learning import Training, load_config
from throughtime.learning.storage import json_bytes
from throughtime.tasks import label
from throughtime.tasks.label import LabelModel, Settings
from throughtime.tasks.label_network import INTENT_POOLINGS
from throughtime.tasks.label_report import _shades
from throughtime.tasks.label_scores import oov_recalls, score
from throughtime.tasks.reading import tokens_of


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    return command(monkeypatch, capfd)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put_parallel(tmp_path_factory.mktemp("data") / "train", trips(60))


@pytest.fixture(scope="module")
def trained(data: Path) -> Path:
    settings = Settings(
        hidden=12,
        embedding=8,
        batch_size=8,
        crf=True,
        intent=True,
        characters=True,
        character_hidden=4,
        scheme="bioes",
        swap_spans=0.3,
        language_model_weight=0.05,
        locked_dropout=True,
        dropout=0.2,
    )
    training = Training(epochs=15, optimizer="adam", learning_rate=0.02, clip_norm=5)
    label.train(data, data.parent / "run", settings, training)
    return data.parent / "run"


def test_from_files_to_labels(data: Path, trained: Path, tmp_path: Path, run: Run) -> None:
    assert {path.name for path in trained.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "metrics.jsonl",
        "report.html",
    }
    test = put_parallel(tmp_path / "test", trips(20, seed=9))
    ended = run("evaluate", trained, "--data", test, "--json")
    assert ended.status == 0
    scores = json.loads(ended.out)
    assert scores["f1"] > 0.9
    assert scores["intent_accuracy"] > 0.9
    assert scores["scorer"] == "seqeval"
    assert (scores["sentences"], scores["unseen"]) == (20, 0)
    assert "f1               0.9" in run("evaluate", trained, "--data", test).out or scores["f1"] == 1
    page = (trained / "report.html").read_text(encoding="utf-8")
    assert "Class by class" in page
    assert "What is taken for what" in page


def test_an_intent_that_words_vote_for_who_see_each_other(data: Path, tmp_path: Path) -> None:
    settings = Settings(
        hidden=12, embedding=8, batch_size=8, intent=True, intent_pooling="vote", self_attention=5, dropout=0.2
    )
    trained = label.train(data, tmp_path / "run", settings, Training(epochs=15, optimizer="adam", learning_rate=0.02))
    sentences = trained.read(put_parallel(tmp_path / "test", trips(20, seed=9)))
    assert (trained.evaluate(sentences).intent_accuracy or 0) > 0.9
    odd = [sentences[0]._replace(intent="greeting"), *sentences[1:]]
    assert trained.evaluate(odd).unseen == 1  # which it has to miss
    again = label.load(tmp_path / "run").predict_read(sentences)
    assert again == trained.predict_read(sentences)
    assert all(0 < (one.intent_probability or 0) <= 1 for one in again)
    with pytest.raises(UserError, match="self-attention reads whole sentences; predict without a stream"):
        trained.stream()


def test_predictions_a_line_each(trained: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "show flights from new york to boston\n\nwhat cost from denver to xyz\n"
    path = tmp_path / "lines"
    path.write_text(lines, encoding="utf-8")
    found = [json.loads(line) for line in run("predict", trained, "--input", path, "--json").out.splitlines()]
    assert [len(one["labels"]) for one in found] == [7, 0, 6]
    assert found[0]["labels"][3:5] == ["B-from", "E-from"]
    assert {"kind": "from", "start": 3, "stop": 5, "words": ["new", "york"]} in found[0]["spans"]
    assert all(0 < chance <= 1 for one in found for chance in one["probabilities"])
    assert (found[0]["intent"], found[2]["intent"]) == ("flight", "fare")

    class Piped:
        buffer = io.BytesIO(lines.encode())

    monkeypatch.setattr(sys, "stdin", Piped)
    told = run("predict", trained, "--input", "-").out.splitlines()
    assert len(told) == 3
    intent, labels = told[0].split("\t")
    assert intent.startswith("flight/")
    assert [part.rpartition("/")[0] for part in labels.split()] == found[0]["labels"]

    Piped.buffer = io.BytesIO(b"show\n" + b"\xff\n")
    assert_told(run("predict", trained, "--input", "-"), "standard input:2: not UTF-8")


def test_a_crf_keeps_to_its_scheme(trained: Path) -> None:
    model = label.load(trained)
    torch.manual_seed(3)
    with torch.no_grad():
        model.network.output.weight.normal_(std=5)  # whatever the network says
    for one in model.predict([words for words, _, _ in trips(30, seed=4)]):
        spelled = label.rewritten(one.labels, "bioes")
        assert spelled == one.labels


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("window", [1, 3])
def test_the_nearest_words_that_were_not_seen_are_foretold(pairs: bool, window: int) -> None:
    """A word that is foretold has no part in the outputs it is foretold from; the one before it has."""
    model = model_of(pairs=pairs, window=window, language_model_weight=0.1)
    side = model.network.foretelling
    assert side is not None
    words = ["show", "flights", "from", "denver", "to", "boston"]

    def outputs(changed: int | None = None) -> torch.Tensor:
        tokens = tokens_of(model.index, [[*words[:changed], "what", *words[changed + 1 :]] if changed else words])
        y, _ = model.network.recurrent(model.network.features(tokens), lengths=tokens.lengths)
        return y[0]  # (T, O), six of each direction

    plain = outputs()
    assert torch.equal(outputs(2 + side.ahead)[2, :6], plain[2, :6])
    assert not torch.equal(outputs(2 + side.ahead - 1)[2, :6], plain[2, :6])
    assert torch.equal(outputs(4 - side.behind)[4, 6:], plain[4, 6:])
    assert not torch.equal(outputs(4 - side.behind + 1)[4, 6:], plain[4, 6:])


@pytest.mark.parametrize("attention", [0, 4])  # which has seen what is to be foretold
def test_foretelling_teaches_the_network_besides_the_labels(attention: int) -> None:
    torch.manual_seed(2)
    network = model_of(language_model_weight=0.5, self_attention=attention).network
    tokens = Tokens(torch.tensor([[3, 1, 2, 0], [4, 2, 1, 3]]), torch.tensor([3, 4]))
    labels = torch.tensor([[0, 1, 0, IGNORED], [0, 0, 1, 0]])
    y, _ = network.recurrent(network.features(tokens), lengths=tokens.lengths)
    assert network.foretelling is not None
    told = network.foretelling(y, tokens.words, tokens.lengths)
    whole, network.foretelling = network.cost(tokens, labels, None), None
    torch.testing.assert_close(whole, network.cost(tokens, labels, None) + 0.5 * told)
    assert float(told.detach()) > 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"language_model_weight": -1.0}, "language model weight must be at least 0, not -1"),
        ({"language_model_weight": float("nan")}, "language model weight must be at least 0, not nan"),
        ({"language_model_weight": 0.1, "layers": 2}, "both directions have read the whole sentence"),
    ],
)
def test_what_cannot_be_foretold_is_told(options: dict[str, float], told: str) -> None:
    with pytest.raises(UserError, match=told):
        Settings(**options)  # type: ignore[arg-type]
    assert Settings(language_model_weight=0.1, layers=2, bidirectional=False).layers == 2


def model_of(**options: object) -> LabelModel:
    """An untrained model."""
    settings = Settings(hidden=6, embedding=5, **options)  # type: ignore[arg-type]
    sentences = [words for words, _, _ in trips(30)]
    names = sorted({name for _, labels, _ in trips(30) for name in labels})
    torch.manual_seed(1)
    index = settings.index(sentences)
    network = settings.network(index, names, "bio", 0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return LabelModel(network.eval(), index, names, [], "bio", settings)


@pytest.mark.parametrize("options", [{}, {"window": 3}, {"characters": True, "layers": 2}, {"cell": "jordan"}])
def test_a_forward_stream_says_what_the_whole_text_says(options: dict[str, object]) -> None:
    model = model_of(bidirectional=False, **options)
    for words, _, _ in trips(3, seed=5):
        stream = model.stream()
        assert stream.look_ahead == model.settings.window // 2
        found = [one for word in words for one in stream.push(word)]
        assert len(found) == len(words) - stream.look_ahead
        found += stream.close()
        (whole,) = model.predict([words])
        assert [one.word for one in found] == words
        assert [one.label for one in found] == whole.labels
        assert [one.probability for one in found] == pytest.approx(whole.probabilities, abs=1e-5)


@pytest.mark.parametrize("window", [1, 3])
def test_a_stream_from_both_ends_says_what_the_text_so_far_says(window: int) -> None:
    model = model_of(window=window)
    (words, _, _) = trips(1, seed=5)[0]
    stream = model.stream(look_ahead=2)
    for t, word in enumerate(words):
        for one in stream.push(word):
            (so_far,) = model.predict([words[: t + 1]])
            assert one.label == so_far.labels[t - 2]
            assert one.probability == pytest.approx(so_far.probabilities[t - 2], abs=1e-5)
    rest = stream.close()
    (whole,) = model.predict([words])
    assert [one.label for one in rest] == whole.labels[-2:]


def test_a_stream_with_a_crf_is_well_formed(trained: Path, tmp_path: Path, run: Run) -> None:
    model = label.load(trained)
    words = trips(1, seed=8)[0][0]
    stream = model.stream(look_ahead=1)
    labels = [one.label for word in words for one in stream.push(word)] + [one.label for one in stream.close()]
    assert label.rewritten(labels, "bioes") == labels
    assert label.load(trained).stream().look_ahead == 4
    path = tmp_path / "lines"
    path.write_text("show flights from new york to boston\n", encoding="utf-8")
    told = run("predict", trained, "--input", path, "--stream", "--look-ahead", 1).out.splitlines()
    assert [line.split("\t")[0] for line in told] == ["show", "flights", "from", "new", "york", "to", "boston", ""]
    assert_told(run("predict", trained, "--input", path, "--look-ahead", 1), "a look-ahead is for a stream")


def test_files_named_conll_may_be_conllu(tmp_path: Path, run: Run) -> None:
    rows = [f"{k}\t{word}\t_\tX\t_\t_\t_\t_\t_\t_\n" for k, word in enumerate(("春眠", "不", "觉晓"), 1)]
    path = tmp_path / "train.conll"
    path.write_text("".join([*rows, "\n"]) * 9, encoding="utf-8")
    assert run("train", "label", "--data", path, "--segment", *SMALL, "--out", tmp_path / "run").status == 0
    told = run("predict", tmp_path / "run", "--input", path).out.splitlines()
    assert [line.replace(" ", "") for line in told] == ["春眠不觉晓"] * 9
    options = ["--format", "conll", "--word-column", 2, "--label-column", 4, *SMALL, "--out", tmp_path / "other"]
    assert run("train", "label", "--data", path, *options).status == 0  # what was said of the training data goes first
    told = run("predict", tmp_path / "other", "--input", path, "--json").out.splitlines()
    assert [json.loads(line)["words"] for line in told] == [["春眠", "不", "觉晓"]] * 9


def test_sentences_without_words_alone_are_told(tmp_path: Path, run: Run) -> None:
    empty = put_parallel(tmp_path / "empty", [([], [], "city"), ([], [], "trip")] * 4)
    some = put_parallel(tmp_path / "some", trips(4))
    intent = ["--intent", "--intent-pooling", "vote", "--self-attention", 3]
    for data, valid, options, told in (
        (empty, some, [], "empty: no sentence to learn from has words"),
        (empty, some, intent, "empty: no sentence to learn from has words"),
        (some, empty, [], "empty: no sentence to validate on has words; give others with --valid"),
    ):
        ended = run("train", "label", "--data", data, "--valid", valid, *options, "--out", tmp_path / "run")
        assert_told(ended, told)
        assert not (tmp_path / "run").exists()
    options = [*intent, "--valid", empty, *SMALL, "--steps", 1, "--out", tmp_path / "run"]
    assert run("train", "label", "--data", some, *options).status == 0  # intents there are to validate on


def test_runs_of_an_older_version_are_read_and_gone_on_with(data: Path, tmp_path: Path) -> None:
    def older(run: Path, **others: object) -> None:
        job, said = load_config(run)
        said = {name: value for name, value in said.items() if name != "self_attention"} | others
        (run / "config.json").write_bytes(json_bytes("run", {"job": job, "settings": said}))

    settings = Settings(hidden=5, embedding=4, batch_size=8)
    training = Training(steps=4, optimizer="adam", keep="last")
    whole = label.train(data, tmp_path / "whole", settings, training)
    label.train(data, tmp_path / "parts", settings, training.bounded(steps=2))
    older(tmp_path / "parts")
    parts = label.train(data, tmp_path / "parts", settings, training, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.network.parameters(), parts.network.parameters(), strict=True))
    older(tmp_path / "whole", intent_pooling="mean")  # was taken, and meant nothing, where there is no intent
    label.train(data, tmp_path / "whole", replace(settings, intent_pooling="mean"), training, resume=True)
    assert label.load(tmp_path / "whole").predict_read(whole.read(data)) == whole.predict_read(whole.read(data))


def test_segmentation_there_and_back(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "train.seg"
    path.write_text("春眠 不 觉晓\n处处 闻 啼鸟\n夜来 风雨 声\n花落 知 多少\n" * 5, encoding="utf-8")
    options = ["--crf", "--pairs", "--hidden", 16, "--epochs", 15, "--learning-rate", 0.02, "--batch-size", 2]
    assert run("train", "label", "--data", path, "--out", tmp_path / "run", *options).status == 0
    scores = json.loads(run("evaluate", tmp_path / "run", "--data", path, "--json").out)
    assert scores["scorer"] == "words"
    assert scores["f1"] > 0.9
    assert (scores["oov_rate"], "oov_recall" in scores) == (0, False)
    lines = tmp_path / "lines"
    lines.write_text("春眠不觉晓\n\n花落知多少\n", encoding="utf-8")
    told = run("predict", tmp_path / "run", "--input", lines).out.splitlines()
    assert [line.replace(" ", "") for line in told] == ["春眠不觉晓", "", "花落知多少"]
    assert told[2] == "花落 知 多少"
    test = tmp_path / "test.seg"
    test.write_text("花落 知多少\n花 落知 多少\n", encoding="utf-8")  # 知多少, 花 and 落知 were not in training
    scores = json.loads(run("evaluate", tmp_path / "run", "--data", test, "--json").out)
    assert scores["oov_rate"] == pytest.approx(3 / 5)
    assert (scores["oov_recall"], scores["iv_recall"]) == (0, 1)


def test_recall_of_words_that_were_not_in_training() -> None:
    gold, found = [["B", "E", "S", "B", "M", "E"]], [["B", "E", "B", "E", "B", "E"]]
    words = ["春眠不觉晓啼"]
    assert oov_recalls(words, gold, found, {"春眠", "觉晓啼"}) == {"oov_recall": 0, "iv_recall": 0.5, "oov_rate": 1 / 3}
    assert oov_recalls(words, gold, gold, {"不"}) == {"oov_recall": 1, "iv_recall": 1, "oov_rate": 2 / 3}
    assert oov_recalls(words, gold, gold, set())["iv_recall"] is None


def test_scores_are_those_of_the_scorers() -> None:
    gold = [["B-x", "I-x", "O", "B-y"], ["O", "B-x"]]
    found = [["B-x", "I-x", "B-y", "I-y"], ["O", "B-x"]]
    scores = score(gold, found, "bio")
    assert (scores.precision, scores.recall) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert scores.classes["y"]["f1"] == 0
    assert scores.accuracy == pytest.approx(4 / 6)
    assert score([["S-x", "B-y", "E-y"]], [["S-x", "B-y", "E-y"]], "bioes").f1 == 1
    assert score([["O"]], [["O"]], "bio").f1 == 0  # no span at all
    words = score([["B", "E", "S"]], [["B", "E", "B"]], "bmes")
    assert (words.scorer, words.f1) == ("words", 1.0)  # the same borders, whatever they are called
    assert score([["NN", "VB"]], [["NN", "NN"]], "none").main == 0.5


def test_saliency_is_the_gradient_in_eval_mode() -> None:
    model = model_of(bidirectional=False)
    sentence = Sentence(("show", "flights", "from", "boston"), (), "", Path(), 0)
    shades = _shades(model, sentence, 1, "O")
    assert max(shades) == pytest.approx(0.7)
    assert shades[2:] == [0, 0]  # what comes later counts for nothing in a forward network


def test_a_resumed_run_is_the_same(data: Path, tmp_path: Path) -> None:
    settings = Settings(hidden=5, embedding=4, batch_size=8)
    training = Training(steps=6, optimizer="adam", validate_every=3)
    whole = label.train(data, tmp_path / "whole", settings, training)
    label.train(data, tmp_path / "parts", settings, training.bounded(steps=3))
    parts = label.train(data, tmp_path / "parts", settings, training, resume=True)
    for one, other in zip(whole.network.state_dict().values(), parts.network.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_pretrained_vectors(data: Path, tmp_path: Path, run: Run) -> None:
    vectors = tmp_path / "vectors"
    vectors.write_text("boston 1 2 3 4 5\nunseen 9 9 9 9 9\n", encoding="utf-8")
    out = tmp_path / "run"
    assert (
        run(
            "train", "label", "--data", data, "--out", out, *SMALL, "--steps", 2, "--vectors", vectors, "--freeze"
        ).status
        == 0
    )
    model = label.load(out)
    assert model.network.features.words.weight[model.index.number("boston")].tolist() == [1, 2, 3, 4, 5]
    told = run("train", "label", "--data", data, "--out", tmp_path / "b", "--steps", 2, "--vectors", vectors)
    assert_told(told, "its vectors have 5 numbers; give --embedding 5")
    vectors.write_text("xyz 1 2 3 4 5\n", encoding="utf-8")
    told = run("train", "label", "--data", data, "--out", tmp_path / "b", *SMALL, "--steps", 2, "--vectors", vectors)
    assert_told(told, "no vector for any word")
    assert_told(run("train", "label", "--data", data, "--out", tmp_path / "b", "--freeze"), "no vectors to freeze")


@pytest.mark.parametrize("options", [["--extra-columns", 2], ["--strip-digit", "--keep-digit"]])
def test_further_columns_are_read_beside_the_words(options: list[object], tmp_path: Path, run: Run) -> None:
    """The same words have other labels by their second column, or by their digit."""
    rows = [("a0 x O", "b0 y B-n"), ("a1 y B-n", "b1 x O"), ("b0 y B-n", "a1 y B-n"), ("b1 x O", "a0 x O")]
    path = tmp_path / "train.conll"
    path.write_text("".join("\n".join(pair) + "\n\n" for pair in rows * 10), encoding="utf-8")
    if options[0] == "--strip-digit":  # a1 and b0 are B-n
        path.write_text(path.read_text(encoding="utf-8").replace(" x", "").replace(" y", ""), encoding="utf-8")
    else:
        path.write_text(path.read_text(encoding="utf-8").translate({48: None, 49: None}), encoding="utf-8")
    out = tmp_path / "run"
    settings = ["--hidden", 8, "--epochs", 25, "--learning-rate", 0.02, "--batch-size", 4, "--dropout", 0]
    assert run("train", "label", "--data", path, "--out", out, *settings, *options).status == 0
    assert json.loads(run("evaluate", out, "--data", path, "--json").out)["f1"] == 1
    bare = tmp_path / "bare.conll"  # without labels
    lines = path.read_text(encoding="utf-8").splitlines()[:2]
    bare.write_text("\n".join(line.rpartition(" ")[0] for line in lines), encoding="utf-8")
    (found,) = (json.loads(line) for line in run("predict", out, "--input", bare, "--json").out.splitlines())
    assert (found["words"], found["labels"]) == (["a", "b"], ["O", "B-n"])
    told = run("predict", out, "--input", bare, "--format", "lines")
    assert_told(told, "further columns beside the words, which a line of words does not have; give a file of columns")
    told = run("predict", out, "--input", bare, "--format", "lines", "--stream")
    assert_told(told, "further columns beside the words, which a stream of words does not have")


def test_a_label_is_no_further_column(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "train.conll"
    path.write_text("a x O\nb y B-n\n\na x O\nb y B-n\n", encoding="utf-8")
    for columns, what in (("3", "label"), ("-1", "label"), ("1", "word"), ("2,2", "further column before it")):
        told = run("train", "label", "--data", path, "--out", tmp_path / "run", f"--extra-columns={columns}")
        assert_told(told, f"train.conll:1: further column .* is that of the {what}; give other columns")


def test_sentences_without_labels_are_read_from_files(trained: Path, data: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "lines").write_text((data / "seq.in").read_text(encoding="utf-8"), encoding="utf-8")
    wanted = run("predict", trained, "--input", tmp_path / "lines").out
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "seq.in").write_text((data / "seq.in").read_text(encoding="utf-8"), encoding="utf-8")
    assert run("predict", trained, "--input", tmp_path / "bare").out == wanted
    columns = put_conll(tmp_path / "test.conll", trips(60))
    assert run("predict", trained, "--input", columns).out == wanted
    assert run("predict", trained, "--input", columns.rename(tmp_path / "test"), "--format", "conll").out == wanted
    assert_told(run("predict", trained, "--input", tmp_path / "test", "--format", "xml"), "format 'xml' is unknown")
    told = run("predict", trained, "--input", tmp_path / "bare", "--stream")
    assert_told(told, "a stream is read by lines, not as parallel")


def test_what_is_wrong_with_the_data_is_told(data: Path, tmp_path: Path, run: Run) -> None:
    def told(text: str | bytes, what: str, *options: object) -> None:
        path = tmp_path / "bad.conll"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        ended = run("train", "label", "--data", path, "--out", tmp_path / "bad", *SMALL, "--steps", 1, *options)
        assert_told(ended, what)
        assert not (tmp_path / "bad").exists()  # nothing is left behind

    told("a O\nb x O\n", r"bad.conll:2: 3 columns, where line 1 of the same sentence has 2")
    told(b"a O\n\nb O\n" + "é O\n".encode("latin-1"), r"bad.conll:4: not UTF-8")
    told("", "bad.conll: no sentence in it")
    told("a O\n", "one sentence, so none is left to validate on")
    told("a O\n\nb O\n", "no intent for this sentence; leave out --intent", "--intent")
    told("a NN\n\nb VB\n", r"bad.conll:\d: '(NN|VB)' spells no span", "--scheme", "bio")
    told("a O\n\nb O\n", "format 'xml' is unknown", "--format", "xml")
    told("a O\n\nb O\n", "a window has an odd number of steps, not 4", "--window", 4)
    told("a O\n\nb O\n", r"valid.conll: no such file", "--valid", tmp_path / "valid.conll")
    told("a x y O\n\nb O\n", r"bad.conll:3: 2 columns, so there is no column 3", "--extra-columns", "2,3")
    told("a O\n\nb O\n", "extra columns must be numbers by comma, like 2,3; not 'two'", "--extra-columns", "two")
    told("a O\n\nb O\n", "there is no column 0", "--extra-columns", "0")
    told("a O\n\nb O\n", "there is no digit to keep; give --strip-digit too", "--keep-digit")
    told("a NN\n\nb VB\n", "its labels spell no spans to swap", "--swap-spans", 0.5)
    told("a O\n\nb O\n", "swap spans must be at least 0 and at most 1, not 2", "--swap-spans", 2)
    told("a O\n\nb O\n", "intent pooling must be one of last, mean, max, attention, vote", "--intent-pooling", "sum")
    told("a O\n\nb O\n", "there is no intent for 'vote' pooling; give --intent too", "--intent-pooling", "vote")
    told("a O\n\nb O\n", "self attention must be at least 0, not -1", "--self-attention", -1)
    last = ("--intent", "--intent-pooling", "last", "--self-attention", 3)
    told("a O\n\nb O\n", "what self-attention draws has no last step", *last)
    told("a O\n\nb O\n", "bad.conll:1: column 1 is to be both word and label", "--label-column", 1)


@pytest.mark.parametrize("pooling", INTENT_POOLINGS)
def test_an_empty_sentence_has_an_intent_and_no_labels(tmp_path: Path, run: Run, pooling: str) -> None:
    sentences = trips(20)
    sentences[3:3] = [([], [], "none")] * 2
    data = put_parallel(tmp_path / "train", sentences)
    options = ["--characters", "--crf", "--intent", "--intent-pooling", pooling, "--language-model-weight", 0.1]
    options += ["--self-attention", 5] if pooling != "last" else []
    run("train", "label", "--data", data, "--valid", data, *SMALL, *options, "--epochs", 2, "--out", tmp_path / "run")
    lines = run("predict", tmp_path / "run", "--input", data, "--json").out.splitlines()
    assert [len(json.loads(line)["labels"]) for line in lines] == [len(words) for words, _, _ in sentences]
    assert json.loads(lines[3])["intent"]
    (data / "label").write_text("none\n" * len(sentences), encoding="utf-8")
    scores = label.load(tmp_path / "run").evaluate(data)
    found = [json.loads(line)["intent"] for line in lines]
    assert scores.intent_accuracy == found.count("none") / len(sentences)


def test_labels_unseen_in_training_are_counted_as_missed(trained: Path, tmp_path: Path) -> None:
    path = put_conll(
        tmp_path / "test", [(["to", "boston"], ["O", "B-airport"], ""), (["to", "denver"], ["O", "B-to"], "")]
    )
    model = label.load(trained)
    found = model.evaluate(read_sentences(path, "conll"))
    assert found.unseen == 1
    assert found.classes["airport"]["recall"] == 0
    assert found.intent_accuracy is None


def test_a_sentence_of_many_words(trained: Path) -> None:
    model = label.load(trained)
    words = (["show", "flights", "from", "boston", "to", "denver"] * 17_000)[:100_000]
    (found,) = model.predict([words])
    assert len(found.labels) == 100_000
    assert spans_of(found.labels)


def test_a_run_of_another_job_is_told(trained: Path, run: Run) -> None:
    assert_told(run("generate", trained), "a run of 'label', which knows no `generate`")
