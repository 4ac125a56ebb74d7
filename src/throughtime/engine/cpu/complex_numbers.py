"""Complex numbers in terms of real ones: a complex state is two fields to a kernel, a complex value two rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from throughtime.engine.cpu.graph import Graph, Node, Untraceable

aten = torch.ops.aten


def real_fields(state: Any) -> tuple[str, ...]:
    """The names of a state's fields, of which a complex one is two."""
    return tuple(
        part
        for name, field in zip(state._fields, state, strict=True)
        for part in ([f"{name}_real", f"{name}_imaginary"] if field.is_complex() else [name])
    )


def real_parts(fields: Iterable[Tensor]) -> list[Tensor]:
    """Real tensors as they are, complex ones as two."""
    return [part for field in fields for part in ([field.real, field.imag] if field.is_complex() else [field])]


def rejoined(parts: Iterable[Tensor], like: Any) -> Any:
    """A state of the kind of ``like`` from the real parts of its fields."""
    taken: Iterator[Tensor] = iter(parts)
    fields = []
    for field in like:
        one = next(taken)
        fields.append(torch.complex(one.contiguous(), next(taken).contiguous()) if field.is_complex() else one)
    return type(like)(*fields)


@dataclass(frozen=True)
class Pair:
    """A complex value; ``apart`` once its parts are two columns of a third axis, as in `torch.view_as_real`."""

    real: Node
    imaginary: Node
    apart: bool = False


Value = Node | Pair
Operation = Callable[..., Value]
_operations: dict[Any, Operation] = {}


def complex_operation(g: Graph, target: Any, arguments: list[Any], options: dict[str, Any]) -> Value:
    """An operation of PyTorch's of which an argument or the result is complex.

    Raises:
        Untraceable: it is not among those known here, or is not used in the plain way.
    """
    operation = _operations.get(target)
    if operation is None or options or len(arguments) + 1 != operation.__code__.co_argcount:
        raise Untraceable(f"{target} of complex values is not among its operations")
    if target is not aten.select.int:
        arguments = [_value(g, argument) for argument in arguments]
        if any(isinstance(argument, Pair) and argument.apart for argument in arguments):
            raise Untraceable(f"{target} of the parts of a complex value")
    return operation(g, *arguments)


def _value(g: Graph, argument: Any) -> Any:
    if isinstance(argument, complex):
        return Pair(g.const(argument.real), g.const(argument.imag))
    return g.const(argument) if isinstance(argument, (int, float)) else argument


def _on(*targets: Any) -> Callable[[Operation], Operation]:
    def register(operation: Operation) -> Operation:
        _operations.update(dict.fromkeys(targets, operation))
        return operation

    return register


@_on(aten.complex.default)
def _made(g: Graph, real: Node, imaginary: Node) -> Pair:
    return Pair(real, imaginary)


@_on(aten.view_as_real.default)
def _apart(g: Graph, value: Pair) -> Pair:
    return Pair(value.real, value.imaginary, apart=True)


@_on(aten.select.int)
def _part(g: Graph, value: Pair, axis: int, index: int) -> Value:
    if not value.apart or axis not in (-1, 2):
        raise Untraceable("a part of a complex value that is neither real nor imaginary")
    return (value.real, value.imaginary)[index]


@_on(aten.clone.default, aten.alias.default)
def _same(g: Graph, value: Pair) -> Pair:
    return value


@_on(aten.add.Tensor)
def _sum(g: Graph, a: Value, b: Value) -> Pair:
    return _by_parts(g, "add", a, b)


@_on(aten.sub.Tensor)
def _difference(g: Graph, a: Value, b: Value) -> Pair:
    return _by_parts(g, "sub", a, b)


@_on(aten.neg.default)
def _negative(g: Graph, a: Pair) -> Pair:
    return Pair(g.apply("neg", a.real), g.apply("neg", a.imaginary))


@_on(aten._conj.default, aten.conj_physical.default)
def _conjugate(g: Graph, a: Pair) -> Pair:
    return Pair(a.real, g.apply("neg", a.imaginary))


@_on(aten.mul.Tensor)
def _product(g: Graph, a: Value, b: Value) -> Pair:
    if isinstance(a, Node):
        a, b = b, a
    assert isinstance(a, Pair)
    if isinstance(b, Node):
        return Pair(g.apply("mul", a.real, b), g.apply("mul", a.imaginary, b))
    one, other = g.apply("mul", a.real, b.real), g.apply("mul", a.imaginary, b.imaginary)
    cross, back = g.apply("mul", a.real, b.imaginary), g.apply("mul", a.imaginary, b.real)
    return Pair(g.apply("sub", one, other), g.apply("add", cross, back))


@_on(aten.div.Tensor)
def _quotient(g: Graph, a: Value, b: Value) -> Pair:
    if isinstance(b, Node):
        assert isinstance(a, Pair)
        return Pair(g.apply("div", a.real, b), g.apply("div", a.imaginary, b))
    size = g.apply("add", g.apply("mul", b.real, b.real), g.apply("mul", b.imaginary, b.imaginary))
    product = _product(g, a, _conjugate(g, b))
    assert isinstance(product, Pair)
    return Pair(g.apply("div", product.real, size), g.apply("div", product.imaginary, size))


@_on(aten.reciprocal.default)
def _reciprocal(g: Graph, a: Pair) -> Value:
    return _quotient(g, g.const(1.0), a)


@_on(aten.rsub.Scalar, aten.rsub.Tensor)
def _turned_difference(g: Graph, a: Value, b: Value) -> Pair:
    return _by_parts(g, "sub", b, a)


@_on(aten.exp.default)
def _exponential(g: Graph, a: Pair) -> Value:
    return _polar(g, g.apply("exp", a.real), a.imaginary)


@_on(aten.polar.default)
def _polar(g: Graph, size: Node, angle: Node) -> Pair:
    return Pair(g.apply("mul", size, g.apply("cos", angle)), g.apply("mul", size, g.apply("sin", angle)))


@_on(aten.abs.default)
def _size(g: Graph, a: Pair) -> Node:
    """The root of the squares' sum: past 1e19 float32 overflows. Its derivative at zero is zero, as in PyTorch."""
    squares = g.apply("add", g.apply("mul", a.real, a.real), g.apply("mul", a.imaginary, a.imaginary))
    some = g.apply("greater", squares, 0.0)
    return g.apply("where", some, g.apply("sqrt", g.apply("where", some, squares, 1.0)), 0.0)


@_on(aten.where.self)
def _choice(g: Graph, condition: Node, a: Value, b: Value) -> Pair:
    (real, imaginary), (other, other_imaginary) = _parts(g, a), _parts(g, b)
    return Pair(g.apply("where", condition, real, other), g.apply("where", condition, imaginary, other_imaginary))


def _by_parts(g: Graph, op: str, a: Value, b: Value) -> Pair:
    (real, imaginary), (other, other_imaginary) = _parts(g, a), _parts(g, b)
    return Pair(g.apply(op, real, other), g.apply(op, imaginary, other_imaginary))


def _parts(g: Graph, value: Value) -> tuple[Node, Node]:
    return (value, g.const(0.0)) if isinstance(value, Node) else (value.real, value.imaginary)
