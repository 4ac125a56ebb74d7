"""What checkpointed BPTT keeps for the way back and how long it takes, against full BPTT.

    python recipes/checkpointed.py [B,T,H]

Kept: bytes of the memory that tensors saved for the way back stand in, without that of the input and the output. Times
are medians of runs turn by turn, forwards and back.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch
from torch import Tensor

import throughtime as tt
from throughtime.bench import point_named
from throughtime.learning.checkpointed import checkpointed

ROUNDS = 5


def main(size: str = "16,10000,256") -> None:
    point = point_named(size)
    torch.manual_seed(0)
    cell = tt.cells.LSTM(point.hidden, point.hidden)
    x = torch.randn(point.batch, point.steps, point.hidden)
    dy = torch.randn(point.batch, point.steps, point.hidden)
    runs = {"full": lambda: tt.unroll(cell, x)[0], "checkpointed": lambda: checkpointed(cell, x)[0]}

    memory, gradients = {}, {}
    for name, run in runs.items():
        saved: dict[int, int] = {}

        def note(tensor: Tensor, saved: dict[int, int] = saved) -> Tensor:
            storage = tensor.untyped_storage()
            saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            y = run()
        own = {x.untyped_storage().data_ptr(), y.untyped_storage().data_ptr()}
        own |= {p.untyped_storage().data_ptr() for p in cell.parameters()}
        memory[name] = sum(size for address, size in saved.items() if address not in own)
        gradients[name] = torch.autograd.grad(y, list(cell.parameters()), dy)
    for one, other in zip(*gradients.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))

    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            torch.autograd.grad(run(), list(cell.parameters()), dy)
            taken[name].append(time.perf_counter() - start)
    seconds = {name: statistics.median(times) for name, times in taken.items()}
    for name in runs:
        print(f"{name}: {memory[name] / 2**20:,.1f} MiB kept, {seconds[name]:.2f} s")
    print(
        f"checkpointed keeps 1/{memory['full'] / memory['checkpointed']:.0f} "
        f"and takes {seconds['checkpointed'] / seconds['full']:.2f} times as long"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
