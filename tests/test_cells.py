"""Every cell: its derivatives against finite differences, and its equations against another way to the same result."""

import math

import pytest
import torch

import throughtime as tt
from cases import CELLS, Leaky, fields_of, make_cell, random_case, random_state
from throughtime import cells
from throughtime.cells import CATALOGUE
from throughtime.layers import Recurrent

close = torch.testing.assert_close

# what wraps a complex state runs on the reference loop, which says that it is slow
by_reference = pytest.mark.filterwarnings("ignore::throughtime.SlowPathWarning")


def double(cell):
    """The cell in float64 with random parameters, biases included."""
    cell = cell.double().eval()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return cell


def copy_parameters(cell, **values):
    """Sets parameters by name, with . written as __."""
    with torch.no_grad():
        for name, value in values.items():
            cell.get_parameter(name.replace("__", ".")).copy_(value)


def inputs(batch=4, steps=6, features=3):
    return torch.randn(batch, steps, features, dtype=torch.float64)


def same(one, other, features=3, lengths=(6, 0, 3, 1), **options):
    """Whether two cells give the same outputs and states on a ragged batch, from the same random state."""
    x, state = inputs(features=features), random_state(one, 4)
    close(
        fields_of(tt.unroll(one, x, state, lengths=lengths, **options)),
        fields_of(tt.unroll(other, x, tuple(state), lengths=lengths, **options)),
    )


# derivatives


def check_derivatives(cell, *, each_second_one=False):
    """First and second derivatives by x, all parameters and the initial state, both directions, lengths and resets.

    The second ones in a random direction, or ``each_second_one`` apart.
    """
    steps, lengths = 3, [3, 0, 2]
    x = inputs(3, steps, cell.input_size).requires_grad_()
    state = tuple(field.requires_grad_() for field in random_state(cell, 3))
    names = [name for name, _ in cell.named_parameters()]
    parameters = tuple(value.detach().clone().requires_grad_() for value in cell.parameters())
    resets = torch.tensor([[0, 0, 1], [1, 0, 0], [0, 1, 0]], dtype=torch.bool)

    def run(reverse):
        def outputs(x, *flat):
            torch.manual_seed(7)  # the same noise each time
            stand_ins = dict(zip(names, flat[len(state) :], strict=True))
            result = tt.unroll(
                cell, x, flat[: len(state)], lengths=lengths, resets=resets, reverse=reverse, parameters=stand_ins
            )
            return tuple(fields_of(result))

        return outputs

    for reverse in (False, True):
        assert torch.autograd.gradcheck(run(reverse), (x, *state, *parameters), fast_mode=reverse)
    assert torch.autograd.gradgradcheck(run(False), (x, *state, *parameters), fast_mode=not each_second_one)


@pytest.mark.parametrize("name", CELLS)
def test_first_and_second_derivatives(name):
    check_derivatives(make_cell(name, 3, 2), each_second_one=True)


@by_reference
@pytest.mark.parametrize(
    "make",
    [
        lambda: cells.Zoneout(cells.LSTM(2, 3), h=0.4, c=0.4),
        lambda: cells.Zoneout(cells.GRU(2, 3), h=0.4),
        lambda: cells.Zoneout(cells.LRU(2, 3), h=0.4),
        lambda: cells.RecurrentDropout(cells.LSTM(2, 3), p=0.4),
        lambda: cells.RecurrentDropout(cells.GRU(2, 3, reset="before"), p=0.4),
        lambda: cells.Zoneout(cells.RecurrentDropout(cells.GRU(2, 3), p=0.4), h=0.4),
        lambda: cells.DeepTransition(cells.Zoneout(cells.Elman(2, 3), h=0.4), layers=2, shortcut=True),
        lambda: cells.LearnedInitialState(cells.RecurrentDropout(cells.Jordan(2, 3, output_size=4), p=0.4)),
    ],
)
def test_derivatives_with_noise(make):
    check_derivatives(double(make()).train())


