"""Cells made of another cell. What `Wrapper` does not change is the inner cell's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.cells.cell import Cell


class Wrapper(Cell):
    """A cell around another one; by default it does what the inner cell does."""

    family = "wrapper"

    def __init__(self, cell: Cell, *, input_size: int | None = None, output_size: int | None = None) -> None:
        if not isinstance(cell, Cell):
            raise TypeError(f"{type(self).__name__} wraps a Cell, not {type(cell).__name__}")
        super().__init__(
            cell.input_size if input_size is None else input_size,
            cell.hidden_size,
            output_size=cell.output_size if output_size is None else output_size,
        )
        self.cell = cell

    def initial_state(self, batch_size: int) -> Any:
        return self.cell.initial_state(batch_size)

    def noise(self, batch_size: int, steps: int) -> Any:
        return self.cell.noise(batch_size, steps)

    def inner_step(self, x: Tensor, state: Any, noise: Any) -> tuple[Tensor, Any]:
        """The inner cell's step, which is given noise only if it drew some."""
        return self.cell.step(x, state) if noise is None else self.cell.step(x, state, noise)

    def step(self, x: Tensor, state: Any, noise: Any = None) -> tuple[Tensor, Any]:
        return self.inner_step(x, state, noise)


class Residual(Wrapper):
    r"""Residual connection around a cell, across depth (He et al. 2016; Wu et al. 2016 for LSTM stacks).

    .. math:: y_t = x_t + \mathrm{cell}(x_t, s_{t-1})

    Raises:
        ValueError: the cell's input and output sizes differ.
    """

    equation = "y = x + cell(x)"
    source = "He et al. 2016; Wu et al. 2016"

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        if cell.input_size != cell.output_size:
            raise ValueError(f"a residual needs equal sizes; input is {cell.input_size}, output {cell.output_size}")

    def step(self, x: Tensor, state: Any, noise: Any = None) -> tuple[Tensor, Any]:
        y, state = self.inner_step(x, state, noise)
        return x + y, state


class Zoneout(Wrapper):
    r"""Zoneout (Krueger et al. 2016): in training, units keep their old value at random; else, in expectation.

    .. math::
        s_t &= m_t \circ s_{t-1} + (1 - m_t) \circ \tilde s_t, \quad m_t \sim \mathrm{Bernoulli}(p)
        \quad\text{training} \\
        s_t &= p \, s_{t-1} + (1 - p) \, \tilde s_t \quad\text{evaluation}

    Where the inner cell puts a field of its state out (h, mostly), the field as zoned out is the output.

    Args:
        cell: the cell.
        h: p for the field ``h``.
        c: p for the field ``c``; of no effect on cells without one.

    Raises:
        ValueError: a probability outside [0, 1], or a cell whose state has neither h nor c.
    """

    equation = "s = m∘s + (1 - m)∘cell(x, s),  m ~ Bernoulli(p)"
    source = "Krueger et al. 2016"

    def __init__(self, cell: Cell, *, h: float = 0.05, c: float = 0.5) -> None:
        super().__init__(cell)
        self.rates = {"h": check_probability(h, "h"), "c": check_probability(c, "c")}
        if not self.rates.keys() & set(cell.initial_state(1)._fields):
            raise ValueError(f"zoneout needs a state with a field h or c; {type(cell).__name__}'s has none")

    def noise(self, batch_size: int, steps: int) -> Any:
        inner = self.cell.noise(batch_size, steps)
        if not self.training:
            return None if inner is None else ((), inner)
        state = self.cell.initial_state(batch_size)
        masks = tuple(
            torch.bernoulli(torch.full((batch_size, steps, field.shape[-1]), rate, device=field.device)).to(
                field.real.dtype if field.is_complex() else field.dtype
            )  # (B, T, H)
            for field, rate in self._zoned(state)
        )
        return (masks,) if inner is None else (masks, inner)

    def step(self, x: Tensor, state: Any, noise: Any = None) -> tuple[Tensor, Any]:
        masks = noise[0] if noise is not None else ()
        y, new = self.inner_step(x, state, noise[1] if noise is not None and len(noise) > 1 else None)
        zoned = {}
        for k, name in enumerate(name for name in new._fields if name in self.rates):
            keep = masks[k] if masks else self.rates[name]
            zoned[name] = keep * getattr(state, name) + (1 - keep) * getattr(new, name)
            if y is getattr(new, name):
                y = zoned[name]
        return y, new._replace(**zoned)

    def _zoned(self, state: Any) -> list[tuple[Tensor, float]]:
        return [(getattr(state, name), self.rates[name]) for name in state._fields if name in self.rates]

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={rate}" for name, rate in self.rates.items())


