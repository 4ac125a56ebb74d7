"""The loop with products of the input moved out of time: always what the loop as written gives."""

import copy
import warnings
from collections import Counter
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode

import throughtime as tt
from cases import CELLS, gradients, random_case
from throughtime.engine import hoisting
from throughtime.engine.hoisting import hoisted_products

close = torch.testing.assert_close
LENGTHS = [6, 0, 3, 5]


def alike(cell, x, state, **options):
    """Outputs, states and all gradients, hoisted and as written."""

    def run(backend):
        torch.manual_seed(5)  # the cell's own noise
        return gradients(cell, x, state, lambda *a: tt.unroll(*a, **options, backend=backend))

    for one, other in zip(run("hoisted"), run("reference"), strict=True):
        close(one, other)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(
    "options",
    [{}, {"lengths": LENGTHS, "reverse": True, "return_states": True}, {"resets": torch.rand(4, 6) < 0.3}],
    ids=["plain", "ragged", "resets"],
)
def test_every_cell_gives_what_its_loop_gives(name, options):
    alike(*random_case(name), **options)


class Attentive(tt.Cell):
    """Looks back over its last states: h = tanh(W x + U r), r = sum over softmax(h_k . (Q x + h)) h_k."""

    class State(NamedTuple):
        h: torch.Tensor
        memory: torch.Tensor

    def __init__(self, inputs=3, hidden=5, slots=4):
        super().__init__(inputs, hidden)
        self.slots = slots
        self.input, self.query = nn.Linear(inputs, hidden), nn.Linear(inputs, hidden, bias=False)
        self.recurrent = nn.Linear(hidden, hidden)

    def initial_state(self, batch_size):
        zeros = self.input.weight.new_zeros(batch_size, self.slots, self.hidden_size)
        return self.State(zeros[:, 0], zeros)

    def step(self, x, state):
        h, memory = state
        scores = memory @ (self.query(x) + h)[:, :, None]  # (B, M, 1)
        read = (scores.softmax(1) * memory).sum(1)  # (B, H)
        h = torch.tanh(self.input(x) + self.recurrent(read))
        return h, self.State(h, torch.cat([memory[:, 1:], h[:, None]], 1))


def test_attention_within_a_step_runs_hoisted_and_says_so():
    torch.manual_seed(0)
    cell = Attentive().double()
    plan = str(tt.explain(cell))
    assert "backend hoisted" in plan
    assert "linear (5, 3), (5,)" in plan
    assert "linear (5, 3)\n" in plan
    assert "(5, 5)" not in plan
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    state = cell.State(torch.randn(4, 5).double(), torch.randn(4, 4, 5).double())
    with pytest.warns(tt.SlowPathWarning, match="not made of rows"):
        y, _ = tt.unroll(cell, x, state)
    close(y, tt.unroll(cell, x, state, backend="reference")[0])
    alike(cell, x, state)
    alike(cell, x, state, lengths=LENGTHS, return_states=True)


class Own(tt.Cell):
    """A step of the test's own; what it needs is there."""

    def __init__(self, own, inputs=3, hidden=5):
        super().__init__(inputs, hidden)
        self.own = own
        self.first, self.second = nn.Linear(inputs, 2 * hidden), nn.Linear(2 * hidden, hidden)
        self.matrix, self.row = nn.Parameter(torch.randn(inputs, hidden)), nn.Parameter(torch.randn(hidden))
        self.recurrent, self.norm = nn.Linear(hidden, hidden), nn.LayerNorm(hidden)
        self.register_buffer("mean", torch.zeros(inputs))
        self.calls = 0

    def step(self, x, state):
        h = torch.tanh(self.own(self, x, state.h) + self.recurrent(state.h))
        return h, self.State(h)


def changed_in_place(cell, x, h):
    made = x @ cell.matrix
    made += h
    again = x @ cell.matrix
    again.mul_(2)
    kept, last = cell.first(x), x @ cell.matrix
    functional.relu(kept, inplace=True)
    functional.relu(last, True)
    return made + again + torch.sin(kept)[:, :5] + torch.sin(last)


def changed_through_a_view(cell, x, h):
    made = cell.first(x)
    left, right = made[:, :5], made[:, 5:]  # PyTorch lets no one change chunks in place
    left += h
    right[:, 0] = 1.5
    return cell.second(made) + functional.tanh(made)[:, 5:]


