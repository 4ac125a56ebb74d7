"""Streams: what a stepper gives is what `unroll` gives, to the bit where the kernels run, and nothing goes stale."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import throughtime as tt
from cases import CELLS, Leaky, Sorting, make_cell, random_state
from throughtime.engine.stepper import Stepper

close = torch.testing.assert_close
SOME = ["elman", "jordan", "lstm", "lstm-peephole", "lstm-layernorm", "lstm-projected", "gru", "gru-cho", "own"]


@pytest.fixture
def threads():
    """Sets PyTorch's number of threads, and sets it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def stacked(name, sizes=(3, 7, 5), dtype=torch.float64):
    """Cells of unequal sizes, one upon another, every parameter random."""
    cells = []
    for hidden in sizes[1:]:
        cells.append(make_cell(name, cells[-1].output_size if cells else sizes[0], hidden).to(dtype))
    return cells


def unrolled(cells, x, states, backend):
    finals = []
    with torch.no_grad():
        for cell, state in zip(cells, states, strict=True):
            x, final = tt.unroll(cell, x, state, backend=backend)
            finals.append(final)
    return x, tuple(finals)


def stepped(stepper, x):
    return torch.stack([stepper.step(x[:, t]) for t in range(x.shape[1])], dim=1)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", CELLS)