class RecurrentDropout(Wrapper):
    r"""Variational dropout of the recurrent products (Gal & Ghahramani 2016): one mask for the whole sequence.

    .. math:: U h_{t-1} \to U (m \circ h_{t-1}), \qquad m \sim \mathrm{Bernoulli}(1 - p) / (1 - p)

    The state itself is carried on undropped, so that memory is not lost (in a GRU, say, h also goes on beside the
    product). Each product has a mask of its own. A mask is drawn for each call of `throughtime.unroll`, so a sequence
    run in chunks draws one a chunk.

    Args:
        cell: the cell.
        p: the probability of a unit to be dropped.
        products: the names of the inner cell's modules that U stands for; those that start with ``recurrent`` unless
            given.

    Raises:
        ValueError: p outside [0, 1), or the cell has no such modules with ``in_features``, as `torch.nn.Linear` has.
    """

    equation = "Uh → U(m∘h), one m a sequence"
    source = "Gal & Ghahramani 2016"

    def __init__(self, cell: Cell, *, p: float = 0.25, products: Sequence[str] | None = None) -> None:
        super().__init__(cell)
        self.p = check_probability(p, "p", below_one=True)
        children = dict(cell.named_children())
        self.products = [name for name in children if name.startswith("recurrent")] if products is None else [*products]
        if not self.products:
            raise ValueError(
                f"{type(cell).__name__} has no module named recurrent...; say whose input to drop: products="
            )
        for name in self.products:
            if not hasattr(children.get(name), "in_features"):
                raise ValueError(f"{type(cell).__name__} has no product {name!r}; its modules: {', '.join(children)}")
        for name in self.products:
            setattr(cell, name, MaskedInput(getattr(cell, name)))

    def noise(self, batch_size: int, steps: int) -> Any:
        inner = self.cell.noise(batch_size, steps)
        if not self.training:
            return None if inner is None else ((), inner)
        like = next(self.cell.parameters())
        masks = tuple(
            like.new_empty(batch_size, 1, getattr(self.cell, name).input_size)
            .bernoulli_(1 - self.p)
            .div_(1 - self.p)
            .expand(-1, steps, -1)  # (B, T, H)
            for name in self.products
        )
        return (masks,) if inner is None else (masks, inner)

    def step(self, x: Tensor, state: Any, noise: Any = None) -> tuple[Tensor, Any]:
        masks = noise[0] if noise is not None else ()
        products = [getattr(self.cell, name) for name in self.products]
        for product, mask in zip(products, masks, strict=False):
            product.mask = mask
        try:
            return self.inner_step(x, state, noise[1] if noise is not None and len(noise) > 1 else None)
        finally:
            for product in products:
                product.mask = None

    def extra_repr(self) -> str:
        return f"p={self.p}"


class MaskedInput(nn.Module):
    """A product whose input is multiplied by ``mask`` while one is set."""

    def __init__(self, product: nn.Module) -> None:
        super().__init__()
        self.product = product
        self.input_size = product.in_features
        self.mask: Tensor | None = None

    def forward(self, h: Tensor) -> Tensor:
        return self.product(h if self.mask is None else h * self.mask)


class LearnedInitialState(Wrapper):
    r"""The state before the first step is learned: s_0 = a parameter for each field, zero at first.

    >>> from throughtime.cells import GRU
    >>> LearnedInitialState(GRU(3, 5)).initial_state(2).h.requires_grad
    True
    """

    equation = "s₀ = parameter"
    source = "common practice; Forcada & Carrasco 1995"

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        state = cell.initial_state(1)
        self.initial = nn.ParameterList(nn.Parameter(field.detach().clone()) for field in state)  # (1, H) each

    def initial_state(self, batch_size: int) -> Any:
        fields = (field.expand(batch_size, *field.shape[1:]) for field in self.initial)
        return type(self.cell.initial_state(0))(*fields)


def check_probability(p: float, name: str, *, below_one: bool = False) -> float:
    if not 0 <= p <= 1 or (below_one and p == 1):
        raise ValueError(f"{name} must be a probability{' below 1' if below_one else ''}, not {p!r}")
    return float(p)
