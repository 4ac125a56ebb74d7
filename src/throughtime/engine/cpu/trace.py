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

aten = torch.ops.aten
ROWS = 7  # sequences in the batch that is traced: any number that no cell would name
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
            aten.native_layer_norm, aten.silu, aten.gelu, aten.leaky_relu, aten.hardtanh, aten.hardsigmoid,
            aten.addcmul, aten.mish, aten.hardswish,
        ]
    )  # fmt: skip
    try:
        traced = make_fx(run, decomposition_table=cast(Any, table), tracing_mode="fake", _allow_non_fake_inputs=True)(
            tensors, x, state, draws
        )
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        raise Untraceable(f"its step cannot be traced: {str(error).splitlines()[0]}") from error
    step = _Reader(traced, list(tensors), real_fields(initial), len(draws)).read()
    _check(step, run, tensors, x, state, draws)
    return step


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


class _Reader:
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
        fill = _fill(value)
        if fill is not None:
            return self.graph.const(fill)
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


FILLS: dict[Any, float] = dict.fromkeys((aten.zeros, aten.zeros_like, aten.new_zeros), 0.0)
FILLS |= dict.fromkeys((aten.ones, aten.ones_like, aten.new_ones), 1.0)


def _fill(node: Any) -> float | None:
    """The number that a tensor of one number is full of, whatever its shape."""
    if node.target in (aten.full.default, aten.full_like.default, aten.new_full.default):
        return float(node.args[1] if node.target is not aten.new_full.default else node.args[2])
    return FILLS.get(getattr(node.target, "overloadpacket", None))


Handler = Callable[[_Reader, Any], Any]
HANDLERS: dict[Any, Handler] = {}


def handles(*targets: Any) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(targets, handler))
        return handler

    return register


def _pointwise(op: str, *targets: Any) -> None:
    def handler(reader: _Reader, node: Any) -> Node:
        return reader.graph.apply(op, *(reader.row(a) for a in node.args))

    HANDLERS.update(dict.fromkeys(targets, handler))


_pointwise("mul", aten.mul.Tensor, aten.mul.Scalar)
_pointwise("div", aten.div.Tensor, aten.div.Scalar)
_pointwise("neg", aten.neg.default)
_pointwise("abs", aten.abs.default)
_pointwise("sign", aten.sign.default)
_pointwise("max", aten.maximum.default)
_pointwise("min", aten.minimum.default)
_pointwise("relu", aten.relu.default)
_pointwise("exp", aten.exp.default)
_pointwise("log", aten.log.default)
_pointwise("sqrt", aten.sqrt.default)
_pointwise("sigmoid", aten.sigmoid.default)
_pointwise("tanh", aten.tanh.default)
_pointwise("sin", aten.sin.default)
_pointwise("cos", aten.cos.default)
_pointwise("greater", aten.gt.Tensor, aten.gt.Scalar)
_pointwise("greater_equal", aten.ge.Tensor, aten.ge.Scalar)
_pointwise("equal", aten.eq.Tensor, aten.eq.Scalar)
_pointwise("where", aten.where.self)


@handles(aten.zeros_like.default, aten.ones_like.default, aten.full_like.default)
def _full(reader: _Reader, node: Any) -> Node:
    value = _fill(node)
    assert value is not None
    return reader.graph.spread(reader.graph.const(value), node.meta["val"].shape[1])


@handles(aten.ne.Tensor, aten.ne.Scalar)
def _not_equal(reader: _Reader, node: Any) -> Node:
    equal = reader.graph.apply("equal", reader.row(node.args[0]), reader.row(node.args[1]))
    return reader.graph.apply("sub", 1.0, equal)


@handles(aten.logical_not.default, aten.bitwise_not.default)
def _not(reader: _Reader, node: Any) -> Node:
    return reader.graph.apply("equal", reader.row(node.args[0]), 0.0)


