"""What goes on around a kernel and must not reach it: settings that change, views, threads, devices, hooks."""

import dataclasses
import functools
import os
import signal
import threading
import time

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import prune

import throughtime as tt
from cases import gradients
from throughtime.engine.cpu import machine
from throughtime.engine.cpu.once import one_at_a_time
from throughtime.engine.unroll import unroll_both

close = torch.testing.assert_close


class Own(tt.Cell):
    """h = f(Wx) + factor h, both in the hands of the test."""

    def __init__(self, factor, f=torch.tanh):
        super().__init__(3, 5)
        self.input = nn.Linear(3, 5)
        self._f = f
        self.factor = factor

    def number(self):
        return self.factor

    def step(self, x, state):
        h = self._f(self.input(x)) + self.number() * state.h
        return h, self.State(h)


@dataclasses.dataclass
class Pace:
    numbers: list


class Listed(Own):
    def number(self):
        return self.factor.numbers[0] if isinstance(self.factor, Pace) else self.factor["all"][0]


def same_as_reference(cell, x):
    close(tt.unroll(cell, x, backend="cpu"), tt.unroll(cell, x, backend="reference"))


def test_what_changes_in_a_cell_is_seen():
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    cell = Own(0.5).double()
    same_as_reference(cell, x)
    cell._f = torch.sigmoid
    same_as_reference(cell, x)
    for factor in (0.1, 0.2, 0.3):  # functions that are gone, whose places may be taken by the next
        cell._f = lambda value, factor=factor: factor * value
        same_as_reference(cell, x)
    cell.factor = torch.tensor(0.7, dtype=torch.float64)
    same_as_reference(cell, x)
    cell.factor = torch.tensor(0.2, dtype=torch.float64)
    same_as_reference(cell, x)
    for factor, change in (({"all": [0.5]}, lambda f: f["all"]), (Pace([0.5]), lambda f: f.numbers)):
        cell = Listed(factor).double()
        same_as_reference(cell, x)
        change(factor)[0] = 0.9
        same_as_reference(cell, x)


def test_tensors_tied_anew_are_seen():
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    cell = tt.cells.Elman(3, 3).double()
    cell.input.weight = cell.recurrent.weight
    same_as_reference(cell, x)
    cell.input.weight = nn.Parameter(torch.randn(3, 3, dtype=torch.float64))
    same_as_reference(cell, x)


@pytest.mark.parametrize("where", ["input", "derivative", "state"])
def test_views_that_are_negated_when_read(where):
    cell = tt.cells.GRU(1, 4).double()
    z = torch.randn(3, 5, 1, dtype=torch.complex128)
    x, dy = torch.randn(3, 5, 1, dtype=torch.float64), torch.randn(3, 5, 4, dtype=torch.float64)
    state = cell.State(torch.randn(3, 4, dtype=torch.float64))
    if where == "input":
        x = z.conj().imag
    elif where == "derivative":
        dy = torch.randn(3, 5, 4, dtype=torch.complex128).conj().imag
    else:
        state = cell.State(torch._neg_view(state.h))
    found = []
    for backend in ("cpu", "reference"):
        y, _ = tt.unroll(cell, x, state, backend=backend)
        found.append([y, *torch.autograd.grad(y, list(cell.parameters()), dy)])
    close(*found)


def test_lengths_that_are_filled_again_before_the_way_back():
    cell, x = tt.cells.GRU(3, 4).double(), torch.randn(3, 5, 3, dtype=torch.float64)
    lengths = torch.tensor([5, 2, 3])
    wanted = torch.autograd.grad(tt.unroll(cell, x, lengths=[5, 2, 3])[0].sum(), list(cell.parameters()))
    y, _ = tt.unroll(cell, x, lengths=lengths)
    lengths.fill_(5)
    close(torch.autograd.grad(y.sum(), list(cell.parameters())), wanted)


