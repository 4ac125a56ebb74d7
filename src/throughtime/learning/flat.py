"""A cell's step as a function of one real vector, for Jacobians: complex fields count as two real ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from throughtime.cells.cell import Cell


def flatten_state(state: Any) -> Tensor:
    """Fields (B, ...) as one real tensor (B, S), field after field, real parts before imaginary ones.

    >>> import throughtime as tt
    >>> flatten_state(tt.cells.LSTM(3, 5).initial_state(2)).shape
    torch.Size([2, 10])
    """
    parts = []
    for field in state:
        parts += [field.real, field.imag] if field.is_complex() else [field]
    return torch.cat([part.flatten(1) for part in parts], dim=1)


def unflatten_state(flat: Tensor, like: Any) -> Any:
    """The state (fields (B, ...)) of a flat one (B, S); ``like`` is any state of the cell's."""
    fields, at = [], 0
    for field in like:
        shape, size = (flat.shape[0], *field.shape[1:]), field[0].numel()
        if field.is_complex():
            real, imaginary = flat[:, at : at + size], flat[:, at + size : at + 2 * size]
            fields.append(torch.complex(real, imaginary).reshape(shape))
            at += 2 * size
        else:
            fields.append(flat[:, at : at + size].reshape(shape))
            at += size
    return type(like)(*fields)


def field_slices(like: Any) -> dict[str, slice]:
    """Where each field stands in a flat state."""
    slices, at = {}, 0
    for name, field in zip(like._fields, like, strict=True):
        size = field[0].numel() * (2 if field.is_complex() else 1)
        slices[name] = slice(at, at + size)
        at += size
    return slices


class StepFunction:
    """``(x (I,), s (S,)) -> (y (O,), s' (S,))`` of a single sequence, differentiable by `torch.func`.

    Args:
        cell: any `Cell`.
    """

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.like = cell.initial_state(1)
        self.size = flatten_state(self.like).shape[1]  # S
        self._module = _Step(cell)

    def __call__(
        self, x: Tensor, flat: Tensor, noise: Any = None, parameters: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        state = unflatten_state(flat[None], self.like)
        arguments = (x[None], state, None if noise is None else _with_axis(noise))
        if parameters is None:
            y, new = self._module(*arguments)
        else:
            stand_ins = {f"cell.{name}": value for name, value in parameters.items()}
            y, new = functional_call(self._module, stand_ins, arguments)
        return y[0], flatten_state(new)[0]

    def state_jacobian(self, x: Tensor, flat: Tensor, noise: Any = None, *, chunk_size: int | None = None) -> Tensor:
        """ds_t / ds_{t-1} at each of N points: x (N, I), flat states (N, S) -> (N, S, S)."""

        def new_state(x: Tensor, flat: Tensor, noise: Any) -> Tensor:
            return self(x, flat, noise)[1]

        axes = (0, 0, None if noise is None else 0)
        with torch.no_grad():
            return vmap(jacrev(new_state, argnums=1), in_dims=axes, chunk_size=chunk_size)(x, flat, noise)

    def input_jacobian(self, x: Tensor, flat: Tensor, noise: Any = None, *, chunk_size: int | None = None) -> Tensor:
        """ds_t / dx_t at each of N points: (N, S, I)."""

        def new_state(x: Tensor, flat: Tensor, noise: Any) -> Tensor:
            return self(x, flat, noise)[1]

        axes = (0, 0, None if noise is None else 0)
        with torch.no_grad():
            return vmap(jacrev(new_state, argnums=0), in_dims=axes, chunk_size=chunk_size)(x, flat, noise)


def _with_axis(noise: Any) -> Any:
    if isinstance(noise, Tensor):
        return noise[None]
    return tuple(_with_axis(part) for part in noise)


class _Step(nn.Module):
    """`Cell.step` as a module, for `functional_call`."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor, state: Any, noise: Any) -> tuple[Tensor, Any]:
        return self.cell.step(x, state) if noise is None else self.cell.step(x, state, noise)


class InitialState(nn.Module):
    """`Cell.initial_state` as a module, for `functional_call`."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, batch_size: int) -> Any:
        return self.cell.initial_state(batch_size)
