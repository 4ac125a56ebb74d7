"""What is compiled once, whatever the number of threads that ask for it at the same time.

The code of a kernel lives as long as the object that owns it: were it made twice, the first would go while it runs.
LLVM and PyTorch's tracer, too, keep what they do where all threads see it.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

one_at_a_time = threading.RLock()
if hasattr(os, "register_at_fork"):  # a forked process would wait for ever for a thread that it has not got
    os.register_at_fork(
        before=one_at_a_time.acquire,
        after_in_parent=one_at_a_time.release,
        after_in_child=one_at_a_time.release,
    )
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def once(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """`functools.cache`, where a second thread waits for the first.

    >>> made = []
    >>> once(lambda: made.append(1) or len(made))()
    1
    """
    cached = functools.cache(function)

    @functools.wraps(function)
    def call(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        with one_at_a_time:
            return cached(*arguments, **named)  # type: ignore[arg-type]

    return call
