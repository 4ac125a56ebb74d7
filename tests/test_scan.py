"""The associative scan against the loop that it replaces."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import throughtime as tt
from cases import LINEAR, gradients, make_cell, random_state
from throughtime.cells import LinearCell
from throughtime.engine.scan import linear_scan


def loop(a, b):
    """h_t = a_t h_{t-1} + b_t, h_{-1} = 0, one step after another."""
    h, out = torch.zeros_like(b[:, 0]), []
    for t in range(b.shape[1]):
        h = a[:, t] * h + b[:, t]
        out.append(h)
    return torch.stack(out, 1)


@settings(max_examples=150)
@given(st.integers(1, 70), st.integers(0, 3), st.integers(1, 4), st.booleans(), st.integers(0, 2**32))
def test_the_scan_is_the_loop(steps, batch, hidden, is_complex, seed):
    torch.manual_seed(seed)
    dtype = torch.complex128 if is_complex else torch.float64
    a, b = (torch.randn(batch, steps, hidden, dtype=dtype, requires_grad=True) for _ in range(2))
    with torch.no_grad():
        a.masked_fill_(torch.rand(a.shape) < 0.2, 0)  # as resets do
    h, h1 = linear_scan(a, b), loop(a, b)
    torch.testing.assert_close(h, h1, rtol=1e-9, atol=1e-9)
    weight = torch.randn_like(h1)
    grads, grads1 = (torch.autograd.grad((weight * out).sum().abs(), [a, b], materialize_grads=True) for out in (h, h1))
    torch.testing.assert_close(grads, grads1, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])
def test_derivatives_of_the_scan(steps):
    a, b = (torch.randn(2, steps, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(linear_scan, (a, b))
    assert torch.autograd.gradgradcheck(linear_scan, (a, b))


@pytest.mark.parametrize("name", LINEAR)
def test_ten_thousand_steps_in_float32(name):
    cell = make_cell(name).float()
    x = torch.randn(1, 10_000, 3)
    with torch.no_grad():
        y, final = tt.unroll(cell, x, backend="scan")
        y1, final1 = tt.unroll(cell, x, backend="reference")
    torch.testing.assert_close(y, y1, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(final, final1, rtol=1e-3, atol=1e-3)


class Decay(LinearCell):
    """A linear cell as a user writes one."""

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.input = torch.nn.Linear(input_size, hidden_size)
        self.decay = torch.nn.Parameter(torch.randn(hidden_size))
        self.start = torch.nn.Parameter(torch.randn(hidden_size))

    def initial_state(self, batch_size):
        return self.State(self.start.expand(batch_size, -1))  # what a reset goes back to

    def coefficients(self, x):
        return self.decay.sigmoid().expand(*x.shape[:-1], -1), self.input(x)


def test_an_own_linear_cell_is_scanned():
    cell = Decay(3, 5).double()
    assert tt.explain(cell).backend == "cpu"
    assert tt.explain(cell, "scan").backend == "scan"
    x = torch.randn(4, 7, 3, dtype=torch.float64)
    resets = torch.rand(4, 7) < 0.3
    state, options = random_state(cell, 4), {"lengths": [7, 0, 3, 1], "resets": resets}
    torch.testing.assert_close(
        gradients(cell, x, state, lambda *given: tt.unroll(*given, **options, backend="scan")),
        gradients(cell, x, state, lambda *given: tt.unroll(*given, **options, backend="reference")),
    )


def test_a_cell_with_a_step_of_its_own_is_not_scanned():
    class Odd(Decay):
        def step(self, x, state, noise=None):
            return super().step(x, state)

    assert tt.explain(Odd(3, 5)).backend != "scan"
    with pytest.raises(ValueError, match="a step of its own"):
        tt.unroll(Odd(3, 5), torch.zeros(1, 2, 3), backend="scan")