@handles(aten.logical_and.default, aten.bitwise_and.Tensor)
def _and(reader: _Reader, node: Any) -> Node:
    return reader.graph.apply("mul", reader.row(node.args[0]), reader.row(node.args[1]))


@handles(aten.logical_or.default, aten.bitwise_or.Tensor)
def _or(reader: _Reader, node: Any) -> Node:
    return reader.graph.apply("max", reader.row(node.args[0]), reader.row(node.args[1]))


@handles(aten.lt.Tensor, aten.lt.Scalar)
def _less(reader: _Reader, node: Any) -> Node:
    return reader.graph.apply("greater", reader.row(node.args[1]), reader.row(node.args[0]))


@handles(aten.le.Tensor, aten.le.Scalar)
def _less_equal(reader: _Reader, node: Any) -> Node:
    return reader.graph.apply("greater_equal", reader.row(node.args[1]), reader.row(node.args[0]))


@handles(aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar)
def _add(reader: _Reader, node: Any) -> Node:
    op = "add" if node.target in (aten.add.Tensor, aten.add.Scalar) else "sub"
    other = reader.row(node.args[1])
    alpha = node.kwargs.get("alpha", node.args[2] if len(node.args) > 2 else 1)
    return reader.graph.apply(op, reader.row(node.args[0]), reader.graph.apply("mul", other, float(alpha)))


@handles(aten.rsub.Tensor, aten.rsub.Scalar)
def _rsub(reader: _Reader, node: Any) -> Node:
    if len(node.args) > 2 or node.kwargs:
        raise Untraceable("rsub with a factor")
    return reader.graph.apply("sub", reader.row(node.args[1]), reader.row(node.args[0]))


@handles(aten.rsqrt.default)
def _rsqrt(reader: _Reader, node: Any) -> Node:
    return reader.graph.apply("div", 1.0, reader.graph.apply("sqrt", reader.row(node.args[0])))


@handles(aten.reciprocal.default)
def _reciprocal(reader: _Reader, node: Any) -> Node:
    return reader.graph.apply("div", 1.0, reader.row(node.args[0]))


@handles(aten.square.default)
def _square(reader: _Reader, node: Any) -> Node:
    return reader.graph.apply("mul", reader.row(node.args[0]), reader.row(node.args[0]))


@handles(aten.softplus.default)
def _softplus(reader: _Reader, node: Any) -> Node:
    if len(node.args) > 1 and node.args[1] != 1:
        raise Untraceable("softplus with beta other than 1")
    if len(node.args) > 2 and node.args[2] < 20:
        raise Untraceable(f"softplus that is plain from {node.args[2]} on")
    return reader.graph.apply("softplus", reader.row(node.args[0]))


@handles(aten.pow.Tensor_Scalar)
def _pow(reader: _Reader, node: Any) -> Node:
    base, exponent = reader.row(node.args[0]), node.args[1]
    if exponent == 0.5:
        return reader.graph.apply("sqrt", base)
    if exponent in (-1, -2, -3, -4):
        base, exponent = reader.graph.apply("div", 1.0, base), -exponent
    if exponent not in (1, 2, 3, 4):
        raise Untraceable(f"a power of {exponent}")
    result = base
    for _ in range(int(exponent) - 1):
        result = reader.graph.apply("mul", result, base)
    return result


@handles(aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default)
def _clamp(reader: _Reader, node: Any) -> Node:
    low = node.args[1] if len(node.args) > 1 else node.kwargs.get("min")
    high = node.args[2] if len(node.args) > 2 else node.kwargs.get("max")
    if node.target is aten.clamp_max.default:
        low, high = None, low
    result = reader.row(node.args[0])
    if low is not None:
        result = reader.graph.apply("max", result, float(low))
    if high is not None:
        result = reader.graph.apply("min", result, float(high))
    return result


