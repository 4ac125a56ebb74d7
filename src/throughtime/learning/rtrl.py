"""Learning online, without going back in time: real-time recurrent learning and its sparse approximation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.func import functional_call, jacrev, vjp, vmap

from throughtime.cells.cell import Cell, at_step
from throughtime.learning.flat import InitialState, StepFunction, field_slices, flatten_state, unflatten_state


class RTRL:
    r"""Real-time recurrent learning (Williams & Zipser 1989): exact gradients, and no past kept.

    The influence of the parameters on the state is carried forwards beside the state:

    .. math::
        M_t &= \frac{ds_t}{d\theta}
            = \frac{\partial s_t}{\partial s_{t-1}} M_{t-1} + \frac{\partial s_t}{\partial \theta} \\
        \frac{dL_t}{d\theta}
            &= \frac{\partial L_t}{\partial s_{t-1}} M_{t-1} + \frac{\partial L_t}{\partial \theta}

    >>> import throughtime as tt
    >>> cell, readout = tt.cells.GRU(3, 5), torch.nn.Linear(5, 1)
    >>> learner = RTRL(cell, batch_size=2)
    >>> for x in torch.zeros(7, 2, 3):
    ...     y = learner.step(x)                   # (B, O)
    ...     readout(y).square().mean().backward()  # adds dL_t/dθ, all of the past included, to .grad

    As ``y`` holds the past as one function with a known derivative, any loss and any layers above it are plain
    PyTorch. Where the parameters are changed on the way, M mixes old and new ones, as it does in the paper.

    With S numbers of state and P of parameters, the cost for each sequence is memory S P and time S^2 P a step, where
    BPTT takes memory T S and time P a step: for small networks and endless streams.

    Args:
        cell: any `Cell`.
        batch_size: B.
        state: the state before the first step; the cell's initial one unless given (a given one is constant).

    Raises:
        TypeError: it is no `Cell`.
    """

    def __init__(self, cell: Cell, batch_size: int = 1, state: Any = None) -> None:
        _check_cell(cell)
        self.cell = cell
        self.batch_size = batch_size
        self._step = StepFunction(cell)
        self._initial = InitialState(cell)
        self._parameters = {name: p for name, p in cell.named_parameters() if p.requires_grad}
        self.flat, self._past = self._beginning()
        if state is not None:
            self.flat = flatten_state(state).detach()
            self._past = torch.zeros_like(self._past)

    @property
    def state(self) -> Any:
        """s_t, fields (B, ...), constant."""
        return unflatten_state(self.flat, self._step.like)

    @property
    def influence(self) -> Tensor:
        """M_t (B, S, P), parameters in the order of ``cell.named_parameters()``."""
        return self._past

    def step(self, x: Tensor, *, resets: Tensor | None = None) -> Tensor:
        """``x_t (B, I) -> y_t (B, O)``, attached to the parameters through all of the past.

        Args:
            x: this step's input.
            resets: (B,) bool; where true, the state and its influence go back to their beginning first.

        Raises:
            ValueError: x is not (B, I); or it needs a gradient: what made it would get that of this step alone.
        """
        if x.shape != (self.batch_size, self.cell.input_size):
            wanted = (self.batch_size, self.cell.input_size)
            raise ValueError(f"x must be one step (B, I), here {wanted}, not {tuple(x.shape)}")
        if x.requires_grad:
            raise ValueError("x needs a gradient, which only BPTT can give; make its layers part of the cell")
        if resets is not None:
            flat, past = self._beginning()
            self.flat = torch.where(resets[:, None], flat, self.flat)
            self._past = torch.where(resets.reshape(-1, *[1] * (past.dim() - 1)), past, self._past)
        noise = at_step(self.cell.noise(self.batch_size, 1), 0)
        flat = _Past.apply(self.flat, self._past, self._pull, *self._parameters.values())
        state = unflatten_state(flat, self._step.like)
        y, new = self.cell.step(x, state) if noise is None else self.cell.step(x, state, noise)
        with torch.no_grad():
            self._past = self._advance(x, noise)
            self.flat = flatten_state(new).detach()
        return y

    def _beginning(self) -> tuple[Tensor, Tensor]:
        """The initial state (B, S) and its influence (B, S, P), which is not zero where that state is learned."""

        def initial(parameters: dict[str, Tensor]) -> Tensor:
            stand_ins = {f"cell.{name}": value for name, value in parameters.items()}
            return flatten_state(functional_call(self._initial, stand_ins, (1,)))[0]

        detached = self._detached()
        flat = initial(detached)  # (S,)
        influence = _joined(jacrev(initial)(detached), 1)  # (S, P)
        return flat.expand(self.batch_size, -1), influence.expand(self.batch_size, -1, -1)

    def _advance(self, x: Tensor, noise: Any) -> Tensor:
        """M_t from M_{t-1}."""

        def new_state(parameters: dict[str, Tensor], x: Tensor, flat: Tensor, noise: Any) -> Tensor:
            return self._step(x, flat, noise, parameters)[1]

        axes = (None, 0, 0, None if noise is None else 0)
        jacobians = vmap(jacrev(new_state, argnums=(0, 2)), in_dims=axes)
        immediate, by_state = jacobians(self._detached(), x, self.flat, noise)
        return by_state @ self._past + _joined(immediate, 2)  # (B, S, P)

    def _pull(self, grad: Tensor, past: Tensor) -> Tensor:
        """``dL/ds_{t-1} (B, S) -> dL/dθ (P,)`` by way of the past."""
        return torch.einsum("bs,bsp->p", grad, past)

    def _detached(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self._parameters.items()}


class SnAp1(RTRL):
    r"""SnAp-1 (Menick et al. 2021): RTRL with the influence of a parameter kept only where it acts within one step.

    .. math::
        M_t \approx
        \left(\frac{\partial s_t}{\partial s_{t-1}} M_{t-1} + \frac{\partial s_t}{\partial \theta}\right)
        \circ \left[\frac{\partial s_t}{\partial \theta} \neq 0\right]

    For a cell whose units do not see each other (`IndRNN`, the linear family) nothing is left out, and it is exact.
    Which entries are kept is found by differentiating the cell at random states.

    With K state numbers that one parameter acts on in one step (1 for Elman, 2 for LSTM), the cost for each sequence is
    memory K P and time (K^2 + S) P a step, the S P being that of the state's Jacobian.

    Args:
        cell: any `Cell`.
        batch_size: B.
        state: see `RTRL`.
    """

    def __init__(self, cell: Cell, batch_size: int = 1, state: Any = None) -> None:
        _check_cell(cell)
        step = StepFunction(cell)
        pattern = _pattern(cell, step)  # (S, P) bool
        self._find_rows(pattern)
        super().__init__(cell, batch_size, state)

    @property
    def influence(self) -> Tensor:
        """M_t (B, S, P), written out."""
        batch, count, _ = self._past.shape
        dense = self._past.new_zeros(batch, count, self._step.size)
        index = self._rows.expand(batch, -1, -1)
        return dense.scatter_add(2, index, self._past).transpose(1, 2)

    def _find_rows(self, pattern: Tensor) -> None:
        counts = pattern.sum(0)
        width = max(1, int(counts.max())) if pattern.numel() else 1
        # for each parameter the rows it acts on, first; `_kept` says which places are such rows
        order = pattern.T.to(torch.int8).sort(dim=1, descending=True, stable=True)
        self._rows = order.indices[:, :width]  # (P, K)
        self._kept = order.values[:, :width].bool()  # (P, K)
        # rows that no parameter shares can be differentiated together: a colour each (Curtis, Powell & Reid 1974)
        overlap = (pattern.double() @ pattern.double().T) > 0
        colours: list[int] = []
        for row in range(pattern.shape[0]):
            taken = {colours[other] for other in range(row) if overlap[row, other]}
            colours.append(next(c for c in range(row + 1) if c not in taken))
        self._colour = torch.tensor(colours, device=pattern.device)  # (S,)

    def _beginning(self) -> tuple[Tensor, Tensor]:
        flat, influence = super()._beginning()
        rows = self._rows.expand(self.batch_size, -1, -1)
        packed = influence.transpose(1, 2).gather(2, rows)
        return flat, packed * self._kept

    def _advance(self, x: Tensor, noise: Any) -> Tensor:
        colours = int(self._colour.max()) + 1
        seeds = torch.stack([(self._colour == c).to(self.flat) for c in range(colours)])  # (C, S)

        def one(x: Tensor, flat: Tensor, noise: Any, past: Tensor) -> Tensor:
            back = vjp(lambda theta: self._step(x, flat, noise, theta)[1], self._detached())[1]
            by_colour = _joined(vmap(lambda seed: back(seed)[0])(seeds), 1)  # (C, P)
            immediate = by_colour.T.gather(1, self._colour[self._rows])  # (P, K)
            by_state = jacrev(lambda s: self._step(x, s, noise)[1])(flat)  # (S, S)
            block = by_state[self._rows[:, :, None], self._rows[:, None, :]]  # (P, K, K)
            return (torch.einsum("pkl,pl->pk", block, past) + immediate) * self._kept

        axes = (0, 0, None if noise is None else 0, 0)
        return vmap(one, in_dims=axes)(x, self.flat, noise, self._past)  # (B, P, K)

    def _pull(self, grad: Tensor, past: Tensor) -> Tensor:
        return (grad[:, self._rows] * past).sum((0, 2))


def _check_cell(cell: Any) -> None:
    if not isinstance(cell, Cell):
        raise TypeError(f"real-time recurrent learning takes a Cell, not {type(cell).__name__}; give one layer's cell")


def _pattern(cell: Cell, step: StepFunction, points: int = 16) -> Tensor:
    """Which state numbers each parameter acts on within one step: (S, P) bool, seen at random points."""
    parameters = {name: p.detach() for name, p in cell.named_parameters() if p.requires_grad}
    like = flatten_state(step.like)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(points, cell.input_size, generator=generator).to(like)
    flat = torch.randn(points, step.size, generator=generator).to(like)
    noise = at_step(cell.noise(points, 1), 0)

    def new_state(parameters: dict[str, Tensor], x: Tensor, flat: Tensor, noise: Any) -> Tensor:
        return step(x, flat, noise, parameters)[1]

    axes = (None, 0, 0, None if noise is None else 0)
    immediate = vmap(jacrev(new_state), in_dims=axes)(parameters, x, flat, noise)
    pattern = (_joined(immediate, 2) != 0).any(0)
    for name, part in field_slices(step.like).items():
        if getattr(step.like, name).is_complex():  # real and imaginary part are one unit
            both = pattern[part].unflatten(0, (2, -1)).any(0)
            pattern[part] = torch.cat([both, both])
    return pattern


def _joined(by_parameter: dict[str, Tensor], leading: int) -> Tensor:
    """Jacobians by parameter, each (``leading`` axes, *shape), side by side: (``leading`` axes, P)."""
    return torch.cat([value.reshape(*value.shape[:leading], -1) for value in by_parameter.values()], dim=-1)


class _Past(torch.autograd.Function):
    """The state as a function of the parameters, whose derivative is known already."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, past: Tensor, pull: Any, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(past)
        ctx.pull = pull
        ctx.shapes = [p.shape for p in parameters]
        return flat.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (past,) = ctx.saved_tensors
        pulled = ctx.pull(grad, past).split([shape.numel() for shape in ctx.shapes])
        return None, None, None, *(part.reshape(shape) for part, shape in zip(pulled, ctx.shapes, strict=True))
