"""Every way to learn through time gives the gradient it says it gives."""

import math

import pytest
import torch

import throughtime as tt
from throughtime.cells import CATALOGUE, GRU, LSTM, Elman, LearnedInitialState, RecurrentDropout, Zoneout
from throughtime.learning import initialisation as init
from throughtime.learning.checkpointed import checkpointed
from throughtime.learning.clipping_in_time import ClippedGradient
from throughtime.learning.flat import StepFunction, flatten_state, unflatten_state
from throughtime.learning.regularise import vanishing_gradient_penalty
from throughtime.learning.rtrl import RTRL, SnAp1
from throughtime.learning.truncated import truncated

DOUBLE = torch.float64


def random_case(name, batch=3, steps=7, inputs=3, hidden=4, train=False):
    torch.manual_seed(0)
    cell = CATALOGUE[name].make(inputs, hidden).to(DOUBLE).train(train)
    for parameter in cell.parameters():  # learned initial states are zero at first
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(batch, steps, inputs, dtype=DOUBLE)
    initial = cell.initial_state(batch)
    state = type(initial)(*(torch.randn_like(field) for field in initial))
    weights = torch.randn(batch, steps, cell.output_size, dtype=DOUBLE)
    return cell, x, state, weights


def gradients(cell):
    found = {name: p.grad for name, p in cell.named_parameters() if p.grad is not None}
    cell.zero_grad(set_to_none=True)
    return found


def same(found, wanted, tolerance):
    zero = torch.zeros((), dtype=DOUBLE)
    for name in {*found, *wanted}:
        torch.testing.assert_close(
            found.get(name, zero).expand_as(wanted.get(name, found.get(name))),
            wanted.get(name, zero).expand_as(found.get(name, wanted.get(name))),
            rtol=tolerance,
            atol=tolerance,
        )


# ---- truncated


def by_hand(cell, x, state, weights, k1, k2):
    """Every loss of the last k1 steps, back k2 steps, one loss and one loop at a time."""
    states = [state]
    with torch.no_grad():
        for t in range(x.shape[1]):
            states.append(cell.step(x[:, t], states[-1])[1])
    stops = sorted({*range(k1, x.shape[1] + 1, k1), x.shape[1]})
    for last, stop in zip([0, *stops], stops, strict=False):
        for t in range(last, stop):
            begin = max(0, stop - k2)
            s = states[begin]
            for step in range(begin, t + 1):
                y, s = cell.step(x[:, step], s)
            (weights[:, t] * y.square()).sum().backward()
    return gradients(cell)


@pytest.mark.parametrize("name", ["elman", "lstm", "gru-cho", "lru", "lstm-projected"])
@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (1, 4), (2, 2), (2, 3), (3, 5), (7, 7), (9, 20)])
def test_truncated_is_the_hand_built_one(name, k1, k2):
    cell, x, state, weights = random_case(name)
    for window in truncated(cell, x, k1, k2, state=state):
        (weights[:, window.start : window.stop] * window.y.square()).sum().backward()
    same(gradients(cell), by_hand(cell, x, state, weights, k1, k2), 1e-12)
    torch.testing.assert_close(window.state, type(state)(*(f.detach() for f in tt.unroll(cell, x, state)[1])))


def test_truncated_back_to_the_beginning_is_the_whole():
    cell, x, _, weights = random_case("lstm-learned-initial-state")
    lengths, resets = [7, 0, 4], torch.rand(3, 7) < 0.3
    for window in truncated(cell, x, 2, 100, lengths=lengths, resets=resets):
        (weights[:, window.start : window.stop] * window.y.square()).sum().backward()
    found = gradients(cell)
    y, _ = tt.unroll(cell, x, lengths=lengths, resets=resets)
    (weights * y.square()).sum().backward()
    same(found, gradients(cell), 1e-12)


def test_truncated_replays_noise_where_windows_overlap():
    cell = Zoneout(LSTM(3, 4), h=0.3, c=0.3).to(DOUBLE)
    x = torch.randn(2, 9, 3, dtype=DOUBLE)
    torch.manual_seed(5)
    outputs = torch.cat([window.y for window in truncated(cell, x, 2, 6)], dim=1)
    torch.manual_seed(5)
    torch.testing.assert_close(outputs, tt.unroll(cell, x)[0])


