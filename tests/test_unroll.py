"""Identities that any way of running a cell through time has to keep."""

import pytest
import torch

import throughtime as tt
from throughtime.cells import CATALOGUE


def random_case(name, batch=4, steps=6, inputs=3, hidden=5, dtype=torch.float64):
    torch.manual_seed(0)
    cell = CATALOGUE[name].make(inputs, hidden).to(dtype).eval()
    x = torch.randn(batch, steps, inputs, dtype=dtype)
    initial = cell.initial_state(batch)
    state = type(initial)(*(torch.randn_like(field) for field in initial))
    return cell, x, state


@pytest.mark.parametrize("name", CATALOGUE)
def test_chunks_give_what_the_whole_gives(name):
    cell, x, state = random_case(name)
    y, final = tt.unroll(cell, x, state)
    y1, middle = tt.unroll(cell, x[:, :2], state)
    y2, final2 = tt.unroll(cell, x[:, 2:], middle)
    torch.testing.assert_close(torch.cat([y1, y2], 1), y)
    torch.testing.assert_close(final2, final)


@pytest.mark.parametrize("name", CATALOGUE)
def test_lengths_give_what_each_sequence_gives_alone(name):
    cell, x, state = random_case(name)
    lengths = [6, 0, 3, 1]
    for reverse in (False, True):
        y, final, states = tt.unroll(cell, x, state, lengths=lengths, reverse=reverse, return_states=True)
        for b, length in enumerate(lengths):
            alone = type(state)(*(field[b : b + 1] for field in state))
            y1, final1, states1 = tt.unroll(cell, x[b : b + 1, :length], alone, reverse=reverse, return_states=True)
            torch.testing.assert_close(y[b : b + 1, :length], y1)
            assert (y[b, length:] == 0).all()
            for field, field1, all_t, all_t1 in zip(final, final1, states, states1, strict=True):
                torch.testing.assert_close(field[b : b + 1], field1)
                torch.testing.assert_close(all_t[b : b + 1, :length], all_t1)
                assert (all_t[b, length:] == 0).all()
