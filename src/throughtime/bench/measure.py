"""Timing on machines that are shared and noisy: turn by turn in one process, medians, as ratios."""

from __future__ import annotations

import ctypes
import functools
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from throughtime.engine.cpu import threads
from throughtime.engine.cpu.emit import Module
from throughtime.engine.cpu.machine import assemble, instruction_set, target_for
from throughtime.engine.cpu.vectormath import constant

_CHAINS = 24  # sums that do not wait for each other, as many as a product's tile has
_ROUNDS = 400_000


@dataclass(frozen=True)
class Machine:
    """Where a figure was measured."""

    processor: str
    instructions: str
    threads: int
    torch: str

    def __str__(self) -> str:
        return f"{self.processor}, {self.instructions}, {self.threads} threads, torch {self.torch}"


def machine() -> Machine:
    """This machine, with the threads that PyTorch uses."""
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        models = [line.split(":", 1)[1] for line in information.read_text().splitlines() if line[:10] == "model name"]
        name = models[0].strip() if models else name
    return Machine(name, instruction_set(), torch.get_num_threads(), torch.__version__)


def interleaved(
    functions: Sequence[Callable[[], object]], seconds: float, least: int = 5, rest: float = 0.0
) -> list[float]:
    """The median seconds of each function, run turn by turn for about so many seconds, at least ``least`` turns.

    ``rest``: seconds to wait before each, for threads that look out for work after the one before to go to sleep; a
    turn that is not timed then wakes its own, as in a loop of many.
    """
    for function in functions:  # compiles, and fills caches
        function()
        function()
    times: list[list[float]] = [[] for _ in functions]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < least:
        for function, taken in zip(functions, times, strict=True):
            if rest:
                time.sleep(rest)
                function()
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


@functools.cache
def _peak_code() -> tuple[int, int, object]:
    """A kernel of fused multiply-adds alone, and how many floating-point operations one call makes on each thread."""
    target = target_for("float")
    module = Module(target)
    with module.function("multiply", "ptr %words, i64 %number, i64 %hands") as f:
        sums = [f.slot(target.vector, constant(f, float(k))) for k in range(_CHAINS)]
        with f.loop("0", _ROUNDS):
            for total in sums:
                f.set(total, target.vector, f.fma(f.get(total, target.vector), constant(f, 0.5), constant(f, 1.0)))
        for k, total in enumerate(sums):  # so that they are needed
            row = f.at("%words", f.mul(f.add(f.mul("%number", _CHAINS), k), target.lanes * target.bytes), "i8")
            f.vstore(f.get(total, target.vector), f.at(row, 16 * 8, "i8"))
    code = assemble(module.text())
    return code.address("multiply"), 2 * target.lanes * _CHAINS * _ROUNDS, code


def peak() -> float:
    """Floating-point operations a second that the threads reach together with fused multiply-adds alone."""
    address, operations, _ = _peak_code()
    hands = threads.hands()
    words = (ctypes.c_int64 * (16 + hands * _CHAINS * 8))()
    best = min(_timed(lambda: threads.run([threads.Work(address, words, hands)])) for _ in range(7))
    return operations * hands / best


def _timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