@handles(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def _masked_fill(reader: _Reader, node: Any) -> Node:
    x, mask, value = (reader.row(a) for a in node.args)
    return reader.graph.apply("where", mask, value, x)


@handles(aten.lerp.Scalar, aten.lerp.Tensor)
def _lerp(reader: _Reader, node: Any) -> Node:
    start, end, weight = (reader.row(a) for a in node.args)
    g = reader.graph
    return g.apply("add", start, g.apply("mul", weight, g.apply("sub", end, start)))


@handles(aten.elu.default, aten.celu.default)
def _elu(reader: _Reader, node: Any) -> Node:
    x, g = reader.row(node.args[0]), reader.graph
    given = tuple(float(a) for a in node.args[1:])
    alpha, scale, input_scale = (given + (1.0, 1.0, 1.0)[len(given) :])[:3]
    if node.target is aten.celu.default:
        input_scale = 1.0 / alpha
    below = g.apply("exp", g.apply("mul", g.apply("min", x, 0.0), input_scale))  # not infinite where it is not chosen
    negative = g.apply("mul", g.apply("sub", below, 1.0), alpha * scale)
    return g.apply("where", g.apply("greater", x, 0.0), g.apply("mul", x, scale), negative)


@handles(aten.log_sigmoid_forward.default)
def _log_sigmoid(reader: _Reader, node: Any) -> tuple[Node, None]:
    g = reader.graph
    return g.apply("neg", g.apply("softplus", g.apply("neg", reader.row(node.args[0])))), None


@handles(aten.threshold.default)
def _threshold(reader: _Reader, node: Any) -> Node:
    x, g = reader.row(node.args[0]), reader.graph
    return g.apply("where", g.apply("greater", x, float(node.args[1])), x, float(node.args[2]))


@handles(aten.hardshrink.default, aten.softshrink.default)
def _shrink(reader: _Reader, node: Any) -> Node:
    x, g = reader.row(node.args[0]), reader.graph
    edge = float(node.args[1]) if len(node.args) > 1 else 0.5
    moved = edge if node.target is aten.softshrink.default else 0.0
    low = g.apply("where", g.apply("greater", -edge, x), g.apply("add", x, moved), 0.0)
    return g.apply("where", g.apply("greater", x, edge), g.apply("sub", x, moved), low)


@handles(aten.mm.default)
def _mm(reader: _Reader, node: Any) -> Node:
    return _times(reader, *node.args)


@handles(aten.addmm.default)
def _addmm(reader: _Reader, node: Any) -> Node:
    if node.kwargs:
        raise Untraceable("addmm with factors")
    bias, source, weight = node.args
    return reader.graph.apply("add", _times(reader, source, weight), reader.row(bias))


def _times(reader: _Reader, source: Any, weight: Any) -> Node:
    """Source times a weight (K, N), which mostly is the transpose of a parameter."""
    if weight.target is aten.t.default and weight in reader.fixed:
        return reader.product(reader.row(source), weight.args[0], flipped=False)
    return reader.product(reader.row(source), weight, flipped=True)


@handles(aten.split.Tensor)
def _split(reader: _Reader, node: Any) -> list[Node]:
    width = node.args[0].meta["val"].shape[1]
    size = node.args[1]
    return _pieces(reader, node, [min(size, width - first) for first in range(0, width, size)])


@handles(aten.split_with_sizes.default)
def _split_with_sizes(reader: _Reader, node: Any) -> list[Node]:
    return _pieces(reader, node, node.args[1])


def _pieces(reader: _Reader, node: Any, sizes: Any) -> list[Node]:
    _over_columns(node, node.args[2] if len(node.args) > 2 else 0)
    source, pieces, first = reader.row(node.args[0]), [], 0
    for size in sizes:
        pieces.append(_columns(reader, source, first, size))
        first += size
    return pieces


@handles(aten.slice.Tensor)
def _slice(reader: _Reader, node: Any) -> Node:
    source = reader.row(node.args[0])
    given = node.args[1:]
    dim = given[0] if given else 0
    first = (given[1] if len(given) > 1 else None) or 0
    stride = given[3] if len(given) > 3 else 1
    if stride != 1:
        raise Untraceable("a slice with a stride")
    shape = node.args[0].meta["val"].shape
    if dim == 0:
        if node.meta["val"].shape == shape:
            return source
        raise Untraceable("a slice of the batch")
    if first < 0:
        first += shape[1]
    return _columns(reader, source, first, node.meta["val"].shape[1])


def _columns(reader: _Reader, source: Node, first: int, width: int) -> Node:
    if not width:
        raise Untraceable("a slice of no columns")
    return reader.graph.slice(source, first, width)


@handles(aten.cat.default)
def _cat(reader: _Reader, node: Any) -> Node:
    _over_columns(node.args[0][0], node.args[1] if len(node.args) > 1 else 0)
    parts: list[Node] = []
    for part in node.args[0]:
        row = reader.row(part)
        if part in reader.fixed:
            raise Untraceable("a concatenation with a parameter")
        parts.extend(row.arguments if row.op == "concat" else [row])
    return reader.graph.concat(parts)


def _over_columns(value: Any, dim: int) -> None:
    if dim not in (1, -1):
        raise Untraceable(f"{value.target} across the batch")


def _reduced(reader: _Reader, node: Any, dims: Any, keep: bool) -> Node:
    shape = node.args[0].meta["val"].shape
    if dims is None or len(shape) != 2 or list(dims) not in ([1], [-1]):
        raise Untraceable(f"{node.target} across the batch")
    if not keep:
        raise Untraceable(f"{node.target} without keepdim")
    return reader.row(node.args[0])


@handles(aten.sum.dim_IntList, aten.mean.dim)
def _sum(reader: _Reader, node: Any) -> Node:
    keep = node.args[2] if len(node.args) > 2 else False
    source = _reduced(reader, node, node.args[1], keep)
    total = reader.graph.sum(source)
    if node.target is aten.mean.dim:
        return reader.graph.apply("mul", total, 1.0 / source.width)
    return total


def _variance(reader: _Reader, node: Any, dims: Any) -> tuple[Node, Node]:
    correction = node.kwargs.get("correction", 1)
    source = _reduced(reader, node, dims, node.kwargs.get("keepdim", False))
    if source.width <= correction:
        raise Untraceable(f"a variance of {source.width} columns less {correction}")
    g = reader.graph
    mean = g.apply("mul", g.sum(source), 1.0 / source.width)
    centred = g.apply("sub", source, mean)
    total = g.sum(g.apply("mul", centred, centred))
    return g.apply("mul", total, 1.0 / (source.width - float(correction))), mean


@handles(aten.var_mean.correction)
def _var_mean(reader: _Reader, node: Any) -> tuple[Node, Node]:
    return _variance(reader, node, node.args[1])


@handles(aten.var.correction)
def _var(reader: _Reader, node: Any) -> Node:
    return _variance(reader, node, node.args[1])[0]


@handles(aten.std.correction)
def _std(reader: _Reader, node: Any) -> Node:
    return reader.graph.apply("sqrt", _variance(reader, node, node.args[1])[0])


@handles(
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.expand.default, aten.clone.default,
    aten.alias.default, aten._to_copy.default, aten.contiguous.default,
)  # fmt: skip
def _same(reader: _Reader, node: Any) -> Node:
    given, made = node.args[0].meta["val"], node.meta["val"]
    if given.shape != made.shape or given.dtype != made.dtype:
        raise Untraceable(f"{node.target} from {tuple(given.shape)} to {tuple(made.shape)}")
    return reader.row(node.args[0])


@handles(aten.detach.default)
def _detach(reader: _Reader, node: Any) -> Node:
    raise Untraceable("detach, a gradient cut within the step")
