"""The compiled backend: what no other backend promises, and what it has to notice."""

import gc
import os
import subprocess
import sys
import threading
import weakref
from collections import namedtuple

import pytest
import torch
from torch import nn

import throughtime as tt
from cases import CELLS, gradients, make_cell, random_state
from throughtime.engine.cpu import adjoint, graph, machine, pages
from throughtime.engine.cpu import threads as engine_threads
from throughtime.engine.cpu.complex_numbers import real_parts
from throughtime.engine.cpu.threads import LEAST_REST, Crowd
from throughtime.engine.cpu.trace import flatten, trace, widths_of

close = torch.testing.assert_close
SOME = ["elman", "jordan", "lstm", "gru-cho", "lstm-layernorm", "mingru"]


@pytest.fixture
def threads():
    """Sets PyTorch's number of threads, and sets it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def case(name, batch, steps, inputs=7, hidden=21, dtype=torch.float32):
    torch.manual_seed(1)
    cell = make_cell(name, inputs, hidden).to(dtype).eval()
    x = torch.randn(batch, steps, inputs, dtype=dtype)
    return cell, x, random_state(cell, batch)


def rows_of(state, rows):
    return type(state)(*(field[rows] for field in state))


# bitwise the same, whatever stands around


@pytest.mark.parametrize("name", SOME)
def test_a_row_is_the_same_alone_and_in_any_batch(name):
    cell, x, state = case(name, batch=13, steps=9)

    def run(cell, x, state):
        return tt.unroll(cell, x, state, backend="cpu")

    outputs, grads = gradients(cell, x, state, lambda *a: (run(*a)[0] ** 2,))
    for rows in (slice(0, 1), slice(5, 7), slice(3, 13), [12, 0, 4]):
        part, part_grads = gradients(cell, x[rows], rows_of(state, rows), lambda *a: (run(*a)[0] ** 2,))
        assert torch.equal(part[0], outputs[0][rows])
        # the derivative by the outputs is another, so only forwards is compared here; backwards below
        assert part_grads[0].shape == grads[0][rows].shape


@pytest.mark.parametrize("name", SOME)
def test_gradients_of_a_row_are_the_same_whatever_the_batch_and_the_padding(name):
    cell, x, state = case(name, batch=11, steps=9)
    dy = torch.randn(11, 9, cell.output_size)

    def gradient(x, state, dy, lengths=None):
        x = x.clone().requires_grad_()
        y, _ = tt.unroll(cell, x, state, lengths=lengths, backend="cpu")
        return torch.autograd.grad(y, x, dy)[0]

    whole = gradient(x, state, dy)
    padded = gradient(
        nn.functional.pad(x, (0, 0, 0, 5), value=3.0), state, nn.functional.pad(dy, (0, 0, 0, 5), value=2.0), [9] * 11
    )
    assert torch.equal(padded[:, :9], whole)
    assert (padded[:, 9:] == 0).all()
    for rows in (slice(2, 3), slice(4, 9)):
        assert torch.equal(gradient(x[rows], rows_of(state, rows), dy[rows]), whole[rows])


@pytest.mark.parametrize(("batch", "steps", "hidden"), [(1, 8, 130), (3, 8, 130), (14, 8, 130), (14, 70, 10)])
@pytest.mark.parametrize("name", SOME)
def test_the_number_of_threads_changes_nothing(name, batch, steps, hidden, threads):
    results = []
    for count in (1, 2, 3, 4):
        threads(count)
        cell, x, state = case(name, batch, steps=steps, inputs=40, hidden=hidden)
        lengths = [steps] + [steps - 3] * (batch - 1)
        results.append(gradients(cell, x, state, lambda *a, n=lengths: tt.unroll(*a, lengths=n)[0:1]))
    for outputs, grads in results[1:]:
        for one, other in zip((*outputs, *grads), (*results[0][0], *results[0][1]), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("name", CELLS)
def test_single_precision_is_as_near_to_double_as_pytorch_is(name):
    cell, x, state = case(name, 5, 12)

    def run(backend):
        return lambda *a: tt.unroll(*a, backend=backend)[0:1]

    exact_state = type(state)(*(field.to(torch.complex128 if field.is_complex() else torch.double) for field in state))
    exact_cell = cell.double()
    exact = gradients(exact_cell, x.double(), exact_state, run("reference"))
    cell, x, state = case(name, 5, 12)
    ours, theirs = (gradients(cell, x, state, run(backend)) for backend in ("cpu", "reference"))
    for one, other, true in zip((*ours[0], *ours[1]), (*theirs[0], *theirs[1]), (*exact[0], *exact[1]), strict=True):
        allowed = 4 * (other - true).abs().max() + 1e-6 * true.abs().max().clamp_min(1e-3)
        assert (one - true).abs().max() <= allowed


class Turning(tt.Cell):
    """A complex state beside a real one, with all that kernels know of complex numbers."""

    State = namedtuple("State", ["angle", "z"])

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.input = nn.Linear(input_size, 2 * hidden_size)
        self.turn = nn.Parameter(torch.randn(hidden_size))
        self.size = nn.Parameter(torch.rand(hidden_size))

    def initial_state(self, batch_size):
        zeros = self.turn.new_zeros(batch_size, self.hidden_size)
        return self.State(zeros, torch.complex(zeros, zeros + 1))

    def step(self, x, state):
        a, b = self.input(x).chunk(2, dim=-1)
        drive = torch.polar(torch.ones_like(a), a) - torch.complex(b, a).conj() * 0.3
        factor = torch.exp(torch.complex(-self.size, self.turn))
        z = factor * state.z / torch.complex(2 + b.tanh(), a) + drive / (1 + b.square())
        z = torch.where(b > 0, z, -z) + self.size
        angle = 0.5 * state.angle + z.abs()
        return z.imag - angle, self.State(angle, z)


def test_complex_numbers_of_an_own_cell():
    cell = Turning(3, 5).double()
    x, state = torch.randn(4, 6, 3, dtype=torch.float64), random_state(cell, 4)
    assert tt.explain(cell).backend == "cpu"
    resets = torch.rand(4, 6) < 0.3
    for options in ({}, {"lengths": [6, 0, 3, 1], "resets": resets}, {"reverse": True, "return_states": True}):
        ours, theirs = (
            gradients(cell, x, state, lambda *a, b=backend, o=options: tt.unroll(*a, backend=b, **o))
            for backend in ("cpu", "reference")
        )
        close(ours, theirs)
    stepper = tt.Stepper([cell], 4)
    stepper.state = (state,)
    y, final = tt.unroll(cell, x, state)
    for t in range(6):
        close(stepper.step(x[:, t]), y[:, t])
    close(stepper.state[0], final)


# the way from a step to a graph and its adjoint


@pytest.mark.parametrize("name", CELLS)
def test_the_graph_is_the_step_and_its_adjoint_the_derivative(name):
    cell, x, state = case(name, 4, 1, dtype=torch.float64)
    cell.train()
    noise = cell.noise(4, 1)
    parameters = dict(cell.named_parameters()) | dict(cell.named_buffers())
    step = trace(cell, parameters, widths_of(noise))
    made = step.prologue(*parameters.values())
    rows = [r.detach().requires_grad_() for r in made[: step.vectors]]
    matrices = [m.detach().requires_grad_() for m in made[step.vectors :]]
    inputs = {"x": x[:, 0]} | {f"state.{n}": f for n, f in zip(step.fields, real_parts(state), strict=True)}
    inputs |= {f"noise.{k}": part[:, 0] for k, part in enumerate(flatten(noise))}
    inputs = {n: t.detach().requires_grad_() for n, t in inputs.items()}
    roots = [step.y, *step.state]
    outputs = graph.evaluate(roots, inputs, rows, matrices)

    seeds = [(root, step.graph.input(f"d.{k}", root.width)) for k, root in enumerate(roots)]
    made_adjoint = adjoint.differentiate(step.graph, seeds)
    given = [torch.randn_like(output) for output in outputs]
    leaves = [*inputs.values(), *rows, *matrices]
    wanted = torch.autograd.grad(outputs, leaves, given, allow_unused=True, materialize_grads=True)
    by_leaf = dict(zip([*inputs, *range(len(rows)), *(f"m{k}" for k in range(len(matrices)))], wanted, strict=True))
    everything = inputs | {f"d.{k}": d for k, d in enumerate(given)}

    def value(node):
        return graph.evaluate([node], everything, rows, matrices)[0].detach()

    for name_, node in made_adjoint.inputs.items():
        close(value(node).expand_as(by_leaf[name_]), by_leaf[name_])
    total = [torch.zeros_like(row) for row in rows]
    for (number, first, _), node in made_adjoint.vectors.items():
        total[number][first : first + node.width] += value(node).sum(0)
    for number, row in enumerate(total):
        close(row, by_leaf[number])
    sums = [torch.zeros_like(matrix) for matrix in matrices]
    for (source, number), node in made_adjoint.products.items():
        sums[number] += value(node).T @ value(source)
    for number, matrix in enumerate(sums):
        close(matrix, by_leaf[f"m{number}"])


class Pointwise(tt.Cell):
    """h = f(x): what the vector functions give, number by number."""

    def __init__(self, function):
        super().__init__(1, 1)
        self.function = function

    def step(self, x, state):
        return self.function(x), self.State(self.function(x))


FUNCTIONS = {
    "exp": torch.exp,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": nn.functional.softplus,
    "relu": torch.relu,
    "sin": torch.sin,
    "cos": torch.cos,
    "abs": torch.abs,
    "sign": torch.sign,
    "silu": nn.functional.silu,
    "clamp": lambda x: x.clamp(-1.5, 2),
    "where": lambda x: torch.where(x > 0.5, x * x, -x),
    "maximum": lambda x: torch.maximum(x, 1 - x),
    "log": lambda x: (x * x + 1e-3).log(),
    "sqrt": lambda x: (x * x + 1e-3).sqrt(),
    "rsqrt": lambda x: (x * x + 1e-3).rsqrt(),
    "power": lambda x: x**3,
    "negative power": lambda x: (x * x + 0.5) ** -2,
    "masked_fill": lambda x: (x * x).masked_fill(x > 1, 0.25),
    "lerp": lambda x: torch.lerp(x, x * x, 0.3),
    "elu": lambda x: nn.functional.elu(x, 0.7),
    "selu": nn.functional.selu,
    "celu": lambda x: nn.functional.celu(x, 2.0),
    "logsigmoid": nn.functional.logsigmoid,
    "threshold": lambda x: nn.functional.threshold(x, 0.1, -3.0),
    "hardshrink": lambda x: nn.functional.hardshrink(x, 0.3),
    "softshrink": lambda x: nn.functional.softshrink(x, 0.3),
    "tan": lambda x: torch.tan(x / 24),
    "asin": lambda x: torch.asin(x / 31),
    "atan": torch.atan,
    "sinh": lambda x: torch.sinh(x / 8),
    "cosh": lambda x: torch.cosh(x / 8),
    "asinh": torch.asinh,
    "atanh": lambda x: torch.atanh(x / 31),
    "erf": torch.erf,
    "gelu": nn.functional.gelu,
    "log1p": lambda x: torch.log1p(x * x),
    "expm1": lambda x: torch.expm1(x / 8),
    "floor": lambda x: x * torch.floor(x),
    "ceil": lambda x: x * torch.ceil(x),
    "trunc": lambda x: x * torch.trunc(x),
    "round": lambda x: x * torch.round(x),
    "prelu": lambda x: nn.functional.prelu(x, torch.full((1,), 0.25, dtype=x.dtype)),
    "clamp by tensors": lambda x: torch.clamp(x, -x * x, 0.5 * x),
    "a truth as a number": lambda x: (x > 0.3).to(x.dtype) * x * x,
    "a number as a truth": lambda x: torch.where(x.relu().bool(), x * x, -x),
    "detach": lambda x: x * x.detach(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_exact_to_the_last_places(name, dtype):
    function = FUNCTIONS[name]
    x = torch.cat([torch.randn(1500) * 3, torch.linspace(-30, 30, 501), torch.randn(200) * 1e-4]).to(dtype)
    x = x.reshape(1, -1, 1).requires_grad_()
    y, _ = tt.unroll(Pointwise(function), x, backend="cpu")
    (grad,) = torch.autograd.grad(y.sum(), x)
    exact_x = x.detach().double().requires_grad_()
    # PyTorch's softplus is x itself beyond 20
    exact = torch.logaddexp(exact_x, torch.zeros_like(exact_x)) if name == "softplus" else function(exact_x)
    (exact_grad,) = torch.autograd.grad(exact.sum(), exact_x)
    places = 8 * torch.finfo(dtype).eps
    close(y.double(), exact, rtol=places, atol=places)
    close(grad.double(), exact_grad, rtol=places, atol=8 * places)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["exp", "sigmoid", "tanh", "relu", "softplus"])
def test_what_is_not_a_number_stays_so_and_infinity_has_its_limit(name, dtype):
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -1e30], dtype=dtype).reshape(1, -1, 1)
    y, _ = tt.unroll(Pointwise(FUNCTIONS[name]), x, backend="cpu")
    close(y, FUNCTIONS[name](x), equal_nan=True, rtol=1e-6, atol=1e-30)


AT_BOUNDS = {
    "elu": nn.functional.elu,
    "celu": lambda x: nn.functional.celu(x, 2.0),
    "selu": nn.functional.selu,
    "clamp": lambda x: x.clamp(-1, 3),
    "clamp by tensors": lambda x: torch.clamp(x, x * 0 - 1, x * 0 + 3),
    "clamp to the smaller bound": lambda x: torch.clamp(x, 1, 0),
    "clamp between equals": lambda x: torch.clamp(x, 0 * x + 1, 0 * x + 1),
    "relu6": nn.functional.relu6,
    "hardtanh": nn.functional.hardtanh,
    "hardsigmoid": nn.functional.hardsigmoid,
    "hardswish": nn.functional.hardswish,
    "threshold": lambda x: nn.functional.threshold(x, 1.0, -3.0),
    "hardshrink": nn.functional.hardshrink,
    "softshrink": nn.functional.softshrink,
    "leaky_relu": nn.functional.leaky_relu,
    "relu": torch.relu,
    "maximum": lambda x: torch.maximum(x, 0 * x),
}


@pytest.mark.parametrize("name", AT_BOUNDS)
def test_derivatives_at_a_functions_bounds_are_those_of_pytorch(name):
    x = torch.tensor([-3.0, -1, -0.5, 0, 0.5, 1, 3, 6, 7, -8]).double().reshape(1, -1, 1).requires_grad_()
    (ours,) = torch.autograd.grad(tt.unroll(Pointwise(AT_BOUNDS[name]).double(), x, backend="cpu")[0].sum(), x)
    (theirs,) = torch.autograd.grad(AT_BOUNDS[name](x).sum(), x)
    close(ours, theirs, atol=1e-7, rtol=1e-7)
    y = tt.unroll(Pointwise(AT_BOUNDS[name]), torch.full((1, 1, 1), torch.nan), backend="cpu")[0]
    assert y.isnan().all()


class Rowwise(tt.Cell):
    """h = tanh(f(W x + U h)): what is made of whole rows."""

    def __init__(self, function):
        super().__init__(3, 21)
        self.input, self.recurrent, self.function = nn.Linear(3, 21), nn.Linear(21, 21), function

    def step(self, x, state):
        h = torch.tanh(self.function(self.input(x) + self.recurrent(state.h)))
        return h, self.State(h)


def in_place(a):
    a += 1
    a[:, :4] *= 2
    a[:, 7] = 0.5
    a[:, -2] = a[:, 0]
    a[:, 15:] = a[:, :1]
    nn.functional.relu(a[:, 3:9], inplace=True)
    return a


ROWWISE = {
    "softmax": lambda a: a.softmax(-1) * a,
    "log_softmax": lambda a: a.log_softmax(1),
    "softmin": lambda a: nn.functional.softmin(a, 1),
    "of large numbers": lambda a: (300 * a).softmax(-1) * a,
    "logsumexp": lambda a: a - a.logsumexp(-1, keepdim=True),
    "amax": lambda a: a / (1 + a.amax(1, keepdim=True) ** 2),
    "amin": lambda a: a - a.amin(-1, True),
    "shared by equals": lambda a: a - torch.cat([a, a], 1).amax(1, keepdim=True) * a.relu().amin(1)[:, None],
    "norm": lambda a: a / a.norm(dim=1, keepdim=True),
    "norm 1": lambda a: a / a.norm(1, dim=-1, keepdim=True),
    "norm inf": lambda a: a / a.norm(torch.inf, dim=-1, keepdim=True),
    "norm of nothing": lambda a: a + (a * 0).norm(dim=1, keepdim=True),
    "normalize": lambda a: nn.functional.normalize(a, dim=1),
    "rms_norm": lambda a: nn.functional.rms_norm(a, (21,)),
    "glu": lambda a: torch.cat([nn.functional.glu(a[:, :20]), a[:, 10:]], 1),
    "roll": lambda a: a.roll(3, 1) - a.roll(-2, -1) + a.roll(21, 1),
    "one number a row": lambda a: a * (a.mean(1) + a[:, 3] * a.amax(-1))[:, None],
    "zeros": lambda a: torch.cat([a[:, :20], a.new_zeros(a.shape[0], 1)], 1),
    "expand": lambda a: a * a.sum(1, keepdim=True).expand(-1, 21),
    "in place": in_place,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ROWWISE)
def test_what_is_made_of_whole_rows(name, dtype):
    torch.manual_seed(4)
    cell = Rowwise(ROWWISE[name]).to(dtype)
    x, state = torch.randn(5, 4, 3, dtype=dtype), cell.State(torch.randn(5, 21, dtype=dtype))

    def run(backend):
        return gradients(cell, x, state, lambda *a: tt.unroll(*a, backend=backend, lengths=[4, 1, 0, 3, 4])[0])

    places = 1e-12 if dtype == torch.float64 else 1e-4
    for ours, theirs in zip(run("cpu"), run("reference"), strict=True):
        close(ours, theirs, rtol=places, atol=places)


@pytest.mark.parametrize("name", ["logsumexp", "norm", "std", "softmax"])
def test_rows_of_equal_infinite_and_missing_numbers(name):
    function = {
        "logsumexp": lambda a: a.logsumexp(1, keepdim=True),
        "norm": lambda a: a.norm(dim=1, keepdim=True),
        "std": lambda a: a.std(1, keepdim=True),
        "softmax": lambda a: a.softmax(1)[:, :1],
    }[name]

    class Whole(tt.Cell):
        def step(self, x, state):
            return function(x), self.State(function(x))

    inf, nan = torch.inf, torch.nan
    x = torch.tensor([[1.0, 1, 1], [0, 0, 0], [-inf, -inf, -inf], [inf, 0, 1], [-inf, 0, 1], [nan, 0, 1]]).double()
    close(tt.unroll(Whole(3, 1), x[:, None], backend="cpu")[0][:, 0], function(x), equal_nan=True)
    x = x[:2].requires_grad_()
    (ours,) = torch.autograd.grad(tt.unroll(Whole(3, 1), x[:, None], backend="cpu")[0].sum(), x)
    close(ours, torch.autograd.grad(function(x).sum(), x)[0])


def test_a_step_that_changes_a_buffer_is_refused_and_one_of_odd_slices_is_not():
    cell = Rowwise(lambda a: a[:, -100:21] + a[:, 3:][:, -100:1])
    assert tt.explain(cell).backend == "cpu"

    class Counting(Rowwise):
        def step(self, x, state):
            self.count += 1
            return super().step(x * self.count[:3], state)

    counting = Counting(torch.sin)
    counting.register_buffer("count", torch.zeros(21))
    assert "in place" in tt.explain(counting).refusals["cpu"]
    assert not counting.count.any()
    assert "expand" in tt.explain(Rowwise(lambda a: a * a.sum(1).expand(-1)[:, None])).refusals["cpu"]


def test_the_largest_of_a_row_is_no_number_where_one_is_none():
    class Largest(tt.Cell):
        def step(self, x, state):
            y = torch.cat([x.amax(1, keepdim=True), x.amin(1, keepdim=True)], 1)
            return y, self.State(y)

    x = torch.randn(40, 1, 39)
    x[torch.arange(39), 0, torch.arange(39)] = torch.tensor([torch.nan, torch.inf, -torch.inf]).repeat(13)
    y, _ = tt.unroll(Largest(39, 2), x, backend="cpu")
    assert torch.equal(y[:, 0, 0].isnan(), x[:, 0].isnan().any(1))
    close(y[:, 0], torch.stack([x[:, 0].amax(1), x[:, 0].amin(1)], 1), equal_nan=True)


@pytest.mark.parametrize(
    "mixed", [lambda a: a + a.sum(1), lambda a: a.sum(1) * a[:, :1], lambda a: torch.outer(a[:, 0], a[0])]
)
def test_one_number_a_sequence_is_not_taken_for_a_row(mixed):
    cell = Rowwise(lambda a: mixed(a[:, : len(a)]).sum(1, keepdim=True) + a)  # a batch of any size fits
    assert "(B,)" in tt.explain(cell).refusals["cpu"] or "batch" in tt.explain(cell).refusals["cpu"]


def test_a_network_that_diverges_shows_it():
    cell, x, state = case("lstm", 2, 6)
    with torch.no_grad():
        cell.input.weight[0, 0] = float("nan")
    y, _ = tt.unroll(cell, x, state, backend="cpu")
    assert y.isnan().any()


# what it does not take, it says


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1.0

    @staticmethod
    def backward(ctx, g):
        return 2 * g


@torch.no_grad()
def without_gradient(h):
    return h * 1.0


class Odd(tt.cells.Elman):
    """An Elman network with something done to its new state."""

    def __init__(self, odd):
        super().__init__(3, 5)
        self.odd = odd

    def step(self, x, state):
        h, _ = super().step(x, state)
        h = self.odd(h)
        return h, self.State(h)


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        (Doubled.apply, "does not give what its operations give"),
        (lambda h: without_gradient(h) + h * 0, "does not give what its operations give"),
        (lambda h: h + torch.randn_like(h), "rand"),
        (lambda h: h - h.mean(0, keepdim=True), "batch"),
        (lambda h: h.cumsum(0), "cumsum"),
        (lambda h: h * float(h.sum() > 0), "traced"),
        (lambda h: (h[:, :, None] * h[:, None, :]).sum(-1), "unsqueeze"),
    ],
)
def test_a_step_that_no_graph_holds_runs_on_the_loop_and_says_why(odd, why):
    cell = Odd(odd).double()
    plan = tt.explain(cell)
    assert plan.backend == "hoisted"
    assert why in plan.refusals["cpu"]
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    with pytest.warns(tt.SlowPathWarning, match=why):
        tt.unroll(cell, x)
    with pytest.raises(ValueError, match="cannot take Odd"):
        tt.unroll(cell, x, backend="cpu")


def test_a_change_of_the_cell_is_noticed():
    cell = tt.cells.Elman(3, 5).double()
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    for activation in (torch.tanh, torch.relu, torch.sigmoid):
        cell.activation = activation
        close(tt.unroll(cell, x, backend="cpu"), tt.unroll(cell, x, backend="reference"))
    cell = tt.cells.Zoneout(tt.cells.GRU(3, 5), h=0.1).double().eval()
    for rate in (0.1, 0.7):
        cell.rates["h"] = rate
        close(tt.unroll(cell, x, backend="cpu"), tt.unroll(cell, x, backend="reference"))
    with torch.no_grad():
        cell.cell.input.weight += 1
    close(tt.unroll(cell, x, backend="cpu"), tt.unroll(cell, x, backend="reference"))


def test_kernels_do_not_keep_a_cell_alive():
    cell = tt.cells.LSTM(3, 5)
    tt.unroll(cell, torch.randn(2, 4, 3))[0].sum().backward()
    alive = weakref.ref(cell)
    del cell
    gc.collect()
    assert alive() is None


# memory


@pytest.mark.skipif(sys.platform != "linux", reason="memory is used again on Linux")
def test_memory_is_used_again_and_no_more_is_kept_than_was_in_use(monkeypatch):
    store = pages.Store()
    monkeypatch.setattr(pages, "store", store)
    like, rows = torch.zeros((), dtype=torch.double), pages.LARGE // 8
    one, other = (pages.used_again(like, 2, rows) for _ in range(2))
    one.fill_(1.0), other.fill_(2.0)
    assert (one == 1).all()
    assert not store.free
    place, part = one.data_ptr(), other[1]
    del one, other
    assert len(store.free) == 1  # the other has a part in use
    again = pages.used_again(like, rows + 3)
    assert again.data_ptr() == place
    assert again.shape == (rows + 3,)
    assert (part == 2).all()
    del again, part
    larger = pages.used_again(like, 3, rows)  # nothing fits, so two make room
    assert not store.free
    del larger
    assert [len(m) for m in store.free] == [24 * rows]
    small = pages.used_again(like, 7)
    assert small.untyped_storage().resizable()  # PyTorch's own
    monkeypatch.setattr(pages, "KEPT", 8 * rows)
    del store.free[:]
    made = pages.used_again(like, 2, rows)
    del made
    assert not store.free


@pytest.mark.skipif(sys.platform != "linux", reason="memory is used again on Linux")
def test_what_is_kept_for_a_way_back_is_not_given_out_before_it(monkeypatch):
    monkeypatch.setattr(pages, "LARGE", 1)
    cell, x, state = case("lstm", 5, 12)

    def run(backend):
        own = x.clone().requires_grad_()
        return own, [tt.unroll(cell, scale * own, state, backend=backend)[0] for scale in (1, 2, 3)]

    results = []
    for backend in ("cpu", "reference"):
        own, ys = run(backend)
        results.append([torch.autograd.grad(y.square().sum(), own, retain_graph=True)[0] for y in (*ys[::-1], *ys)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# threads, forks, the cache


def test_several_python_threads_at_once():
    cell, x, state = case("lstm", 12, 30, hidden=64)
    expected = tt.unroll(cell, x, state, backend="cpu")[0]
    wrong = []

    def work():
        for _ in range(20):
            if not torch.equal(tt.unroll(cell, x, state, backend="cpu")[0], expected):
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def run_script(text, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", text],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


PLAIN = """
import torch, throughtime as tt
torch.manual_seed(0)
cell = tt.cells.LSTM(6, 37)
x = torch.randn(9, 8, 6, requires_grad=True)
def run(backend):
    y, _ = tt.unroll(cell, x, lengths=[8, 3, 0, 8, 1, 5, 2, 8, 7], backend=backend)
    return [y, *torch.autograd.grad((y * y).sum(), [x, *cell.parameters()])]