@pytest.mark.parametrize(
    "make",
    [
        lambda: cells.Elman(2, 3, activation="sigmoid"),
        lambda: cells.Elman(2, 3, activation=torch.nn.functional.softplus),
        lambda: cells.Jordan(2, 3, output_size=4, output_activation="tanh"),
        lambda: cells.LRU(2, 3, output_size=4, radius=(0.4, 0.8), max_phase=math.pi / 5),
        lambda: cells.LayerNormLSTM(2, 3, normalise_cell=False),
        lambda: cells.ProjectedLSTM(2, 3, projection_size=2),
        lambda: cells.DeepOutput(cells.ProjectedLSTM(2, 3, projection_size=2), layers=2),
        lambda: cells.IndRNN(2, 3, activation="tanh", max_recurrent=0.7),
    ],
)
def test_derivatives_of_options(make):
    check_derivatives(double(make()))


# each equation by hand, on one step from a random state


def sigmoid(x):
    return 1 / (1 + (-x).exp())


def gates(cell, x, h, count):
    """Wx + Uh + b, one gate after another, written as sums so that no cell's own code is used."""
    flat = torch.einsum("bi,oi->bo", x, cell.input.weight) + cell.input.bias
    if hasattr(cell, "recurrent"):
        flat = flat + torch.einsum("bh,oh->bo", h, cell.recurrent.weight)
    return [flat[:, k * cell.hidden_size : (k + 1) * cell.hidden_size] for k in range(count)]


def lstm_by_hand(cell, x, h, c):
    i, f, g, o = gates(cell, x, h, 4)
    c = sigmoid(f) * c + sigmoid(i) * torch.tanh(g)
    return sigmoid(o) * torch.tanh(c), c


def original_by_hand(cell, x, h, c):
    i, g, o = gates(cell, x, h, 3)
    c = c + sigmoid(i) * torch.tanh(g)
    return sigmoid(o) * torch.tanh(c), c


def coupled_by_hand(cell, x, h, c):
    i, g, o = gates(cell, x, h, 3)
    c = (1 - sigmoid(i)) * c + sigmoid(i) * torch.tanh(g)
    return sigmoid(o) * torch.tanh(c), c


def peephole_by_hand(squash):
    def step(cell, x, h, c):
        i, f, g, o = gates(cell, x, h, 4)
        new = sigmoid(f + cell.peephole[1] * c) * c + sigmoid(i + cell.peephole[0] * c) * torch.tanh(g)
        return sigmoid(o + cell.peephole[2] * new) * squash(new), new

    return step


def layernorm_by_hand(cell, x, h, c):
    def norm(v, gain, bias=0.0):
        centred = v - v.mean(-1, keepdim=True)
        return gain * centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() + bias

    total = norm(x @ cell.input.weight.T, cell.norm_input.weight, cell.norm_input.bias)
    total = total + norm(h @ cell.recurrent.weight.T, cell.norm_recurrent.weight)
    i, f, g, o = total.chunk(4, -1)
    c = sigmoid(f) * c + sigmoid(i) * torch.tanh(g)
    return sigmoid(o) * torch.tanh(norm(c, cell.norm_cell.weight, cell.norm_cell.bias)), c


def gru_by_hand(reset, update):
    def step(cell, x, h):
        size = cell.hidden_size
        w_r, w_z, w_n = cell.input.weight.split(size)
        b_r, b_z, b_n = cell.input.bias.split(size)
        if reset == "after":
            (u_r, u_z, u_n), (d_r, d_z, d_n) = cell.recurrent.weight.split(size), cell.recurrent.bias.split(size)
        else:
            (u_r, u_z), u_n = cell.recurrent.weight.split(size), cell.recurrent_candidate.weight
            d_r = d_z = d_n = 0.0
        r = sigmoid(x @ w_r.T + b_r + h @ u_r.T + d_r)
        z = sigmoid(x @ w_z.T + b_z + h @ u_z.T + d_z)
        past = r * (h @ u_n.T + d_n) if reset == "after" else (r * h) @ u_n.T
        n = torch.tanh(x @ w_n.T + b_n + past)
        return (z * h + (1 - z) * n,) if update == "keep" else ((1 - z) * h + z * n,)

    return step


