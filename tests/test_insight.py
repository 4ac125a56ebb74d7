"""What the views inside say agrees with what is known of the recurrence."""

import io
import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import throughtime as tt
from throughtime.cells import CATALOGUE, GRU, LSTM, AdditiveMemory, Elman, IndRNN
from throughtime.insight.fixed_points import fixed_points
from throughtime.insight.gates import gates
from throughtime.insight.gradient_flow import gradient_flow
from throughtime.insight.jacobian import jacobian_spectrum
from throughtime.insight.memory import memory
from throughtime.insight.monitor import Monitor, TrainingWarning
from throughtime.insight.report import write_report
from throughtime.insight.sections import course_section, inside_sections
from throughtime.insight.states import States, inside, position_in_line, states
from throughtime.insight.textbook import textbook, textbook_figure
from throughtime.learning import initialisation as init
from throughtime.learning.flat import StepFunction, flatten_state

DOUBLE = torch.float64


def linear_elman(u, inputs=3):
    """h_t = W x_t + U h_{t-1}, whose Jacobian is U everywhere."""
    cell = Elman(inputs, len(u), activation="identity").to(DOUBLE)
    with torch.no_grad():
        cell.recurrent.weight.copy_(u)
    return cell


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_view_takes_every_cell(name):
    torch.manual_seed(0)
    cell = CATALOGUE[name].make(3, 4).eval()
    x = torch.randn(2, 12, 3)
    views = [
        gradient_flow(cell, x),
        *jacobian_spectrum(cell, x),
        *memory(cell, x),
        gates(cell, x),
        states(cell, x, text="abcdefghijk\n"),
        fixed_points(cell, x, starts=3, iterations=5),
    ]
    for view in views:
        assert view.sentence.endswith(".")
    if name in ("irnn", "lstm", "lru"):  # no gates; two fields; a complex state
        for view in views:
            picture = io.BytesIO()
            view.figure().savefig(picture, dpi=40)
            assert len(picture.getvalue()) > 1000


def test_flow_is_the_norm_of_the_gradient():
    """Against d L_t / d s_k from torch.func on a composition of steps."""
    torch.manual_seed(0)
    for cell in (LSTM(3, 4).to(DOUBLE), CATALOGUE["lru"].make(3, 4).to(DOUBLE)):
        x = torch.randn(1, 6, 3, dtype=DOUBLE)
        flow = gradient_flow(cell, x, lambda y: y.pow(3).sum(-1), at=[5])
        step = StepFunction(cell)
        flat = [flatten_state(cell.initial_state(1))[0]]
        for t in range(6):
            flat.append(step(x[0, t], flat[-1])[1].detach())
        for lag in range(1, 6):

            def loss(s, first=6 - lag, step=step, x=x):
                y = None
                for t in range(first, 6):
                    y, s = step(x[0, t], s)
                return y.pow(3).sum()

            grad = torch.func.grad(loss)(flat[6 - lag])
            wanted = {"h": grad[:4], "c": grad[4:]} if len(flow.curves) == 2 else {"h": grad}
            for field, part in wanted.items():
                assert flow[field].norms[lag] == pytest.approx(part.norm().item(), rel=1e-10)


def test_rate_and_spectrum_of_a_matrix_that_is_known():
    torch.manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(6, 6, dtype=DOUBLE))
    eigenvalues = torch.tensor([1.1, 0.9, 0.7, 0.5, 0.3, 0.2], dtype=DOUBLE)
    skewed = torch.randn(6, 6, dtype=DOUBLE) + 3 * torch.eye(6)
    u = skewed @ torch.diag(eigenvalues) @ torch.linalg.inv(skewed)
    for matrix, rate in ((0.8 * q, 0.8), (u, 1.1)):
        cell, x = linear_elman(matrix), torch.randn(2, 160, 3, dtype=DOUBLE)
        (spectrum,) = jacobian_spectrum(cell, x)
        np.testing.assert_allclose(spectrum.singular_values[5], torch.linalg.svdvals(matrix).numpy(), rtol=1e-10)
        np.testing.assert_allclose(spectrum.spectral_radius, rate, rtol=1e-10)
        assert spectrum.rate == pytest.approx(rate, rel=1e-3)
        flow = gradient_flow(cell, x)
        assert flow["h"].rate == pytest.approx(rate, rel=1e-3)
        assert flow.verdict == ("vanishing" if rate < 1 else "exploding")
    np.testing.assert_allclose(spectrum.lyapunov, eigenvalues.log().numpy(), atol=0.01)


