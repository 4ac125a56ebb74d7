"""Every built-in cell, by name: what the command line offers and `throughtime cells` prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from throughtime.cells.additive import AdditiveMemory, ResidualMemory
from throughtime.cells.cell import Cell
from throughtime.cells.deep import DeepOutput, DeepTransition
from throughtime.cells.elman import Elman
from throughtime.cells.gru import GRU
from throughtime.cells.indrnn import IndRNN
from throughtime.cells.jordan import Jordan
from throughtime.cells.linear import LRU, MinGRU, MinLSTM
from throughtime.cells.lstm import (
    LSTM,
    CoupledLSTM,
    LayerNormLSTM,
    OriginalLSTM,
    PeepholeLSTM,
    ProjectedLSTM,
)
from throughtime.cells.wrappers import LearnedInitialState, RecurrentDropout, Residual, Wrapper, Zoneout


@dataclass(frozen=True)
class Entry:
    """One row of the catalogue: ``make(input_size, hidden_size)`` gives the cell."""

    name: str
    make: Callable[[int, int], Cell]
    family: str
    equation: str
    source: str

    def parameters(self, input_size: int, hidden_size: int) -> int:
        """How many numbers the cell learns."""
        return sum(p.numel() for p in self.make(input_size, hidden_size).parameters())


def _cell(name: str, cell: type[Cell], equation: str = "", **options: Any) -> Entry:
    return Entry(name, partial(cell, **options), cell.family, equation or cell.equation, cell.source)


def _wrapper(name: str, wrapper: type[Wrapper]) -> Entry:
    def make(input_size: int, hidden_size: int) -> Cell:
        return wrapper(LSTM(input_size, hidden_size))

    return Entry(name, make, wrapper.family, wrapper.equation, wrapper.source)


def _residual(input_size: int, hidden_size: int) -> Cell:
    return Residual(ProjectedLSTM(input_size, hidden_size, projection_size=input_size))


_GATES = "r,z = σ(Wx + Uh + b);  "
_ENTRIES = (
    _cell("elman", Elman),
    _cell("irnn", Elman, "h = relu(Wx + Uh + b), U = 1 at first", activation="relu", identity_init=True),
    _cell("jordan", Jordan),
    _cell("lstm", LSTM),
    _cell("lstm-original", OriginalLSTM),
    _cell("lstm-peephole", PeepholeLSTM),
    _cell("lstm-peephole-chung", PeepholeLSTM, form="chung2014"),
    _cell("lstm-coupled", CoupledLSTM),
    _cell("lstm-projected", ProjectedLSTM),
    _cell("lstm-layernorm", LayerNormLSTM),
    _cell("gru", GRU),
    _cell("gru-cho", GRU, _GATES + "n = tanh(Wx + U(r∘h) + b);  h = z∘h + (1 - z)∘n", reset="before"),
    _cell(
        "gru-chung",
        GRU,
        _GATES + "n = tanh(Wx + U(r∘h) + b);  h = (1 - z)∘h + z∘n",
        reset="before",
        update="write",
    ),
    _cell("gru-after-write", GRU, _GATES + "n = tanh(Wx + r∘(Uh) + b);  h = (1 - z)∘h + z∘n", update="write"),
    _cell("additive", AdditiveMemory),
    _cell("additive-residual", ResidualMemory),
    _cell("mingru", MinGRU),
    _cell("minlstm", MinLSTM),
    _cell("lru", LRU),
    _cell("indrnn", IndRNN),
    _wrapper("lstm-deep-transition", DeepTransition),
    _wrapper("lstm-deep-output", DeepOutput),
    Entry("lstm-residual", _residual, Residual.family, Residual.equation, Residual.source),
    _wrapper("lstm-zoneout", Zoneout),
    _wrapper("lstm-recurrent-dropout", RecurrentDropout),
    _wrapper("lstm-learned-initial-state", LearnedInitialState),
)
CATALOGUE: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}


def cell_named(name: str) -> Callable[[int, int], Cell]:
    """What makes the built-in cell of that name.

    >>> cell_named("gru-cho")(3, 5).reset
    'before'

    Raises:
        ValueError: the name is unknown.
    """
    if name not in CATALOGUE:
        raise ValueError(f"cell {name!r} is unknown; `throughtime cells` lists those there are")
    return CATALOGUE[name].make
