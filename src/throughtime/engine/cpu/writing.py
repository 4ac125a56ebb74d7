"""Writing as one native call: embed a number, step all layers, project, draw the next, and again.

Threads meet after each part of a step; the first of them draws. Where the vocabulary is small, the products of its
embedded units by the first layer's matrices are made once, and a step looks them up.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from throughtime.cells.cell import Cell
from throughtime.engine.cpu import threads
from throughtime.engine.cpu.choosing import choose_name, choosing_lanes, declare_choosing, provide_choosing
from throughtime.engine.cpu.emit import Function
from throughtime.engine.cpu.gemm import GEMM, gemm_name, panel_width, provide_gemm
from throughtime.engine.cpu.half import declare_half, half_gemm_name, provide_half
from throughtime.engine.cpu.kernels import REAL
from throughtime.engine.cpu.lower import SIGNATURE, new_module, rounded
from throughtime.engine.cpu.machine import Code, assemble, target_for
from throughtime.engine.cpu.once import once
from throughtime.engine.cpu.stepping import (
    WORK_TO_SHARE,
    Stack,
    StepWords,
    Watch,
    aligned,
    announce_meeting,
    emit_layers,
    in_panels,
    pointer,
    word,
)

UNITS_TO_LOOK_UP = 512  # with more units than that, their products are made as they come


class WriteWords:
    """Places in the words of `write`, after those of a step."""

    FEEDS, FEED_COUNT, LINEARS, LINEAR_COUNT, NUMBER, UNITS, UNIFORMS, NUMBERS, WRITTEN, END = range(
        StepWords.COUNT, StepWords.COUNT + 10
    )
    LOGITS, MASK, SIZE, PADDED, TEMPERATURE, TOP_K, TOP_P, SPACE = range(StepWords.COUNT + 10, StepWords.COUNT + 18)
    COUNT = StepWords.COUNT + 18


FEED = 4  # words of a feed: where its address goes, on either turn; the first row; bytes from row to row
LINEAR = 6  # words of a linear map: input, its width, panels, how many, output, bias


@dataclass(frozen=True)
class Cut:
    """How chances are cut before a number is drawn, as `throughtime.engine.sampling.probabilities` has it."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None


