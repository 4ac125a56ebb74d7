"""Identities that any way of running a cell through time has to keep."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import throughtime as tt
from cases import CELLS, LINEAR, Leaky, fields_of, gradients, make_cell, random_case, random_state
from throughtime.cells import GRU, LRU, LSTM, LearnedInitialState, RecurrentDropout, Zoneout

every_cell = pytest.mark.parametrize("name", CELLS)
close = torch.testing.assert_close


def rows(state, rows):
    return type(state)(*(field[rows] for field in state))


# chunks, steps, reversal, rows


@every_cell
def test_chunks_give_what_the_whole_gives(name):
    cell, x, state = random_case(name)
    y, final = tt.unroll(cell, x, state)
    y1, middle = tt.unroll(cell, x[:, :2], state)
    y2, final2 = tt.unroll(cell, x[:, 2:], middle)
    close(torch.cat([y1, y2], 1), y)
    close(final2, final)


@every_cell
def test_step_by_step_gives_what_the_whole_gives(name):
    cell, x, state = random_case(name)
    for start in (state, None):
        y, final, states = tt.unroll(cell, x, start, return_states=True)
        now = start
        for t in range(x.shape[1]):
            y_t, now = cell(x[:, t], now)
            close(y_t, y[:, t])
            close(tuple(now), tuple(field[:, t] for field in states))
        close(tuple(now), tuple(final))


@every_cell
def test_reverse_gives_what_the_flipped_input_gives(name):
    cell, x, state = random_case(name)
    y, final, states = tt.unroll(cell, x, state, reverse=True, return_states=True)
    y1, final1, states1 = tt.unroll(cell, x.flip(1), state, return_states=True)
    close(y, y1.flip(1))
    close(final, final1)
    close(tuple(states), tuple(field.flip(1) for field in states1))


@every_cell
def test_lengths_give_what_each_sequence_gives_alone(name):
    cell, x, state = random_case(name)
    lengths = [6, 0, 3, 1]
    for reverse in (False, True):
        y, final, states = tt.unroll(cell, x, state, lengths=lengths, reverse=reverse, return_states=True)
        for b, length in enumerate(lengths):
            alone = rows(state, slice(b, b + 1))
            y1, final1, states1 = tt.unroll(cell, x[b : b + 1, :length], alone, reverse=reverse, return_states=True)
            close(y[b : b + 1, :length], y1)
            assert (y[b, length:] == 0).all()
            for field, field1, all_t, all_t1 in zip(final, final1, states, states1, strict=True):
                close(field[b : b + 1], field1)
                close(all_t[b : b + 1, :length], all_t1)
                assert (all_t[b, length:] == 0).all()


@every_cell
def test_last_state_is_the_final_one(name):
    cell, x, state = random_case(name)
    _, final, states = tt.unroll(cell, x, state, return_states=True)
    close(tuple(field[:, -1] for field in states), tuple(final))
    _, final, states = tt.unroll(cell, x, state, return_states=True, reverse=True)
    close(tuple(field[:, 0] for field in states), tuple(final))


@every_cell
def test_what_stands_in_the_padding_changes_nothing(name):
    cell, x, state = random_case(name)
    lengths = torch.tensor([6, 0, 3, 1])
    padding = torch.arange(6) >= lengths[:, None]

    def run(reverse):
        return lambda cell, x, state: tt.unroll(cell, x, state, lengths=lengths, reverse=reverse, return_states=True)

    for reverse in (False, True):
        outputs, grads = gradients(cell, x, state, run(reverse))
        assert all(field.isfinite().all() for field in (*outputs, *grads))
        assert (grads[0][padding] == 0).all()
        for garbage in (float("nan"), float("inf"), 1e30):
            spoilt = torch.where(padding[..., None], garbage, x)
            outputs1, grads1 = gradients(cell, spoilt, state, run(reverse))
            close(outputs1, outputs, rtol=0, atol=0)
            close(grads1, grads, rtol=0, atol=0)


# resets


@every_cell
@pytest.mark.parametrize("reverse", [False, True])
def test_resets_give_what_separate_documents_give(name, reverse):
    cell, x, state = random_case(name, batch=1, steps=7)
    borders = [0, 2, 3, 7]
    resets = torch.zeros(1, 7, dtype=torch.bool)
    resets[0, [2, 3]] = True
    y, final = tt.unroll(cell, x, state, resets=resets, reverse=reverse)
    spans = list(pairwise(borders))
    for k, (start, end) in enumerate(spans):
        seen_first = k == (len(spans) - 1 if reverse else 0)
        y1, final1 = tt.unroll(cell, x[:, start:end], state if seen_first else None, reverse=reverse)
        close(y[:, start:end], y1)
        if k == (0 if reverse else len(spans) - 1):
            close(final, final1)


@every_cell
def test_a_reset_before_the_first_step_drops_the_given_state(name):
    cell, x, state = random_case(name)
    resets = torch.zeros(4, 6, dtype=torch.bool)
    resets[:, 0] = True
    close(tt.unroll(cell, x, state, resets=resets), tt.unroll(cell, x))
    close(tt.unroll(cell, x, state, resets=resets, reverse=True), tt.unroll(cell, x, state, reverse=True))


@st.composite
def ragged_batches(draw):
    batch, steps = draw(st.integers(0, 4)), draw(st.integers(0, 7))
    lengths = draw(st.lists(st.integers(0, steps), min_size=batch, max_size=batch))
    resets = draw(st.lists(st.lists(st.booleans(), min_size=steps, max_size=steps), min_size=batch, max_size=batch))
    return lengths, torch.tensor(resets, dtype=torch.bool).reshape(batch, steps)


def by_hand(cell, x, state, length, resets, reverse):
    """One sequence (T, I), a step at a time, with the reset on its own side of the step."""
    initial, outputs = cell.initial_state(1), {}
    for t in reversed(range(length)) if reverse else range(length):
        if resets[t] and not reverse:
            state = initial
        outputs[t], state = cell.step(x[None, t], state)
        if resets[t] and reverse and t > 0:
            state = initial
    return outputs, state


@settings(max_examples=200)
@given(ragged_batches(), st.sampled_from(sorted(CELLS)), st.booleans(), st.integers(0, 2**32))
def test_lengths_resets_and_reversal_crossed(ragged, name, reverse, seed):
    lengths, resets = ragged
    torch.manual_seed(seed)
    cell, x, state = random_case(name, *resets.shape, inputs=2, hidden=3)
    with torch.no_grad():
        y, final = tt.unroll(cell, x, state, lengths=lengths, resets=resets, reverse=reverse)
        for b, length in enumerate(lengths):
            outputs, final1 = by_hand(cell, x[b], rows(state, slice(b, b + 1)), length, resets[b], reverse)
            close(tuple(rows(final, slice(b, b + 1))), tuple(final1))
            for t in range(resets.shape[1]):
                close(y[b : b + 1, t], outputs.get(t, torch.zeros(1, cell.output_size, dtype=torch.float64)))


def test_a_reset_in_the_padding_leaves_the_final_state():
    cell, x, state = random_case("lstm")
    resets = torch.zeros(4, 6, dtype=torch.bool)
    resets[:, 4] = True
    y, final = tt.unroll(cell, x, state, lengths=[4, 3, 0, 4])
    close(tt.unroll(cell, x, state, lengths=[4, 3, 0, 4], resets=resets), (y, final))


# batches


@every_cell
def test_a_row_alone_gives_what_it_gives_in_a_batch(name):
    cell, x, state = random_case(name)
    resets = torch.rand(4, 6) < 0.3
    y, final = tt.unroll(cell, x, state, resets=resets)
    for b in range(4):
        one = slice(b, b + 1)
        y1, final1 = tt.unroll(cell, x[one], rows(state, one), resets=resets[one])
        close(y1, y[one])
        close(final1, rows(final, one))


@every_cell
def test_no_steps_and_no_rows(name):
    cell, x, state = random_case(name)
    for options in ({}, {"reverse": True}, {"lengths": torch.zeros(4, dtype=torch.long)}):
        y, final, states = tt.unroll(cell, x[:, :0], state, return_states=True, **options)
        assert y.shape == (4, 0, cell.output_size)
        close(tuple(final), tuple(state))
        assert all(a.shape == (4, 0, *f.shape[1:]) for a, f in zip(states, state, strict=True))
    for lengths in (None, []):
        y, final = tt.unroll(cell, x[:0], lengths=None if lengths is None else torch.zeros(0, dtype=torch.long))
        assert y.shape == (0, 6, cell.output_size)
        assert all(a.shape == (0, *f.shape[1:]) for a, f in zip(final, state, strict=True))


def test_the_state_may_be_a_plain_tuple_or_a_single_tensor():
    cell, x, state = random_case("lstm")
    close(tt.unroll(cell, x, tuple(state)), tt.unroll(cell, x, state))
    cell, x, state = random_case("gru")
    close(tt.unroll(cell, x, state.h), tt.unroll(cell, x, state))


def test_returned_states_are_differentiable_at_every_step():
    cell, x, state = random_case("lstm", steps=3)
    x.requires_grad_()
    _, _, states = tt.unroll(cell, x, state, return_states=True)
    (grad,) = torch.autograd.grad(states.c[:, 1].sum(), x)
    assert (grad[:, :2] != 0).all()
    assert (grad[:, 2] == 0).all()


# backends and stand-in parameters


@settings(max_examples=200)
@given(ragged_batches(), st.sampled_from(sorted(CELLS)), st.booleans(), st.booleans(), st.integers(0, 2**32))
def test_backends_agree(ragged, name, reverse, training, seed):
    lengths, resets = ragged
    torch.manual_seed(seed)
    cell, x, state = random_case(name, *resets.shape, inputs=2, hidden=3)
    cell.train(training)

    def run(backend):
        def outputs(cell, x, state):
            torch.manual_seed(seed)  # the same noise
            options = {"lengths": lengths, "resets": resets, "reverse": reverse, "return_states": True}
            return tt.unroll(cell, x, state, backend=backend, **options)

        return outputs

    close(gradients(cell, x, state, run("auto")), gradients(cell, x, state, run("reference")), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", LINEAR)
def test_the_linear_family_is_not_looped_over(name):
    assert tt.explain(make_cell(name)).backend != "reference"


@every_cell
def test_stand_in_parameters(name):
    cell, x, _ = random_case(name)
    other = make_cell(name)
    expected = tt.unroll(other, x, lengths=[6, 0, 3, 1], reverse=True)
    stand_ins = {key: value.detach().clone().requires_grad_() for key, value in other.named_parameters()}
    result = tt.unroll(cell, x, lengths=[6, 0, 3, 1], reverse=True, parameters=stand_ins)
    close(result, expected)
    loss = sum(field.abs().sum() for field in fields_of(result))
    mine = torch.autograd.grad(loss, list(stand_ins.values()))
    theirs = torch.autograd.grad(sum(field.abs().sum() for field in fields_of(expected)), list(other.parameters()))
    close(mine, theirs)


# noise


def test_noise_is_drawn_anew_in_training_and_not_at_all_in_evaluation():
    x = torch.randn(3, 6, 3)
    for cell in (Zoneout(LSTM(3, 5)), RecurrentDropout(LSTM(3, 5), p=0.5)):
        assert not torch.equal(tt.unroll(cell, x)[0], tt.unroll(cell, x)[0])
        torch.manual_seed(1)
        y = tt.unroll(cell, x)[0]
        torch.manual_seed(1)
        close(tt.unroll(cell, x)[0], y, rtol=0, atol=0)
        cell.eval()
        close(tt.unroll(cell, x)[0], tt.unroll(cell, x)[0], rtol=0, atol=0)


def test_nested_wrappers_draw_each_their_own_noise():
    cell = Zoneout(RecurrentDropout(LSTM(3, 5), p=0.5), h=0.5, c=0.5)
    masks, ((dropped,),) = cell.noise(4, 6)
    assert [mask.shape for mask in masks] == [(4, 6, 5)] * 2
    assert (dropped == dropped[:, :1]).all()
    y, _ = tt.unroll(cell, torch.randn(4, 6, 3))
    assert y.isfinite().all()


# bad arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x": torch.zeros(2, 3)}, r"\(B, T, I\).*x\[None\]"),
        ({"x": torch.zeros(2, 4, 2)}, "2 features where the cell takes 3"),
        ({"lengths": [4, 5]}, r"0\.\.4"),
        ({"lengths": [-1, 2]}, r"0\.\.4"),
        ({"lengths": [1, 2, 3]}, r"\(2,\).*\(3,\)"),
        ({"lengths": [1.0, 2.0]}, "whole numbers"),
        ({"resets": torch.zeros(2, 4)}, "bool"),
        ({"resets": torch.zeros(2, 3, dtype=torch.bool)}, r"\(2, 4\).*\(2, 3\)"),
        ({"state": torch.zeros(2, 5)}, "h, c"),
        ({"state": (torch.zeros(2, 5), torch.zeros(2, 4))}, r"state\.c must be \(2, 5\), not \(2, 4\)"),
        ({"state": (torch.zeros(3, 5), torch.zeros(3, 5))}, r"state\.h must be \(2, 5\), not \(3, 5\)"),
        ({"backend": "fast"}, "unknown; known: auto"),
        ({"backend": "scan"}, "cannot take LSTM"),
        ({"parameters": {"input.wieght": torch.zeros(20, 3)}}, r"no parameters named input\.wieght"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options, message):
    arguments = {"x": torch.zeros(2, 4, 3)} | options
    with pytest.raises(ValueError, match=message):
        tt.unroll(LSTM(3, 5), **arguments)


def test_the_plan_is_told():
    assert tt.explain(LRU(3, 5)).backend == "cpu"
    assert tt.explain(LRU(3, 5).to("meta")).backend == "scan"
    plan = tt.explain(LearnedInitialState(LRU(3, 5)).to("meta"))
    assert plan.backend == "reference"
    assert "not a LinearCell" in str(plan)
    plan = tt.explain(LSTM(3, 5))
    assert plan.backend == "cpu"
    assert "product 5 to 20" in str(plan)


# as a torch citizen


def test_vmap_over_stacked_parameters():
    cells = [Leaky(3, 5).double() for _ in range(3)]
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    parameters, _ = torch.func.stack_module_state(cells)
    resets = torch.rand(4, 6) < 0.3
    together, _ = torch.func.vmap(
        lambda weights: tt.unroll(cells[0], x, lengths=[6, 2, 0, 5], resets=resets, parameters=weights)
    )(parameters)
    for cell, y in zip(cells, together, strict=True):
        close(y, tt.unroll(cell, x, lengths=[6, 2, 0, 5], resets=resets)[0])


def test_gradients_of_each_sequence_by_vmap():
    cell, x, _ = random_case("gru")
    weights = {name: value.detach() for name, value in cell.named_parameters()}

    def loss(weights, x):
        return tt.unroll(cell, x[None], parameters=weights)[0].square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
    for b in range(4):
        expected = torch.autograd.grad(tt.unroll(cell, x[b : b + 1])[0].square().sum(), list(cell.parameters()))
        close([each[name][b] for name in weights], list(expected))


def test_streams_may_part():
    cell = GRU(3, 5).double()
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    _, state = tt.unroll(cell, x, random_state(cell, 2))
    before = state.h.clone()
    cell(x[:, 0], state)
    close(state.h, before, rtol=0, atol=0)