def test_threads_may_meet_a_cell_that_is_new_to_all():
    cells = [Own(0.1 * k).double() for k in range(3)]
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    found: list = []

    def work(k):
        found.append((k % 3, tt.unroll(cells[k % 3], x, backend="cpu")[0].detach()))

    workers = [threading.Thread(target=work, args=(k,)) for k in range(9)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 9
    for k, y in found:
        close(y, tt.unroll(cells[k], x, backend="reference")[0].detach())


def test_another_default_device():
    cell, x = tt.cells.LSTM(3, 5), torch.randn(2, 4, 3)
    expected = gradients(cell.double(), x.double(), cell.initial_state(2), lambda *given: tt.unroll(*given))
    state = cell.initial_state(2)
    with torch.device("meta"):
        y, _ = tt.unroll(cell, x.double(), state, lengths=None, backend="cpu")
        grads = torch.autograd.grad(y.sum(), list(cell.parameters()))
    close(y, expected[0][0])
    assert all(grad.device.type == "cpu" for grad in grads)
    assert tt.unroll(cell, torch.randn(7, 3, 3).double())[0].device.type == "cpu"


def test_hooks_that_lay_saved_tensors_out_anew():
    cell, x = tt.cells.LSTM(3, 5).double(), torch.randn(2, 4, 3, dtype=torch.float64)
    wanted = torch.autograd.grad(tt.unroll(cell, x)[0].sin().sum(), list(cell.parameters()))

    def turned(tensor):
        return tensor if tensor.dim() < 3 else tensor.transpose(0, 1).contiguous().transpose(0, 1)

    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, turned):
        y, _ = tt.unroll(cell, x)
    close(torch.autograd.grad(y.sin().sum(), list(cell.parameters())), wanted)


def test_a_direction_that_no_result_is_used_of_has_no_gradient():
    one, other = tt.cells.GRU(3, 5), tt.cells.GRU(3, 5)
    x = torch.randn(2, 4, 3, requires_grad=True)
    (y, _), (_, final) = unroll_both(one, other, x)
    y.sum().backward(retain_graph=True)
    assert all(p.grad is None for p in other.parameters())
    close(x.grad, torch.autograd.grad(tt.unroll(one, x)[0].sum(), x)[0])
    final.h.sum().backward()
    assert all(p.grad is not None for p in other.parameters())


@pytest.mark.parametrize("shape", [(0, 2, 4, 3), (2, 0, 4, 3)])
def test_a_map_over_nothing(shape):
    net = tt.Recurrent(tt.cells.GRU, 3, 5)
    y = torch.func.vmap(lambda x: net(x)[0])(torch.randn(shape))
    assert y.shape == (*shape[:3], 5)
    weights, _ = torch.func.stack_module_state([net])
    none = {name: value[:0] for name, value in weights.items()}
    y = torch.func.vmap(lambda w: torch.func.functional_call(net, w, (torch.zeros(2, 4, 3),))[0])(none)
    assert y.shape == (0, 2, 4, 5)


class Complex(tt.Cell):
    """A complex state, and an operation that the test gives."""

    def __init__(self, operation):
        super().__init__(3, 4)
        self.input = nn.Linear(3, 8)
        self.operation = operation

    def initial_state(self, batch_size):
        zeros = self.input.weight.new_zeros(batch_size, 4)
        return self.State(torch.complex(zeros, zeros))

    def step(self, x, state):
        z = torch.complex(*self.input(x).chunk(2, dim=-1)) + 0.5 * state.h
        z = self.operation(z)
        return z.real + state.h.abs(), self.State(z)


@pytest.mark.parametrize(
    "operation",
    [
        lambda z: z * 2, lambda z: 1j * z, lambda z: z + 1, lambda z: z - 2j, lambda z: 1 / (z + 3), lambda z: z / 2j,
        lambda z: 2.0 - z, lambda z: z * z.abs(),
    ],
)  # fmt: skip
def test_complex_numbers_beside_plain_ones(operation):
    """From a zero state: the derivative of its size is zero there, not none."""
    cell, x = Complex(operation).double(), torch.randn(2, 5, 3, dtype=torch.float64)
    assert tt.explain(cell).backend == "cpu"
    ours, theirs = (
        gradients(cell, x, cell.initial_state(2), lambda *given, b=backend: tt.unroll(*given, backend=b))
        for backend in ("cpu", "reference")
    )
    close(ours, theirs)


@pytest.mark.parametrize(
    "operation",
    [
        lambda z: torch.view_as_complex(torch.view_as_real(z) * 2),
        lambda z: torch.add(z, z, alpha=2),
        lambda z: z[:, :1] + z,
        lambda z: torch.tanh(z),
    ],
)
def test_what_complex_numbers_cannot_do_in_a_kernel_is_told(operation):
    cell = Complex(operation).double()
    plan = tt.explain(cell)
    assert plan.backend == "reference"
    assert "complex" in str(plan)