def mingru_by_hand(cell, x, h):
    z, n = gates(cell, x, h, 2)
    return ((1 - sigmoid(z)) * h + sigmoid(z) * n,)


def minlstm_by_hand(cell, x, h):
    f, i, n = gates(cell, x, h, 3)
    f, i = sigmoid(f), sigmoid(i)
    return (f / (f + i) * h + i / (f + i) * n,)


BY_HAND = {
    "elman": lambda cell, x, h: (torch.tanh(gates(cell, x, h, 1)[0]),),
    "irnn": lambda cell, x, h: (gates(cell, x, h, 1)[0].clamp(min=0),),
    "lstm": lstm_by_hand,
    "lstm-original": original_by_hand,
    "lstm-coupled": coupled_by_hand,
    "lstm-peephole": peephole_by_hand(lambda c: c),
    "lstm-peephole-chung": peephole_by_hand(torch.tanh),
    "lstm-layernorm": layernorm_by_hand,
    "gru": gru_by_hand("after", "keep"),
    "gru-cho": gru_by_hand("before", "keep"),
    "gru-chung": gru_by_hand("before", "write"),
    "gru-after-write": gru_by_hand("after", "write"),
    "additive": lambda cell, x, h: (h + torch.tanh(gates(cell, x, h, 1)[0]),),
    "additive-residual": lambda cell, x, h: (h + torch.tanh(gates(cell, x, h, 1)[0]),),
    "mingru": mingru_by_hand,
    "minlstm": minlstm_by_hand,
    "indrnn": lambda cell, x, h: ((gates(cell, x, h, 1)[0] + cell.recurrent_weight * h).clamp(min=0),),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_step_is_its_equation(name):
    cell, x, state = random_case(name)
    expected = BY_HAND[name](cell, x[:, 0], *state)
    y, new = cell.step(x[:, 0], state)
    close(tuple(new), expected)
    close(y, expected[0])


def test_jordan_recurs_through_its_output():
    cell = double(cells.Jordan(3, 5, output_size=2))
    x, last = inputs()[:, 0], torch.randn(4, 2, dtype=torch.float64)
    h = torch.tanh(x @ cell.input.weight.T + cell.input.bias + last @ cell.recurrent.weight.T)
    expected = sigmoid(h @ cell.output.weight.T + cell.output.bias)
    y, state = cell.step(x, cell.State(last))
    close(y, expected)
    close(state.y, expected)


def test_lru_is_its_sum_over_the_past():
    cell = cells.LRU(3, 5, output_size=2).double()
    x, (h0,) = inputs(), random_state(cell, 4)
    lam = torch.exp(torch.complex(-cell.nu_log.exp(), cell.theta_log.exp()))
    assert (lam.abs() < 1).all()
    real, imaginary = cell.input.weight.split(5)
    b = (1 - lam.abs() ** 2).sqrt()[:, None] * torch.complex(real, imaginary)  # (H, I)
    c_real, c_imaginary = cell.output.weight.split(5, dim=1)
    c = torch.complex(c_real, -c_imaginary)  # (O, H)
    y, _ = tt.unroll(cell, x, (h0,))
    for t in range(6):
        h = lam ** (t + 1) * h0 + sum(lam ** (t - k) * (x[:, k].to(b) @ b.T) for k in range(t + 1))
        close(y[:, t], (h @ c.T).real + x[:, t] @ cell.skip.weight.T)


# identities between cells


def test_irnn_starts_from_the_identity():
    cell = CATALOGUE["irnn"].make(3, 5)
    assert torch.equal(cell.recurrent.weight, torch.eye(5))
    assert torch.equal(cell.input.bias, torch.zeros(5))
    x = torch.zeros(2, 4, 3)
    h = torch.rand(2, 5)
    close(tt.unroll(cell, x, (h,))[0], h[:, None].expand(-1, 4, -1))  # without input it keeps what it holds


@pytest.mark.parametrize("reset", ["before", "after"])
def test_a_gru_that_writes_keeps_by_the_negated_gate(reset):
    keep = double(cells.GRU(3, 5, reset=reset))
    write = double(cells.GRU(3, 5, reset=reset, update="write"))
    write.load_state_dict(keep.state_dict())
    with torch.no_grad():
        for parameter in (write.input.weight, write.input.bias, *write.recurrent.parameters()):
            parameter[5:10].neg_()
    same(keep, write)


def test_grus_that_reset_before_and_after_differ_unless_the_product_is_diagonal():
    after, before = double(cells.GRU(3, 5)), double(cells.GRU(3, 5, reset="before"))
    u = after.recurrent.weight.detach()
    copy_parameters(after, recurrent__bias=torch.zeros(15))
    copy_parameters(
        before,
        input__weight=after.input.weight,
        input__bias=after.input.bias,
        recurrent__weight=u[:10],
        recurrent_candidate__weight=u[10:],
    )
    x, state = inputs(), random_state(after, 4)
    assert not torch.allclose(tt.unroll(after, x, state)[0], tt.unroll(before, x, state)[0])
    diagonal = torch.diag(torch.randn(5, dtype=torch.float64))
    copy_parameters(before, recurrent_candidate__weight=diagonal)
    copy_parameters(after, recurrent__weight=torch.cat([u[:10], diagonal]))
    same(after, before)


def test_a_coupled_lstm_is_an_lstm_whose_forget_gate_is_the_negated_input_gate():
    coupled, lstm = double(cells.CoupledLSTM(3, 5)), double(cells.LSTM(3, 5))

    def tied(rows):
        i, g, o = rows.split(5)
        return torch.cat([i, -i, g, o])

    with torch.no_grad():
        copy_parameters(
            lstm,
            input__weight=tied(coupled.input.weight),
            input__bias=tied(coupled.input.bias),
            recurrent__weight=tied(coupled.recurrent.weight),
        )
    same(coupled, lstm)


def test_an_original_lstm_is_an_lstm_whose_forget_gate_is_open():
    original, lstm = double(cells.OriginalLSTM(3, 5)), double(cells.LSTM(3, 5))

    def opened(rows, fill):
        i, g, o = rows.split(5)
        return torch.cat([i, torch.full_like(i, fill), g, o])

    with torch.no_grad():
        copy_parameters(
            lstm,
            input__weight=opened(original.input.weight, 0),
            input__bias=opened(original.input.bias, 1e3),
            recurrent__weight=opened(original.recurrent.weight, 0),
        )
    same(original, lstm)


def test_a_peephole_lstm_without_peepholes_is_an_lstm():
    peephole, lstm = double(cells.PeepholeLSTM(3, 5, form="chung2014")), double(cells.LSTM(3, 5))
    lstm.load_state_dict({k: v for k, v in peephole.state_dict().items() if k != "peephole"})
    copy_parameters(peephole, peephole=torch.zeros(3, 5))
    same(peephole, lstm)


def test_a_projected_lstm_whose_projection_is_the_identity_is_an_lstm():
    projected, lstm = double(cells.ProjectedLSTM(3, 5, projection_size=5)), double(cells.LSTM(3, 5))
    lstm.load_state_dict({k: v for k, v in projected.state_dict().items() if k != "projection.weight"})
    copy_parameters(projected, projection__weight=torch.eye(5))
    same(projected, lstm)


def test_an_indrnn_is_an_elman_whose_product_is_diagonal():
    indrnn, elman = double(cells.IndRNN(3, 5)), double(cells.Elman(3, 5, activation="relu"))
    copy_parameters(
        elman,
        input__weight=indrnn.input.weight,
        input__bias=indrnn.input.bias,
        recurrent__weight=torch.diag(indrnn.recurrent_weight),
    )
    same(indrnn, elman)


def test_an_additive_residual_without_its_product_is_additive():
    residual, additive = double(cells.ResidualMemory(3, 5)), double(cells.AdditiveMemory(3, 5))
    copy_parameters(residual, recurrent__weight=torch.zeros(5, 5))
    additive.input.load_state_dict(residual.input.state_dict())
    same(residual, additive)


def test_additive_memory_never_fades():
    cell = double(cells.AdditiveMemory(3, 5))
    x, h0 = inputs(), torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    y, _ = tt.unroll(cell, x, (h0,))
    close(y, h0[:, None] + torch.tanh(cell.input(x)).cumsum(1))
    (grad,) = torch.autograd.grad(y[:, -1].sum(), h0)
    close(grad, torch.ones_like(grad))


@by_reference
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["elman", "lstm", "gru-cho", "lstm-projected", "lru", "own"])
def test_wrappers_that_do_nothing(name, training):
    cell = make_cell(name)
    same(cells.Wrapper(cell).train(training), cell)
    same(cells.Zoneout(cell, h=0.0, c=0.0).train(training), cell)
    same(cells.LearnedInitialState(cell).train(training), cell)
    if hasattr(cell, "recurrent"):
        same(cells.RecurrentDropout(make_like(cell, name), p=0.0).train(training), cell)


