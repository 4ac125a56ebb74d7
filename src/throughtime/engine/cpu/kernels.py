"""A cell's kernels, compiled, and how they are called."""

from __future__ import annotations

import ctypes
import functools
import threading
from dataclasses import dataclass

import torch
from torch import Tensor

from throughtime.engine.cpu import threads
from throughtime.engine.cpu.emit import Target
from throughtime.engine.cpu.gemm import most_rows, panel_width, provide_gemm
from throughtime.engine.cpu.lower import Layout, Words, new_module, rounded, write_backward, write_forward
from throughtime.engine.cpu.machine import assemble, target_for
from throughtime.engine.cpu.pages import as_new
from throughtime.engine.cpu.program import Program

REAL = {torch.float32: "float", torch.float64: "double"}
BLOCK_BYTES = 256 * 1024  # of a thread's share of the second-level cache, for the products of a block of steps
CORE_CACHE = 1024 * 1024  # bytes of a core's own cache
ROWS_TO_SHARE = 4  # with fewer sequences than this for each thread, threads share them and split the columns
ROWS_TO_DEAL_OUT = 16  # so many hide the reading of matrices behind the work on them


@dataclass(frozen=True)
class Kernels:
    """The compiled kernels of a program."""

    program: Program
    target: Target
    forward: int
    forward_layout: Layout
    backward: int
    backward_layout: Layout | None
    code: object  # owns the memory of the kernels


def compile_program(program: Program, dtype: torch.dtype) -> Kernels:
    target = target_for(REAL[dtype])
    provide_gemm(target)
    module = new_module(target)
    forward_layout = write_forward(module, program)
    backward_layout = write_backward(module, program) if program.backward else None
    code = assemble(module.text())
    backward = code.address("backward") if program.backward else 0
    return Kernels(program, target, code.address("forward"), forward_layout, backward, backward_layout, code)


@dataclass(frozen=True)
class Rows:
    """How a batch is laid out in time: the real steps of each sequence, and the longest first."""

    lengths: Tensor  # (B,) int64
    order: Tensor  # (B,) int64
    steps: int
    reverse: bool


@functools.lru_cache(maxsize=64)
def equal_rows(batch: int, steps: int) -> tuple[Tensor, Tensor]:
    return torch.full((batch,), steps, dtype=torch.int64, device="cpu"), torch.arange(batch, device="cpu")


def rows_of(batch: int, steps: int, lengths: Tensor | None, reverse: bool) -> Rows:
    if lengths is None:
        return Rows(*equal_rows(batch, steps), steps, reverse)
    lengths = lengths.to(torch.int64).contiguous()
    return Rows(lengths, torch.argsort(lengths, descending=True, stable=True), steps, reverse)


Placed = tuple[int, int, int]  # address, distance of sequences, distance of steps


def by_step(tensor: Tensor, column: int = 0, step: int = 0) -> Placed:
    """A tensor (B, T, N) whose columns lie side by side, seen ``step`` steps on."""
    address = tensor.data_ptr() + (column + step * tensor.stride(1)) * tensor.element_size()
    return address, tensor.stride(0), tensor.stride(1)


def by_sequence(tensor: Tensor) -> Placed:
    """A tensor (B, N)."""
    return tensor.data_ptr(), tensor.stride(0), 0


@dataclass(frozen=True)
class Launch:
    """A kernel and what it is to be run on."""

    kernel: int
    layout: Layout
    rows: Rows
    placed: dict[str, Placed]
    vectors: list[Tensor]
    matrices: list[Tensor]
    gradients: list[Tensor]
    alive: list[Tensor]  # what ``placed`` has the addresses of


