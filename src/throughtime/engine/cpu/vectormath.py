"""Elementary functions of a vector of numbers, to about the last place, NaN in giving NaN out."""

from __future__ import annotations

import math
import struct

from throughtime.engine.cpu.emit import Function, Target

# exp(r) = 1 + r + r^2 (a_0 + a_1 r + ...) for |r| <= log(2) / 2: for float the polynomial of least error there
# (3e-9 of exp), for double Taylor's
EXP_SERIES = {
    "float": (
        0.4999999344778819,
        0.16666520631719198,
        0.04166838804701621,
        0.008368716878789047,
        0.0013814598561402525,
    ),
    "double": tuple(1 / math.factorial(k) for k in range(2, 14)),
}


LIBRARY = ("tan", "asin", "atan", "sinh", "cosh", "asinh", "atanh", "erf", "log1p", "expm1")  # C's, number by number


def literal(target: Target, value: float) -> str:
    """A number as LLVM writes it: the bits of the double, exact for both formats."""
    if target.real == "float" and abs(value) > 3.4028235e38:
        value = math.copysign(math.inf, value)  # as in PyTorch
    elif target.real == "float":
        value = struct.unpack("f", struct.pack("f", value))[0]
    return "0x" + struct.pack(">d", value).hex().upper()


def constant(f: Function, value: float) -> str:
    """A vector of one number."""
    t = f.target
    return "<" + ", ".join([f"{t.real} {literal(t, value)}"] * t.lanes) + ">"


def whole_constant(target: Target, value: int) -> str:
    return "<" + ", ".join([f"{target.whole} {value}"] * target.lanes) + ">"


def binary(f: Function, instruction: str, a: str, b: str) -> str:
    return f.let(f"{instruction} {f.target.vector} {a}, {b}")


def compare(f: Function, relation: str, a: str, b: str) -> str:
    return f.let(f"fcmp {relation} {f.target.vector} {a}, {b}")


def select(f: Function, condition: str, a: str, b: str) -> str:
    t = f.target
    return f.let(f"select <{t.lanes} x i1> {condition}, {t.vector} {a}, {t.vector} {b}")


def unary_intrinsic(f: Function, name: str, x: str) -> str:
    return f.call(f"llvm.{name}.{f.target.suffix}", f.target.vector, (f.target.vector, x))


def lane_by_lane(f: Function, name: str, x: str) -> str:
    """A function of C's mathematical library of each number of a vector."""
    t = f.target
    name += "f" if t.real == "float" else ""
    result = "poison"
    for lane in range(t.lanes):
        number = f.let(f"extractelement {t.vector} {x}, i32 {lane}")
        value = f.call(name, t.real, (t.real, number))
        result = f.let(f"insertelement {t.vector} {result}, {t.real} {value}, i32 {lane}")
    return result


def clamp(f: Function, x: str, low: float, high: float) -> str:
    """NaN stays NaN: a comparison with it fails."""
    x = select(f, compare(f, "ogt", x, constant(f, high)), constant(f, high), x)
    return select(f, compare(f, "olt", x, constant(f, low)), constant(f, low), x)


def _split_exp(f: Function, x: str) -> tuple[str, str]:
    """x = n log 2 + r with |r| <= log(2) / 2: the vectors 2^n and exp(r) - 1. |x| must be within exp's range."""
    t = f.target
    single = t.real == "float"
    mantissa, bias = (23, 127) if single else (52, 1023)
    shift = 1.5 * 2.0**mantissa  # adding it rounds to a whole number, which then stands in the lowest bits
    shifted = f.fma(x, constant(f, 1 / math.log(2)), constant(f, shift))
    n = binary(f, "fsub", shifted, constant(f, shift))
    high = 0.693359375 if single else 0.6931471803691238
    r = f.fma(n, constant(f, -high), x)
    r = f.fma(n, constant(f, -(math.log(2) - high) if not single else 2.12194440e-4), r)
    p = constant(f, EXP_SERIES[t.real][-1])
    for coefficient in EXP_SERIES[t.real][-2::-1]:
        p = f.fma(p, r, constant(f, coefficient))
    r2 = binary(f, "fmul", r, r)
    minus_one = f.fma(p, r2, r)  # exp(r) - 1 = r + r^2 (1/2 + r/6 + ...)
    whole = f"<{t.lanes} x {t.whole}>"
    bits = f.let(f"bitcast {t.vector} {shifted} to {whole}")
    base = struct.unpack("<i" if single else "<q", struct.pack("<f" if single else "<d", shift))[0]
    exponent = f.let(f"sub {whole} {bits}, {whole_constant(t, base - bias)}")
    power = f.let(f"shl {whole} {exponent}, {whole_constant(t, mantissa)}")
    return f.let(f"bitcast {whole} {power} to {t.vector}"), minus_one


