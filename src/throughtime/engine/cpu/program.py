"""What the two kernels of a cell do, forwards and backwards, apart from how their code is written.

Forwards, step by step: state in, state out, output; and, where there is to be a way back, the values that it reads
again are saved. Backwards: the derivative by the state goes from step to step; the derivatives by products (one row
for each sequence and step) are kept, and make those by matrices once the loop is done.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from throughtime.engine.cpu.adjoint import differentiate
from throughtime.engine.cpu.graph import REDUCTIONS, Graph, Node, walk
from throughtime.engine.cpu.schedule import Location, Product, Schedule, Statement, Store, Total, schedule
from throughtime.engine.cpu.trace import Step


@dataclass(frozen=True)
class InputProduct:
    """A product of an input by a matrix: it needs no state, so many steps are done as one."""

    source: str
    matrix: int
    width: int  # of the source
    destination: str


@dataclass(frozen=True)
class Forward:
    body: Schedule
    products: tuple[InputProduct, ...]
    outputs: tuple[int, ...]  # widths
    saved: int  # columns of the buffer "saved"
    keeps_states: bool


@dataclass(frozen=True)
class MatrixGradient:
    """The sum over batch and time of (columns of "derivatives")^T (source)."""

    matrix: int
    column: int
    width: int
    source: Location  # in an input, "before.NAME" or "saved"
    source_width: int


@dataclass(frozen=True)
class InputGradient:
    """Adds (columns of "derivatives") times a matrix to an input's derivative, once the loop is done."""

    name: str
    matrix: int
    column: int
    width: int


@dataclass(frozen=True)
class Backward:
    body: Schedule
    derivatives: int  # columns of the buffer "derivatives"
    matrices: tuple[MatrixGradient, ...]
    vectors: tuple[tuple[int, int, int, int], ...]  # (parameter, its first column, width, column of "sums")
    sums: int  # columns of the buffer "sums", one row a sequence
    inputs: tuple[str, ...]  # whose derivatives are written
    written_in_loop: frozenset[str]
    input_products: tuple[InputGradient, ...]


@dataclass(frozen=True)
class Program:
    step: Step
    forward: Forward
    backward: Backward | None
    matrix_shapes: tuple[tuple[int, int], ...]


def input_widths(step: Step) -> dict[str, int]:
    nodes = [n for key, n in step.graph.nodes.items() if key[0] == "input" and not n.detail.startswith("d.")]
    return {n.detail: n.width for n in nodes}


