"""Which of PyTorch's functions treat the rows of a batch apart, so that they can take the rows of all steps at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Function = Callable[..., Any]


def _named(names: str, *homes: Any) -> list[Function]:
    """The functions of these names, wherever PyTorch has them: ``torch.add`` and ``Tensor.add`` are two."""
    found = [getattr(home, name, None) for home in homes or (torch, Tensor, functional) for name in names.split()]
    return [function for function in found if function is not None]


def _dunder(names: str) -> list[Function]:
    return _named(" ".join(f"__{name}__" for name in names.split()), Tensor)


PRODUCTS = frozenset(_named("linear matmul mm addmm") + _dunder("matmul"))

ELEMENTWISE = frozenset(
    _named(
        "add sub subtract rsub mul multiply div divide true_divide neg negative abs sign square sqrt rsqrt reciprocal "
        "pow exp expm1 log log1p sin cos erf tanh sigmoid relu relu6 softplus silu gelu leaky_relu elu selu celu "
        "hardtanh hardsigmoid hardswish mish logsigmoid softsign tanhshrink maximum minimum where clamp clip lerp "
        "addcmul gt ge lt le eq ne"
    )
    + _dunder("add radd sub rsub mul rmul truediv rtruediv neg pow abs gt ge lt le eq ne")
)

# Functions along one axis, and where among their arguments it stands.
_ALONG = (
    dict.fromkeys(_named("softmax log_softmax logsumexp sum mean amax amin cat concat"), 1)
    | dict.fromkeys(_named("unsqueeze"), 1)
    | dict.fromkeys(_named("chunk split"), 2)
)

VIEWS = frozenset(_named("chunk split unsqueeze") + _dunder("getitem"))

ROWWISE = PRODUCTS | ELEMENTWISE | VIEWS | frozenset(_ALONG) | frozenset(_named("layer_norm"))

# What only tells of a tensor.
_TOLD = ("shape", "dtype", "device", "ndim", "requires_grad", "is_leaf", "layout", "is_cuda", "_version", "grad_fn")
GETTERS = frozenset(
    [getattr(Tensor, name).__get__ for name in _TOLD]
    + _named("dim size numel stride is_floating_point is_complex is_inference is_contiguous __len__", Tensor)
)


def leaves_alone(function: Function, options: dict[str, Any]) -> bool:
    """Whether a function neither changes its arguments nor gives out what shares their memory."""
    changing = options.get("out") is not None or options.get("inplace")
    return function in ROWWISE and function not in VIEWS and not changing


def by_row(function: Function, arguments: tuple, options: dict[str, Any], is_rows: Callable[[Tensor], bool]) -> bool:
    """Whether each row of what a function of `ROWWISE` gives is made of the same row of those of its arguments that
    are rows (B, ...), and of tensors that know nothing of B."""
    tensors = tensors_in((*arguments, *options.values()))
    rows = [t for t in tensors if is_rows(t)]
    dims = rows[0].dim()
    if dims < 2 or any(t.dim() != dims for t in rows):
        return False
    if function not in VIEWS and not leaves_alone(function, options):
        return False
    given = {id(t) for t in rows}
    if function in PRODUCTS:
        at = 1 if function in _ADDMM else 0
        where = [k for k, a in enumerate((*arguments, *options.values())) if id(a) in given]
        return dims == 2 and where == [at]
    if function in ELEMENTWISE:
        others = [t for t in tensors if id(t) not in given]
        return all(t.dim() < dims or (t.dim() == dims and t.shape[0] == 1) for t in others)
    if function in _LAYER_NORM:
        return len(arguments) > 1 and len(arguments[1]) < dims
    if function in _ALONG:
        at = _ALONG[function]
        axis = arguments[at] if len(arguments) > at else options.get("dim")
        axes = axis if isinstance(axis, (tuple, list)) else [axis]
        first = (0, -dims - 1 if function in _UNSQUEEZE else -dims)
        together = len(rows) == len(tensors)
        return bool(axes) and together and all(type(a) is int and a not in first for a in axes)
    return function in VIEWS and _over_columns(arguments[1], dims)


_ADDMM, _UNSQUEEZE, _LAYER_NORM = (frozenset(_named(name)) for name in ("addmm", "unsqueeze", "layer_norm"))


def _over_columns(index: Any, dims: int) -> bool:
    """Whether an index takes all rows, and the same columns of each."""
    if not isinstance(index, tuple) or not 2 <= len(index) <= dims:
        return False
    return all(isinstance(i, slice) or type(i) is int for i in index) and index[0] == slice(None)


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among arguments, and within their lists."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found += tensors_in(value)
    return found