def test_spectrum_of_one_field_is_its_block():
    torch.manual_seed(0)
    cell, x = LSTM(3, 4).to(DOUBLE), torch.randn(1, 5, 3, dtype=DOUBLE)
    (spectrum,) = jacobian_spectrum(cell, x, field="c")
    with torch.no_grad():
        gate = cell.input(x) + cell.recurrent(torch.cat([torch.zeros(1, 1, 4), tt.unroll(cell, x)[0][:, :-1]], 1))
    forget = gate[0, :, 4:8].sigmoid()  # dc_t/dc_{t-1} with h held is the forget gate
    np.testing.assert_allclose(spectrum.singular_values, forget.sort(descending=True).values.numpy(), rtol=1e-10)
    with pytest.raises(ValueError, match="no state of this network has a field"):
        jacobian_spectrum(cell, x, field="z")


@pytest.mark.parametrize("options", [{"bidirectional": True, "dropout": 0.5}, {"learned_initial_state": True}])
def test_views_take_networks_of_layers_within_models(options):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(7, 3)
            self.recurrent = tt.Recurrent(LSTM, 3, 4, num_layers=2, **options)
            self.head = torch.nn.Linear(self.recurrent.output_size, 2)

        def forward(self, tokens, state=None):
            y, state = self.recurrent(self.embedding(tokens), state)
            return self.head(y), state

    torch.manual_seed(0)
    model = Model()
    cells = list(model.recurrent.forward_cells)
    names = list(model.state_dict())
    tokens = torch.randint(0, 7, (2, 9))
    flow = gradient_flow(
        model, tokens, lambda y: torch.nn.functional.cross_entropy(y.transpose(1, 2), tokens % 2, reduction="none")
    )
    assert len(flow.curves) == len(cells) * 2 * (2 if "bidirectional" in options else 1)
    assert all(np.isfinite(curve.norms[1:5]).all() for curve in flow.curves)
    assert len(jacobian_spectrum(model, tokens)) == len(flow.curves) // 2
    assert {gate.layer for gate in gates(model, tokens).gates} == {c.name.rsplit(" ", 1)[0] for c in flow.curves}
    # looking leaves everything as it was
    assert list(model.recurrent.forward_cells) == cells
    assert list(model.state_dict()) == names
    assert model.training


def test_views_say_what_they_cannot_see():
    with pytest.raises(ValueError, match=r"no throughtime\.Recurrent"):
        gradient_flow(torch.nn.Linear(3, 3), torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="no step to see"):
        memory(GRU(3, 4), torch.zeros(1, 0, 3))
    with pytest.raises(ValueError, match="one number a sequence and step"):
        gradient_flow(GRU(3, 4), torch.zeros(1, 5, 3), lambda y: y.sum())
    with pytest.raises(ValueError, match="one length"):
        gradient_flow(tt.Recurrent(GRU, 3, 4, bidirectional=True), torch.zeros(1, 5, 3), lengths=[3])


