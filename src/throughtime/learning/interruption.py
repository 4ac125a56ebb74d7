"""Being asked to stop: Ctrl-C and SIGTERM."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop, and has written a checkpoint. Its text says how to go on.

    Attributes:
        signal: SIGINT or SIGTERM; the command line ends with status 128 + signal (130, 143).
    """

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.signal = number


class Requests:
    """Whether a signal has come."""

    def __init__(self) -> None:
        self.signal = 0

    def receive(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or number


@contextlib.contextmanager
def stop_requests(impatient: bool) -> Iterator[Requests]:
    """Inside, a first SIGINT or SIGTERM is noted and nothing else, so that the step at hand can end.

    Args:
        impatient: a second Ctrl-C stops at once. Under torchrun it must not: its processes get each signal twice.
    """
    requests = Requests()
    if threading.current_thread() is not threading.main_thread():
        yield requests  # signals are the main thread's own affair
        return

    def receive(number: int, frame: FrameType | None) -> None:
        if requests.signal and impatient:
            signal.default_int_handler(number, frame)
        requests.receive(number, frame)

    before: dict[int, Any] = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
