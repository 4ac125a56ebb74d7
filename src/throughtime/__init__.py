"""Recurrent neural networks on PyTorch.

Write a recurrence once, as its paper does; everything else (running it through time, learning, looking
inside, using it for a job) is derived from that one place.

Rooms and names are imported when they are first asked for, so that ``import throughtime`` costs nothing and
``throughtime --help`` does not wait for PyTorch.

>>> import throughtime as tt
>>> tt.cells.LSTM(3, 5).State._fields
('h', 'c')
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from throughtime import cells, data, engine, insight, layers, learning, nn, studies, tasks
    from throughtime.cells import Cell
    from throughtime.engine import Plan, SlowPathWarning, Stepper, explain, unroll
    from throughtime.errors import UserError
    from throughtime.layers import Recurrent

__version__ = "0.1.0"

__all__ = [
    "Cell",
    "Plan",
    "Recurrent",
    "SlowPathWarning",
    "Stepper",
    "UserError",
    "cells",
    "data",
    "engine",
    "explain",
    "insight",
    "layers",
    "learning",
    "nn",
    "studies",
    "tasks",
    "unroll",
]

_HOME = {
    "Cell": "cells",
    "Plan": "engine",
    "Recurrent": "layers",
    "SlowPathWarning": "engine",
    "Stepper": "engine",
    "UserError": "errors",
    "explain": "engine",
    "unroll": "engine",
}  # where a name is from; the other public names are rooms

if not TYPE_CHECKING:  # or a type checker would take any name for one of these

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        room = importlib.import_module(f"{__name__}.{_HOME.get(name, name)}")
        value = getattr(room, name) if name in _HOME else room
        globals()[name] = value  # found at once from now on
        return value

    def __dir__() -> list[str]:
        return [*__all__, "__version__"]