def make_like(cell, name):
    """Another cell with the same parameters; recurrent dropout changes the one that it is given."""
    other = make_cell(name)
    other.load_state_dict(cell.state_dict())
    return other


def test_zoneout_that_keeps_all_keeps_the_state():
    cell = cells.Zoneout(double(cells.LSTM(3, 5)), h=1.0, c=1.0)
    for training in (False, True):
        x, state = inputs(), random_state(cell, 4)
        y, final = tt.unroll(cell.train(training), x, state)
        close(tuple(final), tuple(state))
        close(y, state.h[:, None].expand(-1, 6, -1))


def test_zoneout_by_hand():
    inner = double(cells.LSTM(3, 5))
    cell = cells.Zoneout(inner, h=0.3, c=0.6).eval()
    x, state = inputs()[:, 0], random_state(cell, 4)
    h, c = lstm_by_hand(inner, x, *state)
    y, new = cell.step(x, state)
    close(new.h, 0.3 * state.h + 0.7 * h)
    close(new.c, 0.6 * state.c + 0.4 * c)
    close(y, new.h)
    masks = cell.train().noise(4, 1)[0]
    assert all(((mask == 0) | (mask == 1)).all() for mask in masks)
    m_h, m_c = (mask[:, 0] for mask in masks)
    y, new = cell.step(x, state, ((m_h, m_c),))
    close(new.h, torch.where(m_h == 1, state.h, h))
    close(new.c, torch.where(m_c == 1, state.c, c))
    close(y, new.h)


