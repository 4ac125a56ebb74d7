"""Differentiating a graph, backwards: from the derivative by the results to the derivative by everything else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from throughtime.engine.cpu.graph import Graph, Node, walk

# For a node v = op(a, b, ...) and the derivative g by v: the derivatives by a, b, ... as nodes of the same graph.
Rule = Callable[[Graph, Node, Node], list["Node | None"]]


def _product(graph: Graph, v: Node, g: Node) -> list[Node | None]:
    a, b = v.arguments
    return [graph.apply("mul", g, b), graph.apply("mul", g, a)]


def _quotient(graph: Graph, v: Node, g: Node) -> list[Node | None]:
    by_a = graph.apply("div", g, v.arguments[1])
    return [by_a, graph.apply("neg", graph.apply("mul", by_a, v))]


def _larger(graph: Graph, v: Node, g: Node) -> list[Node | None]:
    a, b = v.arguments
    first = graph.apply("greater", a, b) if v.op == "max" else graph.apply("greater", b, a)
    equal = graph.apply("equal", a, b)
    share = graph.apply("add", first, graph.apply("mul", equal, 0.5))  # PyTorch halves it where both are equal
    by_a = graph.apply("mul", g, share)
    by_b = graph.apply("sub", g, by_a)
    return [by_a, by_b]


def _where(graph: Graph, v: Node, g: Node) -> list[Node | None]:
    condition = v.arguments[0]
    return [None, graph.apply("where", condition, g, 0.0), graph.apply("where", condition, 0.0, g)]


def _sigmoid(graph: Graph, v: Node, g: Node) -> list[Node | None]:
    return [graph.apply("mul", g, graph.apply("mul", v, graph.apply("sub", 1.0, v)))]


def _tanh(graph: Graph, v: Node, g: Node) -> list[Node | None]:
    return [graph.apply("mul", g, graph.apply("sub", 1.0, graph.apply("mul", v, v)))]


def _squared(graph: Graph, a: Node) -> Node:
    return graph.apply("mul", a, a)


def _error_function(graph: Graph, v: Node, g: Node) -> list[Node | None]:
    bell = graph.apply("exp", graph.apply("neg", _squared(graph, v.arguments[0])))
    return [graph.apply("mul", g, graph.apply("mul", bell, 2 / math.sqrt(math.pi)))]


RULES: dict[str, Rule] = {
    "add": lambda graph, v, g: [g, g],
    "sub": lambda graph, v, g: [g, graph.apply("neg", g)],
    "mul": _product,
    "div": _quotient,
    "neg": lambda graph, v, g: [graph.apply("neg", g)],
    "abs": lambda graph, v, g: [graph.apply("mul", g, graph.apply("sign", v.arguments[0]))],
    "sign": lambda graph, v, g: [None],
    "max": _larger,
    "min": _larger,
    "relu": lambda graph, v, g: [graph.apply("where", graph.apply("greater", v, 0.0), g, 0.0)],
    "exp": lambda graph, v, g: [graph.apply("mul", g, v)],
    "log": lambda graph, v, g: [graph.apply("div", g, v.arguments[0])],
    "sqrt": lambda graph, v, g: [graph.apply("div", graph.apply("mul", g, 0.5), v)],
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "softplus": lambda graph, v, g: [graph.apply("mul", g, graph.apply("sigmoid", v.arguments[0]))],
    "sin": lambda graph, v, g: [graph.apply("mul", g, graph.apply("cos", v.arguments[0]))],
    "cos": lambda graph, v, g: [graph.apply("neg", graph.apply("mul", g, graph.apply("sin", v.arguments[0])))],
    "tan": lambda graph, v, g: [graph.apply("mul", g, graph.apply("add", 1.0, _squared(graph, v)))],
    "asin": lambda graph, v, g: [
        graph.apply("div", g, graph.apply("sqrt", graph.apply("sub", 1.0, _squared(graph, v.arguments[0]))))
    ],
    "atan": lambda graph, v, g: [graph.apply("div", g, graph.apply("add", 1.0, _squared(graph, v.arguments[0])))],
    "sinh": lambda graph, v, g: [graph.apply("mul", g, graph.apply("cosh", v.arguments[0]))],
    "cosh": lambda graph, v, g: [graph.apply("mul", g, graph.apply("sinh", v.arguments[0]))],
    "asinh": lambda graph, v, g: [
        graph.apply("div", g, graph.apply("sqrt", graph.apply("add", 1.0, _squared(graph, v.arguments[0]))))
    ],
    "atanh": lambda graph, v, g: [graph.apply("div", g, graph.apply("sub", 1.0, _squared(graph, v.arguments[0])))],
    "erf": _error_function,
    "log1p": lambda graph, v, g: [graph.apply("div", g, graph.apply("add", 1.0, v.arguments[0]))],
    "expm1": lambda graph, v, g: [graph.apply("mul", g, graph.apply("add", 1.0, v))],
    "floor": lambda graph, v, g: [None],
    "ceil": lambda graph, v, g: [None],
    "trunc": lambda graph, v, g: [None],
    "roundeven": lambda graph, v, g: [None],
    "greater": lambda graph, v, g: [None, None],
    "greater_equal": lambda graph, v, g: [None, None],
    "equal": lambda graph, v, g: [None, None],
    "where": _where,
    "spread": lambda graph, v, g: [g],
    "still": lambda graph, v, g: [None],
}


@dataclass(frozen=True)
class Adjoint:
    """Derivatives as nodes. Those by parameters have still to be added up over batch and time."""

    inputs: dict[str, Node]  # by input, where it matters
    vectors: dict[tuple[int, int, int], Node]  # by (parameter, first column, width): one row's part
    products: dict[tuple[Node, int], Node]  # by (source, matrix): matrix gradient = sum of derivative^T source


def differentiate(graph: Graph, seeds: Iterable[tuple[Node, Node]]) -> Adjoint:
    """``seeds``: a result and the derivative by it."""
    seeds = list(seeds)
    derivatives: dict[Node, Node] = {}
    slices: dict[Node, dict[tuple[int, int], Node]] = {}  # derivatives by columns of a node, by (first column, width)

    def add(node: Node, g: Node) -> None:
        if node.op == "const":
            return
        if node.width == 1 and g.width > 1:  # it stood for all columns
            g = graph.sum(g)
        elif g.width == 1 and node.width > 1:
            g = graph.spread(g, node.width)
        derivatives[node] = graph.apply("add", derivatives[node], g) if node in derivatives else g

    for node, g in seeds:
        add(node, g)
    inputs: dict[str, Node] = {}
    vectors: dict[tuple[int, int, int], Node] = {}
    products: dict[tuple[Node, int], Node] = {}
    for node in reversed(walk(node for node, _ in seeds)):
        if node in slices:
            add(node, _joined(graph, slices[node], node.width))
        if node not in derivatives:
            continue
        g = derivatives[node]
        if node.op == "input":
            inputs[node.detail] = g
        elif node.op == "vector":
            vectors[(*node.detail, node.width)] = g
        elif node.op == "mm":
            matrix, transposed = node.detail
            assert not transposed
            (source,) = node.arguments
            products[source, matrix] = g
            add(source, graph.mm(g, matrix, source.width, transposed=True))
        elif node.op == "slice":
            parts = slices.setdefault(node.arguments[0], {})
            parts[node.detail, node.width] = g
        elif node.op == "concat":
            first = 0
            for part in node.arguments:
                add(part, graph.slice(g, first, part.width))
                first += part.width
        elif node.op == "sum":
            add(node.arguments[0], g)
        elif node.op == "largest":
            there = graph.apply("equal", node.arguments[0], node)
            add(node.arguments[0], graph.apply("mul", there, graph.apply("div", g, graph.sum(there))))  # equals share
        else:
            for argument, by_argument in zip(node.arguments, RULES[node.op](graph, node, g), strict=True):
                if by_argument is not None:
                    add(argument, by_argument)
    return Adjoint(inputs, vectors, products)


def _joined(graph: Graph, parts: dict[tuple[int, int], Node], width: int) -> Node:
    """Derivatives by columns as one by the whole; zero where there is none."""
    row: list[Node] = []
    end = 0
    for (first, _), part in sorted(parts.items(), key=lambda item: item[0]):
        if first < end:
            return _overlapping(graph, parts, width)
        if first > end:
            row.append(_zeros(graph, first - end))
        row.append(part)
        end = first + part.width
    if end < width:
        row.append(_zeros(graph, width - end))
    return graph.concat(row)


def _zeros(graph: Graph, width: int) -> Node:
    return graph.spread(graph.const(0.0), width)


def _overlapping(graph: Graph, parts: dict[tuple[int, int], Node], width: int) -> Node:
    total: Node | None = None
    whole: Node
    for (first, _), part in parts.items():
        pieces = [_zeros(graph, first)] if first else []
        pieces.append(part)
        if first + part.width < width:
            pieces.append(_zeros(graph, width - first - part.width))
        whole = graph.concat(pieces)
        total = whole if total is None else graph.apply("add", total, whole)
    assert total is not None
    return total
