"""The equations. One family a file; a cell is its parameters and one step."""

from throughtime.cells.additive import AdditiveMemory, ResidualMemory
from throughtime.cells.catalogue import CATALOGUE, Entry, cell_named
from throughtime.cells.cell import Cell
from throughtime.cells.deep import DeepOutput, DeepTransition
from throughtime.cells.elman import Elman
from throughtime.cells.gru import GRU
from throughtime.cells.indrnn import IndRNN
from throughtime.cells.jordan import Jordan
from throughtime.cells.linear import LRU, LinearCell, MinGRU, MinLSTM
from throughtime.cells.lstm import (
    LSTM,
    CoupledLSTM,
    LayerNormLSTM,
    OriginalLSTM,
    PeepholeLSTM,
    ProjectedLSTM,
)
from throughtime.cells.wrappers import LearnedInitialState, RecurrentDropout, Residual, Wrapper, Zoneout

__all__ = [
    "CATALOGUE",
    "GRU",
    "LRU",
    "LSTM",
    "AdditiveMemory",
    "Cell",
    "CoupledLSTM",
    "DeepOutput",
    "DeepTransition",
    "Elman",
    "Entry",
    "IndRNN",
    "Jordan",
    "LayerNormLSTM",
    "LearnedInitialState",
    "LinearCell",
    "MinGRU",
    "MinLSTM",
    "OriginalLSTM",
    "PeepholeLSTM",
    "ProjectedLSTM",
    "RecurrentDropout",
    "Residual",
    "ResidualMemory",
    "Wrapper",
    "Zoneout",
    "cell_named",
]
