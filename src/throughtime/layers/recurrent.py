"""Cells in layers and directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from throughtime.cells.cell import Cell, check_size
from throughtime.cells.wrappers import LearnedInitialState, check_probability
from throughtime.engine import unroll
from throughtime.engine.stepper import Stepper
from throughtime.engine.unroll import unroll_both

MERGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "concat": lambda forward, backward: torch.cat([forward, backward], dim=-1),
    "sum": torch.add,
    "mean": lambda forward, backward: (forward + backward) / 2,
    "product": torch.mul,
    "max": torch.maximum,
}


class Recurrent(nn.Module):
    """Layers of a cell over a batch of sequences, in one direction or both.

    >>> from throughtime.cells import GRU
    >>> net = Recurrent(GRU, 3, 5, num_layers=2, bidirectional=True)
    >>> y, state = net(torch.zeros(4, 7, 3), lengths=[7, 2, 0, 5])
    >>> y.shape, len(state), len(state[0])
    (torch.Size([4, 7, 10]), 2, 2)

    The state is a tuple with one item a layer: the state of its cell, or, with two directions, the pair of the
    forward and the backward cell's.

    Args:
        cell_class: a class of cell, or any function ``(input_size, hidden_size, **cell_options) -> Cell``.
        input_size: features I of the input.
        hidden_size: hidden units H, one number or one for each layer.
        num_layers: layers; each takes the output of the one below.
        bidirectional: a second cell in each layer that runs from the last step to the first.
        dropout: the probability of an output to be dropped between layers, in training.
        merge: how the two directions become one output: "concat", "sum", "mean", "product" or "max".
        learned_initial_state: the state before the first step is a parameter.
        cell_options: passed to the cell.

    Raises:
        ValueError: sizes, merge or dropout out of range; hidden sizes and layers of different number.
    """

    def __init__(
        self,
        cell_class: Callable[..., Cell],
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        *,
        merge: str = "concat",
        learned_initial_state: bool = False,
        **cell_options: Any,
    ) -> None:
        super().__init__()
        num_layers = check_size(num_layers, "num_layers")
        sizes = list(hidden_size) if isinstance(hidden_size, Sequence) else [hidden_size] * num_layers
        if len(sizes) != num_layers:
            raise ValueError(f"{len(sizes)} hidden sizes for {num_layers} layers")
        if merge not in MERGES:
            raise ValueError(f"merge must be one of {', '.join(MERGES)}, not {merge!r}")
        self.input_size = check_size(input_size, "input_size")
        self.num_layers = num_layers
        self.bidirectional = bidirectional
        self.dropout = check_probability(dropout, "dropout", below_one=True)
        self.merge = merge

        if not callable(cell_class) or isinstance(cell_class, nn.Module):
            raise TypeError(f"cell_class must be a class of cells, as throughtime.cells.LSTM is, not {cell_class!r}")

        def make(size_in: int, size: int) -> Cell:
            cell = cell_class(size_in, size, **cell_options)
            if not isinstance(cell, Cell):
                raise TypeError(f"cell_class must make a throughtime.Cell, not {type(cell).__name__}")
            return LearnedInitialState(cell) if learned_initial_state else cell

        forward_cells: list[Cell] = []
        backward_cells: list[Cell] = []
        for size in sizes:
            cell = make(input_size, size)
            forward_cells.append(cell)
            if bidirectional:
                backward_cells.append(make(input_size, size))
            input_size = cell.output_size * (2 if bidirectional and merge == "concat" else 1)
        self.output_size = input_size
        self.forward_cells = nn.ModuleList(forward_cells)
        self.backward_cells = nn.ModuleList(backward_cells)

    def forward(
        self,
        x: Tensor,
        state: Any = None,
        *,
        lengths: Any = None,
        resets: Any = None,
        return_states: bool = False,
        backend: str = "auto",
    ) -> Any:
        """``x (B, T, I) -> (y (B, T, O), final state)``; see `throughtime.unroll` for the options.

        With ``return_states``, ``(y, final state, states)``: all states of all layers, laid out as the final
        state is, their fields (B, T, ...).
        """
        self._check_layers(state)
        options = {"lengths": lengths, "resets": resets, "return_states": return_states, "backend": backend}
        finals: list[Any] = []
        all_states: list[Any] = []
        for k in range(self.num_layers):
            if k and self.dropout:
                x = nn.functional.dropout(x, self.dropout, self.training)
            layer_state = None if state is None else state[k]
            cell = cast(Cell, self.forward_cells[k])
            if self.bidirectional:
                opposite = cast(Cell, self.backward_cells[k])
                one, other = unroll_both(cell, opposite, x, layer_state, **options)
                x = MERGES[self.merge](one[0], other[0])
                finals.append((one[1], other[1]))
                all_states.append((one[-1], other[-1]))
            else:
                x, final, *states = unroll(cell, x, layer_state, **options)
                finals.append(final)
                all_states.append(states[-1] if states else None)
        return (x, tuple(finals), tuple(all_states)) if return_states else (x, tuple(finals))

    def initial_state(self, batch_size: int) -> tuple[Any, ...]:
        """The state before the first step."""
        directions = [self.forward_cells, self.backward_cells] if self.bidirectional else [self.forward_cells]
        states = [[cast(Cell, cell).initial_state(batch_size) for cell in cells] for cells in directions]
        return tuple(zip(*states, strict=True)) if self.bidirectional else tuple(states[0])

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, tuple[Any, ...]]:
        """One step of all layers, for streaming: ``x (B, I) -> (y (B, O), state)``.

        Raises:
            ValueError: with two directions, as the backward one begins at an end not seen yet.
        """
        if self.bidirectional:
            raise ValueError("a bidirectional network cannot stream: its backward half begins at the end")
        self._check_layers(state)
        finals = []
        for k, cell in enumerate(self.forward_cells):
            if k and self.dropout:
                x = nn.functional.dropout(x, self.dropout, self.training)
            x, final = cell(x, None if state is None else state[k])
            finals.append(final)
        return x, tuple(finals)

    def stepper(self, batch_size: int = 1, *, backend: str = "auto", weights: torch.dtype | None = None) -> Stepper:
        """What takes many single steps fast, for inference: it holds the state, and the weights ready for use.

        >>> from throughtime.cells import GRU
        >>> net = Recurrent(GRU, 3, 5, num_layers=2)
        >>> x = torch.randn(1, 9, 3)
        >>> _, state = net(x[:, :4])
        >>> stepper = net.stepper()
        >>> stepper.state = state
        >>> for t in range(4, 9):
        ...     y = stepper.step(x[:, t])  # (B, I) -> (B, O)
        >>> torch.allclose(y, net(x)[0][:, -1])
        True

        Raises:
            ValueError: with two directions; with dropout between the layers in training; see `Stepper` for others.
        """
        if self.bidirectional:
            raise ValueError("a bidirectional network cannot stream: its backward half begins at the end")
        if self.training and self.dropout and self.num_layers > 1:
            raise ValueError("a stepper drops no outputs between layers; call eval() first")
        cells = [cast(Cell, cell) for cell in self.forward_cells]
        return Stepper(cells, batch_size, backend=backend, weights=weights)

    def _check_layers(self, state: Any) -> None:
        if state is not None and len(state) != self.num_layers:
            raise ValueError(f"the state of {len(state)} layers is given to a network of {self.num_layers}")

    def extra_repr(self) -> str:
        return f"merge={self.merge!r}, dropout={self.dropout}" if self.bidirectional else f"dropout={self.dropout}"
