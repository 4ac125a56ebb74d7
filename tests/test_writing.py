"""Writing as one native call: the same text as the definition in plain PyTorch, draw by draw."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import throughtime as tt
from cases import Sorting
from throughtime.data import Characters
from throughtime.engine.cpu.writing import UNITS_TO_LOOK_UP, Cut
from throughtime.engine.sampling import draw, probabilities, uniforms
from throughtime.errors import UserError
from throughtime.tasks.decoding import Free, sample, sample_natively
from throughtime.tasks.form import Form
from throughtime.tasks.language import LanguageModel
from throughtime.tasks.language_settings import Settings
from throughtime.tasks.network import NextUnit

CUTS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6},
    {"temperature": 0},
    {"top_k": 3},
    {"top_p": 0.7},
    {"temperature": 1.7, "top_k": 6, "top_p": 0.8},
    {"top_k": 99},
    {"top_p": 1.0},
]


def model(size: int, cell: str = "lstm", dtype: torch.dtype = torch.float64, **options: Any) -> NextUnit:
    """A network of random weights that tells units well apart."""
    torch.manual_seed(size)
    network = NextUnit(size, cell=cell, **{"hidden": 9, "layers": 2, "embedding": 5, **options}).to(dtype).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(std=0.8)
    return network


def by_definition(network: NextUnit) -> Any:
    @torch.no_grad()
    def step(numbers: Tensor, state: Any) -> Any:
        return network.step(numbers, state)

    return step


def both(network: NextUnit, context: list[int], rule: Any, seed: int = 1, **cut: Any) -> tuple[list[int], list[int]]:
    """What the definition and the native call write."""
    writer = network.writer(context)
    assert writer is not None
    defined = sample(by_definition(network), context, rule, torch.Generator().manual_seed(seed), **cut)
    native = sample_natively(writer, rule, torch.Generator().manual_seed(seed), **cut)
    return list(defined), list(native)


def mask_of(size: int) -> Tensor:
    mask = torch.ones(size, dtype=torch.bool)
    mask[:2] = mask[size // 2] = False
    return mask


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("size", [11, 64, 1000])
def test_the_text_is_that_of_the_definition(size: int, cut: dict[str, Any]) -> None:
    network = model(size)
    defined, native = both(network, [3, 2, 4], Free(mask_of(size), 100), **cut)
    assert native == defined
    assert len(native) == 100
    assert all(mask_of(size)[native])


@pytest.mark.parametrize(
    "cell",
    ["elman", "jordan", "lstm-peephole", "lstm-layernorm", "lstm-projected", "gru", "gru-cho", "mingru", "indrnn"],
)
def test_any_cell_of_the_kernels_writes(cell: str) -> None:
    defined, native = both(model(13, cell), [3], Free(mask_of(13), 40))
    assert native == defined
    assert len(set(native)) > 1


@pytest.mark.parametrize("size", [12, UNITS_TO_LOOK_UP, UNITS_TO_LOOK_UP + 1])
@pytest.mark.parametrize("tied", [False, True])
def test_tied_weights_and_vocabularies_of_any_size(size: int, tied: bool) -> None:
    network = model(size, "gru", tied=tied, layers=1)
    assert isinstance(network.between, torch.nn.Linear) == tied
    defined, native = both(network, [3, 4], Free(mask_of(size), 40))
    assert native == defined


def test_it_stops_at_the_end_of_a_document() -> None:
    network = model(7)
    texts = [both(network, [3], Free(torch.ones(7, dtype=torch.bool), 300, end=1), seed) for seed in range(6)]
    assert all(native == defined for defined, native in texts)
    assert all(native.index(1) == len(native) - 1 for _, native in texts)
    assert len({len(native) for _, native in texts}) > 1


def test_a_form_holds_and_is_the_same_poem() -> None:
    vocabulary = Characters("\n 。一不人來夏天山日春月有水秋花冬,，x")
    rule = Form(4, 5, heads="春夏", punctuation="，。").rule(vocabulary)
    defined, native = both(model(vocabulary.size), [0], rule)
    assert native == defined
    assert vocabulary.decode(native).count("\n") == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_each_number_has_the_chances_of_the_definition(dtype: torch.dtype, cut: dict[str, Any]) -> None:
    """The borders between numbers on [0, 1] are found by drawing: they are the sums of the chances."""
    network = model(9, dtype=dtype)
    context, mask = [3, 5, 2], mask_of(9)
    with torch.no_grad():
        logits = network(torch.tensor([context]))[0][0, -1]
    chances = probabilities(logits, mask, **cut)
    near = 1e-12 if dtype is torch.float64 else 3e-6
    for border in [0.0, *chances.cumsum(0).tolist()]:
        for uniform in (border - near, border + near):
            if 0 <= uniform < 1:
                writer = network.writer(context)
                assert writer is not None
                (native,) = writer.write(torch.tensor([uniform], dtype=torch.float64), mask, Cut(**cut))
                assert native == draw(chances, uniform)


def test_equal_logits_count_in_order() -> None:
    network = model(10)
    with torch.no_grad():
        network.output.weight.zero_()
        network.output.bias.zero_()
    mask = mask_of(10)
    for cut in ({"temperature": 0}, {"top_k": 1}, {"top_p": 1e-9}):
        defined, native = both(network, [3], Free(mask, 5), **cut)
        assert native == defined == [2] * 5
    defined, native = both(network, [3], Free(mask, 200), top_k=3)
    assert native == defined
    assert set(native) == {2, 3, 4}


def test_random_numbers_are_the_same_in_one_call_or_in_many() -> None:
    whole = uniforms(torch.Generator().manual_seed(5), 100)
    generator = torch.Generator().manual_seed(5)
    assert torch.equal(torch.cat([uniforms(generator, n) for n in (1, 8, 64, 27)]), whole)


def test_text_goes_on_where_the_last_call_ended() -> None:
    network = model(13)
    random = uniforms(torch.Generator().manual_seed(2), 30)
    once, parts = network.writer([3, 4]), network.writer([3, 4])
    assert once is not None
    assert parts is not None
    mask = mask_of(13)
    pieces = [number for part in random.split(7) for number in parts.write(part, mask, Cut())]
    assert pieces == once.write(random, mask, Cut())
    assert once.write(random[:0], mask, Cut()) == []


def test_a_change_of_the_weights_is_noticed() -> None:
    network, mask = model(13, "gru"), mask_of(13)
    writer = network.writer([3])
    assert writer is not None
    random = uniforms(torch.Generator().manual_seed(2), 20)
    before = writer.write(random, mask, Cut())
    with torch.no_grad():
        _, state = network(torch.tensor([[3, *before[:-1]]]))
        network.embedding.weight.mul_(-1)
        network.output.bias.add_(torch.randn(13))
    writer_now = network.writer([before[-1]])
    assert writer_now is not None
    writer_now.stack.state = state
    assert writer.write(random, mask, Cut()) == writer_now.write(random, mask, Cut())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_number_of_threads_changes_nothing(dtype: torch.dtype) -> None:
    network = model(200, hidden=150, embedding=40, dtype=dtype)
    before, texts = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            writer = network.writer([3, 4])
            assert writer is not None
            writer._large = True  # or so small a step would be one thread's
            random = uniforms(torch.Generator().manual_seed(2), 50)
            texts.append((writer.write(random, mask_of(200), Cut()), writer.stack.state))
    finally:
        torch.set_num_threads(before)
    for text, state in texts[1:]:
        assert text == texts[0][0]
        for layer, first in zip(state, texts[0][1], strict=True):
            assert all(torch.equal(one, other) for one, other in zip(layer, first, strict=True))


def test_weights_that_are_no_numbers_are_told() -> None:
    network = model(9)
    rule = Free(mask_of(9), 5)
    with torch.no_grad():
        network.output.bias[4] = float("nan")
    defined, native = both(network, [3], rule)  # it may not come, so it does not count
    assert native == defined
    with torch.no_grad():
        network.output.bias[5] = float("nan")
    for temperature in (0, 1):
        writer = network.writer([3])
        assert writer is not None
        with pytest.raises(UserError, match="not a number"):
            list(sample_natively(writer, rule, torch.Generator(), temperature=temperature))
        with pytest.raises(UserError, match="not a number"):
            list(sample(by_definition(network), [3], rule, torch.Generator(), temperature=temperature))
    writer.number = 9
    with pytest.raises(ValueError, match="no number 9 among 9"):
        writer.write(torch.zeros(1, dtype=torch.float64), mask_of(9), Cut())


def test_cells_without_kernels_do_not_write_natively_and_it_is_told() -> None:
    with pytest.warns(tt.SlowPathWarning, match="Sorting: .* is not among its operations"):
        assert without_kernels(model(9, "elman")).writer([3]) is None


def without_kernels(network: NextUnit) -> NextUnit:
    for cell in network.recurrent.forward_cells:
        cell.__class__ = Sorting
    return network


def language_model(size: int, **options: Any) -> LanguageModel:
    vocabulary = Characters("abcdefghijkl"[:size])
    network = model(vocabulary.size, dtype=torch.float32, **options)
    return LanguageModel(network, vocabulary, Settings(), documents=False)


def test_rounded_weights_write_what_a_rounded_network_writes() -> None:
    plain = language_model(10, hidden=40, tied=True)
    text = "".join(plain.generate("a", length=80, weights=torch.bfloat16))
    exact = "".join(plain.generate("a", length=80))
    network = plain.network
    network.output.weight = torch.nn.Parameter(network.output.weight.detach().clone())  # no longer the embedding's
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() == 2 and name != "embedding.weight":
                parameter.copy_(parameter.bfloat16())
    assert "".join(plain.generate("a", length=80)) == text != exact


def test_rounding_that_cannot_be_is_told() -> None:
    plain = language_model(10)
    with pytest.raises(UserError, match="beam search"):
        plain.generate("a", beam=2, weights=torch.bfloat16)
    with pytest.raises(UserError, match=r"not as torch\.float16"):
        list(plain.generate("a", weights=torch.float16))
    plain.network.double()
    with pytest.raises(UserError, match=r"not from torch\.float64"):
        list(plain.generate("a", weights=torch.bfloat16))
    slow = language_model(10, cell="elman")
    without_kernels(slow.network)
    with pytest.raises(UserError, match="only kernels"):
        list(slow.generate("a", weights=torch.bfloat16))


@pytest.mark.skipif(sys.platform != "linux", reason="forks as Linux does")
def test_a_forked_process_writes() -> None:
    script = """
import os, sys, warnings
import torch
from throughtime.engine.cpu.writing import Cut
from throughtime.tasks.network import NextUnit
warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: it is the point
torch.manual_seed(0)
torch.set_num_threads(2)
writer = NextUnit(20, hidden=300, layers=2, embedding=30).eval().writer([3])
mask, random = torch.ones(20, dtype=torch.bool), torch.rand(40, dtype=torch.float64)
first, state, number = writer.write(random, mask, Cut()), writer.stack.state, writer.number
second = writer.write(random, mask, Cut())
writer.stack.state, writer.number = state, number
child = os.fork()
same = writer.write(random, mask, Cut()) == second
if child == 0:
    os._exit(not same)
sys.exit(os.waitpid(child, 0)[1] or not same)
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
