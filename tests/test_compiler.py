"""PyTorch's compilers: one graph, the kernels in it as operators, batch and time of any size."""

import subprocess
import sys

import pytest
import torch

import throughtime as tt
from cases import CELLS, make_cell
from throughtime.engine.cpu.trace import trace, widths_of
from throughtime.engine.cpu.wire import from_text, to_text

close = torch.testing.assert_close
ANY = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(module, **options):
    """Whole, with any sizes; of interest is the graph, not the kernels that a compiler makes of the rest of it."""
    return torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True, **options)


def leaves(nested):
    if isinstance(nested, torch.Tensor):
        return [nested]
    return [leaf for part in nested for leaf in leaves(part)]


def layers(name, **options):
    torch.manual_seed(0)
    return tt.Recurrent(CELLS[name], 3, 5, **options).double()


def same(one, other, module, x, **arguments):
    """Outputs, states and gradients of two ways to run a module."""
    both = []
    for run in (one, other):
        torch.manual_seed(3)
        x = x.detach().requires_grad_()
        results = leaves(run(x, **arguments))
        weights = [torch.randn_like(r) for r in results]
        loss = sum((w * r).sum().real for w, r in zip(weights, results, strict=True))
        grads = torch.autograd.grad(loss, [x, *module.parameters()], allow_unused=True)
        both.append([*results, *grads])
    close(*both)


@pytest.mark.parametrize("name", ["lstm", "gru-cho", "jordan", "lstm-layernorm", "mingru"])
def test_layers_compile_into_one_graph_for_all_sizes(name):
    module = layers(name, num_layers=2)
    run = compiled(module)
    for batch, steps in ((4, 6), (2, 9), (3, 4)):
        with torch._dynamo.config.patch(error_on_recompile=batch != 4):
            same(run, module, module, torch.randn(batch, steps, 3, dtype=torch.float64))


def test_lengths_resets_directions_and_states():
    module = layers("lstm", bidirectional=True)
    resets = torch.rand(3, 6) < 0.3
    arguments = {"lengths": torch.tensor([6, 0, 4]), "resets": resets, "return_states": True}
    same(compiled(module), module, module, torch.randn(3, 6, 3, dtype=torch.float64), **arguments)


@pytest.mark.parametrize("kind", [tt.nn.RNN, tt.nn.LSTM, tt.nn.GRU])
def test_torchs_layers(kind):
    module = kind(3, 5, 2, bidirectional=True, dtype=torch.float64)
    same(compiled(module), module, module, torch.randn(6, 4, 3, dtype=torch.float64))


@pytest.mark.parametrize("name", ["lstm-zoneout", "lstm-recurrent-dropout"])
def test_noise_is_drawn_within_the_graph(name):
    module = layers(name)
    same(compiled(module), module, module, torch.randn(4, 6, 3, dtype=torch.float64))


