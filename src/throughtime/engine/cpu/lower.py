"""Writing a cell's two kernels: each runs the whole sequence, for the rows of a batch that a thread has.

A kernel is given one array of words. The head is that of `Words`; after it come, for each buffer outside (a tensor
laid out by sequence and step), its address, and how far apart its sequences and its steps lie; then the addresses of
parameters' rows; then, for each matrix, its address, the distance of its rows, and where its panels go.

With many sequences each thread has its own; with few, all threads share all of them and split the columns, meeting at
a barrier after each statement. Either way each number is made by the same operations in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from throughtime.engine.cpu.emit import Function, Module, Target
from throughtime.engine.cpu.gemm import declare_gemm, gemm_name, most_rows, packed_tile_name, panel_width
from throughtime.engine.cpu.graph import Node
from throughtime.engine.cpu.program import Backward, MatrixGradient, Program, input_widths
from throughtime.engine.cpu.schedule import Location, Map, Product, Schedule, Total
from throughtime.engine.cpu.threads import emit_barrier
from throughtime.engine.cpu.vectormath import constant, pointwise, reduced


class Words:
    """Places in the head of a kernel's array of words."""

    KERNEL, MEETING, SHARED, STEPS, ROWS, ORDER, LENGTHS, SCRATCH, BLOCK, REVERSE = range(10)
    HEAD = 10


GRADIENT_DEPTH = 240  # rows (sequence, step) that are packed for one pass over a matrix gradient
GRADIENT_ROWS = 256  # most rows of one pass over an input gradient
ROWS_AT_ONCE = 8  # of them that are packed together, one tile of columns after another


@dataclass
class Layout:
    """What stands where in a kernel's words, and how much scratch it needs."""

    target: Target
    outside: list[str]
    vectors: int
    packs: list[tuple[int, bool]]  # matrices that come in panels: (matrix, transposed)
    loop_packs: list[tuple[int, bool]]  # those of them that each step reads
    row_scratch: int = 0  # numbers for each row
    block_scratch: int = 0  # numbers for each row and each step of a block
    thread_scratch: int = 0  # numbers for each thread beside
    gradients: list[MatrixGradient] = field(default_factory=list)

    def outside_word(self, name: str) -> int:
        return Words.HEAD + 3 * self.outside.index(name)

    def vector_word(self, number: int) -> int:
        return Words.HEAD + 3 * len(self.outside) + number

    def pack_word(self, pack: tuple[int, bool]) -> int:
        return self.vector_word(self.vectors) + 3 * self.packs.index(pack)

    def gradient_word(self, number: int) -> int:
        return self.vector_word(self.vectors) + 3 * len(self.packs) + number

    @property
    def words(self) -> int:
        return self.gradient_word(len(self.gradients))


