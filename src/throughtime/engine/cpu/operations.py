"""PyTorch's operations in the language of the graph: how each of those that a traced step is made of is read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from throughtime.engine.cpu.graph import Node, Untraceable

if TYPE_CHECKING:
    from throughtime.engine.cpu.trace import Reader

aten = torch.ops.aten
ROWS = 7  # sequences in the batch that is traced: any number that no cell would name

TO_COLUMNS = (aten.unsqueeze.default, aten.select_scatter.default)  # take one number a sequence, (B,), as a column

FILLS: dict[Any, float] = dict.fromkeys((aten.zeros, aten.zeros_like, aten.new_zeros), 0.0)
FILLS |= dict.fromkeys((aten.ones, aten.ones_like, aten.new_ones), 1.0)


def fill(node: Any) -> float | None:
    """The number that a tensor of one number is full of, whatever its shape."""
    if node.target in (aten.full.default, aten.full_like.default, aten.new_full.default):
        return float(node.args[1] if node.target is not aten.new_full.default else node.args[2])
    return FILLS.get(getattr(node.target, "overloadpacket", None))


Handler = Callable[["Reader", Any], Any]
HANDLERS: dict[Any, Handler] = {}


def handles(*targets: Any) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(targets, handler))
        return handler

    return register


def _pointwise(op: str, *targets: Any, swapped: bool = False) -> None:
    def handler(reader: Reader, node: Any) -> Node:
        rows = [reader.row(a) for a in node.args]
        return reader.graph.apply(op, *(reversed(rows) if swapped else rows))

    HANDLERS.update(dict.fromkeys(targets, handler))


_pointwise("mul", aten.mul.Tensor, aten.mul.Scalar)
_pointwise("div", aten.div.Tensor, aten.div.Scalar)
for _op in (
    "neg", "abs", "sign", "relu", "exp", "log", "sqrt", "sigmoid", "tanh", "sin", "cos", "tan", "asin", "atan", "sinh",
    "cosh", "asinh", "atanh", "erf", "log1p", "expm1", "floor", "ceil", "trunc",
):  # fmt: skip
    _pointwise(_op, getattr(aten, _op).default)
_pointwise("roundeven", aten.round.default)
_pointwise("sign", aten.sgn.default)
_pointwise("max", aten.maximum.default)
_pointwise("min", aten.minimum.default)
_pointwise("greater", aten.gt.Tensor, aten.gt.Scalar)
_pointwise("greater_equal", aten.ge.Tensor, aten.ge.Scalar)
_pointwise("greater", aten.lt.Tensor, aten.lt.Scalar, swapped=True)
_pointwise("greater_equal", aten.le.Tensor, aten.le.Scalar, swapped=True)
_pointwise("equal", aten.eq.Tensor, aten.eq.Scalar)
_pointwise("mul", aten.logical_and.default, aten.bitwise_and.Tensor)  # what is true is 1
_pointwise("max", aten.logical_or.default, aten.bitwise_or.Tensor)
_pointwise("where", aten.where.self)


@handles(
    aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.new_zeros.default,
    aten.new_ones.default, aten.new_full.default,
)  # fmt: skip
def _full(reader: Reader, node: Any) -> Node:
    value, shape = fill(node), node.meta["val"].shape
    assert value is not None
    if len(shape) != 2 or shape[0] not in (1, ROWS):
        raise Untraceable(f"{node.target} of shape {tuple(shape)}")
    return reader.graph.spread(reader.graph.const(value), node.meta["val"].shape[1])


@handles(aten.ne.Tensor, aten.ne.Scalar)
def _not_equal(reader: Reader, node: Any) -> Node:
    equal = reader.graph.apply("equal", reader.row(node.args[0]), reader.row(node.args[1]))
    return reader.graph.apply("sub", 1.0, equal)


@handles(aten.logical_not.default, aten.bitwise_not.default)
def _not(reader: Reader, node: Any) -> Node:
    return reader.graph.apply("equal", reader.row(node.args[0]), 0.0)


@handles(aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar)
def _add(reader: Reader, node: Any) -> Node:
    op = "add" if node.target in (aten.add.Tensor, aten.add.Scalar) else "sub"
    other = reader.row(node.args[1])
    alpha = node.kwargs.get("alpha", node.args[2] if len(node.args) > 2 else 1)
    return reader.graph.apply(op, reader.row(node.args[0]), reader.graph.apply("mul", other, float(alpha)))


@handles(aten.add_.Scalar)
def _add_in_place(reader: Reader, node: Any) -> Node:
    """Within PyTorch's own composites (rms_norm); what a step changes in place is made anew in a trace."""
    if len(node.args[0].users) > 1:
        raise Untraceable(f"{node.target}, a change in place")
    return reader.graph.apply("add", reader.row(node.args[0]), float(node.args[1]))