def test_a_stream_is_the_whole(name, batch):
    torch.manual_seed(1)
    cells = stacked(name)
    states = tuple(random_state(cell, batch) for cell in cells)
    x = torch.randn(batch, 6, 3, dtype=torch.float64)
    stepper = Stepper(cells, batch, backend="cpu")
    stepper.state = states
    y = stepped(stepper, x)
    whole, finals = unrolled(cells, x, states, "reference")
    close(y, whole, rtol=1e-12, atol=1e-12)
    for state, final in zip(stepper.state, finals, strict=True):
        close(tuple(state), tuple(final), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("name", SOME)
def test_a_stream_has_the_bits_of_the_whole_whatever_the_threads(name, batch, threads):
    torch.manual_seed(1)
    cells = stacked(name, (40, 130, 100), torch.float32)
    x = torch.randn(batch, 5, 40)
    whole, finals = unrolled(cells, x, [None, None], "cpu")
    for count in (1, 2, 3):
        threads(count)
        stepper = Stepper(cells, batch)
        assert stepper._stack is not None
        stepper._stack.large = True  # or so small a step would be one thread's
        assert torch.equal(stepped(stepper, x), whole)
        for state, final in zip(stepper.state, finals, strict=True):
            assert all(torch.equal(one, other) for one, other in zip(state, final, strict=True))


def test_a_state_may_be_handed_over_and_a_stream_begun_anew():
    torch.manual_seed(2)
    net = tt.Recurrent(tt.cells.GRU, 3, [7, 5], num_layers=2).double()
    x = torch.randn(2, 9, 3, dtype=torch.float64)
    with torch.no_grad():
        whole, last = net(x)
        _, state = net(x[:, :4])
    stepper = net.stepper(2)
    before = stepper.state
    stepper.state = state
    close(stepped(stepper, x[:, 4:6]), whole[:, 4:6], rtol=1e-12, atol=1e-12)
    halfway = stepper.state
    close(stepped(stepper, x[:, 6:]), whole[:, 6:], rtol=1e-12, atol=1e-12)
    close(tuple(map(tuple, stepper.state)), tuple(map(tuple, last)), rtol=1e-12, atol=1e-12)
    stepper.state = halfway  # what was read is a copy: the stream went on meanwhile
    close(stepped(stepper, x[:, 6:]), whole[:, 6:], rtol=1e-12, atol=1e-12)
    close(net(x[:, 6:], halfway)[0].detach(), whole[:, 6:], rtol=1e-12, atol=1e-12)
    stepper.state = None
    close(stepped(stepper, x), whole, rtol=1e-12, atol=1e-12)
    assert all((field == 0).all() for part in before for field in part)


def test_an_initial_state_that_is_learned_is_where_it_begins():
    torch.manual_seed(3)
    net = tt.Recurrent(tt.cells.LSTM, 3, 5, learned_initial_state=True).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
    x = torch.randn(2, 3, 3, dtype=torch.float64)
    close(stepped(net.stepper(2), x), net(x)[0].detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("change", ["in place", "optimiser", "load_state_dict", "replaced"])
def test_a_change_of_the_parameters_is_noticed_and_the_state_stays(change):
    torch.manual_seed(4)
    net = tt.Recurrent(tt.cells.LSTM, 3, [7, 5], num_layers=2).double()
    other = tt.Recurrent(tt.cells.LSTM, 3, [7, 5], num_layers=2).double()
    x = torch.randn(2, 8, 3, dtype=torch.float64)
    stepper = net.stepper(2)
    stepped(stepper, x[:, :4])
    with torch.no_grad():
        _, state = net(x[:, :4])
    if change == "in place":
        with torch.no_grad():
            net.forward_cells[1].recurrent.weight.mul_(2)
    elif change == "optimiser":
        optimiser = torch.optim.SGD(net.parameters(), lr=0.5)
        net(x)[0].sum().backward()
        optimiser.step()
    elif change == "load_state_dict":
        net.load_state_dict(other.state_dict())
    else:
        net.forward_cells[0].recurrent.weight = nn.Parameter(other.forward_cells[0].recurrent.weight.detach().clone())
    with torch.no_grad():
        whole, _ = net(x[:, 4:], state)
    close(stepped(stepper, x[:, 4:]), whole, rtol=1e-12, atol=1e-12)


def test_rows_of_an_input_may_lie_anywhere():
    net = tt.Recurrent(tt.cells.GRU, 3, 5)
    x = torch.randn(2, 3)
    expected = net.stepper(2).step(x)
    assert torch.equal(net.stepper(2).step(x.T.contiguous().T), expected)
    assert torch.equal(net.stepper(2).step(torch.randn(2, 9)[:, 3:6].copy_(x)), expected)
    with torch.inference_mode():
        stepper = net.stepper(2)
        assert torch.equal(stepper.step(x), expected)
    stepper.state = None  # what was made in that mode lives on outside it
    assert torch.equal(stepper.step(x), expected)


def test_outputs_are_not_written_again():
    net = tt.Recurrent(tt.cells.GRU, 3, 5)
    stepper = net.stepper()
    first = stepper.step(torch.randn(1, 3))
    kept = first.clone()
    stepper.step(torch.randn(1, 3))
    assert torch.equal(first, kept)


def test_what_a_stepper_cannot_take_it_says():
    net = tt.Recurrent(tt.cells.GRU, 3, 5, num_layers=2)
    stepper = net.stepper(2)
    with pytest.raises(ValueError, match=r"\(2, 3\), not \(3, 3\)"):
        stepper.step(torch.randn(3, 3))
    with pytest.raises(ValueError, match=r"float32 on the CPU, not torch\.float64"):
        stepper.step(torch.randn(2, 3).double())
    with pytest.raises(ValueError, match="no gradient passes"):
        stepper.step(torch.randn(2, 3, requires_grad=True))
    with pytest.raises(ValueError, match="1 layers is given to a stepper of 2"):
        stepper.state = stepper.state[:1]
    with pytest.raises(ValueError, match=r"state\.h must be"):
        stepper.state = net.initial_state(3)
    with pytest.raises(ValueError, match="at least 1 stream"):
        net.stepper(0)
    with pytest.raises(ValueError, match="auto, cpu or reference"):
        net.stepper(backend="fast")
    with pytest.raises(ValueError, match="call eval"):
        tt.Recurrent(tt.cells.GRU, 3, 5, num_layers=2, dropout=0.1).stepper()
    with pytest.raises(ValueError, match="bidirectional"):
        tt.Recurrent(tt.cells.GRU, 3, 5, bidirectional=True).stepper()
    net.double()
    with pytest.raises(ValueError, match="another precision"):
        stepper.step(torch.randn(2, 3))


def test_cells_without_kernels_take_their_own_steps_and_it_is_told():
    torch.manual_seed(5)
    net = tt.Recurrent(Sorting, 3, 5).double()
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    with pytest.warns(tt.SlowPathWarning, match="Sorting: .* is not among its operations"):
        stepper = net.stepper(2)
    close(stepped(stepper, x), net(x, backend="reference")[0].detach())
    state = stepper.state
    y = stepper.step(x[:, 0])
    stepper.state = state
    assert torch.equal(stepper.step(x[:, 0]), y)
    with pytest.raises(ValueError, match="cannot take these cells"):
        net.stepper(2, backend="cpu")
    net.stepper(2, backend="reference")  # says nothing: it is meant
    noisy = tt.Recurrent(lambda i, h: tt.cells.Zoneout(tt.cells.GRU(i, h), h=0.2), 3, 5)
    with pytest.warns(tt.SlowPathWarning, match="call eval"):
        noisy.stepper()
    noisy.eval().stepper()


def test_a_cell_of_ones_own_of_one_layer():
    cell = Leaky(3, 5)
    x = torch.randn(1, 4, 3)
    assert torch.equal(stepped(Stepper([cell]), x), tt.unroll(cell, x, backend="cpu")[0].detach())


@pytest.mark.skipif(sys.platform != "linux", reason="forks as Linux does")
def test_a_stream_goes_on_in_a_forked_process():
    script = """
import os, sys, warnings
import torch, throughtime as tt
warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: it is the point
torch.manual_seed(0)
torch.set_num_threads(2)
net = tt.Recurrent(tt.cells.LSTM, 6, 300)
x = torch.randn(1, 6, 6)
stepper = net.stepper()
expected = net(x, backend="cpu")[0].detach()
for t in range(3):
    assert stepper.step(x[:, t]).equal(expected[:, t])
child = os.fork()
same = all(stepper.step(x[:, t]).equal(expected[:, t]) for t in range(3, 6))
if child == 0:
    os._exit(not same)
sys.exit(os.waitpid(child, 0)[1] or not same)
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr


def rounded(cells):
    """The same cells with the matrices rounded to bfloat16."""
    for cell in cells:
        with torch.no_grad():
            for parameter in cell.parameters():
                if parameter.dim() == 2:
                    parameter.copy_(parameter.bfloat16())
    return cells


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["elman", "lstm", "lstm-layernorm", "gru-cho", "own"])
def test_weights_kept_as_bfloat16_are_rounded_and_nothing_else_is(name, batch):
    torch.manual_seed(6)
    cells = stacked(name, (9, 40, 21), torch.float32)
    x = torch.randn(batch, 6, 9)
    exact, _ = unrolled(cells, x, [None, None], "cpu")
    y = stepped(Stepper(cells, batch, weights=torch.bfloat16), x)
    assert torch.equal(y, unrolled(rounded(cells), x, [None, None], "cpu")[0])
    assert not torch.equal(y, exact)


def test_what_cannot_be_rounded_is_told():
    net = tt.Recurrent(tt.cells.GRU, 3, 5)
    with pytest.raises(ValueError, match=r"kept as they are, or as torch\.bfloat16"):
        net.stepper(weights=torch.float16)
    with pytest.raises(ValueError, match="only kernels"):
        net.stepper(weights=torch.bfloat16, backend="reference")
    with pytest.raises(ValueError, match=r"not from torch\.float64"):
        net.double().stepper(weights=torch.bfloat16)


def test_a_cell_may_keep_masks_and_counts():
    class Sparse(tt.Cell):
        def __init__(self, input_size, hidden_size):
            super().__init__(input_size, hidden_size)
            self.weight = torch.nn.Parameter(torch.randn(hidden_size, hidden_size))
            self.register_buffer("on", torch.arange(hidden_size) % 2 == 0)
            self.register_buffer("count", torch.tensor(2))

        def step(self, x, state):
            h = torch.where(self.on, torch.tanh(x + (state.h @ self.weight) / self.count), x)
            return h, self.State(h)

    net = tt.Recurrent(Sparse, 5, 5)
    x = torch.randn(3, 6, 5)
    stepper = net.stepper(batch_size=3, backend="cpu")
    y = torch.stack([stepper.step(x[:, t]) for t in range(6)], dim=1)
    torch.testing.assert_close(y, net(x, backend="reference")[0])
