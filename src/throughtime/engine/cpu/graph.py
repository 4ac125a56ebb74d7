"""A small language for one step of a cell: matrix products by parameters, pointwise maths, row-wise sums.

A value is a row of ``width`` numbers for each sequence of the batch, (B, width); rows do not see each other. A value
of width 1 beside a wider one stands for all its columns. Equal expressions are one node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


class Untraceable(Exception):
    """A step does what the graph has no word for; the text says what."""


# Pointwise operations and what they are in PyTorch.
POINTWISE: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "neg": torch.neg,
    "abs": torch.abs,
    "sign": torch.sign,
    "max": torch.maximum,
    "min": torch.minimum,
    "relu": torch.relu,
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": torch.nn.functional.softplus,
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "asin": torch.asin,
    "atan": torch.atan,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "asinh": torch.asinh,
    "atanh": torch.atanh,
    "erf": torch.erf,
    "log1p": torch.log1p,
    "expm1": torch.expm1,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "trunc": torch.trunc,
    "roundeven": torch.round,
    "greater": lambda a, b: (a > b).to(a.dtype),  # 1 or 0
    "greater_equal": lambda a, b: (a >= b).to(a.dtype),
    "equal": lambda a, b: (a == b).to(a.dtype),
    "where": lambda condition, a, b: torch.where(condition != 0, a, b),
    "spread": lambda a: a,  # a value of width 1 in each of ``width`` columns
    "still": torch.Tensor.detach,  # the value itself, whose derivative is taken as zero
}

# Of a row's columns, one number.
REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda a: a.sum(-1, keepdim=True),
    "largest": lambda a: a.amax(-1, keepdim=True),
}


@dataclass(frozen=True, eq=False)
class Node:
    """A value. ``detail`` says which input, parameter, columns or constant; its form depends on ``op``.

    ====== ============================= ==================================================
    op     detail                        value
    ====== ============================= ==================================================
    input  name                          what the step is given: input, state, noise, ...
    vector (parameter, first column)     a row of a parameter, the same for all sequences
    const  number                        that number
    mm     (matrix, transposed)          argument times the matrix (N, K), or its transpose
    slice  first column                  ``width`` columns of the argument
    concat                               the arguments side by side
    sum                                  the sum over the argument's columns
    largest                              the largest of the argument's columns
    ...                                  a pointwise operation on the arguments
    ====== ============================= ==================================================
    """

    op: str
    arguments: tuple[Node, ...]
    width: int
    detail: Any
    order: int

    def __repr__(self) -> str:
        inside = ", ".join(f"%{a.order}" for a in self.arguments)
        return f"%{self.order}:{self.width} = {self.op}({inside}{'' if self.detail is None else f' {self.detail}'})"

    @property
    def pointwise(self) -> bool:
        return self.op in POINTWISE


@dataclass
class Graph:
    """Makes nodes, each expression once."""

    nodes: dict[tuple, Node] = field(default_factory=dict)

    def node(self, op: str, arguments: Iterable[Node] = (), width: int = 1, detail: Any = None) -> Node:
        arguments = tuple(arguments)
        key = (op, tuple(a.order for a in arguments), width, detail)
        if key not in self.nodes:
            self.nodes[key] = Node(op, arguments, width, detail, len(self.nodes))
        return self.nodes[key]

    def input(self, name: str, width: int) -> Node:
        return self.node("input", width=width, detail=name)

    def const(self, value: float) -> Node:
        return self.node("const", detail=float(value))

    def vector(self, parameter: int, width: int, first: int = 0) -> Node:
        return self.node("vector", width=width, detail=(parameter, first))

    def mm(self, source: Node, matrix: int, width: int, transposed: bool = False) -> Node:
        return self.node("mm", [source], width, (matrix, transposed))

    def sum(self, source: Node) -> Node:
        return source if source.width == 1 else self.node("sum", [source])

    def largest(self, source: Node) -> Node:
        return source if source.width == 1 else self.node("largest", [source])

    def spread(self, source: Node, width: int) -> Node:
        return source if source.width == width else self.node("spread", [source], width)

    def concat(self, parts: Iterable[Node]) -> Node:
        parts = tuple(inner for part in parts for inner in (part.arguments if part.op == "concat" else [part]))
        return parts[0] if len(parts) == 1 else self.node("concat", parts, sum(p.width for p in parts))

    def slice(self, source: Node, first: int, width: int) -> Node:
        """Columns of a value. Slices move inwards, through pointwise operations, to what is stored whole."""
        if width == source.width:
            return source
        if source.pointwise:
            parts = [a if a.width == 1 else self.slice(a, first, width) for a in source.arguments]
            return self.node(source.op, parts, width, source.detail)
        if source.op == "vector":
            parameter, start = source.detail
            return self.vector(parameter, width, start + first)
        if source.op == "slice":
            return self.slice(source.arguments[0], source.detail + first, width)
        if source.op == "concat":
            pieces = []
            start = 0
            for part in source.arguments:
                low, high = max(first, start), min(first + width, start + part.width)
                if low < high:
                    pieces.append(self.slice(part, low - start, high - low))
                start += part.width
            return self.concat(pieces)
        return self.node("slice", [source], width, first)

    def apply(self, op: str, *arguments: Node | float) -> Node:
        """A pointwise operation; numbers are taken as constants, and what is plain is simplified."""
        nodes = [a if isinstance(a, Node) else self.const(a) for a in arguments]
        simpler = self._simplify(op, nodes)
        if simpler is not None:
            return simpler
        widths = {n.width for n in nodes} - {1}
        if len(widths) > 1:
            raise ValueError(f"{op} of rows of {sorted(widths)} columns")
        return self.node(op, nodes, widths.pop() if widths else 1)

    def _simplify(self, op: str, nodes: list[Node]) -> Node | None:
        if all(n.op == "const" for n in nodes):
            value = POINTWISE[op](*(torch.tensor(n.detail, dtype=torch.float64, device="cpu") for n in nodes))
            return self.const(float(value))
        values = [n.detail if n.op == "const" else None for n in nodes]
        # a constant may stand in for a row only where the width stays the same
        if op == "mul":
            if values[0] == 1:
                return nodes[1]
            if values[1] == 1:
                return nodes[0]
        if op == "add":
            if nodes[0].op == nodes[1].op == "sum" and nodes[0].arguments[0].width == nodes[1].arguments[0].width:
                return self.sum(self.apply("add", nodes[0].arguments[0], nodes[1].arguments[0]))
            if values[0] == 0:
                return nodes[1]
            if values[1] == 0:
                return nodes[0]
        if (op == "sub" and values[1] == 0) or (op == "div" and values[1] == 1):
            return nodes[0]
        return None


def walk(roots: Iterable[Node]) -> list[Node]:
    """The nodes that the roots are made of, each after its arguments."""
    found: dict[Node, None] = {}
    pending = [(root, False) for root in roots]
    while pending:
        node, ready = pending.pop()
        if ready:
            found[node] = None
        elif node not in found:
            pending.append((node, True))
            pending.extend((a, False) for a in node.arguments if a not in found)
    return list(found)


def evaluate(
    roots: Iterable[Node], inputs: dict[str, Tensor], vectors: list[Tensor], matrices: list[Tensor]
) -> list[Tensor]:
    """The roots' values in plain PyTorch: rows (..., width). The midpoint between a cell and its kernels."""
    roots = list(roots)
    values: dict[Node, Tensor] = {}
    for node in walk(roots):
        arguments = [values[a] for a in node.arguments]
        if node.op == "input":
            value = inputs[node.detail]
        elif node.op == "vector":
            parameter, first = node.detail
            value = vectors[parameter].reshape(-1)[first : first + node.width]
        elif node.op == "const":
            like = next(iter(inputs.values()))
            value = torch.tensor([node.detail], dtype=like.dtype, device=like.device)
        elif node.op == "mm":
            matrix, transposed = node.detail
            value = arguments[0] @ (matrices[matrix] if transposed else matrices[matrix].mT)
        elif node.op == "slice":
            value = arguments[0][..., node.detail : node.detail + node.width]
        elif node.op == "concat":
            rows = torch.broadcast_shapes(*(a.shape[:-1] for a in arguments))
            value = torch.cat([a.expand(*rows, a.shape[-1]) for a in arguments], dim=-1)
        elif node.op in REDUCTIONS:
            value = REDUCTIONS[node.op](*arguments)
        else:
            value = POINTWISE[node.op](*arguments)
            if node.op == "spread":
                value = value.expand(*value.shape[:-1], node.width)
        values[node] = value
    return [values[root] for root in roots]