def build(
    step: Step,
    matrix_shapes: tuple[tuple[int, int], ...],
    *,
    outputs: tuple[Node, ...],
    wanted: frozenset[str],
    backward: bool,
) -> Program:
    """The program of a step.

    Args:
        matrix_shapes: (N, K) of each matrix that the prologue makes.
        outputs: what each step puts out: y, and the new states too where all are asked for.
        wanted: inputs ("x", "noise.0") by which derivatives are asked for.
        backward: whether there is to be a way back.
    """
    graph = step.graph
    state_in = [f"state.{name}" for name in step.fields]
    if not backward:
        return Program(step, _forward(step, outputs, saved={}, keeps_states=False), None, matrix_shapes)

    seeds = [(node, graph.input(f"d.out.{k}", node.width)) for k, node in enumerate(outputs)]
    seeds += [
        (node, graph.input(f"d.new.{name}", node.width)) for name, node in zip(step.fields, step.state, strict=True)
    ]
    adjoint = differentiate(graph, seeds)

    # What the way back computes: derivatives by the state, and what parameters' and inputs' are made of.
    derivative_columns: dict[Node, int] = {}
    matrices: list[MatrixGradient] = []
    stores: list[Store] = []
    sources: list[Node] = []
    width = 0
    for (source, _), d in adjoint.products.items():
        if d not in derivative_columns:
            derivative_columns[d] = width
            stores.append(Store(d, Location("derivatives", width)))
            width += d.width
        sources.append(source)
    vectors: list[tuple[int, int, int, int]] = []
    sums = 0
    for (parameter, first, _), d in sorted(adjoint.vectors.items(), key=lambda item: item[0]):
        if vectors and vectors[-1][0] == parameter and sum(vectors[-1][1:3]) == first:  # goes on where the last ends
            vectors[-1] = (parameter, vectors[-1][1], vectors[-1][2] + d.width, vectors[-1][3])
        else:
            vectors.append((parameter, first, d.width, sums))
        stores.append(Store(d, Location("sums", sums), add=True))
        sums += d.width
    for name in state_in:
        if name in adjoint.inputs:
            stores.append(Store(adjoint.inputs[name], Location(f"new.{name.removeprefix('state.')}")))
    input_products: list[InputGradient] = []
    written: set[str] = set()
    for name in sorted(wanted & set(adjoint.inputs)):
        rest: Node | None = None
        for term in _terms(adjoint.inputs[name]):
            if term.op == "mm" and term.arguments[0] in derivative_columns:
                (d,) = term.arguments
                input_products.append(InputGradient(name, term.detail[0], derivative_columns[d], d.width))
            else:
                rest = term if rest is None else graph.apply("add", rest, term)
        if rest is not None:
            stores.append(Store(rest, Location(f"grad.{name}")))
            written.add(name)

    saved, parts = _choose_saved(step, [s.node for s in stores], sources)
    given = _given_backward(step, saved | parts, len(outputs))
    body = schedule(stores, given, dense={f"in.{name}" for name in step.fields})
    for (source, matrix), d in adjoint.products.items():
        place = given.get(source) or _sliced_place(source, given)
        assert place is not None, f"{source} is not kept for its matrix gradient"
        matrices.append(MatrixGradient(matrix, derivative_columns[d], d.width, place, source.width))
    return Program(
        step,
        _forward(step, outputs, saved, keeps_states=True),
        Backward(
            body, width, tuple(matrices), tuple(vectors), sums, tuple(sorted(wanted & set(adjoint.inputs))),
            frozenset(written), tuple(input_products),
        ),
        matrix_shapes,
    )  # fmt: skip


def _terms(node: Node) -> list[Node]:
    """The summands of a sum."""
    if node.op == "add" and all(a.width == node.width for a in node.arguments):
        return [term for argument in node.arguments for term in _terms(argument)]
    return [node]


def _forward(step: Step, outputs: tuple[Node, ...], saved: dict[Node, int], keeps_states: bool) -> Forward:
    given: dict[Node, Location] = {}
    for name, width in input_widths(step).items():
        node = step.graph.input(name, width)
        given[node] = Location(f"in.{name.removeprefix('state.')}" if name.startswith("state.") else name)
    stores = [Store(node, Location(f"out.{k}")) for k, node in enumerate(outputs)]
    for name, node in zip(step.fields, step.state, strict=True):
        stores.append(Store(node, Location(f"new.{name}")))
        if keeps_states:
            stores.append(Store(node, Location(f"after.{name}")))
    stores += [Store(node, Location("saved", column)) for node, column in saved.items()]
    products: list[InputProduct] = []
    for node in walk(s.node for s in stores):
        if node.op == "mm" and node.arguments[0].op == "input" and not node.arguments[0].detail.startswith("state."):
            destination = f"block.{node.order}"
            given[node] = Location(destination)
            source = node.arguments[0]
            products.append(InputProduct(source.detail, node.detail[0], source.width, destination))
    body = schedule(stores, given, dense={f"in.{name}" for name in step.fields})
    return Forward(body, tuple(products), tuple(n.width for n in outputs), sum(n.width for n in saved), keeps_states)


def _given_backward(step: Step, saved: dict[Node, int], outputs: int) -> dict[Node, Location]:
    given: dict[Node, Location] = {}
    for key, node in step.graph.nodes.items():
        if key[0] != "input":
            continue
        name = node.detail
        if name.startswith("d.new."):
            given[node] = Location(f"in.{name.removeprefix('d.new.')}")
        elif name.startswith("state."):
            given[node] = Location(f"before.{name.removeprefix('state.')}")
        else:
            given[node] = Location(name)
    for name, node in zip(step.fields, step.state, strict=True):
        given.setdefault(node, Location(f"after.{name}"))
    for node, column in saved.items():
        given[node] = Location("saved", column)
    return given