@handles(aten.rsub.Tensor, aten.rsub.Scalar)
def _rsub(reader: Reader, node: Any) -> Node:
    if len(node.args) > 2 or node.kwargs:
        raise Untraceable("rsub with a factor")
    return reader.graph.apply("sub", reader.row(node.args[1]), reader.row(node.args[0]))


@handles(aten.rsqrt.default)
def _rsqrt(reader: Reader, node: Any) -> Node:
    return reader.graph.apply("div", 1.0, reader.graph.apply("sqrt", reader.row(node.args[0])))


@handles(aten.reciprocal.default)
def _reciprocal(reader: Reader, node: Any) -> Node:
    return reader.graph.apply("div", 1.0, reader.row(node.args[0]))


@handles(aten.square.default)
def _square(reader: Reader, node: Any) -> Node:
    return reader.graph.apply("mul", reader.row(node.args[0]), reader.row(node.args[0]))


@handles(aten.softplus.default)
def _softplus(reader: Reader, node: Any) -> Node:
    if len(node.args) > 1 and node.args[1] != 1:
        raise Untraceable("softplus with beta other than 1")
    if len(node.args) > 2 and node.args[2] < 20:
        raise Untraceable(f"softplus that is plain from {node.args[2]} on")
    return reader.graph.apply("softplus", reader.row(node.args[0]))


@handles(aten.pow.Tensor_Scalar)
def _pow(reader: Reader, node: Any) -> Node:
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


@handles(aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default, aten.clamp.Tensor)
def _clamp(reader: Reader, node: Any) -> Node:
    """Where a number is a bound, its derivative is one, as in PyTorch."""
    x, low, high = (*node.args, None, None)[:3]
    low, high = node.kwargs.get("min", low), node.kwargs.get("max", high)
    if node.target is aten.clamp_max.default:
        low, high = None, low
    result, g = reader.row(x), reader.graph
    if low is not None:
        low = reader.row(low)
        if high is not None:  # the lower bound has a derivative where it is the lower
            low = g.apply("where", g.apply("greater", reader.row(high), low), low, g.apply("still", low))
        result = g.apply("where", g.apply("greater", low, result), low, result)
    if high is not None:
        high = reader.row(high)
        result = g.apply("where", g.apply("greater", result, high), high, result)
    return result


@handles(aten.hardtanh.default)
def _hardtanh(reader: Reader, node: Any) -> Node:
    """Where a number is a bound, its derivative is zero, as in PyTorch."""
    x, low, high = (*node.args, *(None, -1.0, 1.0)[len(node.args) :])[:3]
    row, g = reader.row(x), reader.graph
    row = g.apply("where", g.apply("greater_equal", float(low), row), float(low), row)
    return g.apply("where", g.apply("greater_equal", row, float(high)), float(high), row)


@handles(aten.hardsigmoid.default, aten.hardswish.default)
def _hard(reader: Reader, node: Any) -> Node:
    x, g = reader.row(node.args[0]), reader.graph
    outside = g.apply("max", g.apply("greater_equal", -3.0, x), g.apply("greater_equal", x, 3.0))
    inside = g.apply("where", outside, 0.0, x)  # what is not chosen is to have no infinite derivative
    ramp = g.apply("mul", g.apply("add", inside, 3.0), 1 / 6)
    swish = node.target is aten.hardswish.default
    above = g.apply("where", g.apply("greater", x, 0.0), x, 0.0) if swish else g.apply("greater", x, 0.0)
    return g.apply("where", outside, above, g.apply("mul", inside, ramp) if swish else ramp)


@handles(aten._prelu_kernel.default)
def _prelu(reader: Reader, node: Any) -> Node:
    x, slope = (reader.row(a) for a in node.args)
    g = reader.graph
    return g.apply("where", g.apply("greater", x, 0.0), x, g.apply("mul", slope, x))


@handles(aten.glu.default)
def _glu(reader: Reader, node: Any) -> Node:
    _over_columns(node, node.args[1] if len(node.args) > 1 else -1)
    source, g = reader.row(node.args[0]), reader.graph
    half = source.width // 2
    return g.apply("mul", _columns(reader, source, 0, half), g.apply("sigmoid", _columns(reader, source, half, half)))