def test_truncated_takes_a_network_and_lets_it_learn_between_windows():
    torch.manual_seed(0)
    net = tt.Recurrent(GRU, 3, 4, num_layers=2)
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    x = torch.randn(2, 10, 3)
    before = [p.detach().clone() for p in net.parameters()]
    for window in truncated(net, x, 2, 6):
        optimiser.zero_grad()
        window.y.square().sum().backward()
        optimiser.step()
    assert all((a != b).any() for a, b in zip(before, net.parameters(), strict=True))


def test_truncated_refuses_what_it_cannot_do_exactly():
    x = torch.zeros(1, 4, 3)
    with pytest.raises(ValueError, match="1 <= k1 <= k2"):
        next(truncated(GRU(3, 4), x, 3, 2))
    net = tt.Recurrent(GRU, 3, 4, num_layers=2, dropout=0.5)
    with pytest.raises(ValueError, match="windows overlap"):
        next(truncated(net, x, 2, 4))
    next(truncated(net, x, 2, 2))
    next(truncated(net.eval(), x, 2, 4))


# ---- checkpointed


@pytest.mark.parametrize(
    ("name", "backend"),
    [*((name, "reference") for name in CATALOGUE), *((name, "auto") for name in ("lstm", "gru-cho", "mingru", "lru"))],
)
def test_checkpointed_has_the_gradients_of_the_whole(name, backend):
    cell, x, state, weights = random_case(name)
    lengths = torch.tensor([7, 0, 5])
    resets = torch.tensor([[0, 0, 0, 1, 0, 0, 0], [1, 0, 1, 0, 0, 0, 1], [0, 1, 0, 0, 0, 1, 0]]).bool()
    for reverse in (False, True):
        results = []
        for run in (tt.unroll, lambda *a, **k: checkpointed(*a, segments=3, **k)):
            inputs = x.clone().requires_grad_()
            start = type(state)(*(f.clone().requires_grad_() for f in state))
            y, final = run(cell, inputs, start, lengths=lengths, resets=resets, reverse=reverse, backend=backend)
            loss = (weights * y.square()).sum() + sum(f.abs().pow(3).sum() for f in final)
            loss.backward()
            results.append((y.detach(), *(f.detach() for f in final), inputs.grad, *(f.grad for f in start)))
            results[-1] = (results[-1], gradients(cell))
        torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-12, atol=1e-12)
        same(results[1][1], results[0][1], 1e-12)


@pytest.mark.parametrize("wrap", [lambda c: Zoneout(c, h=0.4, c=0.4), lambda c: RecurrentDropout(c, p=0.4)])
def test_checkpointed_replays_noise(wrap):
    torch.manual_seed(0)
    cell = wrap(LearnedInitialState(LSTM(3, 4)) if wrap(LSTM(3, 4)).__class__ is Zoneout else LSTM(3, 4)).to(DOUBLE)
    x = torch.randn(2, 10, 3, dtype=DOUBLE)
    found = []
    for run in (tt.unroll, checkpointed):
        torch.manual_seed(3)
        y, final = run(cell, x)
        (y.square().sum() + final.c.sum()).backward()
        found.append((y.detach(), gradients(cell)))
    torch.testing.assert_close(found[0][0], found[1][0])
    same(found[1][1], found[0][1], 1e-12)


def test_checkpointed_network_winds_its_dropout_back():
    torch.manual_seed(0)
    net = tt.Recurrent(LSTM, 3, 4, num_layers=2, dropout=0.5, learned_initial_state=True).to(DOUBLE)
    x = torch.randn(2, 9, 3, dtype=DOUBLE, requires_grad=True)
    torch.manual_seed(3)
    y, _ = checkpointed(net, x, lengths=[9, 4], segments=3)
    y.square().sum().backward()
    found, found_x = gradients(net), x.grad.clone()
    x.grad = None
    torch.manual_seed(3)
    state, outputs = None, []
    for start in (0, 3, 6):
        part, state = net(x[:, start : start + 3], state, lengths=(torch.tensor([9, 4]) - start).clamp(0, 3))
        outputs.append(part)
    torch.cat(outputs, 1).square().sum().backward()
    same(found, gradients(net), 1e-12)
    torch.testing.assert_close(found_x, x.grad)


