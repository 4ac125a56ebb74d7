"""Cells, inputs and states for the tests, random and of unequal sizes throughout."""

import torch
from torch import nn

import throughtime as tt
from throughtime.cells import CATALOGUE


class Leaky(tt.Cell):
    """A cell as a user writes one."""

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.input = nn.Linear(input_size, hidden_size)
        self.recurrent = nn.Linear(hidden_size, hidden_size, bias=False)
        self.leak = nn.Parameter(torch.rand(hidden_size))

    def step(self, x, state):
        h = self.leak * state.h + (1 - self.leak) * torch.tanh(self.input(x) + self.recurrent(state.h))
        return h, self.State(h)


class Sorting(tt.cells.Elman):
    """A step that kernels have no word for."""

    def step(self, x, state):
        y, new = super().step(x, state)
        return y.sort(dim=-1).values, new


CELLS = {name: entry.make for name, entry in CATALOGUE.items()} | {"own": Leaky}
LINEAR = ("mingru", "minlstm", "lru")


def make_cell(name, inputs=3, hidden=5):
    """The cell in float64, every parameter random: none is left at zero, one or the identity."""
    cell = CELLS[name](inputs, hidden).double().eval()
    with torch.no_grad():
        for key, parameter in cell.named_parameters():
            if not key.endswith("_log"):  # LRU's are random already, and bounded
                parameter.add_(0.3 * torch.randn_like(parameter))
    return cell


def random_state(cell, batch):
    initial = cell.initial_state(batch)
    return type(initial)(*(torch.randn_like(field) for field in initial))


def random_case(name, batch=4, steps=6, inputs=3, hidden=5):
    cell = make_cell(name, inputs, hidden)
    return cell, torch.randn(batch, steps, inputs, dtype=torch.float64), random_state(cell, batch)


def fields_of(result):
    """The tensors within outputs and states, one after another."""
    if isinstance(result, torch.Tensor):
        return [result]
    return [field for part in result for field in fields_of(part)]


def gradients(cell, x, state, run):
    """Outputs of ``run(cell, x, state)`` and the gradients of a random sum of them by x, state and parameters."""
    x = x.detach().clone().requires_grad_()
    state = type(state)(*(field.detach().clone().requires_grad_() for field in state))
    outputs = fields_of(run(cell, x, state))
    generator = torch.Generator().manual_seed(1)
    loss = sum(
        (torch.view_as_real(field) if field.is_complex() else field)
        .mul(torch.randn(field.shape + (2,) * field.is_complex(), generator=generator, dtype=torch.float64))
        .sum()
        for field in outputs
    )
    inputs = [x, *state, *cell.parameters()]
    return [field.detach() for field in outputs], torch.autograd.grad(
        loss, inputs, allow_unused=True, materialize_grads=True
    )