def test_zoneout_keeps_at_its_rates():
    cell = cells.Zoneout(cells.LSTM(3, 50), h=0.1, c=0.6)
    (masks,) = cell.noise(40, 50)
    for mask, rate in zip(masks, (0.1, 0.6), strict=True):
        assert abs(mask.mean().item() - rate) < 0.01


def test_recurrent_dropout_by_hand():
    inner = double(cells.LSTM(3, 5))
    plain = make_like(inner, "lstm")
    cell = cells.RecurrentDropout(inner, p=0.5).train()
    x, state = inputs(), random_state(cell, 4)
    torch.manual_seed(5)
    y, _ = tt.unroll(cell, x, state)
    torch.manual_seed(5)
    mask = cell.noise(4, 6)[0][0][:, 0]
    assert set(mask.unique().tolist()) == {0.0, 2.0}
    h, c = state
    for t in range(6):
        h, c = lstm_by_hand(plain, x[:, t], h * mask, c)
        close(y[:, t], h)


def test_recurrent_dropout_of_products_by_name():
    class Named(Leaky):
        def __init__(self, input_size, hidden_size):
            super().__init__(input_size, hidden_size)
            self.products = self.recurrent
            del self.recurrent

        def step(self, x, state):
            h = self.leak * state.h + (1 - self.leak) * torch.tanh(self.input(x) + self.products(state.h))
            return h, self.State(h)

    inner = double(Named(3, 5))
    plain = Leaky(3, 5).double()
    plain.load_state_dict({name.replace("products", "recurrent"): p for name, p in inner.state_dict().items()})
    x, state = inputs(), random_state(inner, 4)
    torch.manual_seed(5)
    one = tt.unroll(cells.RecurrentDropout(inner, p=0.5, products=["products"]).train(), x, state)
    torch.manual_seed(5)
    close(fields_of(one), fields_of(tt.unroll(cells.RecurrentDropout(plain, p=0.5).train(), x, state)))