def test_checkpointed_keeps_little():
    """What autograd holds between forwards and backwards, in numbers beside x, y and the parameters."""
    cell, x = LSTM(8, 16), torch.randn(4, 400, 8)
    known = {x.data_ptr(), *(p.data_ptr() for p in cell.parameters())}

    def kept(run):
        sizes = {}

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y, _ = run(cell, x)
        return sum(size for place, size in sizes.items() if place not in {*known, y.data_ptr()})

    whole = kept(lambda *a: tt.unroll(*a, backend="reference"))
    assert kept(checkpointed) * 15 < whole


def test_checkpointed_edges():
    cell = GRU(3, 4)
    assert checkpointed(cell, torch.zeros(2, 0, 3))[0].shape == (2, 0, 4)
    assert checkpointed(cell, torch.zeros(2, 5, 3), segments=99)[0].shape == (2, 5, 4)
    with pytest.raises(ValueError, match="segments"):
        checkpointed(cell, torch.zeros(2, 5, 3), segments=0)
    with pytest.raises(ValueError, match="bidirectional"):
        checkpointed(tt.Recurrent(GRU, 3, 4, bidirectional=True), torch.zeros(2, 5, 3))
    x = torch.randn(1, 6, 3)
    y, _ = checkpointed(cell, x)
    with torch.no_grad():
        cell.input.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# ---- online


def online(learner_class, cell, x, state, weights, resets=None):
    learner = learner_class(cell, x.shape[0], state)
    for t in range(x.shape[1]):
        y = learner.step(x[:, t], resets=None if resets is None else resets[:, t])
        (weights[:, t] * y.square()).sum().backward()
    return gradients(cell), learner


@pytest.mark.parametrize("name", CATALOGUE)
def test_rtrl_is_bptt(name):
    cell, x, _, weights = random_case(name)
    found, learner = online(RTRL, cell, x, None, weights)
    y, final = tt.unroll(cell, x, backend="reference")
    (weights * y.square()).sum().backward()
    same(found, gradients(cell), 1e-10)
    torch.testing.assert_close(learner.state, type(final)(*(f.detach() for f in final)))


def test_rtrl_with_a_state_resets_and_the_last_loss_only():
    cell, x, state, weights = random_case("lstm-learned-initial-state")
    resets = torch.zeros(3, 7, dtype=torch.bool)
    resets[1, 2] = resets[2, 6] = resets[0, 0] = True
    last = torch.zeros_like(weights)
    last[:, -1] = weights[:, -1]
    for w in (weights, last):
        found, _ = online(RTRL, cell, x, state, w, resets)
        y, _ = tt.unroll(cell, x, state, resets=resets, backend="reference")
        (w * y.square()).sum().backward()
        same(found, gradients(cell), 1e-10)


@pytest.mark.parametrize("name", ["indrnn", "additive", "mingru", "minlstm", "lru"])
def test_snap1_is_exact_where_units_do_not_see_each_other(name):
    cell, x, _, weights = random_case(name)
    found, _ = online(SnAp1, cell, x, None, weights)
    y, _ = tt.unroll(cell, x, backend="reference")
    (weights * y.square()).sum().backward()
    same(found, gradients(cell), 1e-10)


@pytest.mark.parametrize("name", ["elman", "lstm", "gru", "lstm-layernorm", "jordan"])
def test_snap1_is_rtrl_with_its_mask(name):
    """The dense recursion with the mask of the paper, written out."""
    cell, x, _, weights = random_case(name)
    _, learner = online(SnAp1, cell, x, None, weights)
    step = StepFunction(cell)
    parameters = {n: p.detach() for n, p in cell.named_parameters()}
    flat = flatten_state(cell.initial_state(3))
    dense = torch.zeros(3, step.size, sum(p.numel() for p in parameters.values()), dtype=DOUBLE)
    for t in range(x.shape[1]):
        new = []
        for b in range(3):

            def f(theta, s, b=b, t=t):
                return step(x[b, t], s, None, theta)[1]

            by_theta, by_s = torch.func.jacrev(f, argnums=(0, 1))(parameters, flat[b])
            immediate = torch.cat([v.reshape(step.size, -1) for v in by_theta.values()], 1)
            new.append((by_s @ dense[b] + immediate) * (immediate != 0))
        dense = torch.stack(new)
        with torch.no_grad():
            flat = flatten_state(cell.step(x[:, t], unflatten_state(flat, cell.initial_state(3)))[1])
    # what the first step cannot show (its state is zero) the pattern still holds: compare where the mask is settled
    torch.testing.assert_close(learner.influence, dense, rtol=1e-10, atol=1e-10)


