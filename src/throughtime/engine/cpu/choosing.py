"""Drawing the next number in machine code: what `throughtime.engine.sampling` defines, number by number the same.

Chances are float64 whatever the model's precision, so the draw depends on the logits alone.
"""

from __future__ import annotations

from throughtime.engine.cpu.emit import Function, Module
from throughtime.engine.cpu.machine import Code, assemble, target_for
from throughtime.engine.cpu.once import once
from throughtime.engine.cpu.vectormath import binary, compare, constant, exp, select

CHOOSE = (
    "ptr %logits, ptr %mask, i64 %size, i64 %padded, double %uniform, double %temperature, i64 %top_k, "
    "double %top_p, ptr %space, ptr %result"
)
KINDS = tuple(argument.split()[0] for argument in CHOOSE.split(", "))


def choose_name(real: str) -> str:
    """The function of logits of this precision.

    Arguments: logits; the mask, float64, 0 or -inf in their place; how many there are, and how many with padding to
    whole vectors, which the mask shuts out; a random number of [0, 1); temperature, top_k and top_p (as many as there
    are, and 1, for none); space for 3 times the padded numbers of 8 bytes; where the number goes, -1 where an
    allowed logit is not a number.
    """
    return f"throughtime_choose_{real}"


@once
def provide_choosing() -> Code:
    """Compiles the functions, once, and makes them known by name to the code compiled after."""
    module = Module(target_for("double"))
    _emit_sift(module)
    for real in ("float", "double"):
        _emit_choose(module, real)
    code = assemble(module.text())
    for real in ("float", "double"):
        code.publish(choose_name(real))
    return code


def _emit_choose(module: Module, real: str) -> None:
    t = module.target
    with module.function(choose_name(real), CHOOSE) as f:
        f.line("store i64 -1, ptr %result, align 8")
        above, weights, heap = (f.at("%space", f.mul("%padded", part)) for part in range(3))
        greatest = _greatest(f, real, above)
        cold = f.let("fcmp oeq double %temperature, 0.0")
        divisor = f.splat(f.select(cold, "1.0", "%temperature", "double"))
        sums = f.slot(t.vector, "zeroinitializer")
        with f.loop("0", "%padded", t.lanes) as i:
            over = binary(f, "fsub", f.vload(f.at(above, i)), f.splat(greatest))
            f.vstore(over, f.at(above, i))
            weight = exp(f, binary(f, "fdiv", over, divisor))
            f.vstore(weight, f.at(weights, i))
            f.set(sums, t.vector, binary(f, "fadd", f.get(sums, t.vector), weight))
        total = f.slot("double", _reduced(f, "fadd", f.get(sums, t.vector)))
        chances = f.slot("ptr", weights)
        with f.when(f.let(f"fcmp ord double {f.get(total, 'double')}, 0.0")):
            with f.when(cold):
                _first_of_the_greatest(f, above)
            with f.when(f.let(f"xor i1 {cold}, true")):
                fewer = f.compare("slt", "%top_k", "%size")
                with f.when(f.let(f"or i1 {fewer}, {f.let('fcmp olt double %top_p, 1.0')}")):
                    _cut(f, fewer, above, weights, heap, total)
                    f.set(chances, "ptr", above)
                _walk(f, f.get(chances, "ptr"), f.get(total, "double"))


def _greatest(f: Function, real: str, above: str) -> str:
    """The greatest allowed logit; all of them go to ``above``."""
    t = f.target
    top = f.slot(t.vector, constant(f, -float("inf")))
    with f.loop("0", "%padded", t.lanes) as i:
        given = f"<{t.lanes} x {real}>"
        value = f.let(f"load {given}, ptr {f.at('%logits', i, real)}, align {4 if real == 'float' else 8}")
        if real == "float":
            value = f.let(f"fpext {given} {value} to {t.vector}")
        mask = f.vload(f.at("%mask", i))
        value = select(f, compare(f, "oeq", mask, constant(f, 0.0)), value, mask)
        f.vstore(value, f.at(above, i))
        old = f.get(top, t.vector)
        f.set(top, t.vector, select(f, compare(f, "ogt", value, old), value, old))
    return _reduced(f, "fmax", f.get(top, t.vector))


def _reduced(f: Function, operation: str, vector: str) -> str:
    t = f.target
    start = (("double", "0.0"),) if operation == "fadd" else ()
    return f.call(f"llvm.vector.reduce.{operation}.{t.suffix}", "double", *start, (t.vector, vector))


def _first_of_the_greatest(f: Function, above: str) -> None:
    i = f.slot("i64", "0")
    with f.repeat_while() as forever:
        forever.unless(f.let(f"fcmp une double {f.load(f.at(above, f.get(i, 'i64')))}, 0.0"))
        f.set(i, "i64", f.add(f.get(i, "i64"), 1))
    f.line(f"store i64 {f.get(i, 'i64')}, ptr %result, align 8")


