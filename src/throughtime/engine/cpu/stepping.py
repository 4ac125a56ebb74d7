"""Layers of compiled cells that take one step at a time: weights packed once, the state left where it is.

Each cell has a kernel of one step beside those of `lower`, of the same statements and the same products, so that a
stream has the same bits as a whole sequence. The state has two places; one step reads the first and writes the second,
the next the other way round. All rows are shared by the threads, which split the columns.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.cells.cell import Cell
from throughtime.engine.cpu import threads
from throughtime.engine.cpu.backend import Prepared, prepare, rows_and_matrices, tensors_of
from throughtime.engine.cpu.complex_numbers import real_parts, rejoined
from throughtime.engine.cpu.emit import Function, Module
from throughtime.engine.cpu.gemm import panel_width, provide_gemm
from throughtime.engine.cpu.half import declare_half, half_gemm_name, halved, provide_half
from throughtime.engine.cpu.kernels import REAL, Kernels, equal_rows
from throughtime.engine.cpu.lower import SIGNATURE, Kernel, Layout, Words, new_module, rounded
from throughtime.engine.cpu.machine import Code, assemble, target_for
from throughtime.engine.cpu.once import once, one_at_a_time
from throughtime.engine.cpu.program import Program, build, input_widths
from throughtime.engine.cpu.schedule import Product

WORK_TO_SHARE = 1 << 19  # numbers of the matrices: with fewer, a step is too little to be worth a meeting of threads


def write_step(module: Module, program: Program, *, given: bool, half: bool) -> Layout:
    """The kernel ``step``.

    Buffers outside: "x"; the output "out.0"; "from.F" and "to.F", the states before and after. ``given``: for one row,
    products of the input are not made but read where "given.K" says, K their place among the program's. ``half``: the
    matrices are bfloat16.
    """
    forward, fields = program.forward, program.step.fields
    outside = [name for name in input_widths(program.step) if not name.startswith("state.")]
    outside += ["out.0", *(f"from.{name}" for name in fields), *(f"to.{name}" for name in fields)]
    packs = [(s.matrix, s.transposed) for s in forward.body.statements if isinstance(s, Product)]
    if given:
        outside += [f"given.{k}" for k in range(len(forward.products))]
    else:
        packs += [(p.matrix, False) for p in forward.products]
    layout = Layout(module.target, outside, program.step.vectors, list(dict.fromkeys(packs)), [])
    with module.function("step", SIGNATURE) as f:
        k = Kernel(f, layout, program, forward.body)
        if half:
            declare_half(module)
            k.product_name = half_gemm_name
        for name in fields:
            for slot, side in zip(k.states[name], ("from", "to"), strict=True):
                f.set(slot, "ptr", k.outside[f"{side}.{name}"][0])
        for number, product in enumerate(forward.products):
            if given:
                k.scratch[product.destination] = (k.outside[f"given.{number}"][0], 0)
                continue
            source, stride, _ = k.outside[product.source]
            destination, width = k.dense(product.destination)
            k.gemm(
                source, stride, (product.matrix, False), destination, width, k.count, product.width,
                program.matrix_shapes[product.matrix][0],
            )  # fmt: skip
        if not given and forward.products and not isinstance(forward.body.statements[0], Product):
            k.meet()
        k.step(k.count, "0", "0")
    return layout


def compiled_step(
    prepared: Prepared, shapes: tuple[tuple[int, int], ...], dtype: torch.dtype, *, given: bool, half: bool
) -> Kernels:
    """The kernel of a step, from memory where it has been compiled."""
    key = ("step", dtype, given, half)
    with one_at_a_time:
        if key not in prepared.kernels:
            target = target_for(REAL[dtype])
            provide_gemm(target)
            if half:
                provide_half()
            step = prepared.step
            program = build(step, shapes, outputs=(step.y,), wanted=frozenset(), backward=False)
            module = new_module(target)
            layout = write_step(module, program, given=given, half=half)
            code = assemble(module.text())
            prepared.kernels[key] = Kernels(program, target, code.address("step"), layout, 0, None, code)
    return prepared.kernels[key]


def in_panels(matrix: Tensor, panel: int, *, half: bool = False) -> Tensor:
    """A matrix (N, K) as products read it: for each panel of columns, K rows of so many numbers, zeros past the end.

    ``half``: as those of bfloat16 do.
    """
    rows, depth = matrix.shape
    padded = matrix.new_zeros(rounded(rows, panel), depth)
    padded[:rows] = matrix
    panels = padded.view(-1, panel, depth).transpose(1, 2)
    return aligned(halved(panels, target_for("float").lanes) if half else panels)


def aligned(tensor: Tensor) -> Tensor:
    """A copy whose memory begins at a border of 64 bytes."""
    size = tensor.element_size()
    space = tensor.new_empty(tensor.numel() + 64 // size)
    start = -space.data_ptr() % 64 // size
    copy = space[start : start + tensor.numel()].view(tensor.shape)
    copy.copy_(tensor)
    return copy


class Layer:
    """A compiled cell for so many rows, its weights in panels, its state and its output."""

    def __init__(self, cell: Cell, rows: int, dtype: torch.dtype, *, given: bool, half: bool) -> None:
        prepared = prepare(cell, None)
        assert isinstance(prepared, Prepared)
        step = prepared.step
        with torch.no_grad():
            tensors = {name: tensor.detach() for name, tensor in tensors_of(cell).items()}
            made = [part.detach().contiguous() for part in rows_and_matrices(prepared, tensors, dtype)]
            initial = cell.initial_state(rows)
        self.vectors, self.matrices = made[: step.vectors], made[step.vectors :]
        if half:
            self.matrices = [matrix.to(torch.bfloat16).to(dtype) for matrix in self.matrices]
        shapes = tuple((m.shape[0], m.shape[1]) for m in self.matrices)
        kernels = compiled_step(prepared, shapes, dtype, given=given, half=half)
        self.kernel, self.layout, self.program = kernels.forward, kernels.forward_layout, kernels.program
        self.kernels, self.like, self.rows = kernels, initial, rows
        layout, panel = self.layout, panel_width(kernels.target)
        self.panels = {
            pack: in_panels(self.matrices[pack[0]].T if pack[1] else self.matrices[pack[0]], panel, half=half)
            for pack in layout.packs
        }
        self.work = sum(panels.numel() for panels in self.panels.values())
        self.scratch = aligned(
            torch.zeros(rows * (layout.row_scratch + layout.block_scratch) + 64, dtype=dtype, device="cpu")
        )
        self.output = torch.zeros(rows, step.y.width, dtype=dtype, device="cpu")
        widths = [rounded(node.width, panel) for node in step.state]
        self.states = [  # before a step, and after
            [torch.zeros(rows, width, dtype=dtype, device="cpu") for width in widths] for _ in range(2)
        ]
        self.widths = [node.width for node in step.state]
        self.times = equal_rows(rows, 1)
        self.words = tuple(self._words(turn) for turn in range(2))
        self.set_state(initial, 0)

    def _words(self, turn: int) -> ctypes.Array:
        layout = self.layout
        words = (ctypes.c_int64 * layout.words)()
        words[Words.SHARED], words[Words.STEPS], words[Words.ROWS], words[Words.BLOCK] = 1, 1, self.rows, 1
        words[Words.LENGTHS], words[Words.ORDER] = (tensor.data_ptr() for tensor in self.times)
        words[Words.SCRATCH] = self.scratch.data_ptr()
        place(words, layout, "out.0", self.output)
        for k, name in enumerate(self.program.step.fields):
            place(words, layout, f"from.{name}", self.states[turn][k])
            place(words, layout, f"to.{name}", self.states[1 - turn][k])
        for k, vector in enumerate(self.vectors):
            words[layout.vector_word(k)] = vector.data_ptr()
        for pack, panels in self.panels.items():
            words[layout.pack_word(pack) + 2] = panels.data_ptr()
        return words

    def state(self, turn: int) -> Any:
        """A copy of the state that stands at a place."""
        fields = (field[:, :n].clone() for field, n in zip(self.states[turn], self.widths, strict=True))
        return rejoined(fields, self.like)

    def set_state(self, state: Any, turn: int) -> None:
        for field, width, given in zip(self.states[turn], self.widths, real_parts(state), strict=True):
            field[:, :width] = given.detach()


def place(words: ctypes.Array, layout: Layout, name: str, tensor: Tensor) -> None:
    """Says where a tensor (B, N) stands, if the kernel reads or writes it."""
    if name in layout.outside:
        word = layout.outside_word(name)
        words[word], words[word + 1], words[word + 2] = tensor.data_ptr(), tensor.stride(0), 0


class Stack:
    """Layers one upon another, for so many rows; each takes the output of the one below."""

    @torch.inference_mode(False)  # its buffers outlive such a mode
    def __init__(
        self, cells: Sequence[Cell], rows: int, dtype: torch.dtype, *, given: bool = False, half: bool = False
    ) -> None:
        self.layers = [Layer(cell, rows, dtype, given=given and k == 0, half=half) for k, cell in enumerate(cells)]
        for below, layer in zip(self.layers, self.layers[1:], strict=False):
            for words in layer.words:
                place(words, layer.layout, "x", below.output)
        self.turn = 0  # which place the state stands at
        self.large = sum(layer.work for layer in self.layers) >= WORK_TO_SHARE
        self.table = (ctypes.c_int64 * (3 * len(self.layers)))()
        for k, layer in enumerate(self.layers):
            self.table[3 * k] = layer.kernel
            self.table[3 * k + 1], self.table[3 * k + 2] = (ctypes.addressof(words) for words in layer.words)
        self._step = StepWords.new(self)
        self._address, self._function = ctypes.addressof(self._step), advance().address("advance")
        self._call = threads.Kernel(self._function)
        first, last = self.layers[0], self.layers[-1]
        self._ends = tuple(zip(first.words, last.words, strict=True))
        self._x = first.layout.outside_word("x") if "x" in first.layout.outside else None
        self._y = last.layout.outside_word("out.0")
        self._shape, self._dtype = tuple(last.output.shape), dtype

    def hands(self) -> int:
        """Threads for a step."""
        return threads.hands_to_meet() if self.large else 1

    def step(self, x: Tensor) -> Tensor:
        """``x (B, I), its columns side by side -> y (B, O)``; the state is the next one then."""
        y = torch.empty(self._shape, dtype=self._dtype, device="cpu")
        turn, words = self.turn, self._step
        first, last = self._ends[turn]
        if self._x is not None:
            first[self._x], first[self._x + 1] = x.data_ptr(), x.stride(0)
        last[self._y] = y.data_ptr()
        words[StepWords.TURN] = turn
        hands = self.hands()
        if hands == 1:
            self._call(self._address, 0, 1)
        else:
            threads.run([threads.Work(self._function, words, hands)])
        self.turn = 1 - turn
        return y

    @property
    def state(self) -> tuple[Any, ...]:
        return tuple(layer.state(self.turn) for layer in self.layers)

    @state.setter
    def state(self, state: Sequence[Any]) -> None:
        for layer, part in zip(self.layers, state, strict=True):
            layer.set_state(part, self.turn)


class StepWords:
    """Places in the words of a step of all layers."""

    KERNEL, MEETING, TABLE, LAYERS, TURN = range(5)
    COUNT = 5

    @staticmethod
    def new(stack: Stack, count: int = COUNT) -> ctypes.Array:
        words = (ctypes.c_int64 * count)()
        words[StepWords.TABLE], words[StepWords.LAYERS] = ctypes.addressof(stack.table), len(stack.layers)
        return words


@once
def advance() -> Code:
    """``advance(words, number, hands)``: one step of all layers."""
    module = Module(target_for("float"))
    with module.function("advance", SIGNATURE) as f:
        announce_meeting(f)
        emit_layers(f, word(f, StepWords.TURN))
    return assemble(module.text())


def word(f: Function, index: int) -> str:
    return f.let(f"load i64, ptr {f.at('%words', index, 'i64')}, align 8")


def pointer(f: Function, index: int) -> str:
    return f.let(f"load ptr, ptr {f.at('%words', index, 'i64')}, align 8")


def announce_meeting(f: Function) -> None:
    """Tells the layers where this team meets. Each thread writes all of it, so that none need wait for another."""
    meeting, table = word(f, StepWords.MEETING), pointer(f, StepWords.TABLE)
    with f.loop("0", word(f, StepWords.LAYERS)) as layer:
        for place in (1, 2):
            words = f.let(f"load ptr, ptr {f.at(table, f.add(f.mul(layer, 3), place), 'i64')}, align 8")
            f.line(f"store i64 {meeting}, ptr {f.at(words, Words.MEETING, 'i64')}, align 8")


def emit_layers(f: Function, turn: str) -> None:
    """Calls the kernels of all layers; each ends with a meeting."""
    table = pointer(f, StepWords.TABLE)
    with f.loop("0", word(f, StepWords.LAYERS)) as layer:
        entry = f.at(table, f.mul(layer, 3), "i64")
        kernel = f.let(f"load ptr, ptr {entry}, align 8")
        words = f.let(f"load ptr, ptr {f.at(entry, f.add(turn, 1), 'i64')}, align 8")
        f.line(f"call void {kernel}(ptr {words}, i64 %number, i64 %hands)")


class Watch:
    """Whether parameters have changed since: written to in place, moved or replaced."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        found = [
            (place, name, tensor)
            for module in modules
            for part in module.modules()
            for place in (part._parameters, part._buffers)
            for name, tensor in place.items()
            if tensor is not None
        ]
        # tensors made in inference mode count no versions
        self._counted = [(p, n, t, t.data_ptr(), t._version) for p, n, t in found if not t.is_inference()]
        self._others = [(p, n, t, t.data_ptr()) for p, n, t in found if t.is_inference()]

    def changed(self) -> bool:
        for place, name, tensor, address, version in self._counted:
            if tensor._version != version or tensor.data_ptr() != address or place.get(name) is not tensor:
                return True
        return any(t.data_ptr() != address or place.get(name) is not t for place, name, t, address in self._others)