def test_padding_carries_no_gradient():
    torch.manual_seed(0)
    cell, x = GRU(3, 4).to(DOUBLE), torch.randn(2, 9, 3, dtype=DOUBLE)
    both = gradient_flow(cell, x, at=[4], lengths=[9, 3])
    alone = gradient_flow(cell, x[:1], at=[4])
    np.testing.assert_allclose(both["h"].norms, alone["h"].norms)
    found = gates(cell, x, lengths=[9, 3])
    assert {gate.values.shape for gate in found.gates} == {(12, 4)}
    one, other = gates(cell, x[:1]).gates[0], gates(cell, x[1:, :3]).gates[0]
    np.testing.assert_allclose(
        np.sort(found.gates[0].values, 0), np.sort(np.concatenate([one.values, other.values]), 0)
    )


def test_memory_is_what_an_input_changes():
    torch.manual_seed(0)
    u = torch.diag(torch.tensor([0.5, 0.9, 0.99], dtype=DOUBLE))
    (result,) = memory(linear_elman(u), torch.randn(1, 60, 3, dtype=DOUBLE))
    np.testing.assert_allclose(result.time_constant, [-1 / math.log(0.5), -1 / math.log(0.9), -1 / math.log(0.99)])
    assert list(result.half_life) == [1, 7, math.inf]  # 0.9^7 is the first below a half
    lags = np.arange(60)
    for unit, kept in enumerate((0.5, 0.9, 0.99)):
        np.testing.assert_allclose(result.by_unit[:, unit] / result.by_unit[0, unit], kept**lags, rtol=1e-9)

    cell, x = LSTM(3, 4).to(DOUBLE), torch.randn(1, 7, 3, dtype=DOUBLE)
    (result,) = memory(cell, x)
    by_x = torch.autograd.functional.jacobian(
        lambda x: torch.cat(tuple(tt.unroll(cell, x)[1]), 1)[0], x
    )  # (S, 1, T, I)
    np.testing.assert_allclose(result.by_unit[::-1].T, by_x[:, 0].norm(dim=2).numpy(), rtol=1e-9)


def test_gates_are_the_gates():
    torch.manual_seed(0)
    cell, x = LSTM(3, 4).to(DOUBLE), torch.randn(1, 6, 3, dtype=DOUBLE)
    found = {gate.name: gate for gate in gates(cell, x).gates}
    with torch.no_grad():
        pre = cell.input(x) + cell.recurrent(torch.cat([torch.zeros(1, 1, 4), tt.unroll(cell, x)[0][:, :-1]], 1))
    np.testing.assert_allclose(found["f"].values, pre[0, :, 4:8].sigmoid().numpy())
    np.testing.assert_allclose(found["tanh(g)"].values, pre[0, :, 8:12].tanh().numpy())
    init.forget_bias_(cell, 20.0)
    shut = {gate.name: gate for gate in gates(cell, x).gates}
    assert shut["f"].stuck == 1
    assert (shut["f"].right == 1).all()
    assert "f is stuck" in gates(cell, x).sentence
    assert shut["f"].histogram[0].sum() == 24


def test_gates_of_an_own_cell_have_its_names():
    class Own(tt.Cell):
        def __init__(self, input_size, hidden_size):
            super().__init__(input_size, hidden_size)
            self.product = torch.nn.Linear(input_size + hidden_size, 2 * hidden_size)
            self.squash = torch.nn.Sigmoid()

        def step(self, x, state):
            a, b = self.product(torch.cat([x, state.h], -1)).chunk(2, -1)
            leak = self.squash(a)
            h = leak * state.h + (1 - leak) * torch.nn.functional.tanh(b)
            return h, self.State(h)

    found = gates(Own(3, 4), torch.zeros(1, 5, 3)).gates
    assert [(gate.name, gate.function) for gate in found] == [("leak", "sigmoid"), ("tanh(b)", "tanh")]
    names = {
        name: [g.name for g in gates(CATALOGUE[name].make(3, 3), torch.zeros(1, 2, 3)).gates] for name in CATALOGUE
    }
    assert names["gru"] == ["r", "z", "n"]
    assert names["lstm-peephole"] == ["f", "i", "tanh(g)", "o"]
    assert names["irnn"] == []