def check():
    for one, other in zip(run("cpu"), run("reference")):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks as Linux does")
def test_a_forked_process_goes_on_by_itself():
    script = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, from Python 3.12 on: it is the point
torch.set_num_threads(2)
check()
expected = tt.unroll(cell, x, backend="cpu")[0].detach()
child = os.fork()
if child == 0:  # PyTorch's own products wait for threads that are no more; ours do not
    with torch.no_grad():
        os._exit(not tt.unroll(cell, x, backend="cpu")[0].equal(expected))
status = os.waitpid(child, 0)[1]
check()
sys.exit(status)
"""
    result = run_script(PLAIN + script)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("isa", ["avx2", "avx512", "neon"])
def test_each_set_of_instructions_that_the_machine_has(isa):
    feature = {"avx2": "+avx2", "avx512": "+avx512f", "neon": "+neon"}[isa]
    if feature not in machine.host_features().split(","):
        pytest.skip(f"this machine has no {isa}")
    result = run_script(PLAIN + "check()", THROUGHTIME_ISA=isa)
    assert result.returncode == 0, result.stderr


def test_a_damaged_cache_is_made_anew(tmp_path):
    assert run_script(PLAIN + "check()", THROUGHTIME_CACHE=str(tmp_path)).returncode == 0
    files = list(tmp_path.iterdir())
    assert len(files) >= 2
    for file in files:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    result = run_script(
        "import warnings; warnings.simplefilter('default')\n" + PLAIN + "check()", THROUGHTIME_CACHE=str(tmp_path)
    )
    assert result.returncode == 0, result.stderr
    assert "damaged" in result.stderr
    result = run_script(PLAIN + "check()", THROUGHTIME_CACHE=str(tmp_path))
    assert result.returncode == 0, result.stderr  # warnings are errors: the cache is whole again


def test_a_cache_that_cannot_be_written_is_skipped_with_a_warning(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    script = "import warnings; warnings.simplefilter('default')\n" + PLAIN + "check()"
    result = run_script(script, THROUGHTIME_CACHE=str(blocked))
    assert result.returncode == 0, result.stderr
    assert "cannot be" in result.stderr


def test_two_processes_may_compile_at_once(tmp_path):
    environment = os.environ | {"THROUGHTIME_CACHE": str(tmp_path)}
    command = [sys.executable, "-W", "error", "-c", PLAIN + "check()"]
    processes = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert all(len(file.name) == 64 for file in tmp_path.iterdir()), "a temporary file is left"


def test_a_cell_may_keep_masks_and_counts():
    class Sparse(tt.Cell):
        """Connected where a mask is true, and scaled by a count."""

        def __init__(self, input_size, hidden_size):
            super().__init__(input_size, hidden_size)
            self.weight = nn.Parameter(torch.randn(hidden_size, hidden_size))
            self.register_buffer("mask", torch.rand(hidden_size, hidden_size) < 0.5)
            self.register_buffer("on", torch.arange(hidden_size) % 2 == 0)
            self.register_buffer("count", torch.tensor(2))

        def step(self, x, state):
            h = torch.tanh(x + (state.h @ (self.weight * self.mask)) / self.count)
            h = torch.where(self.on, h, x) + 0.1 * self.on
            return h, self.State(h)

    cell = Sparse(5, 5)
    x, state = torch.randn(3, 6, 5), cell.State(torch.randn(3, 5))
    ours, theirs = (
        gradients(cell, x, state, lambda *a, b=b: tt.unroll(*a, backend=b)[:1]) for b in ("cpu", "reference")
    )
    close(ours, theirs)


@pytest.mark.parametrize("batch", [2, 9])  # columns split, rows dealt out
def test_where_other_processes_hold_the_cores_threads_do_not_meet(batch, monkeypatch, threads):
    threads(2)
    cell, x, state = case("lstm", batch, steps=20, inputs=40, hidden=130)
    crowd, teams = Crowd(), []
    seen = crowd.seen
    monkeypatch.setattr(crowd, "seen", lambda *_: None)  # what happens to run beside this test is not to count
    monkeypatch.setattr(engine_threads, "crowd", crowd)
    run = engine_threads.run
    monkeypatch.setattr(engine_threads, "run", lambda works: (teams.append(works[0].hands), run(works)))
    alone = tt.unroll(cell, x, state)[0]
    seen(0.0, 0.04)
    seen(0.01, 0.01)  # a long wait, but not of the time of both
    assert not crowd.here()
    for _ in range(3):
        seen(0.01, 0.04)
        seen(0.01, 0.02)
    assert crowd.here()
    assert crowd.rest == pytest.approx(4 * LEAST_REST)
    assert engine_threads.hands_to_meet() == 1
    assert torch.equal(tt.unroll(cell, x, state)[0], alone)
    seen(0.01, 0.06)
    assert not crowd.here()
    assert teams == [2, 1]