def test_a_learned_initial_state_is_learned():
    cell = cells.LearnedInitialState(cells.LSTM(3, 5).double())
    with torch.no_grad():
        for field in cell.initial:
            field.normal_()
    x = inputs()
    close(tt.unroll(cell, x), tt.unroll(cell.cell, x, tuple(f.expand(4, -1) for f in cell.initial)))
    grads = torch.autograd.grad(tt.unroll(cell, x, lengths=[3, 0, 1, 6])[0].sum(), list(cell.initial))
    assert all((grad != 0).all() for grad in grads)


def test_deep_transition_around_elman_by_hand():
    inner = double(cells.Elman(3, 5))
    for shortcut in (False, True):
        cell = double(cells.DeepTransition(inner, layers=2, activation="relu", shortcut=shortcut))
        x, (h,) = inputs(), random_state(cell, 4)
        y, _ = tt.unroll(cell, x, (h,))
        for t in range(6):
            h = torch.tanh(gates(inner, x[:, t], h, 1)[0])
            for layer in cell.transition:
                h = (h @ layer.weight.T + layer.bias).clamp(min=0) + shortcut * h
            close(y[:, t], h)


def test_deep_output_is_layers_on_the_output_alone():
    inner = double(cells.ProjectedLSTM(3, 5, projection_size=2))
    cell = double(cells.DeepOutput(inner, layers=2))
    x, state = inputs(), random_state(cell, 4)
    y, final = tt.unroll(cell, x, state)
    y1, final1 = tt.unroll(inner, x, state)
    for layer in cell.output:
        y1 = torch.tanh(layer(y1))
    close(y, y1)
    close(final, final1)


def test_residual_adds_its_input():
    inner = double(cells.GRU(5, 5))
    x, state = inputs(features=5), random_state(inner, 4)
    y, final = tt.unroll(cells.Residual(inner), x, state)
    y1, final1 = tt.unroll(inner, x, state)
    close(y, x + y1)
    close(final, final1)


# the start


@pytest.mark.parametrize("make", [cells.LSTM, cells.PeepholeLSTM, cells.ProjectedLSTM])
def test_the_forget_bias_is_set(make):
    assert (make(3, 5).input.bias[5:10] == 1).all()
    assert (make(3, 5, forget_bias=-2.0).input.bias[5:10] == -2).all()
    assert make(3, 5, forget_bias=None).input.bias[5:10].unique().numel() == 5
    assert make(3, 5).input.bias.unique().numel() == 16  # and no other is


def test_the_forget_bias_of_the_other_cells():
    assert (cells.CoupledLSTM(3, 5, forget_bias=2.0).input.bias[:5] == -2).all()
    assert (cells.LayerNormLSTM(3, 5, forget_bias=2.0).norm_input.bias[5:10] == 2).all()
    assert (cells.MinLSTM(3, 5, forget_bias=2.0).input.bias[:5] == 2).all()


def test_lru_starts_on_its_ring():
    cell = cells.LRU(3, 4000, radius=(0.5, 0.9), max_phase=1.0)
    modulus, phase = (-cell.nu_log.exp()).exp(), cell.theta_log.exp()
    assert 0.5 <= modulus.min() < 0.51
    assert 0.89 < modulus.max() <= 0.9
    assert abs(modulus.square().mean() - (0.5**2 + 0.9**2) / 2) < 0.01  # uniform on the ring's area
    assert phase.max() <= 1.0


