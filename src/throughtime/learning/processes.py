"""One process among several."""

from __future__ import annotations

import os


def first_process() -> bool:
    """Whether this is the process that writes and speaks: the only one, or the first of those torchrun started."""
    return os.environ.get("RANK", "0") == "0"