def changed_through_another_view(cell, x, h):
    made = x @ cell.matrix
    made.view(-1).neg_()
    made.T[0].zero_()
    other = cell.first(x)
    other[-1].mul_(3)
    return torch.sigmoid(made) + (made * 2)[:, :1] + torch.sin(other)[:, :5]


def chained(cell, x, h):
    return cell.norm(cell.second(torch.tanh(cell.first(x)))) * cell.row + torch.addmm(
        cell.row, x[:, :2], cell.matrix[:2]
    )


def along_its_columns(cell, x, h):
    made = torch.softmax(cell.first(x), -1)
    made = torch.cat([made[:, 2:5], made[..., 5:]], dim=1)[:, :5]
    return made + made.sum(1, keepdim=True) + cell.second(cell.first(x)).mean(-1)[:, None] + made.unsqueeze(1)[:, 0]


def across_the_batch(cell, x, h):
    made = x @ cell.matrix
    made = made * cell.recurrent.weight[: len(x)] + (made[:, : len(x)] + made[:, 0]).sum(1, keepdim=True)
    made = (
        made
        - made.mean(0, keepdim=True)
        + torch.softmax(made, 0)
        + made[:1]
        + (made.t() @ made)[:1]
        + made.amax(0) * torch.tanh((x @ cell.matrix)[:1, :])
    )
    return made + torch.cat([x, x], 0)[: len(x)] @ cell.matrix + torch.cat([x @ cell.matrix] * 2, -2)[-len(x) :]


def of_the_batch_size(cell, x, h):
    return (x @ cell.matrix).reshape(len(x), 5, 1).expand(x.shape[0], 5, 2).sum(2).view_as(h)


def without_gradient_at_times(cell, x, h):
    with torch.no_grad():
        still = x @ cell.matrix
        view = x[:, :2]
    return still + x @ cell.matrix + view @ cell.matrix[:2]


def by_turns(cell, x, h):
    cell.calls += 1
    return x @ cell.matrix if cell.calls % 3 else cell.second(cell.first(x))


def by_numbers(cell, x, h):
    return x @ cell.matrix if float(x.detach().sum()) > 0 else (-x) @ cell.matrix


def with_a_running_mean(cell, x, h):
    cell.mean.lerp_(x.detach().mean(0), 0.5)
    return (x - cell.mean) @ cell.matrix


def counting(cell, x, h):
    cell.mean += 1
    return x @ cell.matrix + (x - cell.mean) @ cell.matrix


def with_the_state_in_it(cell, x, h):
    return torch.cat([x, h], 1) @ torch.cat([cell.matrix, cell.recurrent.weight]) + functional.bilinear(
        x, h, cell.recurrent.weight[:, None, :].expand(5, 3, 5)
    )


ODD = [
    changed_in_place, changed_through_a_view, changed_through_another_view, chained, along_its_columns,
    across_the_batch, of_the_batch_size, without_gradient_at_times, by_turns, by_numbers, with_a_running_mean,
    counting, with_the_state_in_it,
]  # fmt: skip


@pytest.mark.parametrize("own", ODD, ids=lambda own: own.__name__)
@pytest.mark.parametrize("batch", [4, 1, 5])  # 5: a batch that could be taken for columns
def test_whatever_a_step_does_it_gives_what_its_loop_gives(own, batch):
    torch.manual_seed(1)
    cell = Own(own).double()
    x, state = torch.randn(batch, 6, 3, dtype=torch.float64), cell.State(torch.randn(batch, 5).double())
    results = []
    for backend in ("hoisted", "reference"):
        cell.calls = 0
        cell.mean.zero_()
        results.append(gradients(cell, x, state, lambda *a, b=backend: tt.unroll(*a, backend=b)))
    for one, other in zip(*results, strict=True):
        close(one, other)
    assert cell.calls in (0, 6)


class Softened(torch.autograd.Function):
    """Gives on a tenth of the gradient."""

    @staticmethod
    def forward(ctx, a):
        return a * 1.0

    @staticmethod
    def backward(ctx, g):
        return g * 0.1


class AsItIs(Softened):
    @staticmethod
    def forward(ctx, a):
        return a.view_as(a)


def with_a_gradient_of_its_own(cell, x, h):
    return Softened.apply(x @ cell.matrix) + AsItIs.apply(x) @ cell.matrix + Softened.apply(x)[:, :2] @ cell.matrix[:2]


def of_parameters_seen_otherwise(cell, x, h):
    with torch.no_grad():
        still = cell.matrix[:2]
    return x[:, :2] @ still + x[:, :2] @ cell.matrix[:2] + (x @ cell.recurrent.weight.T[:3]) + x @ cell.heads @ cell.mix


