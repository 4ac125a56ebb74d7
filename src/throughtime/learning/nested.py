"""States of cells and networks: tensors in (named) tuples that may nest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from throughtime.cells.cell import Cell
from throughtime.cells.wrappers import Wrapper
from throughtime.engine import unroll


def tensors_in(state: Any) -> list[Tensor]:
    """Every tensor of a state, in order; none of None.

    >>> len(tensors_in(((torch.zeros(1), torch.ones(1)), torch.zeros(2))))
    3
    """
    if state is None:
        return []
    if isinstance(state, Tensor):
        return [state]
    return [tensor for part in state for tensor in tensors_in(part)]


def rebuilt(state: Any, tensors: Iterator[Tensor]) -> Any:
    """A state of the same make as ``state``, of the next tensors."""
    if state is None:
        return None
    if isinstance(state, Tensor):
        return next(tensors)
    parts = [rebuilt(part, tensors) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)


def map_tensors(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    """The state whose tensors are the function of the state's."""
    return rebuilt(state, (function(tensor) for tensor in tensors_in(state)))


def detached(state: Any) -> Any:
    """The state, cut from its past."""
    return map_tensors(torch.Tensor.detach, state)


def steps_of(noise: Any, start: int, stop: int) -> Any:
    """Steps ``start ... stop - 1`` of noise (B, T, ...)."""
    return map_tensors(lambda tensor: tensor[:, start:stop], noise)


def lengths_within(lengths: Tensor | None, start: int, stop: int) -> Tensor | None:
    """What of each length falls into steps ``start ... stop - 1``."""
    return None if lengths is None else (lengths - start).clamp(0, stop - start)


class Replayed(Wrapper):
    """A cell that is given its noise instead of drawing it, so that a stretch of time can be run again as it was."""

    def __init__(self, cell: Cell, noise: Any) -> None:
        super().__init__(cell)
        self._whole = noise  # (B, T, ...)
        self._start = 0

    def noise(self, batch_size: int, steps: int) -> Any:
        return steps_of(self._whole, self._start, self._start + steps)


class Runner:
    """Runs stretches of a sequence through a cell or a network, each time with the same noise.

    A `Cell` goes through `throughtime.unroll` and draws its noise once, for all steps. Any other network is called
    as ``network(x, state, lengths=..., resets=...)``, the last two only where given.
    """

    def __init__(
        self, network: Any, x: Tensor, lengths: Any, resets: Any, *, reverse: bool = False, backend: str = "auto"
    ) -> None:
        self.network = network
        self.lengths = None if lengths is None else torch.as_tensor(lengths, device=x.device)
        self.resets = None if resets is None else torch.as_tensor(resets, device=x.device)
        self.reverse = reverse
        self.backend = backend
        self.is_cell = isinstance(network, Cell)
        noise = network.noise(x.shape[0], x.shape[1]) if self.is_cell else None
        self.cell = Replayed(network, noise) if noise is not None else network

    def __call__(self, x: Tensor, state: Any, start: int, stop: int) -> tuple[Any, Any]:
        """Steps ``start ... stop - 1``: ``x`` is those steps of the input. Gives y and the state after them."""
        lengths = lengths_within(self.lengths, start, stop)
        resets = None if self.resets is None else self.resets[:, start:stop]
        if not self.is_cell:
            options = {"lengths": lengths, "resets": resets}
            return self.network(x, state, **{name: value for name, value in options.items() if value is not None})
        if isinstance(self.cell, Replayed):
            self.cell._start = start
        return unroll(self.cell, x, state, lengths=lengths, resets=resets, reverse=self.reverse, backend=self.backend)


def draws_noise(network: torch.nn.Module) -> bool:
    """Whether a network in its present mode draws random numbers of a kind known here."""
    for module in network.modules():
        if isinstance(module, Cell) and module.noise(1, 1) is not None:
            return True
        if module.training and isinstance(module, torch.nn.modules.dropout._DropoutNd) and module.p > 0:
            return True
        rate = getattr(module, "dropout", 0.0)
        if module.training and isinstance(rate, float) and rate > 0:
            return True
    return False