class Writer:
    """An embedding, layers of compiled cells and linear maps to logits, writing one stream of numbers.

    Args:
        cells: each takes the output of the one before.
        embedding: of numbers to the first cell's input.
        linears: from the last cell's output to the logits, one after another.
        half: matrices are kept rounded to bfloat16, all but the embedding; the cells are float32.
    """

    def __init__(
        self, cells: Sequence[Cell], embedding: nn.Embedding, linears: Sequence[nn.Linear], *, half: bool = False
    ) -> None:
        self._half = half
        self._cells, self._embedding, self._linears = list(cells), embedding, list(linears)
        self.number = 0  # what is read next
        self._build()

    @torch.inference_mode(False)  # its buffers outlive such a mode
    def _build(self) -> None:
        self._watch = Watch([*self._cells, self._embedding, *self._linears])
        table = self._embedding.weight.detach().contiguous()  # (V, E)
        dtype = table.dtype
        size = self._linears[-1].out_features
        given = table.shape[0] <= UNITS_TO_LOOK_UP
        self.stack = Stack(self._cells, 1, dtype, given=given, half=self._half)
        self._code = write(dtype, self._half)
        self._function = self._code.address("write")
        target = target_for(REAL[dtype])
        panel = panel_width(target)
        self._kept: list[Tensor | ctypes.Array] = [table]

        first = self.stack.layers[0]
        feeds: list[tuple[str, Tensor]] = [("x", table)]
        if given:
            feeds += [
                (f"given.{k}", products(table, first.matrices[product.matrix], panel))
                for k, product in enumerate(first.program.forward.products)
            ]
        feeds = [(name, rows) for name, rows in feeds if name in first.layout.outside]
        feed_words = (ctypes.c_int64 * (FEED * max(1, len(feeds))))()
        for k, (name, rows) in enumerate(feeds):
            offset = 8 * first.layout.outside_word(name)
            feed_words[FEED * k], feed_words[FEED * k + 1] = (ctypes.addressof(w) + offset for w in first.words)
            feed_words[FEED * k + 2], feed_words[FEED * k + 3] = rows.data_ptr(), rows.stride(0) * rows.element_size()
            self._kept.append(rows)

        linear_words = (ctypes.c_int64 * (LINEAR * len(self._linears)))()
        source = self.stack.layers[-1].output
        for k, linear in enumerate(self._linears):
            weight = linear.weight.detach()
            panels = in_panels(weight, panel, half=self._half)
            bias = aligned(torch.zeros(rounded(weight.shape[0], panel), dtype=dtype, device="cpu"))
            if linear.bias is not None:
                bias[: weight.shape[0]] = linear.bias.detach()
            result = aligned(torch.zeros_like(bias))
            linear_words[LINEAR * k : LINEAR * (k + 1)] = [
                source.data_ptr(), weight.shape[1], panels.data_ptr(), panels.shape[0], result.data_ptr(),
                bias.data_ptr(),
            ]  # fmt: skip
            self._kept += [panels, bias, source, result]
            source = result
        work = sum(layer.work for layer in self.stack.layers) + sum(linear.weight.numel() for linear in self._linears)
        self._large = work >= WORK_TO_SHARE
        self._size, padded = size, rounded(size, choosing_lanes())
        self._mask = torch.full((padded,), -torch.inf, dtype=torch.float64, device="cpu")
        space = torch.zeros(3 * padded, dtype=torch.float64, device="cpu")
        self._kept += [feed_words, linear_words, space]

        self._words = words = StepWords.new(self.stack, WriteWords.COUNT)
        words[WriteWords.FEEDS], words[WriteWords.FEED_COUNT] = ctypes.addressof(feed_words), len(feeds)
        words[WriteWords.LINEARS], words[WriteWords.LINEAR_COUNT] = ctypes.addressof(linear_words), len(self._linears)
        words[WriteWords.LOGITS], words[WriteWords.SIZE], words[WriteWords.PADDED] = source.data_ptr(), size, padded
        words[WriteWords.MASK], words[WriteWords.SPACE] = self._mask.data_ptr(), space.data_ptr()

    def write(self, uniforms: Tensor, allowed: Tensor, cut: Cut, end: int | None = None) -> list[int]:
        """Reads `number`, draws the next one, reads that, and so on: one for each of ``uniforms`` (N,), float64.

        Args:
            uniforms: from [0, 1), as `throughtime.engine.sampling.draw` takes them.
            allowed: (V,) bool: the numbers that may come.
            end: the number to stop at.

        Returns:
            What was written; the last of it has not been read yet. It ends with -1 where the logits before it are not
            numbers, or none is allowed.
        """
        if not 0 <= self.number < self._embedding.num_embeddings:
            raise ValueError(f"there is no number {self.number} among {self._embedding.num_embeddings}")
        if self._watch.changed():
            state = self.stack.state
            self._build()
            self.stack.state = state
        self._mask[: self._size] = torch.where(allowed, 0.0, -torch.inf)
        words, count = self._words, len(uniforms)
        uniforms = uniforms.contiguous()
        numbers = (ctypes.c_int64 * max(1, count))()
        words[StepWords.TURN] = self.stack.turn
        words[WriteWords.NUMBER], words[WriteWords.UNITS] = self.number, count
        words[WriteWords.UNIFORMS], words[WriteWords.NUMBERS] = uniforms.data_ptr(), ctypes.addressof(numbers)
        words[WriteWords.END] = -2 if end is None else end
        words[WriteWords.TOP_K] = self._size if cut.top_k is None else min(cut.top_k, self._size)
        ctypes.c_double.from_buffer(words, 8 * WriteWords.TEMPERATURE).value = cut.temperature
        ctypes.c_double.from_buffer(words, 8 * WriteWords.TOP_P).value = 1.0 if cut.top_p is None else cut.top_p
        threads.run([threads.Work(self._function, words, threads.hands_to_meet() if self._large else 1)])
        written = words[WriteWords.WRITTEN]
        self.stack.turn = (self.stack.turn + written) % 2
        if written and numbers[written - 1] >= 0:
            self.number = numbers[written - 1]
        return numbers[:written]


def products(rows: Tensor, matrix: Tensor, panel: int) -> Tensor:
    """``rows (V, E)`` times a matrix (N, E), by the product that kernels use: (V, N rounded to panels)."""
    target = target_for(REAL[rows.dtype])
    panels = in_panels(matrix, panel)
    result = rows.new_empty(rows.shape[0], panels.shape[0] * panel)
    kinds = [ctypes.c_void_p if kind.startswith("ptr") else ctypes.c_int64 for kind in GEMM.split(", ")]
    gemm = ctypes.CFUNCTYPE(None, *kinds)(provide_gemm(target).address(gemm_name(target, add=False)))
    gemm(
        rows.data_ptr(), rows.stride(0), panels.data_ptr(), result.data_ptr(), result.stride(0), rows.shape[0],
        matrix.shape[1], 0, panels.shape[0],
    )  # fmt: skip
    return result