def test_online_learning_learns_with_no_past_kept():
    """One step after the other, the echo of two steps ago is learned; a network that forgets cannot."""
    torch.manual_seed(0)
    cell, readout = GRU(1, 8), torch.nn.Linear(8, 1)
    learner = RTRL(cell, batch_size=8)
    optimiser = torch.optim.Adam([*cell.parameters(), *readout.parameters()], 0.02)
    x = (torch.rand(8, 402, 1) < 0.5).float()
    losses = []
    for t in range(2, 402):
        loss = (readout(learner.step(x[:, t])) - x[:, t - 2]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-20:]) / 20 < 0.05 < 0.2 < sum(losses[:20]) / 20


def test_rtrl_refuses_an_input_that_learns():
    with pytest.raises(ValueError, match="part of the cell"):
        RTRL(GRU(3, 4)).step(torch.zeros(1, 3, requires_grad=True))


# ---- clipping in time, regulariser


def test_gradient_is_clipped_at_every_step():
    cell, x, state, weights = random_case("lru")
    limit = 0.05
    clipped = ClippedGradient(cell, limit=limit)
    y, _ = tt.unroll(clipped, x, state, backend="reference")
    torch.testing.assert_close(y, tt.unroll(cell, x, state)[0])
    (weights * y).sum().backward()
    found = gradients(cell)

    def clip(g):
        return torch.complex(g.real.clamp(-limit, limit), g.imag.clamp(-limit, limit))

    states = [state.h]
    for t in range(x.shape[1]):
        states.append(cell.step(x[:, t], cell.State(states[-1]))[1].h.detach())
    back = torch.zeros_like(state.h)
    for t in reversed(range(x.shape[1])):
        h = states[t].detach().requires_grad_()
        y, new = cell.step(x[:, t], cell.State(h))
        torch.autograd.backward([y, new.h], [weights[:, t], back])
        back = clip(h.grad)
    same(found, gradients(cell), 1e-12)


@pytest.mark.filterwarnings("ignore::throughtime.SlowPathWarning")
def test_gradient_is_clipped_on_whatever_backend_is_chosen():
    cell, x, state, weights = random_case("lstm")
    found = []
    for backend in ("auto", "reference"):
        y, _ = tt.unroll(ClippedGradient(cell, limit=0.01), x, state, backend=backend)
        (weights * y).sum().backward()
        found.append(gradients(cell))
    same(*found, 1e-12)
    (weights * tt.unroll(cell, x, state)[0]).sum().backward()
    assert any((p.grad - found[0][name]).abs().max() > 0.01 for name, p in cell.named_parameters())


@pytest.mark.parametrize("name", ["elman", "lstm", "lru"])
def test_penalty_is_the_papers(name):
    cell, x, state, weights = random_case(name)
    penalty = vanishing_gradient_penalty(cell, x, lambda y: (weights * y.square()).sum(), state)
    penalty.backward()
    found = gradients(cell)
    states = [flatten_state(state)]
    step = StepFunction(cell)
    for t in range(x.shape[1]):
        states.append(flatten_state(cell.step(x[:, t], unflatten_state(states[-1], state))[1]).detach())
    total = 0
    for b in range(3):
        for k in range(x.shape[1] - 1, -1, -1):
            # dL/ds_k+1, from the steps after it
            s = states[k + 1][b : b + 1].clone().requires_grad_()
            now, loss = unflatten_state(s, state), 0
            for t in range(k + 1, x.shape[1]):
                y, now = cell.step(x[b : b + 1, t], now)
                loss = loss + (weights[b, t] * y.square()).sum()
            if name != "lru":  # y_k is h of s_k+1 itself; its loss counts too
                loss = loss + (weights[b, k] * unflatten_state(s, state).h.square()).sum()
            if not torch.is_tensor(loss):
                continue  # nothing depends on the last state
            (g,) = torch.autograd.grad(loss, s)
            by_s = torch.func.jacrev(lambda v, b=b, k=k: step(x[b, k], v)[1])(states[k][b])
            total = total + ((g[0] @ by_s).norm() / g.norm() - 1).square() / 3
    torch.testing.assert_close(penalty.detach(), total.detach())
    total.backward()
    same(found, gradients(cell), 1e-8)


