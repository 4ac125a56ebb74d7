"""Kernels under the transforms of torch.func, and two directions side by side: no slow path, no other result."""

import pytest
import torch
from torch.func import functional_call, grad, jacrev, stack_module_state, vjp, vmap

import throughtime as tt
from cases import random_state
from throughtime.engine.unroll import unroll_both

close = torch.testing.assert_close
some = pytest.mark.parametrize("kind", ["lstm", "gru", "jordan"])
CLASSES = {"lstm": tt.cells.LSTM, "gru": tt.cells.GRU, "jordan": tt.cells.Jordan}


def network(kind, **options):
    return tt.Recurrent(CLASSES[kind], 3, 5, **options).double()


def sequences(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@some
@pytest.mark.parametrize("bidirectional", [False, True])
def test_gradients_of_each_sequence(kind, bidirectional):
    net, x = network(kind, num_layers=2, bidirectional=bidirectional), sequences(4, 6, 3)
    weights = dict(net.named_parameters())

    def loss(weights, x):
        return functional_call(net, weights, (x[None],), {"lengths": [5]})[0].square().sum()

    each = vmap(grad(loss), in_dims=(None, 0))(weights, x)
    for b in range(4):
        alone = torch.autograd.grad(loss(weights, x[b]), list(weights.values()))
        close([each[name][b] for name in weights], list(alone), rtol=1e-10, atol=1e-10)


@some
def test_an_ensemble_over_inputs_of_its_own(kind):
    nets = [network(kind) for _ in range(3)]
    weights, _ = stack_module_state(nets)
    x = sequences(3, 4, 6, 3)
    together = vmap(lambda w, x: functional_call(nets[0], w, (x,))[0])(weights, x)
    for net, part, y in zip(nets, x, together, strict=True):
        close(y, net(part)[0])


@some
def test_a_map_within_a_gradient(kind):
    """The other way round: the gradient is of a sum over what is mapped."""
    net, x = network(kind), sequences(2, 4, 6, 3).requires_grad_()
    mapped = vmap(lambda part: net(part, lengths=[6, 0, 2, 5])[0], in_dims=1, out_dims=1)(x.transpose(0, 1))
    mapped.square().sum().backward()
    found = [x.grad, *(p.grad for p in net.parameters())]
    total = sum(net(part, lengths=[6, 0, 2, 5])[0].square().sum() for part in x.detach().requires_grad_())
    close(found[1:], list(torch.autograd.grad(total, list(net.parameters()))))
    alone = x.detach().requires_grad_()
    total = sum(net(part, lengths=[6, 0, 2, 5])[0].square().sum() for part in alone)
    close(found[0], torch.autograd.grad(total, alone)[0])


@some
def test_jacobians_and_second_derivatives(kind):
    net, x = network(kind), sequences(4, 3)

    def output(x, backend="auto"):
        return net(x[None], backend=backend)[0].sin().sum(dim=(0, 1))

    close(jacrev(output)(x), torch.autograd.functional.jacobian(output, x))
    second = jacrev(jacrev(lambda x: output(x).sum()))(x)
    expected = torch.autograd.functional.hessian(lambda x: output(x, "reference").sum(), x)
    close(second, expected)
    third = grad(lambda x: grad(lambda x: grad(lambda x: output(x).sum())(x).square().sum())(x).square().sum())
    reference = torch.func.grad(
        lambda x: (
            grad(lambda x: torch.func.grad(lambda x: output(x, "reference").sum())(x).square().sum())(x).square().sum()
        )
    )
    close(third(x), reference(x))


@some
def test_a_derivative_that_is_not_asked_for_is_none(kind):
    """The final state is no part of the loss; the input needs no gradient."""
    net, x = network(kind), sequences(2, 6, 3)
    y, back = vjp(lambda w: functional_call(net, w, (x,))[0], dict(net.named_parameters()))
    (found,) = back(torch.ones_like(y))
    y = net(x)[0]
    expected = torch.autograd.grad(y.sum(), list(net.parameters()))
    close(list(found.values()), list(expected))


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("batch", [1, 3, 40])
def test_directions_side_by_side_are_bitwise_those_in_turn(threads, batch):
    torch.manual_seed(0)
    one, other = tt.cells.LSTM(3, 21), tt.cells.GRU(3, 18)
    x = torch.randn(batch, 9, 3)
    lengths = torch.randint(0, 10, (batch,))
    resets = torch.rand(batch, 9) < 0.2
    states = random_state(one, batch), random_state(other, batch)
    options = {"lengths": lengths, "resets": resets, "return_states": True}
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        x.requires_grad_()
        expected = tt.unroll(one, x, states[0], **options), tt.unroll(other, x, states[1], reverse=True, **options)
        wanted = [x, *one.parameters(), *other.parameters()]
        known = torch.autograd.grad(_total(expected), wanted)
        torch.set_num_threads(threads)
        both = unroll_both(one, other, x, states, **options)
        close(both, expected, rtol=0, atol=0)
        found = torch.autograd.grad(_total(both), wanted)
        close(list(found[1:]), list(known[1:]), rtol=0, atol=0)
        close(found[0], known[0])  # the sum of two, in either order
    finally:
        torch.set_num_threads(before)


def _total(runs):
    return sum((y.sin().sum() + sum(f.cos().sum() for f in (*final, *states))) for y, final, states in runs)


def test_one_direction_that_kernels_cannot_take():
    class Looking(tt.Cell):
        """Rows that see each other."""

        def step(self, x, state):
            h = torch.softmax(x, dim=0) + state.h
            return h, self.State(h)

    one, other = tt.cells.GRU(3, 5).double(), Looking(3, 3).double()
    x = sequences(2, 6, 3)
    with pytest.warns(tt.SlowPathWarning):
        both = unroll_both(one, other, x)
    close(both[0], tt.unroll(one, x))
    close(both[1], tt.unroll(other, x, reverse=True, backend="reference"))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # PyTorch's own use of it
def test_forward_mode_is_told_to_be_slow():
    net, x = network("gru"), sequences(2, 4, 3)
    with pytest.warns(tt.SlowPathWarning, match="forward mode"):
        _, tangent = torch.func.jvp(lambda x: net(x)[0], (x,), (torch.ones_like(x),))
    _, expected = torch.autograd.functional.jvp(lambda x: net(x)[0], x, torch.ones_like(x))
    close(tangent, expected)