def _walk(f: Function, chances: str, total: str) -> None:
    """The first number at which the sum so far exceeds the random share of the total; the last with a chance at all
    where rounding leaves none."""
    wanted = f.let(f"fmul double %uniform, {total}")
    i, reached = f.slot("i64", "0"), f.slot("double", "0.0")
    with f.repeat_while() as forever:
        at = f.get(i, "i64")
        forever.unless(f.compare("slt", at, "%size"))
        chance = f.load(f.at(chances, at))
        with f.when(f.let(f"fcmp ogt double {chance}, 0.0")):
            f.line(f"store i64 {at}, ptr %result, align 8")
        f.set(reached, "double", f.let(f"fadd double {f.get(reached, 'double')}, {chance}"))
        f.set(i, "i64", f.add(at, 1))
        forever.unless(f.let(f"fcmp ule double {f.get(reached, 'double')}, {wanted}"))


def _cut(f: Function, fewer: str, above: str, weights: str, heap: str, total: str) -> None:
    """Leaves the likeliest, in ``above``, and their sum: they are taken from a heap one after another.

    A number that is taken stands behind the heap that is left: the j-th likeliest at ``size - 1 - j``.
    """
    t = f.target
    with f.loop("0", "%padded", t.lanes) as i:
        f.vstore("zeroinitializer", f.at(above, i))
    with f.loop("0", "%size") as i:
        f.line(f"store i64 {i}, ptr {f.at(heap, i)}, align 8")
    half = f.div("%size", 2)
    with f.loop("0", half) as i:
        start = f.sub(f.sub(half, 1), i)
        f.run("sift", ("ptr", weights), ("ptr", heap), ("i64", start), ("i64", "%size"))

    def weight_of(j: str) -> tuple[str, str]:
        number = f.let(f"load i64, ptr {f.at(heap, f.sub(f.sub('%size', 1), j))}, align 8")
        return number, f.load(f.at(weights, number))

    with f.when(fewer):
        most = f.slot("double", "0.0")
        with f.loop("0", "%top_k") as j:
            _take(f, weights, heap, j)
            f.set(most, "double", f.let(f"fadd double {f.get(most, 'double')}, {weight_of(j)[1]}"))
        f.set(total, "double", f.get(most, "double"))
    share = f.let(f"fmul double %top_p, {f.get(total, 'double')}")
    enough = f.select(f.let("fcmp olt double %top_p, 1.0"), share, "0x7FF0000000000000", "double")
    limit = f.select(fewer, "%top_k", "%size")
    place, before = f.slot("i64", "0"), f.slot("double", "0.0")
    with f.repeat_while() as forever:
        j = f.get(place, "i64")
        forever.unless(f.compare("slt", j, limit))
        forever.unless(f.let(f"fcmp olt double {f.get(before, 'double')}, {enough}"))
        with f.when(f.let(f"xor i1 {fewer}, true")):
            _take(f, weights, heap, j)
        number, weight = weight_of(j)
        f.store(weight, f.at(above, number))
        f.set(before, "double", f.let(f"fadd double {f.get(before, 'double')}, {weight}"))
        f.set(place, "i64", f.add(j, 1))
    f.set(total, "double", f.get(before, "double"))


def _take(f: Function, weights: str, heap: str, j: str) -> None:
    """The likeliest of those left goes behind them."""
    last = f.sub(f.sub("%size", 1), j)
    _swap(f, f.at(heap, 0), f.at(heap, last))
    f.run("sift", ("ptr", weights), ("ptr", heap), ("i64", "0"), ("i64", last))


def _swap(f: Function, one: str, other: str) -> None:
    a, b = (f.let(f"load i64, ptr {place}, align 8") for place in (one, other))
    f.line(f"store i64 {a}, ptr {other}, align 8")
    f.line(f"store i64 {b}, ptr {one}, align 8")


def _emit_sift(module: Module) -> None:
    """``sift(weights, heap, start, size)``: what stands at ``start`` sinks until nothing likelier is below it."""
    with module.function("sift", "ptr %weights, ptr %heap, i64 %start, i64 %size", private=True) as f:

        def likelier(one: str, other: str) -> str:
            a, b = (f.let(f"load i64, ptr {f.at('%heap', place)}, align 8") for place in (one, other))
            x, y = f.load(f.at("%weights", a)), f.load(f.at("%weights", b))
            equal = f.let(f"and i1 {f.let(f'fcmp oeq double {x}, {y}')}, {f.compare('slt', a, b)}")
            return f.let(f"or i1 {f.let(f'fcmp ogt double {x}, {y}')}, {equal}")

        at = f.slot("i64", "%start")
        child = f.slot("i64")
        with f.repeat_while() as forever:
            here = f.get(at, "i64")
            left = f.add(f.mul(here, 2), 1)
            forever.unless(f.compare("slt", left, "%size"))
            f.set(child, "i64", left)
            right = f.add(left, 1)
            with f.when(f.compare("slt", right, "%size")), f.when(likelier(right, left)):
                f.set(child, "i64", right)
            below = f.get(child, "i64")
            forever.unless(likelier(below, here))
            _swap(f, f.at("%heap", below), f.at("%heap", here))
            f.set(at, "i64", below)


def declare_choosing(module: Module, real: str) -> None:
    """Declares the function of this precision in a module that calls it."""
    module.declare(choose_name(real), "void", ", ".join(KINDS))


def choosing_lanes() -> int:
    """Numbers that padding makes whole: those of a vector."""
    return target_for("double").lanes
