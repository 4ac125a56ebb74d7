"""The one matrix product: a tile of rows by panels of columns, accumulated in registers.

C (M, N) = or += A (M, K) times B, where B comes in panels: for each block of ``panel_width`` columns, K rows of
that many numbers, one after the other. Each number of C is one chain of fused multiply-adds over k = 0 ... K-1,
whatever M is and wherever its row stands: so results do not depend on the batch or on the number of threads.
"""

from __future__ import annotations

from throughtime.engine.cpu.emit import Function, Module, Target
from throughtime.engine.cpu.machine import Code, assemble
from throughtime.engine.cpu.once import once

VECTORS = {64: 4, 32: 3, 16: 4}  # of columns in a panel, by bytes of a vector register
ROWS = {64: 6, 32: 4, 16: 6}  # most rows in a tile: rows x vectors accumulators fit the register file
UNROLL = 4


def panel_width(target: Target) -> int:
    return VECTORS[target.bytes * target.lanes] * target.lanes


def most_rows(target: Target) -> int:
    return ROWS[target.bytes * target.lanes]


GEMM = "ptr %a, i64 %lda, ptr %b, ptr %c, i64 %ldc, i64 %m, i64 %k, i64 %first, i64 %last"
TILE = "ptr %a, i64 %lda, ptr %b, ptr %c, i64 %ldc, i64 %k"


def gemm_name(target: Target, *, add: bool) -> str:
    """C += A B or C = A B; arguments: A, lda, B's panels, C, ldc, M, K, first panel, last panel + 1."""
    return f"throughtime_gemm_{'add' if add else 'set'}_{target.suffix}"


def packed_tile_name(target: Target, *, add: bool) -> str:
    """One tile, C += A B or C = A B, where A comes as K times `most_rows` numbers; arguments: A, -, B's panel, C, ldc,
    K."""
    return f"throughtime_tile_{'add' if add else 'set'}_{target.suffix}"


@once
def provide_gemm(target: Target) -> Code:
    """Compiles the products, once, and makes them known by name to the kernels compiled after."""
    module = Module(target)
    for add in (False, True):
        for rows in range(1, most_rows(target) + 1):
            _emit_tile(module, rows, tile_name(rows, add=add), add=add, packed=False)
        _emit_driver(module, add=add)
        _emit_tile(module, most_rows(target), packed_tile_name(target, add=add), add=add, packed=True)
    code = assemble(module.text())
    for add in (False, True):
        code.publish(gemm_name(target, add=add))
        code.publish(packed_tile_name(target, add=add))
    return code


def declare_gemm(module: Module) -> None:
    """Declares the products in a module that calls them."""
    for add in (False, True):
        for name, arguments in (
            (gemm_name(module.target, add=add), GEMM),
            (packed_tile_name(module.target, add=add), TILE),
        ):
            module.declare(name, "void", ", ".join(a.split()[0] for a in arguments.split(", ")))


def _emit_tile(module: Module, rows: int, name: str, *, add: bool, packed: bool) -> None:
    """A tile of ``rows`` by one panel. ``packed``: A comes as K times ``rows`` numbers side by side."""
    t = module.target
    vectors = panel_width(t) // t.lanes
    with module.function(name, TILE, private=not packed) as f:
        accumulators = [[f.slot(t.vector) for _ in range(vectors)] for _ in range(rows)]
        c_rows = [f.at("%c", f.mul("%ldc", m)) for m in range(rows)]
        for m in range(rows):
            for n in range(vectors):
                start = f.vload(f.at(c_rows[m], n * t.lanes)) if add else "zeroinitializer"
                f.set(accumulators[m][n], t.vector, start)
        a_rows = ["%a" if packed else f.at("%a", f.mul("%lda", m)) for m in range(rows)]
        whole = f.mul(f.div("%k", UNROLL), UNROLL)
        for first, last, unroll in (("0", whole, UNROLL), (whole, "%k", 1)):
            with f.loop(first, last, unroll) as k:
                b_row = f.at("%b", f.mul(k, vectors * t.lanes))
                a_start = [f.at(row, f.mul(k, rows) if packed else k) for row in a_rows]
                for u in range(unroll):
                    b = [f.vload(f.at(b_row, (u * vectors + n) * t.lanes)) for n in range(vectors)]
                    for m in range(rows):
                        a = f.splat(f.load(f.at(a_start[m], u * rows + m if packed else u)))
                        for n in range(vectors):
                            old = f.get(accumulators[m][n], t.vector)
                            f.set(accumulators[m][n], t.vector, f.fma(a, b[n], old))
        for m in range(rows):
            for n in range(vectors):
                f.vstore(f.get(accumulators[m][n], t.vector), f.at(c_rows[m], n * t.lanes))


def tile_name(rows: int, *, add: bool) -> str:
    return f"tile_{'add' if add else 'set'}_{rows}"


def _emit_driver(module: Module, *, add: bool) -> None:
    t = module.target
    with module.function(gemm_name(t, add=add), GEMM) as f:
        largest = most_rows(t)
        tiles = f.div(f.add("%m", largest - 1), largest)
        # rows are spread evenly over the tiles, so that none is left with a single row
        safe_tiles = f.select(f.compare("sgt", tiles, 0), tiles, 1)
        small = f.div("%m", safe_tiles)
        larger = f.mod("%m", safe_tiles)  # so many tiles have one row more
        with f.loop("%first", "%last") as p:
            panel = f.at("%b", f.mul(f.mul(p, "%k"), panel_width(t)))
            c = f.at("%c", f.mul(p, panel_width(t)))
            with f.loop("0", tiles) as i:
                row = f.add(f.mul(i, small), f.minimum(i, larger))
                rows = f.add(small, f.let(f"zext i1 {f.compare('slt', i, larger)} to i64"))
                _switch_tile(f, rows, add, (f.at("%a", f.mul(row, "%lda")), panel, f.at(c, f.mul(row, "%ldc"))))


def _switch_tile(f: Function, rows: str, add: bool, where: tuple[str, str, str]) -> None:
    a, b, c = where
    largest = most_rows(f.target)
    labels = [f.label() for _ in range(largest)]
    done = f.label()
    cases = " ".join(f"i64 {m + 1}, label %{label}" for m, label in enumerate(labels))
    f.line(f"switch i64 {rows}, label %{done} [{cases}]")
    for m, label in enumerate(labels):
        f.place(label)
        f.run(
            tile_name(m + 1, add=add),
            ("ptr", a), ("i64", "%lda"), ("ptr", b), ("ptr", c), ("i64", "%ldc"), ("i64", "%k"),
        )  # fmt: skip
        f.line(f"br label %{done}")
    f.place(done)