def copied(cell, x, h):
    kept = copy.deepcopy(x.detach())
    return (kept + x) @ cell.matrix + torch.addmm(cell.recurrent.weight[: len(x)], x, cell.matrix)


@pytest.mark.parametrize(
    "own", [with_a_gradient_of_its_own, of_parameters_seen_otherwise, copied], ids=lambda own: own.__name__
)
def test_gradients_and_parameters_of_a_steps_own(own):
    torch.manual_seed(7)
    cell = Own(own)
    cell.heads, cell.mix = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4, 5))
    cell = cell.double()
    alike(cell, torch.randn(4, 6, 3, dtype=torch.float64), cell.State(torch.randn(4, 5).double()))


def test_a_stack_of_matrices_is_no_matrix():
    cell = Own(lambda cell, x, h: (x @ cell.heads).sum(0)[: len(x)]).double()
    cell.heads = nn.Parameter(torch.randn(24, 3, 5, dtype=torch.float64))  # as many as there are rows of all steps
    alike(cell, torch.randn(4, 6, 3, dtype=torch.float64), cell.State(torch.randn(4, 5).double()))


def where_it_is_finite(cell, x, h):
    return x @ cell.matrix if bool(x.detach().isfinite().all()) else h


def test_what_a_step_does_not_ask_for_has_no_part_in_a_gradient():
    x = torch.randn(2, 6, 3, dtype=torch.float64)
    x[0, 3, 1] = torch.inf
    cell = Own(where_it_is_finite).double()
    alike(cell, x, cell.State(torch.randn(2, 5).double()))


def grad_within(cell, x, h):
    with torch.enable_grad():
        leaf = h.detach().requires_grad_()
        (slope,) = torch.autograd.grad((leaf**2).sum(), leaf)
    return x @ cell.matrix + slope


def helped(cell, x, h):
    return grad_within(cell, x, h)


@pytest.mark.parametrize("own", [grad_within, helped])
def test_a_step_that_takes_derivatives_itself_runs_as_written(own):
    assert "uses grad" in tt.explain(Own(own)).refusals["hoisted"]


def test_parts_that_a_row_would_mislead_run_as_written():
    cell = Own(chained)
    cell.first.register_backward_hook(lambda *_: None)
    assert "hook" in hoisting.refusal(cell)
    cell = Own(chained)
    cell.matrix = nn.Parameter(torch.randn(3, 5).as_subclass(Doubling))
    assert "of its own kind" in hoisting.refusal(cell)
    assert "of its own kind" in tt.explain(cell).refusals["cpu"]
    with torch.inference_mode():
        assert "inference" in hoisting.refusal(Own(chained))


