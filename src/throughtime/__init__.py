"""Recurrent neural networks on PyTorch.

Write a recurrence once, as its paper does; everything else (running it through time, learning, looking
inside, using it for a job) is derived from that one place.
"""

from throughtime import cells, layers, nn
from throughtime.cells import Cell
from throughtime.engine import Plan, SlowPathWarning, explain, unroll
from throughtime.errors import UserError
from throughtime.layers import Recurrent

__version__ = "0.1.0"

__all__ = [
    "Cell",
    "Plan",
    "Recurrent",
    "SlowPathWarning",
    "UserError",
    "cells",
    "explain",
    "layers",
    "nn",
    "unroll",
]
