"""How a training step slows down when other processes want the cores: ours, and torch.nn's.

    python recipes/under_load.py [B,T,H ...]

For 0, 1, 2 and 4 other processes that do nothing but count: the median time of a step, times that of a step alone.
With N cores and M such processes a fair system leaves a thread N / (N + M) of a core, so (N + M) / N is what is to be
expected, and more where threads wait for each other while they have no core.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

import throughtime as tt
from throughtime.bench import point_named

OTHERS = (0, 1, 2, 4)
SECONDS = 4.0


def main(sizes: list[str]) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    print(f"{cores} cores, {torch.get_num_threads()} threads")
    for text in sizes or ["1,200,512", "16,100,128", "32,100,256"]:
        point = point_named(text)
        x = torch.randn(point.batch, point.steps, point.hidden, requires_grad=True)
        dy = torch.randn(point.batch, point.steps, point.hidden)
        ours = tt.Recurrent(tt.cells.LSTM, point.hidden, point.hidden)
        theirs = torch.nn.LSTM(point.hidden, point.hidden, batch_first=True)
        steps = {"ours": lambda: ours(x)[0].backward(dy), "nn.LSTM": lambda: theirs(x)[0].backward(dy)}  # noqa: B023
        alone: dict[str, float] = {}
        for others in OTHERS:
            busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(others)]
            try:
                time.sleep(0.5)
                for name, step in steps.items():
                    seconds = median(step)
                    alone.setdefault(name, seconds)
                    print(
                        f"{text} {name}, {others} others: {seconds * 1e3:.2f} ms, {seconds / alone[name]:.2f} times "
                        f"a step alone ({(cores + others) / cores:.2f} to be expected)",
                        flush=True,
                    )
            finally:
                for process in busy:
                    process.kill()
                    process.wait()


def median(step: Callable[[], None]) -> float:
    step()
    taken = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(taken) < 5:
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


if __name__ == "__main__":
    main(sys.argv[1:])