@pytest.mark.parametrize("name", CATALOGUE)
def test_the_catalogue_counts_parameters(name):
    entry = CATALOGUE[name]
    cell = entry.make(3, 5)
    assert isinstance(cell, tt.Cell)
    assert (cell.input_size, cell.hidden_size) == (3, 5)
    assert entry.parameters(3, 5) == sum(p.numel() for p in cell.parameters()) > 0
    assert entry.family
    assert entry.equation
    assert entry.source


def test_parameters_of_known_cells():
    counts = {"elman": 45, "lstm": 180, "lstm-coupled": 135, "gru": 150, "gru-cho": 135, "mingru": 40, "indrnn": 25}
    assert {name: CATALOGUE[name].parameters(3, 5) for name in counts} == counts


# a cell of a user's own does what the built-in ones do; see also test_unroll.py, where it stands among them


def test_an_own_cell_in_layers_and_directions():
    net = Recurrent(Leaky, 3, 5, num_layers=2, bidirectional=True).double()
    y, state = net(inputs(), lengths=[6, 0, 3, 1])
    assert y.shape == (4, 6, 10)
    y.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    assert state[1][0].h.shape == (4, 5)


@pytest.mark.parametrize(
    "wrap",
    [cells.Zoneout, cells.RecurrentDropout, cells.LearnedInitialState, cells.DeepTransition, cells.DeepOutput],
)
def test_an_own_cell_in_every_wrapper(wrap):
    check_derivatives(double(wrap(Leaky(2, 3))).train())


# refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cells.LSTM(0, 5), "input_size must be a whole number"),
        (lambda: cells.LSTM(3, 5.0), "hidden_size must be a whole number"),
        (lambda: cells.Elman(3, 5, activation="tan"), "'tan' is unknown; known: tanh"),
        (lambda: cells.GRU(3, 5, reset="never"), "reset must be 'before' or 'after'"),
        (lambda: cells.GRU(3, 5, update="never"), "update must be 'keep' or 'write'"),
        (lambda: cells.PeepholeLSTM(3, 5, form="chung"), "form must be"),
        (lambda: cells.LRU(3, 5, radius=(0.9, 1.1)), "radius must be"),
        (lambda: cells.Zoneout(cells.LSTM(3, 5), h=1.5), "h must be a probability"),
        (lambda: cells.Zoneout(cells.Jordan(3, 5)), "Jordan's has none"),
        (lambda: cells.RecurrentDropout(cells.LSTM(3, 5), p=1.0), "p must be a probability below 1"),
        (lambda: cells.RecurrentDropout(cells.MinGRU(3, 5)), "no module named recurrent"),
        (
            lambda: cells.RecurrentDropout(cells.GRU(3, 5), products=["gate"]),
            "no product 'gate'; its modules: input, rec",
        ),
        (
            lambda: cells.RecurrentDropout(cells.RecurrentDropout(cells.GRU(3, 5)), products=["cell"]),
            "no product 'cell'",
        ),
        (lambda: cells.Residual(cells.LSTM(3, 5)), "input is 3, output 5"),
        (lambda: cells.DeepTransition(cells.Jordan(3, 5)), "a deep transition needs"),
        (lambda: cells.DeepTransition(cells.LSTM(3, 5), layers=0), "layers must be at least 1"),
        (lambda: cells.cell_named("lstn"), "'lstn' is unknown"),
    ],
)
def test_what_cannot_be_made_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_wrapper_wraps_a_cell():
    with pytest.raises(TypeError, match="wraps a Cell, not Linear"):
        cells.Zoneout(torch.nn.Linear(3, 5))


def test_a_cell_without_a_step_says_so():
    with pytest.raises(NotImplementedError, match=r"has to define step\(self, x, state\)"):
        tt.unroll(tt.Cell(3, 5), torch.zeros(2, 4, 3))