@handles(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def _masked_fill(reader: Reader, node: Any) -> Node:
    x, mask, value = (reader.row(a) for a in node.args)
    return reader.graph.apply("where", mask, value, x)


@handles(aten.lerp.Scalar, aten.lerp.Tensor)
def _lerp(reader: Reader, node: Any) -> Node:
    start, end, weight = (reader.row(a) for a in node.args)
    g = reader.graph
    return g.apply("add", start, g.apply("mul", weight, g.apply("sub", end, start)))


@handles(aten.elu.default, aten.celu.default)
def _elu(reader: Reader, node: Any) -> Node:
    x, g = reader.row(node.args[0]), reader.graph
    given = tuple(float(a) for a in node.args[1:])
    alpha, scale, input_scale = (given + (1.0, 1.0, 1.0)[len(given) :])[:3]
    if node.target is aten.celu.default:
        input_scale = 1.0 / alpha
    low = g.apply("where", g.apply("greater", x, 0.0), 0.0, x)  # exp is not to be infinite where it is not chosen
    below = g.apply("exp", g.apply("mul", low, input_scale))
    negative = g.apply("mul", g.apply("sub", below, 1.0), alpha * scale)
    return g.apply("where", g.apply("greater", x, 0.0), g.apply("mul", x, scale), negative)


@handles(aten.log_sigmoid_forward.default)
def _log_sigmoid(reader: Reader, node: Any) -> tuple[Node, None]:
    g = reader.graph
    return g.apply("neg", g.apply("softplus", g.apply("neg", reader.row(node.args[0])))), None


@handles(aten.threshold.default)
def _threshold(reader: Reader, node: Any) -> Node:
    x, g = reader.row(node.args[0]), reader.graph
    return g.apply("where", g.apply("greater_equal", float(node.args[1]), x), float(node.args[2]), x)


@handles(aten.hardshrink.default, aten.softshrink.default)
def _shrink(reader: Reader, node: Any) -> Node:
    x, g = reader.row(node.args[0]), reader.graph
    edge = float(node.args[1]) if len(node.args) > 1 else 0.5
    if node.target is aten.hardshrink.default:
        inside = g.apply("mul", g.apply("greater_equal", x, -edge), g.apply("greater_equal", edge, x))
        return g.apply("where", inside, 0.0, x)
    low = g.apply("where", g.apply("greater", -edge, x), g.apply("add", x, edge), g.apply("mul", x, 0.0))
    return g.apply("where", g.apply("greater", x, edge), g.apply("sub", x, edge), low)


@handles(aten.mm.default)
def _mm(reader: Reader, node: Any) -> Node:
    return _times(reader, *node.args)


@handles(aten.addmm.default)
def _addmm(reader: Reader, node: Any) -> Node:
    if node.kwargs:
        raise Untraceable("addmm with factors")
    bias, source, weight = node.args
    return reader.graph.apply("add", _times(reader, source, weight), reader.row(bias))


def _times(reader: Reader, source: Any, weight: Any) -> Node:
    """Source times a weight (K, N), which mostly is the transpose of a parameter."""
    if weight.target is aten.t.default and weight in reader.fixed:
        return reader.product(reader.row(source), weight.args[0], flipped=False)
    return reader.product(reader.row(source), weight, flipped=True)


@handles(aten.split.Tensor)
def _split(reader: Reader, node: Any) -> list[Node]:
    width = node.args[0].meta["val"].shape[1]
    size = node.args[1]
    return _pieces(reader, node, [min(size, width - first) for first in range(0, width, size)])


@handles(aten.split_with_sizes.default)
def _split_with_sizes(reader: Reader, node: Any) -> list[Node]:
    return _pieces(reader, node, node.args[1])


def _pieces(reader: Reader, node: Any, sizes: Any) -> list[Node]:
    _over_columns(node, node.args[2] if len(node.args) > 2 else 0)
    source, pieces, first = reader.row(node.args[0]), [], 0
    for size in sizes:
        pieces.append(_columns(reader, source, first, size))
        first += size
    return pieces


@handles(aten.slice.Tensor)
def _slice(reader: Reader, node: Any) -> Node:
    source = reader.row(node.args[0])
    dim, first, last, stride = (*node.args[1:], *(0, None, None, 1)[len(node.args) - 1 :])[:4]
    if stride != 1:
        raise Untraceable("a slice with a stride")
    shape = node.args[0].meta["val"].shape
    if dim == 0:
        if node.meta["val"].shape == shape:
            return source
        raise Untraceable("a slice of the batch")
    first, last, _ = slice(first, last).indices(shape[1])
    return _columns(reader, source, first, last - first)


def _columns(reader: Reader, source: Node, first: int, width: int) -> Node:
    if width <= 0:
        raise Untraceable("a slice of no columns")
    return reader.graph.slice(source, first, width)


@handles(aten.slice_scatter.default, aten.select_scatter.default)
def _scatter(reader: Reader, node: Any) -> Node:
    """A row with some of its columns replaced: what a change in place of these columns comes to."""
    whole, part = reader.row(node.args[0]), reader.row(node.args[1])
    dim, first, last, stride = (*node.args[2:], *(0, None, None, 1)[len(node.args) - 2 :])[:4]
    if node.target is aten.select_scatter.default:
        first, last, stride = first % whole.width, first % whole.width + 1, 1
    elif dim == 0 and node.args[1].meta["val"].shape == node.meta["val"].shape:
        return part
    _over_columns(node, dim)
    first, last, _ = slice(first, last, stride).indices(whole.width)
    if stride != 1:
        raise Untraceable("a slice with a stride")
    g = reader.graph
    before = [g.slice(whole, 0, first)] if first else []
    after = [g.slice(whole, last, whole.width - last)] if last < whole.width else []
    return g.concat([*before, g.spread(part, last - first), *after])


@handles(aten.copy.default, aten.fill.Scalar, aten.fill.Tensor)
def _filled(reader: Reader, node: Any) -> Node:
    shape = node.meta["val"].shape
    return reader.graph.spread(reader.row(node.args[1]), shape[1] if len(shape) == 2 else 1)


@handles(aten.cat.default)
def _cat(reader: Reader, node: Any) -> Node:
    _over_columns(node.args[0][0], node.args[1] if len(node.args) > 1 else 0)
    parts: list[Node] = []
    for part in node.args[0]:
        if part in reader.fixed:
            raise Untraceable("a concatenation with a parameter")
        parts.append(reader.row(part))
    return reader.graph.concat(parts)


def _over_columns(value: Any, dim: int) -> None:
    if dim not in (1, -1):
        raise Untraceable(f"{value.target} across the batch")


def _reduced(reader: Reader, node: Any, dims: Any) -> Node:
    shape = node.args[0].meta["val"].shape
    if dims is None or len(shape) != 2 or list(dims) not in ([1], [-1]):
        raise Untraceable(f"{node.target} across the batch")
    return reader.row(node.args[0])


@handles(aten.sum.dim_IntList, aten.mean.dim)
def _sum(reader: Reader, node: Any) -> Node:
    source = _reduced(reader, node, node.args[1])
    total = reader.graph.sum(source)
    if node.target is aten.mean.dim:
        return reader.graph.apply("mul", total, 1.0 / source.width)
    return total


@handles(aten.amax.default, aten.amin.default)
def _largest(reader: Reader, node: Any) -> Node:
    source, g = _reduced(reader, node, node.args[1] if len(node.args) > 1 else None), reader.graph
    if node.target is aten.amax.default:
        return g.largest(source)
    return g.apply("neg", g.largest(g.apply("neg", source)))


def _exponentials(reader: Reader, source: Node) -> tuple[Node, Node, Node]:
    """A row less its largest number, exponentials of that, and their sum: none overflows."""
    g = reader.graph
    moved = g.apply("sub", source, g.apply("still", g.largest(source)))
    exponentials = g.apply("exp", moved)
    return moved, exponentials, g.sum(exponentials)


@handles(aten._softmax.default, aten._log_softmax.default)
def _softmax(reader: Reader, node: Any) -> Node:
    moved, exponentials, total = _exponentials(reader, _reduced(reader, node, [node.args[1]]))
    if node.target is aten._softmax.default:
        return reader.graph.apply("div", exponentials, total)
    return reader.graph.apply("sub", moved, reader.graph.apply("log", total))


@handles(aten.logsumexp.default)
def _logsumexp(reader: Reader, node: Any) -> Node:
    source, g = _reduced(reader, node, node.args[1]), reader.graph
    largest = g.apply("still", g.largest(source))
    infinite = g.apply("equal", g.apply("abs", largest), math.inf)
    shift = g.apply("where", infinite, 0.0, largest)
    total = g.sum(g.apply("exp", g.apply("sub", source, shift)))
    return g.apply("add", g.apply("log", total), shift)


@handles(aten.linalg_vector_norm.default)
def _norm(reader: Reader, node: Any) -> Node:
    _, order, dims = (*node.args, *(None, 2, None)[len(node.args) :])[:3]
    source, g = _reduced(reader, node, dims), reader.graph
    if order in (math.inf, 1):
        sizes = g.apply("abs", source)
        return g.sum(sizes) if order == 1 else g.largest(sizes)
    if order != 2:
        raise Untraceable(f"a norm of order {order}")
    return _root(reader, g.sum(g.apply("mul", source, source)))


def _root(reader: Reader, total: Node) -> Node:
    """The root, whose derivative at zero is taken as zero."""
    g = reader.graph
    nothing = g.apply("equal", total, 0.0)
    return g.apply("where", nothing, 0.0, g.apply("sqrt", g.apply("where", nothing, 1.0, total)))


def _variance(reader: Reader, node: Any, dims: Any) -> tuple[Node, Node]:
    correction = node.kwargs.get("correction", 1)
    source = _reduced(reader, node, dims)
    if source.width <= correction:
        raise Untraceable(f"a variance of {source.width} columns less {correction}")
    g = reader.graph
    mean = g.apply("mul", g.sum(source), 1.0 / source.width)
    centred = g.apply("sub", source, mean)
    total = g.sum(g.apply("mul", centred, centred))
    return g.apply("mul", total, 1.0 / (source.width - float(correction))), mean


@handles(aten.var_mean.correction)
def _var_mean(reader: Reader, node: Any) -> tuple[Node, Node]:
    return _variance(reader, node, node.args[1])


@handles(aten.var.correction)
def _var(reader: Reader, node: Any) -> Node:
    return _variance(reader, node, node.args[1])[0]


@handles(aten.std.correction)
def _std(reader: Reader, node: Any) -> Node:
    return _root(reader, _variance(reader, node, node.args[1])[0])


@handles(aten.select.int)
def _select(reader: Reader, node: Any) -> Node:
    _over_columns(node, node.args[1])
    source, column = reader.row(node.args[0]), node.args[2]
    return _columns(reader, source, column % source.width, 1)


@handles(aten.unsqueeze.default)
def _unsqueeze(reader: Reader, node: Any) -> Node:
    if len(node.args[0].meta["val"].shape) != 1 or node.args[1] not in (1, -1):
        raise Untraceable(f"{node.target} to {tuple(node.meta['val'].shape)}")
    return reader.row(node.args[0])  # one number for each sequence


@handles(
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.clone.default, aten.alias.default,
    aten.contiguous.default,
)  # fmt: skip
def _same(reader: Reader, node: Any) -> Node:
    given, made = node.args[0].meta["val"], node.meta["val"]
    if given.shape != made.shape:
        raise Untraceable(f"{node.target} from {tuple(given.shape)} to {tuple(made.shape)}")
    return reader.row(node.args[0])


@handles(aten.expand.default)
def _expand(reader: Reader, node: Any) -> Node:
    given, made = node.args[0].meta["val"], node.meta["val"]
    if made.dim() != 2 or given.dim() != 2:
        raise Untraceable(f"{node.target} to {tuple(made.shape)}")
    if given.shape not in (made.shape, (made.shape[0], 1)):
        raise Untraceable(f"{node.target} from {tuple(given.shape)} to {tuple(made.shape)}")
    return reader.graph.spread(reader.row(node.args[0]), made.shape[1])


@handles(aten._to_copy.default)
def _to_copy(reader: Reader, node: Any) -> Node:
    given, made = node.args[0].meta["val"].dtype, node.meta["val"].dtype
    row = reader.row(node.args[0])
    if made == torch.bool and given.is_floating_point:
        return _truth(reader, row)
    if given not in (made, torch.bool) or not (made.is_floating_point or given == made):
        raise Untraceable(f"{node.target} from {given} to {made}")
    return row  # what is true is 1 already


def _truth(reader: Reader, row: Node) -> Node:
    return reader.graph.apply("sub", 1.0, reader.graph.apply("equal", row, 0.0))


@handles(aten.detach.default)
def _detach(reader: Reader, node: Any) -> Node:
    return reader.graph.apply("still", reader.row(node.args[0]))


@handles(aten.roll.default)
def _roll(reader: Reader, node: Any) -> Node:
    source, shifts, dims = reader.row(node.args[0]), node.args[1], node.args[2] if len(node.args) > 2 else ()
    if len(shifts) != 1 or list(dims) not in ([1], [-1]):
        raise Untraceable(f"{node.target} across the batch")
    first = -shifts[0] % source.width
    if not first:
        return source
    g = reader.graph
    return g.concat([g.slice(source, first, source.width - first), g.slice(source, 0, first)])