def run(launches: list[Launch]) -> None:
    """Runs kernels on as many threads as PyTorch has, side by side where that is better than one after the other."""
    hands = threads.hands()
    if len(launches) > 1 and (hands < len(launches) or not all(_better_apart(launch, hands) for launch in launches)):
        for launch in launches:
            run([launch])
        return
    shares = [hands * (k + 1) // len(launches) - hands * k // len(launches) for k in range(len(launches))]
    placed = [_words_of(launch, share, k) for k, (launch, share) in enumerate(zip(launches, shares, strict=True))]
    threads.run([threads.Work(launch.kernel, *of) for launch, of in zip(launches, placed, strict=True)])


def _words_of(launch: Launch, hands: int, space: int) -> tuple[ctypes.Array, int]:
    """The kernel's words, and how many threads it is to have, of those there are for it."""
    layout, rows, matrices = launch.layout, launch.rows, launch.matrices
    batch, steps = rows.lengths.shape[0], rows.steps
    shared = hands > 1 and _better_shared(layout, batch, hands, matrices)
    if threads.crowd.here() or (shared and _little_work(layout, batch)):
        hands, shared = 1, False
    capacity = batch if shared or hands == 1 else -(-batch // hands)
    real_bytes = layout.target.bytes
    block_row = max(1, capacity * layout.block_scratch * real_bytes)
    block = max(1, min(steps, BLOCK_BYTES * (hands if shared else 1) // block_row, max(1, 1024 // max(1, capacity))))
    panel = panel_width(layout.target)
    panels = [_panels(matrices[m].shape, transposed, panel) for m, transposed in layout.packs]
    # one hand may have to do the work of all: enough scratch for that too
    per_row = layout.row_scratch + block * layout.block_scratch
    scratch_size = max(batch, capacity * hands) * per_row + hands * layout.thread_scratch
    base = _workspace(space, (scratch_size + sum(panels) + 64) * real_bytes)

    words = (ctypes.c_int64 * layout.words)()
    words[Words.SHARED], words[Words.STEPS], words[Words.ROWS] = int(shared), steps, batch
    words[Words.ORDER], words[Words.LENGTHS] = rows.order.data_ptr(), rows.lengths.data_ptr()
    words[Words.BLOCK], words[Words.REVERSE] = block, int(rows.reverse)
    words[Words.SCRATCH] = base
    place = Words.HEAD
    for name in layout.outside:
        words[place], words[place + 1], words[place + 2] = launch.placed[name]
        place += 3
    for k, vector in enumerate(launch.vectors):
        words[layout.vector_word(k)] = vector.data_ptr()
    place = base + scratch_size * real_bytes
    place = (place + 63) // 64 * 64
    for pack, size in zip(layout.packs, panels, strict=True):
        word = layout.pack_word(pack)
        matrix = matrices[pack[0]]
        words[word], words[word + 1], words[word + 2] = matrix.data_ptr(), matrix.stride(0), place
        place += size * real_bytes
    for k, gradient in enumerate(launch.gradients):
        words[layout.gradient_word(k)] = gradient.data_ptr()
    return words, hands


_spaces = threading.local()


def _workspace(number: int, size: int) -> int:
    """The address of so many bytes that one of the kernels that this thread runs side by side may use while it runs;
    kept for the next one."""
    spaces: dict[int, Tensor] = _spaces.__dict__.setdefault("tensors", {})
    if number not in spaces or spaces[number].numel() < size:
        spaces.pop(number, None)  # not both at a time
        with torch.inference_mode(False):  # as it outlives such a mode
            spaces[number] = torch.empty(size + 64, dtype=torch.uint8, device="cpu")
    return (as_new(spaces[number]).data_ptr() + 63) // 64 * 64


def _panels(shape: torch.Size, transposed: bool, panel: int) -> int:
    rows, columns = shape
    depth, width = (rows, columns) if transposed else (columns, rows)
    return depth * rounded(width, panel)


def _better_shared(layout: Layout, batch: int, hands: int, matrices: list[Tensor]) -> bool:
    """Whether threads should share all rows and split the columns.

    With few rows there are not enough to deal out; and matrices that outgrow a core's cache are read from further away
    at each step, by each thread, so that it is better for each to read its part for more rows.
    """
    if batch < ROWS_TO_SHARE * hands:
        return True
    return _in_loop(layout, matrices) > CORE_CACHE * hands and batch < ROWS_TO_DEAL_OUT * hands


def _better_apart(launch: Launch, hands: int) -> bool:
    """Whether kernels that do not wait for each other should have some of the threads each, rather than all in turn.

    Then a thread has more rows for each matrix that it reads, and fewer to meet; where there are many rows for each
    thread anyway, or matrices that only all threads together can hold, it is no gain.
    """
    batch = launch.rows.lengths.shape[0]
    if batch < ROWS_TO_SHARE * hands:
        return True
    return _in_loop(launch.layout, launch.matrices) <= CORE_CACHE and batch < ROWS_TO_DEAL_OUT * hands


def _in_loop(layout: Layout, matrices: list[Tensor]) -> int:
    """Bytes of the matrices that each step reads."""
    return sum(matrices[m].numel() for m, _ in layout.loop_packs) * layout.target.bytes


def _little_work(layout: Layout, batch: int) -> bool:
    """Whether a step is too little to be worth a meeting of threads."""
    return batch * layout.row_scratch < 512


def gradient_buffers(kernels: Kernels, dtype: torch.dtype) -> list[Tensor]:
    """Room for each matrix gradient, padded to whole tiles."""
    backward = kernels.program.backward
    assert backward is not None
    panel, tile = panel_width(kernels.target), most_rows(kernels.target)
    shapes = [(rounded(g.width, tile), rounded(g.source_width, panel)) for g in backward.matrices]
    return [torch.empty(shape, dtype=dtype, device="cpu") for shape in shapes]