def rounded(width: int, multiple: int) -> int:
    return -(-width // multiple) * multiple


class Kernel:
    """One kernel under construction."""

    def __init__(self, f: Function, layout: Layout, program: Program, body: Schedule) -> None:
        self.f = f
        self.t = f.target
        self.layout = layout
        self.program = program
        self.body = body
        self.widths = dict(zip(program.step.fields, (n.width for n in program.step.state), strict=True))
        self.hands, self.shared = "%hands", self.word(Words.SHARED)
        self.steps, self.rows = self.word(Words.STEPS), self.word(Words.ROWS)
        self.order, self.lengths = self.pointer(Words.ORDER), self.pointer(Words.LENGTHS)
        self.block_steps = self.word(Words.BLOCK)
        self.turned = f.compare("ne", self.word(Words.REVERSE), 0)
        together = f.compare("ne", self.shared, 0)
        self.together = together
        alone = f.select(together, 0, "%number")
        stride = f.select(together, 1, self.hands)
        # rows alone, alone + stride, ... of the order are this thread's
        self.first_row, self.row_stride = alone, stride
        self.count = f.div(f.add(f.sub(f.add(self.rows, stride), 1), f.sub(0, alone)), stride)
        self.capacity = f.div(f.sub(f.add(self.rows, stride), 1), stride)
        self.part = f.select(together, "%number", 0)  # of the columns
        self.parts = f.select(together, self.hands, 1)
        self.outside = {}
        for name in layout.outside:
            word = layout.outside_word(name)
            self.outside[name] = (self.pointer(word), self.word(word + 1), self.word(word + 2))
        self.vectors = [self.pointer(layout.vector_word(k)) for k in range(layout.vectors)]
        self.packs = {pack: self.pointer(layout.pack_word(pack) + 2) for pack in layout.packs}
        self.scratch: dict[str, tuple[str, int]] = {}  # address and distance of rows
        self.states: dict[str, tuple[str, str]] = {}  # slots of the addresses: state in, state out
        self.block: dict[str, int] = {}  # distance of rows
        self.product_name: Callable[..., str] = gemm_name
        self.place_scratch()

    # words

    def word(self, index: int) -> str:
        return self.f.let(f"load i64, ptr {self.f.at('%words', index, 'i64')}")

    def pointer(self, index: int) -> str:
        return self.f.let(f"inttoptr i64 {self.word(index)} to ptr")

    # scratch: for each thread, buffer after buffer of ``capacity`` rows

    def place_scratch(self) -> None:
        f, layout, panel = self.f, self.layout, panel_width(self.t)
        offset = 0
        places: dict[str, int] = {}
        strides: dict[str, int] = {}
        for name, width in self.body.scratch.items():
            strides[name] = rounded(width, panel)
            places[name] = offset
            offset += strides[name]
        for name, width in self.widths.items():
            for side in ("in", "new"):
                strides[f"{side}.{name}"] = rounded(width, panel)
                places[f"{side}.{name}"] = offset
                offset += strides[f"{side}.{name}"]
        layout.row_scratch = offset
        block = 0
        block_places: dict[str, int] = {}
        for product in self.program.forward.products if self.body is self.program.forward.body else ():
            for name, width in ((product.destination, 0), (f"rows.{product.source}", product.width)):
                if name not in block_places:
                    node_width = next((n.width for n in self.body.given if self.body.given[n].buffer == name), width)
                    self.block[name] = rounded(node_width, panel)
                    block_places[name] = block
                    block += self.block[name]
        layout.block_scratch = block
        per_row = f.add(f.mul(self.block_steps, block), offset)
        own = f.add(f.mul(self.capacity, per_row), layout.thread_scratch)
        base = f.at(self.pointer(Words.SCRATCH), f.mul(f.select(self.together, 0, "%number"), own))
        for name, place in places.items():
            self.scratch[name] = (f.at(base, f.mul(self.capacity, place)), strides[name])
        for name in self.widths:
            self.states[name] = (
                f.slot("ptr", self.scratch[f"in.{name}"][0]),
                f.slot("ptr", self.scratch[f"new.{name}"][0]),
            )
        after = f.at(base, f.mul(self.capacity, offset))
        for name, place in block_places.items():
            self.scratch[name] = (f.at(after, f.mul(f.mul(self.capacity, self.block_steps), place)), self.block[name])
        own_part = f.select(self.together, f.mul("%number", layout.thread_scratch), 0)
        self.thread_base = f.at(after, f.add(f.mul(f.mul(self.capacity, self.block_steps), block), own_part))

    def dense(self, buffer: str) -> tuple[str, int]:
        """Address and distance of rows of a scratch buffer, now."""
        side, _, name = buffer.partition(".")
        if side in ("in", "new") and name in self.states:
            slot = self.states[name][0 if side == "in" else 1]
            return self.f.get(slot, "ptr"), self.scratch[buffer][1]
        return self.scratch[buffer]

    def swap_states(self) -> None:
        for old, new in self.states.values():
            a, b = self.f.get(old, "ptr"), self.f.get(new, "ptr")
            self.f.set(old, "ptr", b)
            self.f.set(new, "ptr", a)

    # rows

    def meet(self) -> None:
        """All threads wait for each other, where they share the rows."""
        with self.f.when(self.together):
            self.meet_all()

    def meet_all(self) -> None:
        self.f.run("barrier", ("ptr", self.pointer(Words.MEETING)), ("i64", self.hands))

    def sequence(self, r: str) -> str:
        """The sequence that is this thread's r-th row."""
        f = self.f
        place = f.add(self.first_row, f.mul(r, self.row_stride))
        return f.let(f"load i64, ptr {f.at(self.order, place, 'i64')}")

    def length(self, b: str) -> str:
        return self.f.let(f"load i64, ptr {self.f.at(self.lengths, b, 'i64')}")

    def time(self, b: str, step: str) -> str:
        """Where step ``step`` of a sequence stands in its tensors."""
        f = self.f
        return f.select(self.turned, f.sub(f.sub(self.length(b), 1), step), step)

    def outside_row(self, name: str, b: str, t: str) -> str:
        base, by_sequence, by_step = self.outside[name]
        f = self.f
        return f.at(base, f.add(f.mul(b, by_sequence), f.mul(t, by_step)))

    def rows_longer_than(self, step: str, count: str) -> None:
        """Lowers the slot ``count`` to the rows that still have a step ``step``; rows come longest first."""
        f = self.f
        with f.repeat_while() as forever:
            n = f.get(count, "i64")
            forever.unless(f.compare("sgt", n, 0))
            last = self.length(self.sequence(f.sub(n, 1)))
            forever.unless(f.compare("sle", last, step))
            f.set(count, "i64", f.sub(n, 1))

    # columns

    def columns(self, width: int, body: Callable[[str, str | None], None]) -> None:
        """``body(column, mask)`` for each vector of this thread's columns."""
        f, lanes = self.f, self.t.lanes
        vectors = -(-width // lanes)
        low = f.mul(f.div(f.mul(self.part, vectors), self.parts), lanes)
        high = f.mul(f.div(f.mul(f.add(self.part, 1), vectors), self.parts), lanes)
        whole = width // lanes * lanes
        with f.loop(low, f.minimum(high, whole), lanes) as column:
            body(column, None)
        if whole < width:
            with f.when(f.compare("sgt", high, whole)):
                body(str(whole), _mask(self.t, width - whole))

    def copy_row(self, source: str, destination: str, width: int) -> None:
        def body(column: str, mask: str | None) -> None:
            f = self.f
            f.vstore(f.vload(f.at(source, column), mask), f.at(destination, column), mask)

        self.columns(width, body)

    # statements of a step

    def step(self, count: str, step: str, block_row: str | None) -> None:
        """All statements, for the first ``count`` rows at step ``step``."""
        available = dict(self.body.given)
        for statement in self.body.statements:
            if isinstance(statement, Product):
                self.product(statement, count)
                available[statement.node] = statement.destination
            elif isinstance(statement, Total):
                self.total(statement, count, step, block_row, available)
                available |= dict(statement.sums) | dict(statement.kept)
            else:
                self.map(statement, count, step, block_row, available)
                for store in statement.stores:
                    if store.location.buffer in self.body.scratch:
                        available.setdefault(store.node, store.location)
            self.meet()

    def product(self, statement: Product, count: str) -> None:
        f = self.f
        source, source_stride = self.dense(statement.source.buffer)
        destination, stride = self.dense(statement.destination.buffer)
        self.gemm(
            f.at(source, statement.source.column), source_stride, (statement.matrix, statement.transposed),
            destination, stride, count, statement.node.arguments[0].width, statement.node.width,
        )  # fmt: skip

    def gemm(
        self, a: str, a_stride: str | int, pack: tuple[int, bool], c: str, c_stride: str | int, rows: str, depth: int,
        width: int, *, add: bool = False, split: bool = True,
    ) -> None:  # fmt: skip
        f = self.f
        panels = -(-width // panel_width(self.t))
        first, last = "0", str(panels)
        if split:
            first = f.div(f.mul(self.part, panels), self.parts)
            last = f.div(f.mul(f.add(self.part, 1), panels), self.parts)
        f.run(
            self.product_name(self.t, add=add),
            ("ptr", a), ("i64", str(a_stride)), ("ptr", self.packs[pack]), ("ptr", c), ("i64", str(c_stride)),
            ("i64", rows), ("i64", str(depth)), ("i64", first), ("i64", last),
        )  # fmt: skip

    def map(
        self, statement: Map, count: str, step: str, block_row: str | None, available: dict[Node, Location]
    ) -> None:
        f = self.f
        with f.loop("0", count) as r:
            row = Row(self, r, step, block_row, available)
            row.reach([s.node for s in statement.stores], [s.location.buffer for s in statement.stores])

            def body(column: str, mask: str | None) -> None:
                row.values.clear()
                made = [row.value(s.node, column, mask) for s in statement.stores]
                for store, value in zip(statement.stores, made, strict=True):
                    address = f.at(row.address[store.location.buffer], f.add(column, store.location.column))
                    if store.add:
                        value = pointwise(f, "add", [f.vload(address, mask), value])
                    f.vstore(value, address, mask)

            self.columns(statement.width, body)

    def total(
        self, statement: Total, count: str, step: str, block_row: str | None, available: dict[Node, Location]
    ) -> None:
        """Rows, not columns, are split between threads that share them: a sum is one thread's."""
        f, t = self.f, self.t
        sources = [node.arguments[0] for node, _ in statement.sums]
        with f.loop(self.part, count, self.parts) as r:
            row = Row(self, r, step, block_row, available)
            row.reach(sources, [place.buffer for _, place in (*statement.sums, *statement.kept)])
            totals = [f.slot(t.vector) for _ in sources]
            kinds = [
                ("add", "zeroinitializer") if node.op == "sum" else ("max", constant(f, -math.inf))
                for node, _ in statement.sums
            ]
            for total, (_, nothing) in zip(totals, kinds, strict=True):
                f.set(total, t.vector, nothing)

            def add(column: str, mask: str | None) -> None:
                row.values.clear()
                for total, source, (op, nothing) in zip(totals, sources, kinds, strict=True):
                    value = row.value(source, column, mask)
                    if mask is not None:
                        value = f.let(f"select <{t.lanes} x i1> {mask}, {t.vector} {value}, {t.vector} {nothing}")
                    f.set(total, t.vector, pointwise(f, op, [f.get(total, t.vector), value]))
                for node, place in statement.kept:
                    f.vstore(row.value(node, column, mask), f.at(row.address[place.buffer], column), mask)

            whole = statement.width // t.lanes * t.lanes
            with f.loop("0", whole, t.lanes) as column:
                add(column, None)
            if whole < statement.width:
                add(str(whole), _mask(t, statement.width - whole))
            for total, (node, place) in zip(totals, statement.sums, strict=True):
                scalar = reduced(f, node.op, f.get(total, t.vector))
                f.store(scalar, f.at(row.address[place.buffer], place.column))

    # matrices into panels

    def pack(self) -> None:
        f, t = self.f, self.t
        panel = panel_width(t)
        shapes = self.program.matrix_shapes
        for matrix, transposed in self.layout.packs:
            rows, columns = shapes[matrix]
            word = self.layout.pack_word((matrix, transposed))
            source, stride = self.pointer(word), self.word(word + 1)
            depth, width = (rows, columns) if transposed else (columns, rows)
            with f.loop("%number", -(-width // panel), self.hands) as p:
                start = f.mul(p, panel)
                here = f.minimum(f.sub(width, start), panel)  # columns of this panel
                to = f.at(self.packs[matrix, transposed], f.mul(start, depth))
                with f.when(f.compare("slt", here, panel)), f.loop("0", depth * panel, t.lanes) as i:
                    f.vstore("zeroinitializer", f.at(to, i))
                if transposed:  # panel[k][j] = M[k][start + j]
                    with f.loop("0", depth) as k:
                        from_row = f.at(source, f.add(f.mul(k, stride), start))
                        to_row = f.at(to, f.mul(k, panel))
                        vectors = f.mul(f.div(here, t.lanes), t.lanes)
                        with f.loop("0", vectors, t.lanes) as j:
                            f.vstore(f.vload(f.at(from_row, j)), f.at(to_row, j))
                        with f.loop(vectors, here) as j:
                            f.store(f.load(f.at(from_row, j)), f.at(to_row, j))
                else:  # panel[k][j] = M[start + j][k]
                    with f.loop("0", here) as j:
                        from_row = f.at(source, f.mul(f.add(start, j), stride))
                        to_column = f.at(to, j)
                        with f.loop("0", depth) as k:
                            f.store(f.load(f.at(from_row, k)), f.at(to_column, f.mul(k, panel)))
        self.meet_all()


class Row:
    """A row at one step: addresses of what it reads and writes, and values at a vector of columns."""

    def __init__(
        self, kernel: Kernel, r: str, step: str, block_row: str | None, available: dict[Node, Location]
    ) -> None:
        self.kernel = kernel
        self.f = kernel.f
        self.r = r
        self.step = step
        self.block_row = block_row
        self.available = available
        self.address: dict[str, str] = {}
        self.values: dict[Node, str] = {}
        self.fixed: dict[Node, str] = {}  # what is the same in all columns, made once
        self.b: str | None = None
        self.t = ""

    def reach(self, roots: list[Node], buffers: list[str]) -> None:
        """Finds the addresses of everything that the roots read, and makes what is the same in all columns, before the
        loop over columns."""
        pending = list(roots)
        seen: set[Node] = set()
        needed = dict.fromkeys(buffers)
        while pending:
            node = pending.pop()
            if node in seen:
                continue
            seen.add(node)
            if node in self.available:
                needed[self.available[node].buffer] = None
            else:
                pending.extend(node.arguments)
        for buffer in needed:
            self.address[buffer] = self.find(buffer)
        for node in sorted(seen, key=lambda n: n.order):
            if node.width == 1 and node.op != "const":
                self.fixed[node] = self.compute(node, "0", None)

    def find(self, buffer: str) -> str:
        f, kernel = self.f, self.kernel
        if buffer in kernel.outside:
            if self.b is None:
                self.b = kernel.sequence(self.r)
                self.t = kernel.time(self.b, self.step)
            return kernel.outside_row(buffer, self.b, self.t)
        base, stride = kernel.dense(buffer)
        row = self.r
        if buffer in kernel.block:
            assert self.block_row is not None
            row = f.add(self.block_row, self.r)
        return f.at(base, f.mul(row, stride))

    def value(self, node: Node, column: str, mask: str | None) -> str:
        if node in self.fixed:
            return self.fixed[node]
        if node not in self.values:
            self.values[node] = self.compute(node, column, mask)
        return self.values[node]

    def compute(self, node: Node, column: str, mask: str | None) -> str:
        f = self.f
        if node in self.available:
            return self.read(self.available[node], node.width, column, mask)
        if node.op == "const":
            return constant(f, node.detail)
        if node.op == "vector":
            number, first = node.detail
            base = self.kernel.vectors[number]
            if node.width == 1:
                return f.splat(f.load(f.at(base, first)))
            return f.vload(f.at(base, f.add(column, first)), mask)
        if node.op == "slice":
            (source,) = node.arguments
            place = self.available[source]
            return self.read(Location(place.buffer, place.column + node.detail), node.width, column, mask)
        return pointwise(f, node.op, [self.value(a, column, mask) for a in node.arguments])

    def read(self, place: Location, width: int, column: str, mask: str | None) -> str:
        f = self.f
        base = self.address[place.buffer]
        if width == 1:
            return f.splat(f.load(f.at(base, place.column)))
        return f.vload(f.at(base, f.add(column, place.column)), mask)


SIGNATURE = "ptr %words, i64 %number, i64 %hands"


def write_forward(module: Module, program: Program) -> Layout:
    """The kernel ``forward``.

    Buffers outside: inputs; "first.F" and "final.F", states before and after; "out.K"; and, where there is a way back,
    "before.F" and "after.F" (one trajectory, seen one step apart) and "saved".
    """
    forward, step = program.forward, program.step
    fields = step.fields
    outside = [n for n in input_widths(step) if not n.startswith("state.")]
    outside += [f"first.{name}" for name in fields] + [f"final.{name}" for name in fields]
    outside += [f"out.{k}" for k in range(len(forward.outputs))]
    if forward.keeps_states:
        outside += [f"before.{name}" for name in fields] + [f"after.{name}" for name in fields] + ["saved"]
    in_loop = [(s.matrix, s.transposed) for s in forward.body.statements if isinstance(s, Product)]
    packs = in_loop + [(p.matrix, False) for p in forward.products]
    layout = Layout(module.target, outside, step.vectors, list(dict.fromkeys(packs)), list(dict.fromkeys(in_loop)))
    with module.function("forward", SIGNATURE) as f:
        k = Kernel(f, layout, program, forward.body)
        k.pack()
        # states before the first step
        with f.loop("0", k.count) as r:
            b = k.sequence(r)
            t = k.time(b, "0")
            empty = f.compare("eq", k.length(b), 0)
            for name, width in k.widths.items():
                source = k.outside_row(f"first.{name}", b, "0")
                base, stride = k.dense(f"in.{name}")
                k.copy_row(source, f.at(base, f.mul(r, stride)), width)
                if forward.keeps_states:
                    k.copy_row(source, k.outside_row(f"before.{name}", b, t), width)
                with f.when(empty):
                    k.copy_row(source, k.outside_row(f"final.{name}", b, "0"), width)
        k.meet()
        active = f.slot("i64", k.count)
        block = k.block_steps
        with f.loop("0", k.steps, block) as start:
            k.rows_longer_than(start, active)
            at_start = f.get(active, "i64")
            stop = f.minimum(f.add(start, block), k.steps)
            _input_products(k, start, stop, at_start)
            with f.loop(start, stop) as s:
                k.rows_longer_than(s, active)
                count = f.get(active, "i64")
                k.step(count, s, f.mul(f.sub(s, start), at_start))
                _keep_final(k, count, s)
                k.swap_states()
    return layout


def _input_products(k: Kernel, start: str, stop: str, count: str) -> None:
    """Products of inputs for the steps of a block: its rows are gathered, then multiplied as one matrix."""
    f = k.f
    products = k.program.forward.products
    if not products:
        return
    for source, width in dict.fromkeys((p.source, p.width) for p in products):
        base, stride = k.dense(f"rows.{source}")
        with f.loop(start, stop) as s:
            first = f.mul(f.sub(s, start), count)
            with f.loop("0", count) as r:
                b = k.sequence(r)
                with f.when(f.compare("sgt", k.length(b), s)):
                    row = f.at(base, f.mul(f.add(first, r), stride))
                    k.copy_row(k.outside_row(source, b, k.time(b, s)), row, width)
    k.meet()
    rows = f.mul(f.sub(stop, start), count)
    for product in products:
        source, source_stride = k.dense(f"rows.{product.source}")
        destination, stride = k.dense(product.destination)
        k.gemm(
            source, source_stride, (product.matrix, False), destination, stride, rows, product.width,
            k.program.matrix_shapes[product.matrix][0],
        )  # fmt: skip
    k.meet()


def _keep_final(k: Kernel, count: str, s: str) -> None:
    """Rows whose last step this was: they stand last among the active ones."""
    f = k.f
    left = f.slot("i64")
    f.set(left, "i64", count)
    following = f.add(s, 1)
    k.rows_longer_than(following, left)
    with f.loop(f.get(left, "i64"), count) as r:
        b = k.sequence(r)
        for name, width in k.widths.items():
            base, stride = k.dense(f"new.{name}")
            k.copy_row(f.at(base, f.mul(r, stride)), k.outside_row(f"final.{name}", b, "0"), width)


def write_backward(module: Module, program: Program) -> Layout:
    """The kernel ``backward``.

    Buffers outside, beside those that the way forward left: "d.out.K" and "d.final.F", derivatives given; "d.first.F",
    "grad.INPUT", "derivatives" and "sums" made here. Matrix gradients are words of their own, each the address of its
    rows, which are padded to whole panels.
    """
    backward, step = program.backward, program.step
    assert backward is not None
    fields = step.fields
    outside = [n for n in input_widths(step) if not n.startswith("state.")]
    outside += [f"before.{name}" for name in fields] + [f"after.{name}" for name in fields] + ["saved"]
    outside += [f"d.out.{k}" for k in range(len(program.forward.outputs))]
    outside += [f"d.final.{name}" for name in fields] + [f"d.first.{name}" for name in fields]
    outside += [f"grad.{name}" for name in backward.inputs] + ["derivatives", "sums"]
    in_loop = [(s.matrix, s.transposed) for s in backward.body.statements if isinstance(s, Product)]
    packs = in_loop + [(p.matrix, True) for p in backward.input_products]
    layout = Layout(module.target, outside, step.vectors, list(dict.fromkeys(packs)), list(dict.fromkeys(in_loop)))
    layout.gradients = list(backward.matrices)
    layout.thread_scratch = _thread_scratch(module.target, program, backward)
    with module.function("backward", SIGNATURE) as f:
        k = Kernel(f, layout, program, backward.body)
        k.pack()
        active = f.slot("i64", "0")
        with f.loop("0", k.steps) as backwards:
            s = f.sub(f.sub(k.steps, 1), backwards)
            _join_rows(k, active, s)
            count = f.get(active, "i64")
            k.step(count, s, None)
            _pass_on(k, count)
            k.swap_states()
        with f.loop("0", k.count) as r:
            b = k.sequence(r)
            empty = f.compare("eq", k.length(b), 0)
            for name, width in k.widths.items():
                to = k.outside_row(f"d.first.{name}", b, "0")
                base, stride = k.dense(f"in.{name}")
                with f.when(empty):
                    k.copy_row(k.outside_row(f"d.final.{name}", b, "0"), to, width)
                with f.when(f.let(f"xor i1 {empty}, true")):
                    k.copy_row(f.at(base, f.mul(r, stride)), to, width)
        k.meet()
        _input_gradients(k, backward)
        k.meet_all()
        _matrix_gradients(k, backward)
    return layout


def _thread_scratch(target: Target, program: Program, backward: Backward) -> int:
    """Numbers for a thread's packed rows of the gradients."""
    panel, rows = panel_width(target), most_rows(target)
    widest_input = max((rounded(program.matrix_shapes[p.matrix][1], panel) for p in backward.input_products), default=0)
    most = GRADIENT_ROWS * widest_input
    for _, group in _by_derivative(backward).items():
        a = rounded(group[0].width, rows)
        b = sum(rounded(g.source_width, panel) for g in group)
        most = max(most, GRADIENT_DEPTH * (a + b) + a // rows * target.lanes)
    return rounded(most, panel)


def _join_rows(k: Kernel, active: str, s: str) -> None:
    """Rows whose last step this is come in with the derivative by their final state."""
    f = k.f
    with f.repeat_while() as forever:
        r = f.get(active, "i64")
        forever.unless(f.compare("slt", r, k.count))
        b = k.sequence(r)
        forever.unless(f.compare("sgt", k.length(b), s))
        for name, width in k.widths.items():
            base, stride = k.dense(f"in.{name}")
            k.copy_row(k.outside_row(f"d.final.{name}", b, "0"), f.at(base, f.mul(r, stride)), width)
        f.set(active, "i64", f.add(r, 1))
    k.meet()


def _pass_on(k: Kernel, count: str) -> None:
    """States by which no derivative is made (the step does not read them) get zero."""
    f = k.f
    made = {s.location.buffer for m in k.body.statements if isinstance(m, Map) for s in m.stores}
    for name, width in k.widths.items():
        if f"new.{name}" in made:
            continue
        base, stride = k.dense(f"new.{name}")
        with f.loop("0", count) as r:
            row = f.at(base, f.mul(r, stride))

            def clear(column: str, mask: str | None, row: str = row) -> None:
                f.vstore("zeroinitializer", f.at(row, column), mask)

            k.columns(width, clear)


def _input_gradients(k: Kernel, backward: Backward) -> None:
    """Derivatives by inputs: derivatives by products times matrices, in blocks of rows.

    A thread does its own sequences, which are still in its cache; where threads share them, blocks are dealt out.
    """
    f, panel = k.f, panel_width(k.t)
    share = f.div(f.mul(k.rows, k.steps), f.mul(k.hands, 4))  # each thread is to have a few blocks, of one size
    most = f.minimum(f.maximum(share, GRADIENT_ROWS // 8), GRADIENT_ROWS)
    for name in dict.fromkeys(p.name for p in backward.input_products):
        terms = [p for p in backward.input_products if p.name == name]
        width = k.program.matrix_shapes[terms[0].matrix][1]
        in_place = width % panel == 0 and name not in backward.written_in_loop  # else a tile would write too much
        base, by_sequence, by_step = k.outside["derivatives"]
        stride = k.outside[f"grad.{name}"][2] if in_place else str(rounded(width, panel))
        turn = f.slot("i64")
        f.set(turn, "i64", "0")
        with f.loop("0", k.count) as r:
            b = k.sequence(r)
            length = k.length(b)
            blocks = f.maximum(f.div(f.sub(f.add(length, most), 1), most), "1")
            block = f.maximum(f.div(f.sub(f.add(length, blocks), 1), blocks), "1")
            with f.loop("0", length, block) as t:
                now = f.get(turn, "i64")
                f.set(turn, "i64", f.add(now, 1))
                with f.when(f.compare("eq", f.mod(now, k.parts), k.part)):
                    rows = f.minimum(f.sub(length, t), block)
                    source = f.at(base, f.add(f.mul(b, by_sequence), f.mul(t, by_step)))
                    destination = k.outside_row(f"grad.{name}", b, t) if in_place else k.thread_base
                    for number, term in enumerate(terms):
                        k.gemm(
                            f.at(source, term.column), by_step, (term.matrix, True), destination, stride, rows,
                            term.width, width, add=number > 0, split=False,
                        )  # fmt: skip
                    if not in_place:
                        with f.loop("0", rows) as r:
                            to = k.outside_row(f"grad.{name}", b, f.add(t, r))
                            row = f.at(k.thread_base, f.mul(r, stride))
                            _move(k, row, to, width, name in backward.written_in_loop)


def _move(k: Kernel, source: str, destination: str, width: int, add: bool) -> None:
    """A whole row, by one thread."""
    f, lanes = k.f, k.t.lanes
    whole = width // lanes * lanes

    def move(column: str, mask: str | None) -> None:
        to = f.at(destination, column)
        value = f.vload(f.at(source, column), mask)
        f.vstore(pointwise(f, "add", [f.vload(to, mask), value]) if add else value, to, mask)

    with f.loop("0", whole, lanes) as column:
        move(column, None)
    if whole < width:
        move(str(whole), _mask(k.t, width - whole))


def _mask(target: Target, columns: int) -> str:
    return "<" + ", ".join("i1 true" if j < columns else "i1 false" for j in range(target.lanes)) + ">"


def _by_derivative(backward: Backward) -> dict[int, list[MatrixGradient]]:
    """Matrix gradients that share a derivative, by its column."""
    groups: dict[int, list[MatrixGradient]] = {}
    for gradient in backward.matrices:
        groups.setdefault(gradient.column, []).append(gradient)
    return groups


def _matrix_gradients(k: Kernel, backward: Backward) -> None:
    """Sums over batch and time of derivative^T source: rows are packed, and each thread has its part of the result.

    The order of the sum is by sequence, then by time, whatever the threads.
    """
    for gradients in _by_derivative(backward).values():
        _gradients_of_derivative(k, gradients)


def _gradients_of_derivative(k: Kernel, gradients: list[MatrixGradient]) -> None:
    """Matrix gradients that share a derivative."""
    f, t = k.f, k.t
    panel, tile = panel_width(t), most_rows(t)
    # whole registers are moved: what is too much of one row, the next one overwrites
    wide = f"<{1 << (tile - 1).bit_length()} x {t.real}>"
    width, column = gradients[0].width, gradients[0].column
    tiles = -(-width // tile)
    first = f.div(f.mul("%number", tiles), k.hands)
    last = f.div(f.mul(f.add("%number", 1), tiles), k.hands)
    a_base = k.thread_base  # for each tile of columns, GRADIENT_DEPTH times ``tile`` numbers, and a vector to spare
    a_tile = GRADIENT_DEPTH * tile + t.lanes
    b_base = f.at(a_base, tiles * a_tile)
    fill = f.slot("i64")
    f.set(fill, "i64", "0")
    begun = f.slot("i64")  # whether the result has a first part
    f.set(begun, "i64", "0")
    results = [k.pointer(k.layout.gradient_word(k.layout.gradients.index(gradient))) for gradient in gradients]

    def flush() -> None:
        depth = f.get(fill, "i64")
        offset = 0
        for gradient, result in zip(gradients, results, strict=True):
            stride = rounded(gradient.source_width, panel)
            with f.loop("0", stride // panel) as p:
                b = f.at(b_base, f.add(f.mul(p, GRADIENT_DEPTH * panel), offset))
                with f.loop(first, last) as i:
                    c = f.at(result, f.add(f.mul(i, tile * stride), f.mul(p, panel)))
                    for add, relation in ((False, "eq"), (True, "ne")):
                        with f.when(f.compare(relation, f.get(begun, "i64"), 0)):
                            f.run(
                                packed_tile_name(t, add=add),
                                ("ptr", f.at(a_base, f.mul(i, a_tile))), ("i64", "0"), ("ptr", b),
                                ("ptr", c), ("i64", str(stride)), ("i64", depth),
                            )  # fmt: skip
            offset += GRADIENT_DEPTH * stride
        f.set(fill, "i64", "0")
        f.set(begun, "i64", "1")

    with f.loop("0", k.rows) as b:
        length = k.length(b)
        time = f.slot("i64", "0")
        f.set(time, "i64", "0")
        with f.repeat_while() as forever:
            start = f.get(time, "i64")
            forever.unless(f.compare("slt", start, length))
            place = f.get(fill, "i64")
            count = f.minimum(f.minimum(f.sub(length, start), f.sub(GRADIENT_DEPTH, place)), ROWS_AT_ONCE)
            with f.loop(first, last) as i:
                to = f.at(a_base, f.add(f.mul(i, a_tile), f.mul(place, tile)))
                with f.loop("0", count) as n:
                    row = f.at(k.outside_row("derivatives", b, f.add(start, n)), f.add(f.mul(i, tile), column))
                    value = f.let(f"load {wide}, ptr {row}, align {t.bytes}")
                    f.line(f"store {wide} {value}, ptr {f.at(to, f.mul(n, tile))}, align {t.bytes}")
            with f.loop("0", count) as n:
                offset = 0
                for gradient in gradients:
                    source = k.outside_row(gradient.source.buffer, b, f.add(start, n))
                    to = f.at(b_base, f.add(f.mul(f.add(place, n), panel), offset))
                    _pack_row(k, f.at(source, gradient.source.column), gradient.source_width, to)
                    offset += GRADIENT_DEPTH * rounded(gradient.source_width, panel)
            f.set(fill, "i64", f.add(place, count))
            f.set(time, "i64", f.add(start, count))
            with f.when(f.compare("eq", f.get(fill, "i64"), GRADIENT_DEPTH)):
                flush()
    # what is left; without any row at all, zeros
    with f.when(f.compare("sle", f.get(begun, "i64"), f.get(fill, "i64"))):
        flush()


def _pack_row(k: Kernel, source: str, width: int, destination: str) -> None:
    """One row into panels, GRADIENT_DEPTH rows of a panel apart; what is past its end is zero."""
    f, t = k.f, k.t
    panel = panel_width(t)
    with f.loop("0", width // panel) as p:
        for j in range(0, panel, t.lanes):
            value = f.vload(f.at(source, f.add(f.mul(p, panel), j)))
            f.vstore(value, f.at(destination, f.add(f.mul(p, GRADIENT_DEPTH * panel), j)))
    start = width // panel * panel
    if start < width:
        for j in range(start, start + panel, t.lanes):
            to = f.at(destination, (start // panel) * GRADIENT_DEPTH * panel + j - start)
            left = width - j
            if left >= t.lanes:
                f.vstore(f.vload(f.at(source, j)), to)
            elif left > 0:
                f.vstore(f.vload(f.at(source, j), _mask(t, left)), to)
            else:
                f.vstore("zeroinitializer", to)


def new_module(target: Target) -> Module:
    module = Module(target)
    declare_gemm(module)
    emit_barrier(module)
    return module
