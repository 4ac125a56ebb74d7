"""From a cell's step to a graph: PyTorch runs the step once on tensors without data and writes down what it does."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch._decomp import get_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

from throughtime.cells.cell import Cell, checked_step
from throughtime.engine.cpu.complex_numbers import Pair, complex_operation, real_fields, real_parts, rejoined
from throughtime.engine.cpu.graph import Graph, Node, Untraceable, evaluate
from throughtime.engine.cpu.operations import HANDLERS, ROWS, TO_COLUMNS, fill

aten = torch.ops.aten
OTHER_ROWS = 5  # in the one that is checked: a step into which the first number has found its way shows then


@dataclass(frozen=True)
class Step:
    """A step as a graph.

    Inputs are named "x", "state.NAME" and "noise.K"; outputs are y and the new state's fields. ``prologue`` makes,
    from the cell's parameters, the rows and matrices that the graph refers to by number: what depends on parameters
    alone is done once, before time begins.
    """

    graph: Graph
    y: Node
    state: tuple[Node, ...]
    fields: tuple[str, ...]
    noise: int  # how many tensors of noise
    prologue: fx.GraphModule | None  # None in a step read from text: who calls has the rows and matrices
    vectors: int  # the first so many results of the prologue are rows (N,), the rest matrices (N, K)


def standing_in(module: Any, tensors: dict[str, Tensor], prefix: str = "", known: dict[int, Any] | None = None) -> Any:
    """A copy of the module that holds these tensors for its parameters and buffers.

    `torch.func.functional_call` swaps them within the module itself, where another thread would see them.
    """
    known = {} if known is None else known  # parts and tensors in more than one place stay one
    if id(module) in known:
        return known[id(module)]
    copy = known[id(module)] = object.__new__(type(module))
    copy.__dict__.update(module.__dict__)
    for kind in ("_parameters", "_buffers"):
        held = copy.__dict__[kind] = dict(module.__dict__[kind])
        for name, tensor in held.items():
            if prefix + name in tensors:
                known[id(tensor)] = tensors[prefix + name]
            held[name] = None if tensor is None else known[id(tensor)]
    parts = module.__dict__["_modules"].items()
    copy.__dict__["_modules"] = {
        name: None if part is None else standing_in(part, tensors, f"{prefix}{name}.", known) for name, part in parts
    }
    return copy


def flatten(noise: Any) -> list[Tensor]:
    """The tensors of nested noise, in order."""
    if noise is None:
        return []
    if isinstance(noise, Tensor):
        return [noise]
    return [tensor for part in noise for tensor in flatten(part)]


def widths_of(noise: Any) -> Any:
    """Nested noise (B, T, N) with each tensor's N in its place; -1 for one that is not made of rows."""
    if noise is None:
        return None
    if isinstance(noise, Tensor):
        return int(noise.shape[2]) if noise.dim() == 3 else -1
    return tuple([widths_of(part) for part in noise])


def nested(widths: Any, tensors: Iterator[Tensor]) -> Any:
    """Tensors nested as widths are."""
    if widths is None:
        return None
    if isinstance(widths, int):
        return next(tensors)
    return tuple(nested(part, tensors) for part in widths)


def _flat(widths: Any) -> list[int]:
    if widths is None:
        return []
    return [widths] if isinstance(widths, int) else [width for part in widths for width in _flat(part)]


