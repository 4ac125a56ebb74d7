"""The language job as Python calls."""

from __future__ import annotations

import math
import random
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import throughtime as tt
from throughtime.cells.catalogue import CATALOGUE
from throughtime.data import DOCUMENT, UNKNOWN, Characters, Numbers, Streams, TextSource
from throughtime.engine.cpu.writing import Writer
from throughtime.errors import UserError
from throughtime.learning import Training, read_metrics
from throughtime.tasks import language
from throughtime.tasks.form import Form
from throughtime.tasks.language import LanguageModel, Settings
from throughtime.tasks.measuring import loss_of, measure
from throughtime.tasks.network import NextUnit

SMALL = Settings(hidden=12, embedding=6, batch_size=4, window=9, layers=2)
STEPS = Training(steps=3, optimizer="adam", learning_rate=0.01)


def verses(count: int, seed: int = 0) -> list[list[str]]:
    """Poems of four lines of five characters, drawn from a few."""
    draw = random.Random(seed)
    return [["".join(draw.choices("春夏秋冬山水花月人天", k=5)) for _ in range(4)] for _ in range(count)]


@pytest.fixture(scope="module")
def prose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prose") / "text"
    path.write_text("".join(random.Random(1).choices("abc de,\n", k=1500)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def poems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("poems") / "text"
    path.write_text("##".join("\n".join(poem) for poem in verses(60)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def prose_run(prose: Path) -> Path:
    language.train(prose, prose.parent / "run", SMALL, STEPS)
    return prose.parent / "run"


@pytest.fixture(scope="module")
def poem_run(poems: Path) -> Path:
    settings = replace(SMALL, document_separator="##")
    language.train(poems, poems.parent / "run", settings, replace(STEPS, steps=40))
    return poems.parent / "run"


def random_network(size: int, cell: str = "lstm-peephole") -> NextUnit:
    torch.manual_seed(2)
    network = NextUnit(size, cell=cell, hidden=5, layers=2, embedding=3).double().eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(std=0.7)
    return network


def nats_by_hand(network: NextUnit, ids: Any) -> list[float]:
    """-ln p of each unit but the first, a step at a time; the state begins anew at each document."""
    costs, state = [], None
    with torch.no_grad():
        for here, following in pairwise(ids):
            state = None if here == DOCUMENT else state
            logits, state = network.step(torch.tensor([int(here)]), state)
            costs.append(float(-logits[0].log_softmax(-1)[int(following)]))
    return costs


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("cell", ["gru-cho", "lstm-peephole", "lru"])
def test_a_measurement_is_the_mean_over_the_whole_text_by_hand(
    documents: bool, cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("throughtime.tasks.measuring._ROWS", 64)  # several windows
    ids = np.random.default_rng(0).integers(2 - documents, 9, size=300).astype(np.uint8)
    network = random_network(9, cell)
    by_hand = nats_by_hand(network, ids)
    found = measure(network, Numbers(ids, documents))
    assert found.units == len(ids) - 1
    assert found.nats == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-10)
    assert found.bits == pytest.approx(found.nats / math.log(2))
    assert found.perplexity == pytest.approx(math.exp(found.nats))


def test_streams_that_warm_up_over_all_that_came_before_measure_the_same() -> None:
    ids = np.random.default_rng(0).integers(2, 9, size=157)
    network = random_network(9)
    exact = measure(network, Numbers(ids, False))
    assert measure(network, Numbers(ids, False), streams=5, warm_up=157).nats == pytest.approx(exact.nats, abs=1e-10)
    assert measure(network, Numbers(ids, False), streams=5).units == exact.units
    assert abs(measure(network, Numbers(ids, False), streams=5).nats - exact.nats) > 1e-6


def test_unknown_units_are_counted() -> None:
    ids = np.array([2, UNKNOWN, 3, UNKNOWN, UNKNOWN, 4])
    assert measure(random_network(9), Numbers(ids, False)).unknown == 3


@pytest.mark.parametrize("documents", [False, True])
def test_windows_with_the_state_carried_are_the_whole(documents: bool) -> None:
    ids = np.random.default_rng(1).integers(1 if documents else 2, 7, size=101)
    streams = Streams(Numbers(ids, documents), 3, 8, shift=False)
    network = random_network(7)
    with torch.no_grad():
        state, total, count = torch.full((9,), torch.nan), 0.0, 0  # an epoch begins without the state before it
        for step in range(streams.steps, 2 * streams.steps):
            loss = loss_of(network, streams(step), state)
            total, count, state = total + float(loss.mean) * loss.count, count + loss.count, loss.state
    by_hand = []
    for row in range(3):
        at = (np.arange(streams.steps * 8 + 1) + row * 101 // 3) % 101
        wrap = int(np.flatnonzero(at == 0)[-1]) if 0 in at[1:] else None
        parts = [ids[at]] if wrap is None else [ids[at[:wrap]], ids[at[wrap:]]]  # the text ends and begins there
        for part in parts:
            by_hand += nats_by_hand(network, part) if len(part) > 1 else []
    assert count == len(by_hand)
    assert total == pytest.approx(sum(by_hand), abs=1e-9)


def test_documents_do_not_depend_on_those_before_them() -> None:
    network = random_network(9)
    one, other, last = [1, 5, 6, 7], [1, 3, 3, 8, 4], [1, 2, 6]

    def costs(*documents: list[int]) -> list[float]:
        ids = np.array([number for document in documents for number in document] + [1])
        return [measure(network, Numbers(ids[: k + 2], True)).nats * (k + 1) for k in range(len(ids) - 1)]

    alone = costs(last)
    for before in ([one], [other], [one, other]):
        together = costs(*before, last)
        begun = together[-len(last) - 1]
        assert [cost - begun for cost in together[-len(last) :]] == pytest.approx(alone, abs=1e-9)


@pytest.mark.parametrize("cell", CATALOGUE)
def test_every_cell_of_the_catalogue_learns(cell: str) -> None:
    torch.manual_seed(0)
    network = NextUnit(6, cell=cell, hidden=7, layers=2, embedding=5, dropout=0.1)
    window = Streams(Numbers(np.arange(40) % 4 + 2, False), 3, 6)(0)
    loss = loss_of(network, window, None)
    loss.mean.backward()
    assert loss.count == window.counted
    assert math.isfinite(loss.mean.item())
    assert all(p.grad is not None for p in network.recurrent.parameters())


@pytest.mark.parametrize("tied", [False, True])
def test_logits_a_block_at_a_time_cost_the_same(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = NextUnit(11, cell="gru", hidden=5, embedding=3, tied=tied).double()
    numbers, targets = torch.randint(11, (2, 3, 7))
    targets[1, 2] = -100

    def cost_and_gradients() -> list[torch.Tensor]:
        network.zero_grad()
        cost, _ = network.cost(numbers, targets)
        cost.backward()
        return [cost, *(p.grad.clone() for p in network.parameters() if p.grad is not None)]

    logits, _ = network(numbers)
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    whole = cost_and_gradients()
    torch.testing.assert_close(whole[0], wanted)
    monkeypatch.setattr("throughtime.tasks.network.BLOCK", 11 * 4)
    torch.testing.assert_close(cost_and_gradients(), whole)


def test_tied_weights_are_one() -> None:
    network = NextUnit(11, cell="gru", hidden=5, embedding=3, tied=True)
    assert network.output.weight is network.embedding.weight
    logits, _ = network(torch.randint(11, (2, 4)))
    assert logits.shape == (2, 4, 11)
    assert isinstance(NextUnit(11, cell="gru", hidden=5, embedding=5, tied=True).between, torch.nn.Identity)


def test_training_lowers_the_loss_and_leaves_a_run(prose: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("to be or not to be, " * 60)
    model = language.train(tmp_path / "text", tmp_path / "run", SMALL, replace(STEPS, steps=60))
    records = read_metrics(tmp_path / "run")
    assert records[-1]["validation_nats"] < 1.5 < 2 < records[0]["loss"]
    found = model.evaluate(tmp_path / "text")
    assert found.units == 20 * 60 - 1
    again = language.load(tmp_path / "run")
    assert again.settings == model.settings
    assert again.evaluate(tmp_path / "text") == found
    ids = model.vocabulary.encode("to be or not")
    costs = nats_by_hand(again.network, ids)
    (tmp_path / "part").write_text("to be or not")
    assert again.evaluate(tmp_path / "part").nats == pytest.approx(sum(costs) / len(costs), abs=1e-5)


@pytest.mark.parametrize("unit", ["word", "bpe"])
def test_other_units_are_learnt_and_written(unit: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("春眠 the cat, the mat. " * 40, encoding="utf-8")
    settings = replace(SMALL, unit=unit, vocabulary_size=280)
    model = language.train(tmp_path / "text", tmp_path / "run", settings, STEPS)
    again = language.load(tmp_path / "run")
    assert again.vocabulary.unit == unit
    text = "".join(again.generate("the cat", length=12, seed=3))
    assert text == "".join(model.generate("the cat", length=12, seed=3))
    assert text


def test_a_text_of_its_own_validates(prose: Path, tmp_path: Path) -> None:
    (tmp_path / "valid").write_text("abc abc?" * 5)
    settings = replace(SMALL, valid=str(tmp_path / "valid"))
    model = language.train(prose, tmp_path / "run", settings, replace(STEPS, keep="last"))
    nats = read_metrics(tmp_path / "run")[-1]["validation_nats"]
    assert model.evaluate(tmp_path / "valid").unknown == 5
    assert model.evaluate(tmp_path / "valid", streams=32).nats == pytest.approx(nats)


def test_the_same_seed_writes_the_same_text(prose_run: Path) -> None:
    model = language.load(prose_run)
    one, same, other = ("".join(model.generate("ab", length=60, seed=seed)) for seed in (1, 1, 2))
    assert one == same != other
    assert len(one) == 60
    assert list(model.generate("ab", length=7, beam=3)) == list(model.generate("ab", length=7, beam=3, seed=9))
    assert "".join(model.generate(length=5))


def test_text_comes_as_it_is_written(prose_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = language.load(prose_run)
    asked = []
    write = Writer.write
    monkeypatch.setattr(
        Writer, "write", lambda self, random, *rest: asked.append(len(random)) or write(self, random, *rest)
    )
    text = iter(model.generate("a", length=150))
    next(text)
    assert asked == [1]
    assert len(list(text)) == 149
    assert asked == [1, 8, 64, 64, 13]


def test_a_hook_is_called_as_it_is_written(prose_run: Path) -> None:
    model = language.load(prose_run)
    expected, calls = "".join(model.generate("a", length=50)), []
    model.network.output.register_forward_hook(lambda *_: calls.append(1))
    text = iter(model.generate("a", length=50))
    with pytest.warns(tt.SlowPathWarning, match="hook"):
        first = next(text)
    assert len(calls) == 1
    assert first + "".join(text) == expected


def test_what_a_plain_model_writes_has_neither_unknown_units_nor_borders(prose_run: Path) -> None:
    model = language.load(prose_run)
    with torch.no_grad():
        model.network.output.bias[[UNKNOWN, DOCUMENT]] = 50.0
    for options in ({"temperature": 1.5}, {"temperature": 0.0}, {"beam": 3}):
        text = "".join(model.generate("a", length=20, **options))
        assert len(text) == 20
        assert set(text) <= set(model.vocabulary.symbols)


def test_a_document_ends_where_the_model_ends_it(poem_run: Path) -> None:
    model = language.load(poem_run)
    with torch.no_grad():
        model.network.output.bias[DOCUMENT] = 50.0
    assert "".join(model.generate("春", length=20)) == ""
    with torch.no_grad():
        model.network.output.bias[DOCUMENT] = -50.0
    assert len("".join(model.generate("春", length=20))) == 20


@pytest.mark.parametrize("options", [{}, {"temperature": 2.0, "seed": 7}, {"top_k": 1}, {"top_p": 0.3}, {"beam": 4}])
def test_a_trained_model_keeps_to_a_form(poem_run: Path, options: dict[str, Any]) -> None:
    model = language.load(poem_run)
    poem = "".join(model.generate(form=Form(4, 7, heads="春夏秋冬"), **options)).split("\n")
    assert [line[0] for line in poem] == list("春夏秋冬")
    assert [len(line) for line in poem] == [7, 7, 7, 7]


def test_documents_are_kept_apart_in_training_and_after(poem_run: Path, poems: Path) -> None:
    model = language.load(poem_run)
    assert model.documents
    found = model.evaluate(poems)
    assert found.units == 60 * (4 * 5 + 3 + 1)  # characters, line breaks, and the end of each
    poem = "\n".join(verses(60)[17])
    (poems.parent / "one").write_text(poem, encoding="utf-8")
    one = model.evaluate(TextSource(poems.parent / "one", documents=True))
    ids = [DOCUMENT, *model.vocabulary.encode(poem), DOCUMENT]
    assert one.nats == pytest.approx(float(np.mean(nats_by_hand(model.network, ids))), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"prompt": "春 a?"}, "did not have: '春', '\\?'"),
        ({"length": 0}, "length must be at least 1"),
        ({"temperature": -1}, "temperature must be at least 0"),
        ({"top_k": 0}, "top-k must be at least 1"),
        ({"top_p": 0}, "top-p must be above 0"),
        ({"beam": 0}, "beam must be at least 1"),
        ({"form": Form(2, 2), "prompt": ", "}, "does not fit the form"),
    ],
)
def test_what_cannot_be_written_is_told_at_once(prose_run: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        language.load(prose_run).generate(**options)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"cell": "lstmm"}, "throughtime cells"),
        ({"hidden": 0}, "hidden must be at least 1"),
        ({"batch_size": 0}, "batch size must be at least 1"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
        ({"valid_fraction": 1.0}, "valid fraction"),
    ],
)
def test_settings_out_of_range_are_told(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        Settings(**settings)


def test_a_changed_text_is_another_run(prose: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(prose.read_bytes())
    language.train(tmp_path / "text", tmp_path / "run", SMALL, STEPS)
    with pytest.raises(UserError, match="holds a run already"):
        language.train(tmp_path / "text", tmp_path / "run", SMALL, STEPS)
    language.train(tmp_path / "text", tmp_path / "run", SMALL, replace(STEPS, steps=5), resume=True)
    (tmp_path / "text").write_bytes(prose.read_bytes().replace(b"a", b"b", 3))
    with pytest.raises(UserError, match="sha256 of the text"):
        language.train(tmp_path / "text", tmp_path / "run", SMALL, STEPS, resume=True)


def test_a_run_that_is_gone_on_with_ends_in_the_same_weights(prose: Path, tmp_path: Path) -> None:
    settings = replace(SMALL, dropout=0.2, embedding_dropout=0.1)
    language.train(prose, tmp_path / "whole", settings, replace(STEPS, steps=50))
    language.train(prose, tmp_path / "parts", settings, replace(STEPS, steps=23))
    language.train(prose, tmp_path / "parts", settings, replace(STEPS, steps=50), resume=True)
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_the_report_holds_all_it_shows(poem_run: Path) -> None:
    page = (poem_run / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/svg+xml;base64,") == 3  # loss, learning rate, what the monitor saw
    assert re.findall(r"(?:src|href)=\"(?!data:)", page) == []
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)
    assert "viewport" in page
    best = min(r["validation_nats"] for r in read_metrics(poem_run) if "validation_nats" in r)
    assert f"{best:.3f} nats" in page
    samples = re.findall(r"<pre>([春夏秋冬山水花月人天\n]{9,})</pre>", page)
    assert len(samples) == 3
    assert len(set(samples)) == 3
    assert "<td>lstm</td>" in page


def test_the_report_shows_text_as_text(prose: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("<script>alert(1)</script>\n" * 30)
    model = language.train(tmp_path / "text", tmp_path / "run", SMALL, STEPS)
    assert isinstance(model, LanguageModel)
    assert isinstance(model.vocabulary, Characters)
    assert "<script" not in (tmp_path / "run" / "report.html").read_text()
