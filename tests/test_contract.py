"""Mistakes in a cell of one's own, and in what is given to one: each is told in a line, whatever the backend."""

import numpy as np
import pytest
import torch
from torch import nn

import throughtime as tt


class Own(tt.Cell):
    def __init__(self, input_size=3, hidden_size=5, result=None):
        super().__init__(input_size, hidden_size)
        self.input = nn.Linear(input_size, hidden_size)
        self.result = result

    def step(self, x, state):
        h = torch.tanh(self.input(x) + state.h)
        return self.result(self, h, state)


def no_state(cell, h, state):
    return h


def a_tensor_for_a_state(cell, h, state):
    return h, h


def wide_output(cell, h, state):
    return torch.cat([h, h], dim=-1), cell.State(h)


def mean_over_the_batch(cell, h, state):
    return h, cell.State(h.mean(0, keepdim=True))


def narrow_state(cell, h, state):
    return h, cell.State(h[:, :2])


def no_tensor(cell, h, state):
    return h, cell.State(0.5)


def in_place(cell, h, state):
    state.h.mul_(0.5).add_(h)
    return state.h, cell.State(state.h)


@pytest.mark.filterwarnings("ignore::throughtime.SlowPathWarning")
@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize(
    ("result", "told"),
    [
        (no_state, "must return an output and a state"),
        (a_tensor_for_a_state, "must return a state of the fields h"),
        (wide_output, r"must return an output of \(\d, 5\), not a tensor \(\d, 10\)"),
        (mean_over_the_batch, "must return a state.h of"),
        (narrow_state, r"must return a state.h of \(\d, 5\), not a tensor \(\d, 2\)"),
        (no_tensor, "must return a state.h of .*, not float"),
        (in_place, "in place"),
    ],
)
def test_a_step_that_returns_what_it_may_not(result, told, batch):
    if batch == 1 and result is mean_over_the_batch:
        pytest.skip("the mean over a batch of one is that one")
    cell = Own(result=result)
    with torch.no_grad():
        for run in (lambda: tt.unroll(cell, torch.randn(batch, 4, 3)), lambda: cell(torch.randn(batch, 3))):
            with pytest.raises(ValueError, match=told):
                run()


def test_a_step_in_place_is_told_under_autograd_too():
    cell = Own(result=in_place)
    with pytest.warns(tt.SlowPathWarning), pytest.raises(ValueError, match="in place"):
        tt.unroll(cell, torch.randn(2, 4, 3), torch.randn(2, 5))


def test_inference_mode_has_no_versions_to_look_at():
    with torch.inference_mode():
        y, _ = tt.unroll(tt.cells.LSTM(3, 5), torch.randn(2, 4, 3), backend="reference")
    assert y.shape == (2, 4, 5)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda c: tt.unroll(c, [[1.0, 2.0, 3.0]]), "x must be a tensor"),
        (lambda c: tt.unroll(c, torch.zeros(2, 4, 3, dtype=torch.float64)), "x is float64 where .* float32"),
        (lambda c: tt.unroll(c, torch.zeros(2, 4, 3, dtype=torch.long)), "x is int64 where .* float32"),
        (lambda c: tt.unroll(c, torch.zeros(2, 4, 3), (np.zeros((2, 5)),)), "state.h must be a tensor, not ndarray"),
        (lambda c: c(torch.zeros(3)), r"x must be \(B, I\)"),
        (lambda c: tt.Recurrent("lstm", 3, 5), "must be a class of cells"),
        (lambda c: tt.Recurrent(c, 3, 5), "must be a class of cells"),
        (lambda c: tt.Recurrent(nn.LSTM, 3, 5), "must make a throughtime.Cell, not LSTM"),
        (lambda c: tt.Recurrent(tt.cells.GRU, 3, 5.0), "hidden_size must be a whole number"),
        (lambda c: tt.Recurrent(tt.cells.GRU, 3, 5, 0), "num_layers must be a whole number"),
        (lambda c: tt.cells.GRU(True, 5), "input_size must be a whole number"),
        (lambda c: tt.cells.ProjectedLSTM(3, 5, projection_size=0), "whole number of at least 1"),
        (lambda c: tt.unroll(tt.cells.LRU(3, 5).bfloat16(), torch.zeros(1, 2, 3).bfloat16()), "not bfloat16"),
    ],
)
def test_what_does_not_fit_is_told(call, told):
    with pytest.raises((TypeError, ValueError), match=told):
        call(Own(result=lambda cell, h, state: (h, cell.State(h))))


def test_sizes_may_be_numpys():
    net = tt.Recurrent(tt.cells.GRU, np.int64(3), np.int32(5), np.int64(2))
    y, _ = net(torch.zeros(2, 4, 3))
    assert y.shape == (2, 4, 5)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("kind", [torch.uint8, torch.int32])
def test_lengths_of_any_whole_numbers(backend, kind):
    cell, x = tt.cells.GRU(3, 5), torch.randn(3, 4, 3)
    lengths = torch.tensor([0, 4, 2])
    expected = tt.unroll(cell, x, lengths=lengths, reverse=True, backend=backend)
    torch.testing.assert_close(tt.unroll(cell, x, lengths=lengths.to(kind), reverse=True, backend=backend), expected)