def test_states_are_those_of_the_run():
    torch.manual_seed(0)
    net = tt.Recurrent(LSTM, 3, 4, num_layers=2, bidirectional=True)
    x = torch.randn(2, 5, 3)
    _, _, all_states = net(x, return_states=True, backend="reference")
    for layer, (depth, direction) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
        seen = states(net, x, layer=layer, field="c", row=1)
        np.testing.assert_allclose(
            seen.values, all_states[depth][direction].c[1].detach().numpy(), rtol=1e-5, atol=1e-6
        )
    with pytest.raises(ValueError, match="not 'z'"):
        states(net, x, field="z")
    with pytest.raises(ValueError, match="pieces of text"):
        states(net, x, text="abc")


def test_units_that_respond_are_found():
    text = 'he said "no" and\nleft "now" ok'
    rng = np.random.default_rng(0)
    values = rng.normal(size=(len(text), 5))
    values[:, 3] = -2.0 * np.array(inside(text)) + 0.1 * rng.normal(size=len(text))
    values[:, 1] = 7.0
    seen = States("h", values, tuple(text))
    unit, correlation = seen.responding(inside(text))[0]
    assert unit == 3
    assert correlation < -0.9
    assert dict(seen.responding(position_in_line(text)))[1] == 0  # a unit that never changes responds to nothing
    assert "1 of 5 never change" in seen.sentence


def test_fixed_points_of_two_wells():
    """h = tanh(2 h) in each of two units: nine fixed points, four of them stable."""
    cell = IndRNN(1, 2, activation="tanh").to(DOUBLE)
    with torch.no_grad():
        cell.recurrent_weight.fill_(2.0)
        cell.input.bias.zero_()
    torch.manual_seed(0)
    found = fixed_points(cell, 2 * torch.randn(20, 30, 1, dtype=DOUBLE), starts=300, spread=1.0)
    assert len(found.points) == 9
    assert sorted(found.unstable_directions) == [0] * 4 + [1] * 4 + [2]
    assert int(found.stable.sum()) == 4
    np.testing.assert_allclose(np.tanh(2 * found.points), found.points, atol=1e-9)
    np.testing.assert_allclose(np.abs(found.points[found.stable]), 0.9575040, atol=1e-6)
    np.testing.assert_allclose(np.abs(found.eigenvalues[found.stable]).max(), 2 * (1 - 0.9575040**2), atol=1e-5)


def test_textbook_rates_agree_with_the_spectrum():
    results = textbook(hidden=32, steps=150, sequences=2)
    for result in results:
        assert abs(result.difference) < 0.05, result.name
    verdicts = [result.flow.verdict for result in results]
    assert verdicts[1] == "exploding"
    assert verdicts[0] == verdicts[2] == verdicts[4] == "vanishing"
    assert verdicts[3] == verdicts[5] == "holding"
    assert isinstance(textbook_figure(results), Figure)


# ---- the monitor


