"""Products by matrices that are kept rounded to bfloat16: half the memory to read, sums in float32.

A bfloat16 is the upper half of a float32, so it becomes one by a shift, exactly; what is multiplied and summed then are
float32 numbers, in the order of `gemm`. So the results are those of the float32 matrices that the rounded ones are.

In a panel, two vectors of columns stand interleaved: a load of whole numbers holds one in its lower halves and the
other in its upper ones. Where a panel has an odd number of vectors, the last stands by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from throughtime.engine.cpu.emit import Function, Module, Target
from throughtime.engine.cpu.gemm import GEMM, UNROLL, panel_width
from throughtime.engine.cpu.machine import Code, assemble, target_for
from throughtime.engine.cpu.once import once


def half_gemm_name(target: Target, *, add: bool) -> str:
    """C += A B or C = A B with B in panels of bfloat16; arguments as `gemm.gemm_name`."""
    return f"throughtime_half_gemm_{'add' if add else 'set'}_{target.suffix}"


def halved(panels: Tensor, lanes: int) -> Tensor:
    """Panels (P, K, columns) of numbers that bfloat16 holds, as the products read them."""
    rows = panels.to(torch.bfloat16)
    pairs = rows.shape[-1] // (2 * lanes) * 2 * lanes
    interleaved = rows[..., :pairs].unflatten(-1, (-1, 2, lanes)).transpose(-1, -2).flatten(-3)
    return torch.cat([interleaved, rows[..., pairs:]], dim=-1)


@once
def provide_half() -> Code:
    """Compiles the products, once, and makes them known by name to the kernels compiled after."""
    target = target_for("float")
    module = Module(target)
    for add in (False, True):
        _emit_gemm(module, add=add)
    code = assemble(module.text())
    for add in (False, True):
        code.publish(half_gemm_name(target, add=add))
    return code


def declare_half(module: Module) -> None:
    """Declares the products in a module that calls them."""
    for add in (False, True):
        module.declare(
            half_gemm_name(module.target, add=add), "void", ", ".join(a.split()[0] for a in GEMM.split(", "))
        )


def _emit_gemm(module: Module, *, add: bool) -> None:
    t = module.target
    width = panel_width(t)
    vectors = width // t.lanes
    with module.function(half_gemm_name(t, add=add), GEMM) as f:
        sums = [f.slot(t.vector) for _ in range(vectors)]
        whole = f.mul(f.div("%k", UNROLL), UNROLL)
        with f.loop("%first", "%last") as p, f.loop("0", "%m") as row:
            panel = f.at("%b", f.mul(f.mul(p, "%k"), width), "i16")
            a = f.at("%a", f.mul(row, "%lda"))
            c = f.at("%c", f.add(f.mul(row, "%ldc"), f.mul(p, width)))
            for n, total in enumerate(sums):
                f.set(total, t.vector, f.vload(f.at(c, n * t.lanes)) if add else "zeroinitializer")
            for first, last, unroll in (("0", whole, UNROLL), (whole, "%k", 1)):
                with f.loop(first, last, unroll) as k:
                    b, start = f.at(panel, f.mul(k, width), "i16"), f.at(a, k)
                    for u in range(unroll):
                        columns = _columns(f, f.at(b, u * width, "i16"), vectors)
                        factor = f.splat(f.load(f.at(start, u)))
                        for total, column in zip(sums, columns, strict=True):
                            f.set(total, t.vector, f.fma(factor, column, f.get(total, t.vector)))
            for n, total in enumerate(sums):
                f.vstore(f.get(total, t.vector), f.at(c, n * t.lanes))


def _columns(f: Function, address: str, vectors: int) -> list[str]:
    """The vectors of one row of a panel, as float32."""
    t = f.target
    whole, short = f"<{t.lanes} x i32>", f"<{t.lanes} x i16>"
    sixteen = "<" + ", ".join(["i32 16"] * t.lanes) + ">"
    upper = "<" + ", ".join(["i32 -65536"] * t.lanes) + ">"
    made = []
    for n in range(0, vectors, 2):
        place = f.at(address, n * t.lanes, "i16")
        if n + 1 < vectors:
            both = f.let(f"load {whole}, ptr {place}, align 2")
            made += [f.let(f"shl {whole} {both}, {sixteen}"), f.let(f"and {whole} {both}, {upper}")]
        else:
            one = f.let(f"zext {short} {f.let(f'load {short}, ptr {place}, align 2')} to {whole}")
            made.append(f.let(f"shl {whole} {one}, {sixteen}"))
    return [f.let(f"bitcast {whole} {bits} to {t.vector}") for bits in made]
