"""Where a recurrence begins to learn from: its recurrent weights and its gates' biases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.cells.cell import Cell
from throughtime.cells.gru import GRU
from throughtime.cells.linear import MinGRU, MinLSTM
from throughtime.cells.lstm import LSTM, CoupledLSTM, LayerNormLSTM, PeepholeLSTM, ProjectedLSTM
from throughtime.cells.wrappers import MaskedInput


def recurrent_matrices(network: nn.Module) -> Iterator[Tensor]:
    """The recurrent weight matrices of every cell in it, one a gate, as views: writing into one changes the cell.

    They are those of `nn.Linear` modules whose name starts with ``recurrent``, as in the built-in cells; a cell of
    one's own that keeps to that is served as well.

    >>> from throughtime.cells import LSTM
    >>> [tuple(u.shape) for u in recurrent_matrices(LSTM(3, 5))]
    [(5, 5), (5, 5), (5, 5), (5, 5)]
    """
    for cell in network.modules():
        if not isinstance(cell, Cell):
            continue
        for name, module in cell.named_children():
            if isinstance(module, MaskedInput):
                module = module.product
            if name.startswith("recurrent") and isinstance(module, nn.Linear):
                yield from module.weight.detach().split(cell.hidden_size, dim=0)


def orthogonal_(network: nn.Module, gain: float = 1.0) -> None:
    """Recurrent matrices become random orthogonal ones, times ``gain`` (Saxe et al. 2014): all singular values alike.

    Raises:
        ValueError: there is no recurrent matrix.
    """
    for u in _some(network):
        nn.init.orthogonal_(u, gain)


def identity_(network: nn.Module, gain: float = 1.0) -> None:
    """Recurrent matrices become the identity times ``gain`` (Le, Jaitly & Hinton 2015).

    Raises:
        ValueError: there is no recurrent matrix.
    """
    for u in _some(network):
        u.copy_(gain * torch.eye(*u.shape, dtype=u.dtype, device=u.device))


def spectral_radius_(network: nn.Module, radius: float) -> None:
    """Recurrent matrices are scaled to this spectral radius, the modulus of their largest eigenvalue (Jaeger 2001).

    Raises:
        ValueError: there is no recurrent matrix, or one is not square, or has only zero eigenvalues; or the radius is
            below 0.
    """
    if radius < 0:
        raise ValueError(f"a spectral radius is at least 0, not {radius:g}")
    for u in _some(network):
        if u.shape[0] != u.shape[1]:
            raise ValueError(f"a matrix of {tuple(u.shape)} has no eigenvalues; use singular_value_")
        largest = torch.linalg.eigvals(u).abs().max()
        if largest == 0:
            raise ValueError("a recurrent matrix has only zero eigenvalues, which no factor can raise")
        u.mul_(radius / largest)


def singular_value_(network: nn.Module, value: float) -> None:
    """Recurrent matrices are scaled so that this is their largest singular value.

    Below 1, the gradient of a network with |f'| <= 1 must vanish; above, it may explode (Pascanu et al. 2013).

    Raises:
        ValueError: there is no recurrent matrix, or one is zero; or the value is below 0.
    """
    if value < 0:
        raise ValueError(f"a singular value is at least 0, not {value:g}")
    for u in _some(network):
        largest = torch.linalg.matrix_norm(u, 2)
        if largest == 0:
            raise ValueError("a recurrent matrix is zero, which no factor can raise")
        u.mul_(value / largest)


Gate = tuple[Tensor, float]  # a view of a gate's bias; +1 where an open gate keeps the state, -1 where it writes


def memory_gates(cell: Cell) -> list[Gate]:
    """The biases that say how long a built-in cell remembers, with their sign.

    >>> from throughtime.cells import GRU
    >>> [(bias.shape, sign) for bias, sign in memory_gates(GRU(3, 5))]
    [(torch.Size([5]), 1.0)]

    Raises:
        ValueError: the cell has no forget gate, or is one that is not known here.
    """
    size = cell.hidden_size

    def block(bias: Any, n: int) -> Tensor:
        return bias.detach()[n * size : (n + 1) * size]

    if isinstance(cell, LayerNormLSTM):
        return [(block(cell.norm_input.bias, 1), 1.0), (block(cell.norm_input.bias, 0), -1.0)]
    if isinstance(cell, (LSTM, PeepholeLSTM, ProjectedLSTM)):
        return [(block(cell.input.bias, 1), 1.0), (block(cell.input.bias, 0), -1.0)]
    if isinstance(cell, CoupledLSTM):
        return [(block(cell.input.bias, 0), -1.0)]
    if isinstance(cell, GRU):
        return [(block(cell.input.bias, 1), 1.0 if cell.update == "keep" else -1.0)]
    if isinstance(cell, MinLSTM):
        return [(block(cell.input.bias, 0), 1.0), (block(cell.input.bias, 1), -1.0)]
    if isinstance(cell, MinGRU):
        return [(block(cell.input.bias, 0), -1.0)]
    raise ValueError(f"{type(cell).__name__} has no forget gate known here; pass gates=[(bias, sign), ...]")


def forget_bias_(network: nn.Module, value: float, *, gates: Sequence[Gate] | None = None) -> None:
    """Forget gates' biases become ``value`` (Gers et al. 2000; Jozefowicz et al. 2015): the larger, the longer memory.

    In a GRU the update gate is meant, with the sign that keeps; input gates are left alone.

    Args:
        network: anything with cells in it.
        value: what the bias becomes.
        gates: for a cell of one's own: views of its biases, with +1 where an open gate keeps and -1 where it writes.

    Raises:
        ValueError: there is no cell with a forget gate.
    """
    for (bias, sign), *_ in _gates(network, gates):
        bias.fill_(sign * value)


def chrono_(network: nn.Module, longest: float, *, gates: Sequence[Gate] | None = None) -> None:
    r"""Chrono initialisation (Tallec & Ollivier 2018): units whose memories last from 1 to ``longest`` steps.

    .. math:: b_f \sim \log \mathcal{U}(1, T_{max} - 1), \qquad b_i = -b_f

    A gate's share σ(b) = 1 - 1/τ keeps for about τ steps. In a GRU the update gate takes b_f (in its own sign).

    Args:
        network: anything with cells in it.
        longest: T_max, the longest lag in steps that the task may hold; above 2.
        gates: see `forget_bias_`.

    Raises:
        ValueError: longest is not above 2, or there is no cell with a forget gate.
    """
    if not longest > 2:
        raise ValueError(f"longest must be above 2 steps, not {longest!r}")
    for group in _gates(network, gates):
        like = group[0][0]
        bias = torch.empty_like(like).uniform_(1, longest - 1).log()
        for view, sign in group:
            view.copy_(sign * bias)


def _some(network: nn.Module) -> list[Tensor]:
    matrices = list(recurrent_matrices(network))
    if not matrices:
        raise ValueError("no recurrent matrix found: no cell has an nn.Linear whose name starts with 'recurrent'")
    return matrices


def _gates(network: nn.Module, gates: Sequence[Gate] | None) -> list[list[Gate]]:
    """The gates of each cell, the one that keeps first."""
    if gates is not None:
        return [[(bias.detach(), sign) for bias, sign in gates]]
    cells = [m for m in network.modules() if isinstance(m, Cell) and not any(isinstance(c, Cell) for c in m.children())]
    if not cells:
        raise ValueError("no cell found whose gates could be set")
    return [memory_gates(cell) for cell in cells]