def with_data(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The tensor, or one with numbers in place of one that has none (of the meta device, or a compiler's)."""
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    plain = type(tensor) in (Tensor, nn.Parameter, nn.Buffer) and tensor.device.type == "cpu" and not wrapped
    if plain and dtype in (None, tensor.dtype):
        return tensor.detach()
    shape = [int(size) for size in tensor.shape]
    if tensor.is_floating_point():
        return torch.randn(shape, dtype=dtype or tensor.dtype, device="cpu")
    return torch.zeros(shape, dtype=tensor.dtype, device="cpu")


def trace(cell: Cell, parameters: dict[str, Tensor], widths: Any) -> Step:
    """The step of a cell.

    Args:
        parameters: the cell's parameters and buffers by name; shapes and types count, not values.
        widths: of the noise that the cell draws, nested as it is, or None.

    Raises:
        Untraceable: the step is not made of the graph's operations, or its rows see each other.
    """
    if type(cell).step is Cell.step:
        cell.step(torch.empty(0), None)  # says that the cell has to define it
    tensors = {name: p.detach() for name, p in parameters.items()}
    initial = standing_in(cell, tensors).initial_state(1)
    parts = real_parts(initial)
    like = parts[0]
    if min(_flat(widths), default=0) < 0 or any(field.dim() != 2 for field in initial):
        raise Untraceable("its state or noise is not made of rows (B, N)")
    x = like.new_empty(ROWS, cell.input_size)
    state = [part.new_empty(ROWS, part.shape[1]) for part in parts]
    draws = [like.new_empty(ROWS, width) for width in _flat(widths)]

    def run(tensors: dict[str, Tensor], x: Tensor, state: list[Tensor], draws: list[Tensor]) -> Any:
        y, new = checked_step(standing_in(cell, tensors), x, rejoined(state, initial), nested(widths, iter(draws)))
        return (y, *real_parts(new))

    table = get_decompositions(
        [
            aten.native_layer_norm, aten.silu, aten.gelu, aten.leaky_relu, aten.addcmul, aten.mish,
        ]
    )  # fmt: skip

    def written_down(run: Callable) -> fx.GraphModule:
        options = {"decomposition_table": cast(Any, table), "tracing_mode": "fake", "_allow_non_fake_inputs": True}
        return make_fx(run, **options)(tensors, x, state, draws)

    try:
        traced = written_down(run)
        if any(_changes_in_place(node) for node in traced.graph.nodes):
            traced = written_down(torch.func.functionalize(run))
            if any(_changes_in_place(node) and node.args[0].op == "placeholder" for node in traced.graph.nodes):
                raise Untraceable("it changes a parameter or a buffer in place")
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        raise Untraceable(f"its step cannot be traced: {str(error).splitlines()[0]}") from error
    step = Reader(traced, list(tensors), real_fields(initial), len(draws)).read()
    _check(step, run, tensors, x, state, draws)
    return step


def _changes_in_place(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _check(
    step: Step, run: Callable, tensors: dict[str, Tensor], x: Tensor, state: list[Tensor], draws: list[Tensor]
) -> None:
    """The graph on random numbers against the step itself, with their gradients.

    What a trace cannot see (a gradient of the step's own making, numbers taken from elsewhere, a random draw) shows
    here.

    Raises:
        Untraceable: they differ.
    """
    generator = torch.Generator().manual_seed(0)

    def random(like: Tensor) -> Tensor:
        if not like.is_floating_point():
            return like.new_zeros(OTHER_ROWS, like.shape[1])
        return torch.randn(OTHER_ROWS, like.shape[1], generator=generator, dtype=like.dtype).requires_grad_()

    weights = {n: p.clone().requires_grad_(p.is_floating_point()) for n, p in tensors.items()}
    x, state, draws = random(x), [random(t) for t in state], [random(t) for t in draws]
    leaves = [t for t in (*weights.values(), x, *state, *draws) if t.requires_grad]
    inputs = {"x": x} | {f"state.{n}": t for n, t in zip(step.fields, state, strict=True)}
    inputs |= {f"noise.{k}": t for k, t in enumerate(draws)}

    def results(outputs: list[Tensor]) -> list[Tensor]:
        outputs = [o.expand(OTHER_ROWS, -1) for o in outputs]
        weighted = [(o * torch.linspace(-1, 1, o.numel()).reshape(o.shape).to(o)).sum() for o in outputs]
        total = torch.stack(weighted).sum()
        if not total.requires_grad:
            return outputs
        return [*outputs, *torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)]

    with torch.enable_grad():
        assert step.prologue is not None
        made = step.prologue(*weights.values())
        ours = evaluate([step.y, *step.state], inputs, list(made[: step.vectors]), list(made[step.vectors :]))
        expected = results(list(run(weights, x, state, draws)))
        for one, other in zip(results(ours), expected, strict=True):
            scale = other.abs().max() + 1 if other.numel() else 1
            if not torch.allclose(one / scale, other / scale, atol=1e-3, rtol=0, equal_nan=True):
                raise Untraceable("its step, run again, does not give what its operations give")


class Reader:
    """Reads PyTorch's graph into ours."""

    def __init__(self, traced: fx.GraphModule, names: list[str], fields: tuple[str, ...], noise: int) -> None:
        self.traced = traced
        self.names = names
        self.fields = fields
        self.noise = noise
        self.graph = Graph()
        self.values: dict[fx.Node, Any] = {}  # what depends on input or state
        self.fixed: set[fx.Node] = set()  # what depends on parameters alone
        self.vectors: dict[tuple[fx.Node, str], int] = {}  # with which part of a complex one
        self.matrices: dict[tuple[fx.Node, tuple], int] = {}  # with columns (first, width)

    def read(self) -> Step:
        placeholders = [n for n in self.traced.graph.nodes if n.op == "placeholder"]
        named = ["x", *(f"state.{name}" for name in self.fields), *(f"noise.{k}" for k in range(self.noise))]
        parameters, inputs = placeholders[: len(self.names)], placeholders[len(self.names) :]
        self.fixed.update(parameters)
        for given, name in zip(inputs, named, strict=True):
            self.values[given] = self.graph.input(name, given.meta["val"].shape[1])
        outputs: tuple = ()
        for node in self.traced.graph.nodes:
            if node.op == "get_attr":
                self.fixed.add(node)
            elif node.op == "call_function":
                if all(a in self.fixed for a in node.all_input_nodes):
                    self.fixed.add(node)
                else:
                    self.values[node] = self.convert(node)
            elif node.op == "output":
                outputs = tuple(node.args[0])
        if outputs[0].meta["val"].is_complex():
            raise Untraceable("its output is complex")
        roots = [self.row(output) for output in outputs]
        widths = [node.meta["val"].shape[1] for node in inputs[1 : 1 + len(self.fields)]]
        for name, root, width in zip(self.fields, roots[1:], widths, strict=True):
            if root.width != width:
                raise Untraceable(f"its new state.{name} is {root.width} wide, the old one {width}")
        return Step(
            self.graph, roots[0], tuple(roots[1:]), self.fields, self.noise, self._prologue(parameters),
            len(self.vectors),
        )  # fmt: skip

    # What a node of PyTorch's graph stands for

    def row(self, value: Any) -> Node:
        """An operand as a row."""
        if isinstance(value, (int, float)):
            return self.graph.const(value)
        if not isinstance(value, fx.Node):
            raise Untraceable(f"an operand {value!r}")
        if value in self.values:
            found = self.values[value]
            if isinstance(found, Pair):
                raise Untraceable("a complex value where kernels know real ones alone")
            return found
        return self.vector(value, "")

    def vector(self, value: fx.Node, part: str) -> Node:
        """What depends on parameters alone as a row: the real or imaginary part of a complex one."""
        while value.target is aten.expand.default and cast(fx.Node, value.args[0]).meta["val"].dim() == 1:
            value = cast(fx.Node, value.args[0])  # the same for each row
        made = value.meta["val"]
        if not isinstance(made, Tensor):
            raise Untraceable(f"{value.target}, a number read out of a tensor")
        if made.is_complex() and not part:
            raise Untraceable("a complex value where kernels know real ones alone")
        full_of = fill(value)
        if full_of is not None:
            return self.graph.const(full_of)
        if made.dim() > 1 and made.shape[0] != 1:
            raise Untraceable(f"a parameter of shape {tuple(made.shape)} outside a matrix product")
        number = self.vectors.setdefault((value, part), len(self.vectors))
        return self.graph.vector(number, made.numel())

    def complex_or_row(self, value: Any) -> Any:
        """An operand of an operation on complex values: a pair of rows, a row, or what is no tensor."""
        if not isinstance(value, fx.Node):
            return value
        if value not in self.values and value.meta["val"].is_complex():
            return Pair(self.vector(value, "real"), self.vector(value, "imag"))
        return self.values[value] if value in self.values else self.row(value)

    def product(self, source: Node, weight: Any, flipped: bool) -> Node:
        """Source times a weight (N, K) transposed; over each part of a concatenation apart."""
        if weight not in self.fixed:
            raise Untraceable("a matrix product of two values that both change with time")
        rows, columns = weight.meta["val"].shape
        if flipped:
            rows, columns = columns, rows
        parts = source.arguments if source.op == "concat" else (source,)
        total, first = None, 0
        for part in parts:
            if part.op in ("const", "vector"):
                raise Untraceable("a matrix product of what is the same for each sequence")
            key = (weight, (flipped, first, part.width))
            matrix = self.matrices.setdefault(key, len(self.matrices))
            term = self.graph.mm(part, matrix, rows)
            total = term if total is None else self.graph.apply("add", total, term)
            first += part.width
        assert total is not None
        return total

    def convert(self, node: Any) -> Any:
        target = node.target
        if target is operator.getitem:
            return self.values[node.args[0]][node.args[1]]
        tensors = [a for a in (node, *node.all_input_nodes) if isinstance(a.meta["val"], Tensor)]
        if any(isinstance(self.values.get(a), Pair) or a.meta["val"].is_complex() for a in tensors):
            return self.complex_value(node)
        alone = [a for a in tensors[1:] if a in self.values and a.meta["val"].dim() == 1]  # (B,)
        others = [a for a in tensors[1:] if a not in alone and a.meta["val"].numel() > 1]
        if alone and target not in TO_COLUMNS and (others or node.meta["val"].dim() != 1):
            raise Untraceable(f"{target} of one number for each sequence, (B,), and more; (B, 1) would be clear")
        handler = HANDLERS.get(target)
        if handler is None:
            raise Untraceable(f"{target} is not among its operations")
        return handler(self, node)

    def complex_value(self, node: Any) -> Any:
        return complex_operation(self.graph, node.target, [self.complex_or_row(a) for a in node.args], node.kwargs)

    def _prologue(self, parameters: list[fx.Node]) -> fx.GraphModule:
        """PyTorch's graph cut down to what depends on parameters alone."""
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        needed = {value for value, _ in self.vectors} | {weight for weight, _ in self.matrices}
        pending = list(needed)
        while pending:
            for argument in pending.pop().all_input_nodes:
                if argument not in needed:
                    needed.add(argument)
                    pending.append(argument)
        for node in self.traced.graph.nodes:
            if node in parameters or node in needed:
                copies[node] = graph.node_copy(node, lambda n: copies[n])
        parts = {"": lambda n: n, "real": lambda n: graph.call_function(torch.real, (n,))}
        parts["imag"] = lambda n: graph.call_function(torch.imag, (n,))
        results = [
            graph.call_method("reshape", (parts[part](copies[n]), n.meta["val"].numel())) for n, part in self.vectors
        ]
        for weight, (flipped, first, width) in self.matrices:
            matrix = copies[weight]
            if flipped:
                matrix = graph.call_method("t", (matrix,))
            if width != weight.meta["val"].shape[0 if flipped else 1]:
                matrix = graph.call_method("narrow", (matrix, 1, first, width))
            results.append(matrix)
        graph.output(tuple(results))
        return fx.GraphModule(self.traced, graph)