class Doubling(torch.Tensor):
    """Stands for weights that are more than numbers."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return super().__torch_function__(func, types, args, kwargs or {})


def test_what_is_hoisted_is_called_once():
    cell = Own(chained)
    assert hoisted_products(cell) == ["linear (10, 3), (10,)", "addmm (5,), (2, 5)"]
    assert hoisted_products(Own(across_the_batch))[0] == "matmul (3, 5)"
    weight_norm = tt.cells.LSTM(3, 5)
    parametrizations.weight_norm(weight_norm.input)
    assert hoisted_products(weight_norm) == []  # its matrix is made anew at each step


class Products(TorchDispatchMode):
    """Counts products by how many rows they have."""

    def __init__(self):
        super().__init__()
        self.rows = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.rows[args[func is torch.ops.aten.addmm.default].shape[0]] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("own", "at_once", "in_time"),
    [
        (chained, 2, 6),  # a product of a product stays in time
        (along_its_columns, 1, 12),  # as does one that is asked for again
        (by_turns, 1, 4),  # and what the first step does not call
        (counting, 1, 6),  # or is of what is no longer the input
        (with_the_state_in_it, 0, 6),
    ],
)
def test_how_many_products_are_of_all_steps(own, at_once, in_time):
    x, cell = torch.randn(4, 6, 3), Own(own)
    with torch.no_grad(), Products() as products:
        tt.unroll(cell, x, backend="hoisted")
    assert products.rows == Counter({24: at_once, 4: in_time + 6})  # and six of the state


compiled = torch.compile(torch.tanh, backend="eager")


class Compiled(tt.Cell):
    """Calls a compiled function by name."""

    def step(self, x, state):
        h = compiled(x[:, :2] + state.h[:, :2])
        return h, self.State(h)


def test_long_sequences_are_run_in_blocks(monkeypatch):
    monkeypatch.setattr(hoisting, "BLOCK", 4)
    torch.manual_seed(6)
    cell, x = Own(chained).double(), torch.randn(3, 10, 3, dtype=torch.float64)
    with torch.no_grad(), Products() as products:
        tt.unroll(cell, x, backend="hoisted")
    assert products.rows == Counter({12: 4, 6: 2, 3: 20})  # two blocks of four steps and one of two
    alike(cell, x, cell.State(torch.randn(3, 5).double()), lengths=[10, 3, 7], return_states=True)
    alike(*random_case("lstm-recurrent-dropout", batch=3, steps=10), reverse=True)


@pytest.mark.parametrize("how", ["a part", "a function", "a part's own", "by name"])
def test_a_step_that_is_compiled_in_parts_runs_as_written(how):
    cell = Compiled(3, 2) if how == "by name" else Own(chained)
    if how == "a part":
        cell.first = torch.compile(cell.first, backend="eager")
    elif how == "a function":
        cell.helper = compiled
    elif how == "a part's own":
        cell.second.compile(backend="eager")
    with pytest.raises(ValueError, match="compile"):
        tt.unroll(cell, torch.randn(4, 6, 3), backend="hoisted")


def test_a_step_without_a_product_of_the_input_runs_as_written():
    class Adding(tt.Cell):
        def step(self, x, state):
            h = torch.tanh(state.h.cumsum(1) + x.sum(1, keepdim=True))
            return h, self.State(h)

    plan = tt.explain(Adding(3, 5))
    assert plan.backend == "reference"
    assert "no product of the input" in plan.refusals["hoisted"]


def test_rows_do_not_leave_the_step():
    seen = []

    class Passing(tt.Cell):
        def step(self, x, state):
            seen.append(x)
            made = x @ self.matrix
            return made, self.State(made)

    cell = Passing(3, 5)
    cell.matrix = nn.Parameter(torch.randn(3, 5))
    y, state = tt.unroll(cell, torch.randn(2, 4, 3), backend="hoisted")
    assert type(y) is type(state.h) is torch.Tensor
    for x in seen:  # a step that keeps them has tensors
        close(x @ cell.matrix, torch.Tensor(x.tolist()) @ cell.matrix)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # PyTorch's own use of it
def test_second_derivatives_and_transforms():
    torch.manual_seed(2)
    cell = Attentive().double()
    x = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)

    def run(x):
        return tt.unroll(cell, x, backend="hoisted")[0]

    assert torch.autograd.gradgradcheck(run, (x,))
    assert torch.autograd.gradcheck(run, (x,), check_forward_ad=True)
    stacked = torch.randn(5, 2, 3, 3, dtype=torch.float64)
    close(torch.func.vmap(run)(stacked), torch.stack([run(part) for part in stacked]))
    parameters = dict(cell.named_parameters())

    def loss(parameters, x):
        return (tt.unroll(cell, x[None], parameters=parameters, backend="hoisted")[0] ** 2).sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x.detach())
    for k in range(2):
        for one, other in zip(each.values(), torch.func.grad(loss)(parameters, x.detach()[k]).values(), strict=True):
            close(one[k], other)
    close(torch.func.jacfwd(loss)(parameters, x.detach()[0]), torch.func.jacrev(loss)(parameters, x.detach()[0]))


def test_under_autocast_products_are_of_its_precision():
    cell, x = Attentive(), torch.randn(4, 6, 3)
    with torch.autocast("cpu", torch.bfloat16):
        one, other = (tt.unroll(cell, x, backend=b)[0] for b in ("hoisted", "reference"))
    close(one, other, atol=0.02, rtol=0.02)


def test_tensors_without_numbers_and_single_steps_run_as_written():
    cell = Attentive()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for steps in (0, 1):
            x = torch.randn(2, steps, 3)
            close(tt.unroll(cell, x, backend="hoisted"), tt.unroll(cell, x, backend="reference"))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, pytest.raises(ValueError, match="written down"):
        tt.unroll(cell, mode.from_tensor(torch.randn(2, 4, 3)), backend="hoisted")


def test_explaining_leaves_the_cell_as_it_was():
    cell = Own(counting)
    before = torch.get_rng_state()
    tt.explain(cell, "hoisted")
    assert not cell.mean.any()
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(ValueError, match="fails on zeros: no"):
        tt.explain(Own(refusing), "hoisted")


def refusing(cell, x, h):
    raise ValueError("no")