@once
def write(dtype: torch.dtype, half: bool) -> Code:
    """``write(words, number, hands)``, for all models of a precision."""
    target = target_for(REAL[dtype])
    provide_gemm(target)
    if half:
        provide_half()
    provide_choosing()
    module = new_module(target)
    declare_choosing(module, target.real)
    if half:
        declare_half(module)
    with module.function("write", SIGNATURE) as f:
        announce_meeting(f)
        turn, written, going = f.slot("i64", word(f, StepWords.TURN)), f.slot("i64", "0"), f.slot("i64", "1")
        one = f.compare("eq", "%number", 0)
        with f.when(one):
            _feed(f, word(f, WriteWords.NUMBER))
        _meet(f)
        units = word(f, WriteWords.UNITS)
        with f.repeat_while() as forever:
            unit = f.get(written, "i64")
            forever.unless(f.compare("slt", unit, units))
            forever.unless(f.compare("ne", f.get(going, "i64"), 0))
            emit_layers(f, f.get(turn, "i64"))
            f.set(turn, "i64", f.sub(1, f.get(turn, "i64")))
            _linears(f, half)
            result = f.at(pointer(f, WriteWords.NUMBERS), unit, "i64")
            with f.when(one):
                _choose(f, unit, result)
            _meet(f)
            chosen = f.let(f"load i64, ptr {result}, align 8")
            ended = f.let(f"or i1 {f.compare('eq', chosen, word(f, WriteWords.END))}, {f.compare('slt', chosen, 0)}")
            f.set(going, "i64", f.select(ended, 0, 1))
            f.set(written, "i64", f.add(unit, 1))
        with f.when(one):
            f.line(f"store i64 {f.get(written, 'i64')}, ptr {f.at('%words', WriteWords.WRITTEN, 'i64')}, align 8")
    return assemble(module.text())


def _meet(f: Function) -> None:
    f.run("barrier", ("ptr", pointer(f, StepWords.MEETING)), ("i64", "%hands"))


def _feed(f: Function, number: str) -> None:
    """Tells the first layer where the rows of a number stand."""
    feeds = pointer(f, WriteWords.FEEDS)
    with f.loop("0", word(f, WriteWords.FEED_COUNT)) as k:
        feed = f.at(feeds, f.mul(k, FEED), "i64")
        base, distance = (f.let(f"load i64, ptr {f.at(feed, n, 'i64')}, align 8") for n in (2, 3))
        address = f.add(base, f.mul(number, distance))
        for turn in (0, 1):
            to = f.let(f"load ptr, ptr {f.at(feed, turn, 'i64')}, align 8")
            f.line(f"store i64 {address}, ptr {to}, align 8")


def _linears(f: Function, half: bool) -> None:
    """One linear map after another; threads split the panels."""
    t = f.target
    linears, panel = pointer(f, WriteWords.LINEARS), panel_width(t)
    with f.loop("0", word(f, WriteWords.LINEAR_COUNT)) as k:
        entry = f.at(linears, f.mul(k, LINEAR), "i64")
        source, panels, result, bias = (f.let(f"load ptr, ptr {f.at(entry, n, 'i64')}, align 8") for n in (0, 2, 4, 5))
        depth, count = (f.let(f"load i64, ptr {f.at(entry, n, 'i64')}, align 8") for n in (1, 3))
        first = f.div(f.mul("%number", count), "%hands")
        last = f.div(f.mul(f.add("%number", 1), count), "%hands")
        with f.loop(f.mul(first, panel), f.mul(last, panel), t.lanes) as column:
            f.vstore(f.vload(f.at(bias, column)), f.at(result, column))
        f.run(
            half_gemm_name(t, add=True) if half else gemm_name(t, add=True),
            ("ptr", source), ("i64", "0"), ("ptr", panels), ("ptr", result), ("i64", "0"), ("i64", "1"),
            ("i64", depth), ("i64", first), ("i64", last),
        )  # fmt: skip
        _meet(f)


def _choose(f: Function, unit: str, result: str) -> None:
    """Draws the number of this unit, and feeds it."""
    W = WriteWords
    uniform = f.let(f"load double, ptr {f.at(pointer(f, W.UNIFORMS), unit, 'double')}, align 8")
    temperature, top_p = (
        f.let(f"load double, ptr {f.at('%words', place, 'i64')}, align 8") for place in (W.TEMPERATURE, W.TOP_P)
    )
    f.run(
        choose_name(f.target.real),
        ("ptr", pointer(f, W.LOGITS)), ("ptr", pointer(f, W.MASK)), ("i64", word(f, W.SIZE)),
        ("i64", word(f, W.PADDED)), ("double", uniform), ("double", temperature), ("i64", word(f, W.TOP_K)),
        ("double", top_p), ("ptr", pointer(f, W.SPACE)), ("ptr", result),
    )  # fmt: skip
    chosen = f.let(f"load i64, ptr {result}, align 8")
    with f.when(f.compare("sge", chosen, 0)):
        _feed(f, chosen)
