"""The order of work within one step: products, row-wise sums and pointwise maps, each reading what stands ready."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from throughtime.engine.cpu.graph import REDUCTIONS, Node
from throughtime.engine.cpu.vectormath import LIBRARY

COSTLY = {"div", "exp", "log", "sqrt", "sigmoid", "tanh", "softplus", "sin", "cos", *LIBRARY}


@dataclass(frozen=True)
class Location:
    """Where a row of numbers stands: columns of a named buffer."""

    buffer: str
    column: int = 0


@dataclass(frozen=True)
class Store:
    """A value to be kept; ``add`` adds it to what stands there."""

    node: Node
    location: Location
    add: bool = False


@dataclass(frozen=True)
class Product:
    """Rows times a matrix, or its transpose."""

    node: Node
    source: Location
    matrix: int
    transposed: bool
    destination: Location


@dataclass(frozen=True)
class Total:
    """Sums over the columns of expressions of one width, or the largest of them.

    ``kept``: costly values in these expressions that later statements of the round would make again.
    """

    width: int
    sums: tuple[tuple[Node, Location], ...]
    kept: tuple[tuple[Node, Location], ...] = ()


@dataclass(frozen=True)
class Map:
    """Pointwise expressions of one width."""

    width: int
    stores: tuple[Store, ...]


Statement = Product | Total | Map


@dataclass
class Schedule:
    """Statements in order, the scratch rows that they need (name to width), and where values stand."""

    statements: list[Statement] = field(default_factory=list)
    scratch: dict[str, int] = field(default_factory=dict)
    given: dict[Node, Location] = field(default_factory=dict)


def schedule(stores: Iterable[Store], given: dict[Node, Location], dense: set[str]) -> Schedule:
    """Orders the work that makes the stores from what is given.

    Args:
        given: where values stand before the step.
        dense: buffers whose rows lie side by side, as a product's source must; values elsewhere are copied.
    """
    stores = _piecewise(stores)
    order = _reachable([s.node for s in stores], given)
    levels = _levels(order, given, dense)
    ranks = _ranks(order, levels, given)
    plan = Schedule(given=dict(given))
    kept: dict[Node, list[Location]] = {}  # pointwise values that later statements read

    def keep(node: Node) -> Location:
        """A place in scratch for a pointwise value or a concatenation of such."""
        location = Location(f"value.{node.order}")
        plan.scratch[location.buffer] = node.width
        kept.setdefault(node, []).append(location)
        if node.op == "concat":  # its readers come in later rounds, when all its parts stand there
            plan.given[node] = location
        return location

    sources: dict[Node, Location] = {}
    made = [node for node in order if node not in given]
    for node in made:
        if node.op == "mm":
            (source,) = node.arguments
            if source not in sources:
                sources[source] = _dense_place(source, given, dense) or keep(source)
    for node in made:
        if (node.pointwise or node.op == "concat") and node.width > 1 and node not in kept:
            users = [u for u in order if node in u.arguments and u.op not in ("mm", "concat")]
            if any(levels[user] > levels[node] for user in users):
                keep(node)

    written = _piecewise([*stores, *(Store(node, place) for node, places in kept.items() for place in places)])
    for level in range(max([levels[n] for n in order] + [levels[s.node] for s in written], default=0) + 1):
        for node in made:
            if node.op == "mm" and levels[node] == level:
                matrix, transposed = node.detail
                destination = Location(f"value.{node.order}")
                plan.scratch[destination.buffer] = node.width
                place = sources[node.arguments[0]]
                plan.statements.append(Product(node, place, matrix, transposed, destination))
        groups: dict[tuple[int, int], list[tuple[Node, Location]]] = {}
        for node in made:
            if node.op in REDUCTIONS and levels[node] == level:
                destination = Location(f"value.{node.order}")
                plan.scratch[destination.buffer] = 1
                key = (ranks[node], node.arguments[0].width)
                groups.setdefault(key, []).append((node, destination))
        by_width: dict[int, list[Store]] = {}
        for store in written:
            if levels[store.node] == level:
                by_width.setdefault(store.node.width, []).append(store)
        totals = [Total(width, tuple(groups[rank, width])) for rank, width in sorted(groups)]
        maps = [Map(width, tuple(group)) for width, group in by_width.items()]
        ready = {node for node in order if node in plan.given or levels[node] < level} | set(kept)
        plan.statements.extend(_keep_costly(totals, maps, ready, plan.scratch))
        plan.statements.extend(maps)
    return plan


def _keep_costly(totals: list[Total], maps: list[Map], ready: set[Node], scratch: dict[str, int]) -> Iterator[Total]:
    """The totals, each of which keeps the costly values that it makes and that a later statement needs too."""
    rest = [[node.arguments[0] for node, _ in total.sums] for total in totals]
    rest += [[store.node for store in statement.stores] for statement in maps]
    done = set(ready)
    for number, total in enumerate(totals):
        later = {node for roots in rest[number + 1 :] for node in _made_of(roots, done)}
        made = [node for node in _made_of(rest[number], done) if node.op in COSTLY and node.width == total.width]
        places = tuple((node, Location(f"value.{node.order}")) for node in made if node in later)
        scratch |= {place.buffer: node.width for node, place in places}
        done |= {node for node, _ in places} | {node for node, _ in total.sums}
        yield replace(total, kept=places)


def _made_of(roots: Iterable[Node], done: set[Node]) -> list[Node]:
    """What is made anew for the roots: their arguments and those of these, down to what is there."""
    found: dict[Node, None] = {}
    pending = list(roots)
    while pending:
        node = pending.pop()
        if node not in found and node not in done:
            found[node] = None
            pending.extend(node.arguments)
    return list(found)


def _piecewise(stores: Iterable[Store]) -> list[Store]:
    """A concatenation is stored part by part."""
    result: list[Store] = []
    for store in stores:
        if store.node.op != "concat":
            result.append(store)
            continue
        column = store.location.column
        for part in store.node.arguments:
            result.append(Store(part, Location(store.location.buffer, column), store.add))
            column += part.width
    return result


def _reachable(roots: Iterable[Node], given: dict[Node, Location]) -> list[Node]:
    """What the roots are made of, each node after its arguments, down to what is given."""
    found: dict[Node, None] = {}

    def visit(node: Node) -> None:
        stack = [(node, False)]
        while stack:
            current, ready = stack.pop()
            if ready:
                found[current] = None
            elif current not in found:
                stack.append((current, True))
                if current not in given:
                    stack.extend((a, False) for a in current.arguments if a not in found)

    for root in roots:
        visit(root)
    return list(found)


def _levels(order: list[Node], given: dict[Node, Location], dense: set[str]) -> dict[Node, int]:
    """The round of statements in which a value is made; products and sums stand ready for their round's maps."""
    levels: dict[Node, int] = {}
    for node in order:
        if node in given or not node.arguments:
            levels[node] = 0
        elif node.op == "mm":
            (source,) = node.arguments
            levels[node] = levels[source] + (_dense_place(source, given, dense) is None)
        elif node.op == "concat":
            levels[node] = max(levels[a] for a in node.arguments)
        else:  # a concatenation is read once it stands in scratch
            levels[node] = max(levels[a] + (a.op == "concat" and a not in given) for a in node.arguments)
    return levels


def _ranks(order: list[Node], levels: dict[Node, int], given: dict[Node, Location]) -> dict[Node, int]:
    """Within a round, how many sums in a row a value has behind it: a variance comes after its mean."""
    ranks: dict[Node, int] = {}
    for node in order:
        behind = [] if node in given else [ranks[a] for a in node.arguments if levels[a] == levels[node]]
        ranks[node] = max(behind, default=0) + (node.op in REDUCTIONS and node not in given)
    return ranks


def _dense_place(source: Node, given: dict[Node, Location], dense: set[str]) -> Location | None:
    """Where a product may read its source, if that stands ready."""
    column = 0
    while source.op == "slice" and source not in given:
        column += source.detail
        (source,) = source.arguments
    place = given.get(source)
    if place is None or place.buffer not in dense:
        return None
    return Location(place.buffer, place.column + column)