class Maths(tt.Cell):
    """y, h = f(cell, x, h), in the hands of the test."""

    def __init__(self, function, hidden=5):
        super().__init__(3, hidden)
        self.input = nn.Linear(3, hidden)
        self.recurrent = nn.Linear(hidden, hidden)
        self.wide = nn.Linear(hidden + 1, hidden)
        self._function = function

    def step(self, x, state):
        y, h = self._function(self, x, state.h)
        return y, self.State(h)


def twice(value):
    return value, value


def compare(cell):
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    state = cell.State(torch.randn(4, cell.hidden_size, dtype=torch.float64))
    close(
        *(
            gradients(cell, x, state, lambda *given, b=backend: tt.unroll(*given, backend=b, return_states=True))
            for backend in ("cpu", "reference")
        )
    )


@pytest.mark.parametrize(
    "function",
    [
        lambda c, x, h: twice(torch.tanh((z := c.input(x) + c.recurrent(h)) + z[:, 0:1])),
        lambda c, x, h: twice(torch.tanh(c.input(x) + h[:, :1] + torch.cat([h[:, :2], h[:, :3]], 1))),
        lambda c, x, h: twice(torch.tanh((z := c.recurrent(h)) + torch.cat([z[:, 1:3], z[:, 1:4]], 1)) + 0 * x[:, :1]),
    ],
)
def test_columns_that_begin_alike_and_end_apart_each_have_their_gradient(function):
    compare(Maths(function).double())


@pytest.mark.parametrize("hidden", [5, 1])
@pytest.mark.parametrize(
    "function",
    [
        lambda c, x, h: (torch.ones_like(h), torch.tanh(c.input(x) + c.recurrent(h))),
        lambda c, x, h: (torch.tanh(c.input(x) + c.recurrent(h)), torch.zeros_like(h)),
        lambda c, x, h: twice(torch.tanh(c.input(x) + c.recurrent(h)) * torch.ones_like(h).sum(1, keepdim=True)),
        lambda c, x, h: (torch.ones_like(h) * x[:, :1], torch.tanh(c.input(x) + c.recurrent(h))),
    ],
)
def test_rows_of_one_number(function, hidden):
    compare(Maths(function, hidden).double())


def test_a_column_of_ones_for_a_bias():
    compare(Maths(lambda c, x, h: twice(torch.tanh(c.input(x) + c.wide(torch.cat([h, h[:, :1] * 0 + 1], 1))))).double())
    compare(Maths(lambda c, x, h: twice(torch.tanh(c.wide(torch.cat([c.input(x), h[:, :1]], 1))))).double())


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda c, x, h: twice(torch.tanh(c.wide(torch.cat([h, torch.ones_like(h[:, :1])], 1)))), "same for each"),
        (lambda c, x, h: twice(torch.tanh(c.input(x) + c.recurrent(h) * c.recurrent.bias[0].item())), "a number read"),
        (lambda c, x, h: twice(torch.tanh(c.input(x) + c.recurrent(h)) / x.shape[0]), "run again"),
        (lambda c, x, h: twice(c.input(x) / (1 + h[:, :1].var(1, keepdim=True))), "a variance"),
        (lambda c, x, h: twice(torch.tanh(c.input(x) + torch.cat([h, h[:, 5:]], 1))), "no columns"),
        (lambda c, x, h: twice(nn.functional.softplus(c.input(x) + c.recurrent(h), 1, 3)), "softplus"),
    ],
)
def test_what_a_kernel_cannot_do_is_told_not_raised_or_wrong(function, why):
    plan = tt.explain(Maths(function).double())
    assert plan.backend != "cpu"
    assert why in plan.refusals["cpu"]


def test_many_derivatives_as_one_in_autograds_own_way():
    cell = tt.cells.LSTM(3, 5).double()
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    many = torch.randn(3, 2, 4, 5, dtype=torch.float64)
    found = []
    for backend in ("cpu", "reference"):
        y, final = tt.unroll(cell, x, backend=backend)
        given = [y, final.c], [x, *cell.parameters()], [many, many[:, :, 0]]
        found.append(torch.autograd.grad(*given, is_grads_batched=True))
        run = functools.partial(tt.unroll, cell, backend=backend)
        found[-1] += (torch.autograd.functional.jacobian(lambda x, run=run: run(x)[0], x, vectorize=True),)
    close(*found)