# ---- initialisation


def test_recurrent_matrices_become_what_they_are_called():
    cell = RecurrentDropout(LSTM(3, 6))
    init.orthogonal_(cell, 0.5)
    for u in init.recurrent_matrices(cell):
        torch.testing.assert_close(u @ u.T, 0.25 * torch.eye(6))
    init.identity_(cell)
    torch.testing.assert_close(cell.cell.recurrent.product.weight, torch.eye(6).repeat(4, 1))
    net = tt.Recurrent(Elman, 3, 6, num_layers=2)
    init.spectral_radius_(net, 0.9)
    assert all(
        math.isclose(torch.linalg.eigvals(c.recurrent.weight).abs().max().item(), 0.9, rel_tol=1e-4)
        for c in net.forward_cells
    )
    init.singular_value_(net, 1.3)
    assert all(
        math.isclose(torch.linalg.svdvals(c.recurrent.weight)[0].item(), 1.3, rel_tol=1e-4) for c in net.forward_cells
    )
    with pytest.raises(ValueError, match="no recurrent matrix"):
        init.orthogonal_(CATALOGUE["mingru"].make(3, 4))


KEEPS = [
    "lstm",
    "lstm-peephole",
    "lstm-coupled",
    "lstm-projected",
    "gru",
    "gru-chung",
    "mingru",
    "minlstm",
    "lstm-zoneout",
]


@pytest.mark.parametrize("name", KEEPS)
def test_chrono_and_forget_bias_make_a_memory_long(name):
    """Of what the state held, a part of 1 - 1/tau is left after a step with no input and no recurrent products."""
    torch.manual_seed(0)
    cell = CATALOGUE[name].make(3, 500).to(DOUBLE).eval()
    longest = 50.0
    init.chrono_(cell, longest)
    left = _kept(cell)
    tau = 1 / (1 - left)
    assert tau.min() >= 2 - 1e-6
    assert tau.max() <= longest + 1e-6
    assert abs(tau.mean() - (longest / 2 + 1)) < 3  # tau is 1 + uniform (1, longest - 1)
    init.forget_bias_(cell, 3.0)
    if name != "minlstm":
        torch.testing.assert_close(_kept(cell), torch.full_like(left, torch.sigmoid(torch.tensor(3.0)).item()))


def _kept(cell):
    inner = cell.cell if hasattr(cell, "cell") else cell
    with torch.no_grad():
        for name, p in inner.named_parameters():
            if "bias" not in name or name == "recurrent.bias":
                p.zero_()
    state = inner.initial_state(1)
    zero, one = (type(state)(*(torch.full_like(f, v) for f in state)) for v in (0.0, 1.0))
    field = "c" if "c" in state._fields else "h"
    x = torch.zeros(1, 3, dtype=DOUBLE)
    return (getattr(inner.step(x, one)[1], field) - getattr(inner.step(x, zero)[1], field))[0].detach()


def test_initialisation_says_what_it_cannot_do():
    with pytest.raises(ValueError, match="no forget gate"):
        init.chrono_(Elman(3, 4), 10)
    with pytest.raises(ValueError, match="above 2"):
        init.chrono_(LSTM(3, 4), 1)
    with pytest.raises(ValueError, match="no eigenvalues"):
        init.spectral_radius_(CATALOGUE["lstm-projected"].make(3, 8), 1.0)


@pytest.mark.parametrize("kind", [RTRL, SnAp1])
def test_rtrl_says_what_it_takes(kind):
    with pytest.raises(TypeError, match="takes a Cell, not Recurrent; give one layer's cell"):
        kind(tt.Recurrent(tt.cells.GRU, 3, 4), 2)
    learner = kind(tt.cells.GRU(3, 4), 2)
    for shape in ((2, 9, 3), (3, 3), (2, 4), (3,)):
        with pytest.raises(ValueError, match=r"x must be one step \(B, I\), here \(2, 3\), not"):
            learner.step(torch.zeros(shape))


def test_a_size_is_not_negative():
    for change in (init.spectral_radius_, init.singular_value_):
        with pytest.raises(ValueError, match=r"is at least 0, not -0\.5"):
            change(tt.cells.Elman(3, 4), -0.5)