def test_the_kernels_are_in_the_graph():
    seen = []

    def look(graph, inputs):
        seen.extend(node.target for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    torch.compile(layers("lstm"), fullgraph=True, backend=look)(torch.randn(2, 4, 3, dtype=torch.float64))
    assert torch.ops.throughtime.unroll.default in seen


class Looking(tt.Cell):
    """A step that no kernel takes: a softmax over the batch."""

    def step(self, x, state):
        h = torch.softmax(x, dim=0) + state.h
        return h, self.State(h)


def test_a_complex_state_compiles():
    module = layers("lru")
    same(compiled(module), module, module, torch.randn(3, 6, 3, dtype=torch.float64))


def test_what_the_kernels_cannot_take_compiles_as_a_loop():
    module = tt.Recurrent(Looking, 3, 3)
    x = torch.randn(2, 4, 3)
    with pytest.warns(tt.SlowPathWarning):
        expected = module(x)
    close(torch.compile(module, fullgraph=True, backend="aot_eager")(x), expected)


def test_a_transform_within_the_graph():
    module = layers("gru")
    x = torch.randn(5, 2, 4, 3, dtype=torch.float64)

    def mapped(x):
        return torch.func.vmap(lambda part: module(part)[0])(x)

    expected = mapped(x)
    close(torch.compile(mapped, fullgraph=True, backend="aot_eager")(x), expected)


@pytest.mark.parametrize("strict", [False, True])
def test_export_with_any_batch_and_time(strict):
    module = layers("lstm-peephole", num_layers=2, bidirectional=True).eval()
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    exported = torch.export.export(module, (x,), dynamic_shapes=(ANY,), strict=strict)
    longer = torch.randn(5, 11, 3, dtype=torch.float64)
    close(exported.module()(longer), module(longer))


def test_an_exported_network_learns():
    module = layers("gru")
    exported = torch.export.export(module, (torch.randn(2, 4, 3, dtype=torch.float64),), dynamic_shapes=(ANY,))
    run = exported.module()
    x = torch.randn(3, 6, 3, dtype=torch.float64)
    both = [torch.autograd.grad(m(x)[0].square().sum(), list(m.parameters())) for m in (run, module)]
    close(*both)


def test_an_exported_network_is_read_by_another_process(tmp_path):
    module = layers("gru-cho")
    x = torch.randn(3, 6, 3, dtype=torch.float64)
    exported = torch.export.export(module, (x,), dynamic_shapes=(ANY,))
    torch.export.save(exported, tmp_path / "net.pt2")
    expected = {"x": x, "y": module(x)[0].detach()}
    torch.save(expected, tmp_path / "expected.pt")
    code = (
        "import sys, torch, throughtime.cells, throughtime.engine\n"
        "net = torch.export.load(sys.argv[1] + '/net.pt2').module()\n"
        "expected = torch.load(sys.argv[1] + '/expected.pt')\n"
        "torch.testing.assert_close(net(expected['x'])[0], expected['y'], rtol=0, atol=0)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_an_operator_does_not_trust_its_arguments():
    cell = make_cell("lstm", 3, 5).float()
    step = trace(cell, dict(cell.named_parameters()), None)
    made = step.prologue(*cell.parameters())
    rows, matrices = [r.detach() for r in made[: step.vectors]], [m.detach() for m in made[step.vectors :]]
    x, state = torch.randn(2, 4, 3), [torch.zeros(2, 5)] * 2
    run = torch.ops.throughtime.unroll.default
    good = (to_text(step), [x], state, rows, matrices, None, False, False)
    assert run(*good)[0].shape == (2, 4, 5)
    torch.library.opcheck(run, good)
    for k, bad in (
        (1, [x[..., :2]]),
        (2, [torch.zeros(2, 4)] * 2),
        (2, state[:1]),
        (3, []),
        (3, [rows[0][:3]]),
        (4, matrices[:1]),
        (4, [m[:, :2] for m in matrices]),
        (4, [m.double() for m in matrices]),
        (5, torch.tensor([4, 5])),
        (5, torch.tensor([4])),
    ):
        with pytest.raises(ValueError):
            run(*(bad if place == k else value for place, value in enumerate(good)))


@pytest.mark.parametrize("name", CELLS)
def test_a_step_as_text_is_that_step(name):
    cell = make_cell(name, 3, 5).train()
    noise = cell.noise(2, 4)
    step = trace(cell, dict(cell.named_parameters()) | dict(cell.named_buffers()), widths_of(noise))
    text = to_text(step)
    again = from_text(text)
    assert to_text(again) == text
    assert (again.fields, again.noise, again.vectors) == (step.fields, step.noise, step.vectors)


def test_text_of_another_form_is_refused():
    cell = make_cell("lstm", 3, 5)
    text = to_text(trace(cell, dict(cell.named_parameters()), None))
    with pytest.raises(ValueError, match="form 99"):
        from_text(text.replace('"form":1', '"form":99'))


def test_bool_noise_is_refused_by_the_kernels():
    class Masked(tt.Cell):
        def noise(self, batch_size, steps):
            return torch.rand(batch_size, steps, self.hidden_size) < 0.5

        def step(self, x, state, noise):
            h = torch.where(noise, x, state.h)
            return h, self.State(h)

    cell = Masked(3, 3)
    x = torch.randn(2, 4, 3)
    torch.manual_seed(0)
    with pytest.warns(tt.SlowPathWarning, match="bool"):
        y, _ = tt.unroll(cell, x)
    torch.manual_seed(0)
    close(y, tt.unroll(cell, x, backend="reference")[0])
