"""What has to be measured in a process of its own: memory that a training step takes, and the time to compile.

``python -m throughtime.bench.alone memory ours 16,100,64 2`` is what such a process runs; it prints JSON.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.bench.comparison import GRID, Comparison, Item, Point, point_named
from throughtime.bench.speed import SUBJECTS
from throughtime.cells import LSTM
from throughtime.engine import unroll

COMPILED = ("LSTM", "GRU", "layer-normalised LSTM", "own cell (MGU)")
COMPILED_AT = Point(16, 10, 128)
ALLOWED = {"first": 2.0, "from disk": 0.1}  # seconds
_STATUS, _PEAK_RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def missing() -> str | None:
    """Why memory cannot be measured here, or None."""
    if not (_STATUS.exists() and _PEAK_RESET.exists()):
        return f"memory is not measured: this system has no {_PEAK_RESET}"
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        return "memory is not measured: this system's C library has no malloc_trim"
    return None


def memories() -> list[Item]:
    """What there is to weigh."""
    return [Item("memory", str(point), functools.partial(memory, point)) for point in GRID]


def compilations() -> list[Item]:
    """What there is to compile."""
    return [Item("compile", name, functools.partial(compilation, name, COMPILED_AT)) for name in COMPILED]


def memory(point: Point, seconds: float = 0.0) -> list[Comparison]:
    """The most memory that a training step needs beyond what the process held before; two processes.

    It is the growth of the resident set, so that whoever allocates, and scratch space of threads, counts. The input
    and the output's gradient are there before, and both sides have taken a step of two steps of time.

    Raises:
        RuntimeError: outputs or gradients differ, or a process failed.
    """
    size = f"{point.batch},{point.steps},{point.hidden}"
    ours, theirs = (_alone("memory", side, size, str(torch.get_num_threads())) for side in ("ours", "theirs"))
    for one, other in zip(ours["sums"], theirs["sums"], strict=True):
        if abs(one - other) > 1e-3 * abs(other):
            raise RuntimeError(f"a training step at {point} differs from nn.LSTM's; not weighed")
    return [Comparison("memory", "LSTM", "nn.LSTM", point, ours["bytes"], theirs["bytes"], unit="bytes")]


def compilation(name: str, point: Point, seconds: float = 0.0) -> list[Comparison]:
    """What the first training step of a process takes longer than the second: kernel cache empty, then full.

    Raises:
        RuntimeError: what the kernels give is not what the reference does, or a process failed.
    """
    size = f"{point.batch},{point.steps},{point.hidden}"
    with tempfile.TemporaryDirectory() as cache:
        taken = {
            which: _alone("compile", name, size, str(torch.get_num_threads()), THROUGHTIME_CACHE=cache)["seconds"]
            for which in ALLOWED
        }
    return [
        Comparison("compile", name, f"{allowed:g} s, {which}", point, taken[which], allowed)
        for which, allowed in ALLOWED.items()
    ]


def _alone(*arguments: str, **environment: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "throughtime.bench.alone", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"measuring {' '.join(arguments)} in a process of its own failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# In the process of its own


def weigh(side: str, point: Point) -> dict[str, Any]:
    """Bytes that a training step adds, and sums that tell whether it was the same step."""
    torch.manual_seed(0)
    size = point.hidden
    cell, other = LSTM(size, size), nn.LSTM(size, size, batch_first=True)
    with torch.no_grad():
        pairs = zip(other.parameters(), [cell.input.weight, cell.recurrent.weight, cell.input.bias], strict=False)
        for parameter, weight in pairs:
            parameter.copy_(weight)
        nn.init.zeros_(other.get_parameter("bias_hh_l0"))
    x = torch.randn(point.batch, point.steps, size, requires_grad=True)
    dy = torch.randn(point.batch, point.steps, size)
    leaves = list((cell if side == "ours" else other).parameters())

    def step(x: Tensor, dy: Tensor) -> list[Tensor]:
        y = unroll(cell, x, backend="cpu")[0] if side == "ours" else other(x)[0]
        return [y.detach(), *torch.autograd.grad(y, [x, *leaves], dy)]

    step(x[:, :2].detach().requires_grad_(), dy[:, :2])
    ctypes.CDLL(None).malloc_trim(0)  # what the compiler has freed is no room for a step that would not count
    before = _kilobytes("VmRSS")
    _PEAK_RESET.write_text("5")  # the peak begins anew, from what is held now
    y, dx, *_ = step(x, dy)
    grown = _kilobytes("VmHWM") - before
    return {"bytes": 1024 * grown, "sums": [float(y.square().sum()), float(dx.square().sum())]}


def _kilobytes(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])


def first_step(name: str, point: Point) -> dict[str, Any]:
    """Seconds by which the first training step is longer than the second."""
    torch.manual_seed(0)
    cell = next(subject for subject in SUBJECTS if subject.name == name).make(point.hidden, point.hidden)
    x = torch.randn(point.batch, point.steps, point.hidden, requires_grad=True)
    dy = torch.randn(point.batch, point.steps, cell.output_size)

    def step(backend: str) -> list[Tensor]:
        y = unroll(cell, x, backend=backend)[0]
        return [y.detach(), *torch.autograd.grad(y, [x, *cell.parameters()], dy)]

    times = []
    for _ in range(2):
        start = time.perf_counter()
        made = step("cpu")
        times.append(time.perf_counter() - start)
    for one, other in zip(made, step("reference"), strict=True):
        if not torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max())):
            raise RuntimeError(f"{name} at {point} differs from the reference; its compilation is not timed")
    return {"seconds": times[0] - times[1]}


def main(job: str, subject: str, size: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    jobs: dict[str, Callable[[str, Point], dict[str, Any]]] = {"memory": weigh, "compile": first_step}
    sys.stdout.write(json.dumps(jobs[job](subject, point_named(size))))


if __name__ == "__main__":
    main(*sys.argv[1:])