def test_where_operations_are_written_down_there_are_operations():
    net = tt.Recurrent(tt.cells.GRU, 3, 5).requires_grad_(False)
    x = torch.randn(2, 4, 3)
    net(x)  # by kernels, whose results would be constants of what is traced
    with pytest.warns(tt.SlowPathWarning, match="written down"):
        traced = make_fx(lambda x: net(x)[0])(x)
    close(traced(2 * x), net(2 * x)[0])
    with FakeTensorMode(), pytest.warns(tt.SlowPathWarning, match="written down"):
        y, _ = tt.nn.LSTM(3, 5)(torch.empty(9, 11, 3))
    assert y.shape == (9, 11, 5)
    assert tt.nn.LSTM(3, 5)(torch.zeros(9, 11, 3))[0].isfinite().all()  # nothing was remembered of it


def test_hooks_on_parts_are_called():
    cell, x = tt.cells.Elman(3, 5).double(), torch.randn(2, 6, 3, dtype=torch.float64)
    same_as_reference(cell, x)
    seen = []
    for register in (cell.recurrent.register_forward_hook, nn.modules.module.register_module_forward_hook):
        hook = register(lambda module, given, made: seen.append(made.shape) or 2 * made)
        with pytest.warns(tt.SlowPathWarning, match="hooks"):
            y, _ = tt.unroll(cell, x)
        close(y, tt.unroll(cell, x, backend="reference")[0])
        hook.remove()
        same_as_reference(cell, x)
    assert set(seen) == {(2, 5)}
    prune.l1_unstructured(cell.recurrent, "weight", amount=0.5)  # by a hook of PyTorch's, which kernels see through
    same_as_reference(cell, x)


def test_a_step_that_its_class_is_given_anew_is_seen():
    class Mine(Own):
        pass

    cell, x = Mine(0.5).double(), torch.randn(2, 6, 3, dtype=torch.float64)
    same_as_reference(cell, x)
    Mine.step = lambda self, x, state: (state.h, self.State(0.5 * state.h + self.input(x)))
    same_as_reference(cell, x)


def test_nested_tensors_are_refused_in_words():
    x = torch.nested.nested_tensor([torch.randn(4, 3), torch.randn(2, 3)], layout=torch.jagged)
    for module in (tt.Recurrent(tt.cells.GRU, 3, 5), tt.nn.GRU(3, 5, batch_first=True)):
        with pytest.raises(ValueError, match="lengths"):
            module(x)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_forked_while_another_thread_compiles():
    held, child = threading.Event(), 0

    def compile_something():
        with one_at_a_time:
            held.set()
            time.sleep(0.2)

    worker = threading.Thread(target=compile_something)
    worker.start()
    held.wait()
    child = os.fork()
    if not child:
        signal.alarm(20)  # ends it where it would wait for ever
        torch.set_num_threads(1)  # PyTorch's own products, in a trace, wait for threads that are no more
        tt.unroll(tt.cells.Elman(2, 3), torch.zeros(1, 2, 2), backend="cpu")
        os._exit(0)
    worker.join()
    assert os.waitpid(child, 0)[1] == 0


def test_a_user_without_a_home(monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("THROUGHTIME_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(machine.Path, "home", nowhere)
    with pytest.warns(UserWarning, match="kernel cache cannot be"):
        same_as_reference(Own(0.123).double(), torch.randn(2, 6, 3, dtype=torch.float64))


def test_numbers_that_float_does_not_hold():
    cell = Maths(lambda c, x, h: twice(torch.tanh(c.input(x) + c.recurrent(h) - 1e39)))
    x = torch.randn(2, 4, 3)
    close(tt.unroll(cell, x, backend="cpu")[0], tt.unroll(cell, x, backend="reference")[0])


def test_a_disk_without_room_keeps_no_half_a_kernel(tmp_path, monkeypatch):
    monkeypatch.setenv("THROUGHTIME_CACHE", str(tmp_path))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(machine.os, "replace", full)
    with pytest.warns(UserWarning, match="No space left"):
        machine.write_cached("key", b"code")
    assert not list(tmp_path.iterdir())


def test_lengths_cannot_be_mapped_over():
    cell, x, lengths = tt.cells.LSTM(3, 5), torch.randn(4, 2, 6, 3), torch.tensor([[6, 3], [1, 2], [0, 0], [6, 6]])
    with pytest.raises(ValueError, match="one batch"):
        torch.func.vmap(lambda x, lengths: tt.unroll(cell, x, lengths=lengths)[0])(x, lengths)