def _sliced_place(source: Node, given: dict[Node, Location]) -> Location | None:
    column = 0
    while source.op == "slice" and source not in given:
        column += source.detail
        (source,) = source.arguments
    place = given.get(source)
    return None if place is None else Location(place.buffer, place.column + column)


def _choose_saved(step: Step, roots: list[Node], sources: list[Node]) -> tuple[dict[Node, int], dict[Node, int]]:
    """Which values of the way forward are kept for the way back, with their columns; and which are columns of these.

    States are kept anyway. Of the rest: what a matrix gradient reads; what depends on a product and is costly or
    needs that product again. Everything else is found again from these.
    """
    forward = set(walk([step.y, *step.state]))
    free = {n for n in forward if n.op in ("input", "vector", "const")} | set(step.state)
    saved: dict[Node, None] = {}
    for source in sources:
        base = source
        while base.op == "slice":
            (base,) = base.arguments
        if source not in free and base not in free:
            saved[source] = None

    def cheap(node: Node) -> bool:
        """Whether a value is found again without products, sums, or costly functions of them."""
        if node in free or node in saved:
            return True
        if node.op == "mm" or node.op in REDUCTIONS:
            return False
        return all(cheap(a) for a in node.arguments)

    needed: dict[Node, None] = {}
    pending = list(roots)
    seen: set[Node] = set()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in forward:
            needed[node] = None
        else:
            pending.extend(node.arguments)
    for node in sorted(needed, key=lambda n: n.order):
        if not cheap(node):
            saved[node] = None
    stored: dict[Node, int] = {}
    parts: dict[Node, int] = {}
    width = 0
    for node in sorted(saved, key=lambda n: -n.width):
        within = (stored[whole] + first for whole in stored for first in _columns_of(step.graph, node, whole))
        column = next(within, None)
        if column is None:
            stored[node] = width
            width += node.width
        else:
            parts[node] = column
    return stored, parts


def _columns_of(graph: Graph, node: Node, whole: Node) -> Iterator[int]:
    """From which column of another value on a value is the same as that."""
    if node.pointwise and node.op == whole.op:
        for first in {n.detail for n in walk([node]) if n.op == "slice"}:
            if first + node.width <= whole.width and graph.slice(whole, first, node.width) is node:
                yield first


def describe_program(program: Program) -> str:
    """The stages of a program, in words: what is done before time begins, in blocks of steps, and at each step."""
    shapes = program.matrix_shapes
    lines = [f"  before time: {program.step.vectors} rows and {len(shapes)} matrices from the parameters"]
    for product in program.forward.products:
        rows, columns = shapes[product.matrix]
        lines.append(f"  in blocks of steps: {product.source} ({columns}) times a matrix to {rows}")
    for title, body in (("step", program.forward.body), ("way back", program.backward and program.backward.body)):
        if body:
            lines.append(f"  each {title}: " + "; ".join(_words(statement) for statement in body.statements))
    if program.backward:
        gradients = ", ".join(f"{g.width} x {g.source_width}" for g in program.backward.matrices)
        lines.append(f"  after the way back: matrix gradients {gradients or 'none'}")
        lines.append(f"  kept for the way back: {program.forward.saved} numbers a step beside the states")
    return "\n".join(lines)


def _words(statement: Statement) -> str:
    if isinstance(statement, Product):
        return f"product {statement.node.arguments[0].width} to {statement.node.width}"
    if isinstance(statement, Total):
        kinds = sorted({node.op for node, _ in statement.sums}, reverse=True)
        return f"{len(statement.sums)} of {' and '.join(kinds)} over {statement.width}"
    return f"pointwise on {statement.width}, {len(statement.stores)} results"