def exp(f: Function, x: str) -> str:
    high, low = (88.37, -87.33) if f.target.real == "float" else (709.4, -708.3)
    power, minus_one = _split_exp(f, clamp(f, x, low, high))
    value = f.fma(power, minus_one, power)
    value = select(f, compare(f, "ogt", x, constant(f, high)), constant(f, math.inf), value)
    return select(f, compare(f, "olt", x, constant(f, low)), constant(f, 0.0), value)


def sigmoid(f: Function, x: str) -> str:
    """1 / (1 + exp(-x))."""
    bound = 87.3 if f.target.real == "float" else 708.0
    negated = f.let(f"fneg {f.target.vector} {clamp(f, x, -bound, bound)}")
    power, minus_one = _split_exp(f, negated)
    e = f.fma(power, minus_one, power)
    return binary(f, "fdiv", constant(f, 1.0), binary(f, "fadd", e, constant(f, 1.0)))


def tanh(f: Function, x: str) -> str:
    """(exp(2x) - 1) / (exp(2x) + 1), by exp(2x) - 1, so that small x keep their digits."""
    bound = 9.1 if f.target.real == "float" else 19.1
    doubled = clamp(f, x, -bound, bound)
    doubled = binary(f, "fadd", doubled, doubled)
    power, minus_one = _split_exp(f, doubled)
    e = f.fma(power, minus_one, binary(f, "fsub", power, constant(f, 1.0)))  # exp(2x) - 1
    return binary(f, "fdiv", e, binary(f, "fadd", e, constant(f, 2.0)))


def softplus(f: Function, x: str) -> str:
    """log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|)); PyTorch's has x itself beyond 20."""
    e = exp(f, f.let(f"fneg {f.target.vector} {unary_intrinsic(f, 'fabs', x)}"))
    u = binary(f, "fadd", e, constant(f, 1.0))
    # log(1 + e) with e's own digits: log(u) e / (u - 1)
    ratio = binary(
        f, "fdiv", binary(f, "fmul", unary_intrinsic(f, "log", u), e), binary(f, "fsub", u, constant(f, 1.0))
    )
    log1p = select(f, compare(f, "oeq", u, constant(f, 1.0)), e, ratio)
    return binary(f, "fadd", relu(f, x), log1p)


def relu(f: Function, x: str) -> str:
    return select(f, compare(f, "olt", x, constant(f, 0.0)), constant(f, 0.0), x)


def truth(f: Function, relation: str, a: str, b: str) -> str:
    return select(f, compare(f, relation, a, b), constant(f, 1.0), constant(f, 0.0))


def larger(f: Function, a: str, b: str, relation: str) -> str:
    """The larger ("ogt") or smaller ("olt"); NaN where either is."""
    chosen = select(f, compare(f, relation, a, b), a, b)
    return select(f, compare(f, "uno", a, a), a, chosen)


def pointwise(f: Function, op: str, arguments: list[str]) -> str:
    """One of the graph's pointwise operations."""
    if op in ("add", "sub", "mul", "div"):
        return binary(f, "f" + op, *arguments)
    if op == "neg":
        return f.let(f"fneg {f.target.vector} {arguments[0]}")
    if op in ("sigmoid", "tanh", "exp", "softplus", "relu"):
        return {"sigmoid": sigmoid, "tanh": tanh, "exp": exp, "softplus": softplus, "relu": relu}[op](f, arguments[0])
    if op in ("sqrt", "log", "sin", "cos", "floor", "ceil", "trunc", "roundeven"):
        return unary_intrinsic(f, op, arguments[0])
    if op in LIBRARY:
        return lane_by_lane(f, op, arguments[0])
    if op == "abs":
        return unary_intrinsic(f, "fabs", arguments[0])
    if op == "sign":
        zero = constant(f, 0.0)
        return binary(f, "fsub", truth(f, "ogt", arguments[0], zero), truth(f, "olt", arguments[0], zero))
    if op in ("max", "min"):
        return larger(f, arguments[0], arguments[1], "ogt" if op == "max" else "olt")
    if op in ("greater", "greater_equal", "equal"):
        return truth(f, {"greater": "ogt", "greater_equal": "oge", "equal": "oeq"}[op], *arguments)
    if op == "where":
        return select(f, compare(f, "une", arguments[0], constant(f, 0.0)), arguments[1], arguments[2])
    if op in ("spread", "still"):
        return arguments[0]
    raise AssertionError(op)


def reduced(f: Function, op: str, vector: str) -> str:
    """The lanes of a vector as one number, half by half: their sum, or the largest of them, NaN where one is."""
    t = f.target
    lanes = t.lanes
    while lanes > 1:
        lanes //= 2
        order = ", ".join(f"i32 {(lane + lanes) % t.lanes}" for lane in range(t.lanes))
        turned = f.let(f"shufflevector {t.vector} {vector}, {t.vector} poison, <{t.lanes} x i32> <{order}>")
        vector = binary(f, "fadd", vector, turned) if op == "sum" else larger(f, vector, turned, "ogt")
    return f.let(f"extractelement {t.vector} {vector}, i32 0")