def train(network, steps=50, rate=0.01, length=40):
    """A small regression on the input of some steps ago, as a user would write it."""
    readout = torch.nn.Linear(network.output_size, 1)
    optimiser = torch.optim.SGD([*network.parameters(), *readout.parameters()], rate)
    for _ in range(steps):
        x = torch.randn(4, length, 3)
        y, _ = network(x)
        loss = (readout(y)[:, 5:] - x[:, :-5, :1]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def watched(network, **options):
    said = []
    monitor = Monitor(network, say=said.append)
    train(network, **options)
    monitor.close()
    return said, monitor


def test_monitor_names_a_run_that_explodes():
    for activation, gain in (("tanh", 6.0), ("relu", 3.0), ("identity", 1.5)):
        torch.manual_seed(0)
        network = tt.Recurrent(Elman, 3, 32, activation=activation)
        init.orthogonal_(network, gain)
        said, _ = watched(network)
        assert sum("explode" in text for text in said) == 1, activation
        assert "clipping" in said[0]


def test_monitor_names_a_run_that_vanishes():
    torch.manual_seed(0)
    network = tt.Recurrent(Elman, 3, 16, num_layers=2)
    init.orthogonal_(network, 0.2)
    said, monitor = watched(network)
    assert sum("vanish" in text for text in said) == 1
    assert monitor.numbers["flow layer 0 h"] < 0.3
    assert said == monitor.warnings
    assert monitor({})["monitor"] == said
    assert "monitor" not in monitor({})  # once is enough


def test_monitor_says_nothing_of_a_healthy_run():
    for cell, rate in ((LSTM, 0.01), (GRU, 0.01), (AdditiveMemory, 1e-4)):
        torch.manual_seed(0)
        said, monitor = watched(tt.Recurrent(cell, 3, 16), rate=rate)
        assert said == []
        assert 0.5 < monitor.numbers["flow layer 0 h"] < 1.1


def test_monitor_names_gates_that_are_stuck_and_units_that_are_dead():
    torch.manual_seed(0)
    stuck = tt.Recurrent(LSTM, 3, 16)
    with torch.no_grad():
        stuck.forward_cells[0].input.bias[48:] = -20.0
    said, monitor = watched(stuck, steps=1)
    assert any("o is saturated: it stands shut" in text for text in said)
    assert monitor.numbers["stuck layer 0 o"] == 1
    dead = tt.Recurrent(Elman, 3, 16, activation="relu")
    with torch.no_grad():
        dead.forward_cells[0].input.bias.fill_(-20.0)
    said, monitor = watched(dead, steps=1)
    assert any("units die" in text for text in said)
    assert monitor.numbers["dead layer 0"] == 1


def test_monitor_changes_nothing():
    """With and without it a run with dropout ends in the same weights, bitwise."""
    ends = []
    for watch in (False, True):
        torch.manual_seed(0)
        network = tt.Recurrent(LSTM, 3, 5, num_layers=2, dropout=0.5)
        monitor = Monitor(network, every=1) if watch else None
        train(network, steps=5)
        ends.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
        assert monitor is None or monitor({})
    assert torch.equal(*ends)


def test_monitor_looks_at_the_real_part_of_ragged_batches_and_at_carried_states():
    torch.manual_seed(0)
    network = tt.Recurrent(GRU, 3, 5, bidirectional=True)
    monitor = Monitor(network, every=1)
    network(torch.randn(4, 9, 3), lengths=[0, 9, 2, 7])
    assert monitor.numbers
    one_way = tt.Recurrent(GRU, 3, 5)
    Monitor(one_way, every=1)
    _, state = one_way(torch.randn(4, 9, 3))
    one_way(torch.randn(4, 9, 3), state)
    one_way(torch.randn(4, 1, 3), state)
    one_way(torch.randn(0, 5, 3))


def test_monitor_warns_as_python_does_unless_told_otherwise():
    torch.manual_seed(0)
    network = tt.Recurrent(Elman, 3, 16)
    init.orthogonal_(network, 0.1)
    Monitor(network)
    with pytest.warns(TrainingWarning, match="after 1 training step, gradients vanish"):
        network(torch.randn(2, 20, 3))
    with pytest.raises(ValueError, match=r"no throughtime\.Recurrent"):
        Monitor(torch.nn.Linear(2, 2))


# ---- the report


@pytest.mark.parametrize("name", ["irnn", "lru"])
def test_sections_make_a_report(tmp_path, name):
    torch.manual_seed(0)
    text = 'he "no" or\nleft "now"'
    network = tt.Recurrent(CATALOGUE[name].make, 3, 5, num_layers=2).eval()
    found = inside_sections(network, torch.randn(1, len(text), 3), text=text)
    course = course_section([{"step": 1}, {"step": 2, "flow layer 0 h": 0.9, "monitor": ["gradients vanish"]}])
    assert course_section([{"step": 1, "loss": 2.0}]) is None
    assert any("gradients vanish" in sentence for sentence in course.sentences)
    assert {"Gradients through time", "States", "Units that follow quotes"} <= {section.title for section in found}
    write_report(tmp_path / "report.html", title="t", lead="l", sections=[*found, course], settings={})
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/svg+xml") == len(found) + 1
    assert "http://" not in page.split("base64")[0]


def grown(factor):
    """A network of rectified units that multiply themselves by the factor at each step."""
    net = tt.Recurrent(lambda i, h: Elman(i, h, activation="relu", identity_init=True), 3, 6)
    with torch.no_grad():
        net.forward_cells[0].recurrent.weight.mul_(factor)
    return net


def test_a_report_says_where_a_state_overflows():
    torch.manual_seed(0)
    net, x = grown(4.0), torch.randn(1, 120, 3)
    y, _ = net(x)
    last = int(y.isfinite().all(-1)[0].sum())
    assert 20 < last < 110
    said = {s.title: s.sentences for s in inside_sections(net, x, lambda y: y.sum(-1), text=["a\n"] * 120)}
    assert said["The state overflows"][0] == f"The state of layer 0 is no longer finite after {last} steps."
    assert said["Gradients through time"][0].startswith("The gradient explodes: each step back multiplies it by 4,")
    for view in (gradient_flow, jacobian_spectrum, memory, gates, states):
        with pytest.raises(ValueError, match=f"the state of layer 0 is no longer finite after {last} steps; look at"):
            view(net, x)
    (alone,) = inside_sections(net, x * math.nan)
    assert alone.title == "The state overflows"
    assert "What follows" not in alone.sentences[1]


def test_what_is_nothing_is_called_so():
    """No warning of a figure without a scale, no 1e-300, no memory of what never came in."""
    torch.manual_seed(0)
    net, x = tt.Recurrent(Elman, 3, 6), 1e6 * torch.randn(1, 40, 3)
    said = {section.title: section.sentences[0] for section in inside_sections(net, x)}
    assert said["Gradients through time"] == "No gradient reaches the past at all."
    step = said["What one step does to a gradient"]
    assert step == "No gradient passes a step in layer 0: every singular value of its Jacobian is 0."
    assert said["How long an input is remembered"] == "No input moves the state of layer 0 at all."
    for scale, found in (("linear", memory(net, x)), ("log", memory(net, 1e-6 * x))):
        assert found[0].figure().axes[0].get_yscale() == scale
    (spectrum,) = jacobian_spectrum(net, torch.cat([x[:, :1], 1e-6 * x], dim=1))  # one step that passes nothing
    assert spectrum.rate > 0  # which is among those that settle
    (spectrum,) = jacobian_spectrum(net, torch.cat([1e-6 * x, x[:, :1]], dim=1))
    assert (spectrum.rate, spectrum.lyapunov[0]) == (0, -math.inf)
    assert spectrum.sentence.endswith("in the long run nothing of it is left.")
    assert len(spectrum.figure().axes) == 2


def test_half_lives_are_those_of_the_steps_whatever_comes_in():
    torch.manual_seed(0)
    (result,) = memory(AdditiveMemory(3, 5), torch.randn(1, 60, 3))  # its inputs move it more and less
    assert np.isinf(result.half_life).all()
    assert result.sentence.endswith("most units keep more than half of a change all along.")
    (result,) = memory(linear_elman(torch.eye(1, dtype=DOUBLE) / 2), torch.randn(1, 9, 3, dtype=DOUBLE))
    assert result.sentence.endswith("half of the units have lost half of a change within 1 step.")


def test_fixed_points_are_those_of_a_cell():
    with pytest.raises(TypeError, match="fixed points are those of a cell, not of Recurrent; give one of its cells"):
        fixed_points(tt.Recurrent(GRU, 3, 4), torch.zeros(1, 5, 3))
