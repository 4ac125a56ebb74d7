"""Sampling, beam search and forms, for any model at all."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from throughtime.data import DOCUMENT, UNKNOWN, Characters, Vocabulary
from throughtime.data.words import Words
from throughtime.engine.sampling import probabilities
from throughtime.errors import UserError
from throughtime.tasks.decoding import Free, Rule, beam_search, sample
from throughtime.tasks.form import LONGEST, Form
from throughtime.tasks.network import NextUnit

logits_of = st.lists(st.floats(-8, 8), min_size=2, max_size=9).map(torch.tensor)


@given(logits=logits_of, temperature=st.floats(0.1, 3), data=st.data())
def test_without_cuts_the_draw_is_a_softmax_over_what_is_allowed(
    logits: Tensor, temperature: float, data: st.DataObject
) -> None:
    allowed = torch.zeros(len(logits), dtype=torch.bool)
    allowed[data.draw(st.lists(st.integers(0, len(logits) - 1), min_size=1))] = True
    chances = probabilities(logits, allowed, temperature=temperature)
    assert chances[~allowed].count_nonzero() == 0
    torch.testing.assert_close(chances[allowed], (logits[allowed].double() / temperature).softmax(-1))


@given(logits=logits_of, k=st.integers(1, 12))
def test_top_k_leaves_the_k_likeliest(logits: Tensor, k: int) -> None:
    chances = probabilities(logits, torch.ones(len(logits), dtype=torch.bool), top_k=k)
    full = logits.double().softmax(-1)
    left = chances > 0
    assert int(left.sum()) == min(k, len(logits))
    if not left.all():
        assert full[left].min() >= full[~left].max()
    torch.testing.assert_close(chances[left], full[left] / full[left].sum())


@given(logits=logits_of, p=st.floats(0.01, 1))
def test_top_p_leaves_the_fewest_that_reach_p(logits: Tensor, p: float) -> None:
    chances = probabilities(logits, torch.ones(len(logits), dtype=torch.bool), top_p=p)
    full = logits.double().softmax(-1)
    left = chances > 0
    assert full[left].sum() >= p - 1e-5
    assert full[left].sum() - full[left].min() < p + 1e-5  # one fewer would not do
    if not left.all():
        assert full[left].min() >= full[~left].max()
    torch.testing.assert_close(chances[left], full[left] / full[left].sum())


def test_top_k_comes_before_top_p() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    chances = probabilities(logits, torch.ones(4, dtype=torch.bool), top_k=2, top_p=0.5)  # 0.4 / 0.7 is above 0.5
    assert chances.tolist() == [1, 0, 0, 0]


def test_temperature_zero_takes_the_likeliest_that_is_allowed() -> None:
    chances = probabilities(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([False, True, True]), temperature=0)
    assert chances.tolist() == [0, 0, 1]


def model(size: int, seed: int, cell: str = "lstm-peephole") -> NextUnit:
    """A network of random weights that tells units well apart."""
    torch.manual_seed(seed)
    network = NextUnit(size, cell=cell, hidden=5, layers=2, embedding=3).double().eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(std=0.9)
    return network


def stepper(network: NextUnit) -> Any:
    @torch.no_grad()
    def step(numbers: Tensor, state: Any) -> Any:
        return network.step(numbers, state)

    return step


@pytest.mark.parametrize(
    "cell", ["elman", "gru-cho", "lstm", "lstm-projected", "mingru", "lru", "lstm-deep-transition"]
)
def test_a_step_at_a_time_is_the_whole(cell: str) -> None:
    network = model(7, 3, cell)
    numbers = torch.randint(7, (3, 11))
    with torch.no_grad():
        whole, last = network(numbers)
        state = None
        for t in range(11):
            logits, state = network.step(numbers[:, t], state)
            torch.testing.assert_close(logits, whole[:, t])
    for one, other in zip(state or (), last, strict=True):
        torch.testing.assert_close(tuple(one), tuple(other))


def test_what_is_drawn_has_the_chances_of_the_whole_text() -> None:
    network = model(4, 5)
    rule = Free(torch.tensor([False, True, True, True]), 3)
    draws = 2000
    generator = torch.Generator().manual_seed(0)
    found = [tuple(sample(stepper(network), [0], rule, generator)) for _ in range(draws)]
    for text in itertools.product((1, 2, 3), repeat=3):
        with torch.no_grad():
            logits = network(torch.tensor([[0, *text]]))[0][0, :-1]
        chances = logits[:, 1:].softmax(-1)
        wanted = float(chances[range(3), [n - 1 for n in text]].prod())
        spread = (wanted * (1 - wanted) / draws) ** 0.5
        assert abs(found.count(text) / draws - wanted) < 5 * spread + 1e-9


def score(network: NextUnit, context: list[int], text: tuple[int, ...]) -> float:
    with torch.no_grad():
        logits = network(torch.tensor([[*context, *text]]))[0][0, len(context) - 1 : -1]
    return float(logits.log_softmax(-1)[range(len(text)), list(text)].sum())


def texts(rule: Rule, size: int) -> Iterator[tuple[int, ...]]:
    """Every text that a rule lets be."""
    allowed = rule.allowed()
    for number in range(size):
        if allowed[number]:
            following = rule.after(number)
            if following is None:
                yield (number,)
            else:
                yield from ((number, *rest) for rest in texts(following, size))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("end", [None, 1])
def test_a_beam_of_all_texts_finds_the_likeliest(seed: int, end: int | None) -> None:
    network = model(5, seed)
    rule = Free(torch.tensor([False, True, True, True, True]), 4, end)
    every = list(texts(rule, 5))
    best = max(every, key=lambda text: score(network, [2, 3], text))
    assert beam_search(stepper(network), [2, 3], rule, len(every)) == list(best)
    if end is not None:
        assert {len(text) for text in every} == {1, 2, 3, 4}


@pytest.mark.parametrize("seed", range(3))
def test_a_beam_of_one_takes_the_likeliest_unit_each_time(seed: int) -> None:
    network = model(6, seed)
    rule = Free(torch.ones(6, dtype=torch.bool), 9)
    greedy = list(sample(stepper(network), [0], rule, torch.Generator(), temperature=0))
    assert beam_search(stepper(network), [0], rule, 1) == greedy


def test_a_wider_beam_keeps_to_a_form_too() -> None:
    vocabulary = Characters("\nab春夏")
    form = Form(2, 2, heads="春夏")
    network = model(vocabulary.size, 1)
    rule = form.rule(vocabulary)
    every = list(texts(rule, vocabulary.size))
    assert len(every) == 4 * 4
    best = max(every, key=lambda text: score(network, [DOCUMENT], text))
    assert beam_search(stepper(network), [DOCUMENT], rule, 16) == list(best)


def written(form: Form, vocabulary: Vocabulary, seed: int, prompt: str = "") -> str:
    network = model(vocabulary.size, seed)
    numbers = [int(number) for number in vocabulary.encode(prompt)]
    rule = form.rule(vocabulary).through(prompt, numbers)
    drawn = sample(stepper(network), [DOCUMENT, *numbers], rule, torch.Generator().manual_seed(seed))
    return prompt + vocabulary.decode(drawn)


CHINESE = Characters("\n 。一不人來夏天山日春月有水秋花冬,，x")


@settings(max_examples=25, deadline=None)
@given(
    lines=st.integers(1, 5),
    length=st.integers(1, 7),
    heads=st.text(alphabet="春夏秋冬", max_size=4),
    punctuation=st.sampled_from(["", "，。", "。"]),
    seed=st.integers(0, 99),
)
def test_a_form_holds_whatever_the_model(lines: int, length: int, heads: str, punctuation: str, seed: int) -> None:
    heads = heads[:lines]
    poem = written(Form(lines, length, heads, punctuation), CHINESE, seed).split("\n")
    assert len(poem) == lines
    for k, line in enumerate(poem):
        mark = punctuation[k % len(punctuation)] if punctuation else ""
        assert line.endswith(mark)
        body = line.removesuffix(mark)
        assert len(body) == length
        assert all(character.isalpha() for character in body)
    assert all(line.startswith(head) for line, head in zip(poem, heads, strict=False))


@pytest.mark.parametrize("seed", range(5))
def test_an_acrostic_of_free_lines_holds(seed: int) -> None:
    vocabulary = Characters("\n ,LOVEabc")
    poem = written(Form(5, heads="LOVE"), vocabulary, seed).rstrip("\n").split("\n")
    assert len(poem) == 5
    assert [line[0] for line in poem[:4]] == list("LOVE")
    assert all(1 <= len(line) <= LONGEST for line in poem)


def test_a_prompt_is_the_beginning_of_the_form() -> None:
    poem = written(Form(3, 3, heads="春夏"), CHINESE, 1, "春天山\n夏").split("\n")
    assert poem[0] == "春天山"
    assert [len(line) for line in poem] == [3, 3, 3]
    assert poem[1][0] == "夏"


@pytest.mark.parametrize("prompt", ["春天山水", "天", "春\n", "春天山\n夏天山", "春天山\n夏天山水", "春x ", "?"])
def test_a_prompt_that_breaks_the_form_is_told(prompt: str) -> None:
    with pytest.raises(UserError, match="does not fit the form at"):
        written(Form(2, 3, heads="春夏"), CHINESE, 1, prompt)


@pytest.mark.parametrize(
    ("form", "vocabulary", "told"),
    [
        ({"lines": 2, "length": 3, "heads": "龍馬"}, CHINESE, "did not have: '龍', '馬'"),
        ({"lines": 2, "length": 3, "heads": "。"}, CHINESE, "cannot head a line"),
        ({"lines": 2, "length": 3}, Characters("春夏"), r"did not have: '\\n'"),
        ({"lines": 2, "length": 3}, Characters("\n.,"), "no letters"),
        ({"lines": 2, "length": 3}, Words(["a", "\n"]), "model of characters"),
        ({"lines": 1, "heads": "春夏"}, CHINESE, "2 heads for 1 lines"),
        ({"lines": 0}, CHINESE, "at least 1 line"),
        ({"lines": 1, "length": 0}, CHINESE, "at least 1 character"),
        ({"lines": 1, "punctuation": "。"}, CHINESE, "--line-length"),
    ],
)
def test_a_form_that_cannot_be_is_told(form: dict[str, Any], vocabulary: Vocabulary, told: str) -> None:
    with pytest.raises(UserError, match=told):
        Form(**form).rule(vocabulary)


def test_a_form_never_allows_what_is_no_unit() -> None:
    for form in (Form(2, 3, "春", "。"), Form(2)):
        rule: Any = form.rule(CHINESE)
        while rule is not None:
            allowed = rule.allowed()
            assert allowed.any()
            assert not allowed[UNKNOWN]
            assert not allowed[DOCUMENT]
            rule = rule.after(int(allowed.nonzero()[-1]))
