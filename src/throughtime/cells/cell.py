"""The contract of a cell: its parameters, its state, and one step through time."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn


class HiddenState(NamedTuple):
    """The state of a cell that carries its hidden units alone."""

    h: Tensor  # (B, H)


_nameable: set[type] = set()


def make_nameable(state: type) -> None:
    """Lets the files that torch.export writes name a class of states."""
    if state not in _nameable:
        _nameable.add(state)
        name = f"{state.__module__}.{state.__qualname__}"
        torch.utils._pytree._register_namedtuple(state, serialized_type_name=name)


make_nameable(HiddenState)


class Cell(nn.Module):
    r"""One step of a recurrence, written as its paper writes it.

    A cell is made with ``(input_size, hidden_size)`` and defines one method:

    .. math:: (y_t, s_t) = \mathrm{step}(x_t, s_{t-1})

    ``step`` is plain PyTorch. It holds no loop over time, knows no batch layout beyond the leading axis, and
    has no side effect. `throughtime.unroll` runs it through time.

    >>> class Leaky(Cell):
    ...     def __init__(self, input_size, hidden_size):
    ...         super().__init__(input_size, hidden_size)
    ...         self.input = nn.Linear(input_size, hidden_size)
    ...         self.recurrent = nn.Linear(hidden_size, hidden_size, bias=False)
    ...
    ...     def step(self, x, state):
    ...         h = 0.9 * state.h + 0.1 * torch.tanh(self.input(x) + self.recurrent(state.h))
    ...         return h, self.State(h)
    >>> y, state = Leaky(3, 5)(torch.zeros(2, 3))
    >>> y.shape
    torch.Size([2, 5])

    Args:
        input_size: features I of one input step.
        hidden_size: hidden units H.
        output_size: features O of one output step; H unless the cell says otherwise.
    """

    State: ClassVar[Any] = HiddenState  # a NamedTuple; cells that carry more than h define their own
    family: ClassVar[str] = "own"
    equation: ClassVar[str] = ""
    source: ClassVar[str] = ""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        make_nameable(cls.State)

    def __init__(self, input_size: int, hidden_size: int, *, output_size: int | None = None) -> None:
        super().__init__()
        self.input_size = check_size(input_size, "input_size")
        self.hidden_size = check_size(hidden_size, "hidden_size")
        self.output_size = self.hidden_size if output_size is None else check_size(output_size, "output_size")

    def step(self, x: Tensor, state: Any, noise: Any = None) -> tuple[Tensor, Any]:
        """``(x_t, s_{t-1}) -> (y_t, s_t)``: x (B, I), every field of the state (B, ...), y (B, O).

        ``noise`` is this step's slice of what `noise` drew; a cell that draws nothing need not name it.
        """
        raise NotImplementedError(f"{type(self).__name__} has to define step(self, x, state)")

    def initial_state(self, batch_size: int) -> Any:
        """The state before the first step: zeros of (B, H) for each field."""
        fields = self.State._fields
        return self.State(*(self._zeros(batch_size, self.hidden_size) for _ in fields))

    def noise(self, batch_size: int, steps: int) -> Any:
        """Random numbers that a sequence needs, drawn before time begins: tensors (B, T, ...), or None.

        Tuples may nest. Nothing is drawn here in `eval` mode, so that evaluation is deterministic.
        """
        return None

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One step of its own, for streaming: ``y, state = cell(x, state)``, from the initial state at first.

        Raises:
            ValueError: x is not (B, I), or the step returns what no step may; see `checked_step`.
        """
        if x.dim() != 2:
            raise ValueError(f"x must be (B, I), not of {x.dim()} dimensions; a single one is x[None]")
        if state is None:
            state = self.initial_state(x.shape[0])
        noise = self.noise(x.shape[0], 1)
        return checked_step(self, x, state, None if noise is None else at_step(noise, 0))

    def extra_repr(self) -> str:
        output = "" if self.output_size == self.hidden_size else f", output_size={self.output_size}"
        return f"input_size={self.input_size}, hidden_size={self.hidden_size}{output}"

    def _zeros(self, *shape: int) -> Tensor:
        """Zeros where the cell's parameters live, in their precision."""
        like = first_parameter(self)
        if like is None:
            return torch.zeros(shape)
        return like.new_zeros(shape)


def first_parameter(module: nn.Module) -> nn.Parameter | None:
    """The first of a module's parameters. `parameters` looks for those that stand twice, and this is asked at every
    call."""
    for parameter in module._parameters.values():
        if parameter is not None:
            return parameter
    for part in module._modules.values():
        found = None if part is None else first_parameter(part)
        if found is not None:
            return found
    return None


def check_size(size: Any, name: str) -> int:
    """A size as an int, be it NumPy's.

    Raises:
        ValueError: it is no whole number of at least 1.
    """
    try:
        whole = operator.index(size)
    except TypeError:
        whole = 0
    if whole < 1 or isinstance(size, bool):
        raise ValueError(f"{name} must be a whole number of at least 1, not {size!r}")
    return whole


def own_step(cell: Cell, x: Tensor, state: Any, noise: Any) -> tuple[Tensor, Any]:
    """``cell.step``, which is given noise only if it drew some."""
    return cell.step(x, state) if noise is None else cell.step(x, state, noise)


def checked_step(
    cell: Cell, x: Tensor, state: Any, noise: Any, step: Callable[..., Any] = own_step
) -> tuple[Tensor, Any]:
    """``cell.step``, which may be a user's first: what it returns is looked at.

    Raises:
        ValueError: it returns no output and state, or one of another shape, or changed what it was given in place.
    """
    name, given = type(cell).__name__, (x, *state)
    watched = not torch.compiler.is_compiling() and not any(tensor.is_inference() for tensor in given)
    versions = [tensor._version for tensor in given] if watched else []
    result = step(cell, x, state, noise)
    if not isinstance(result, tuple) or len(result) != 2:
        raise ValueError(f"{name}.step must return an output and a state, (y, self.State(...)), not {_told(result)}")
    y, new = result
    if not isinstance(new, tuple) or len(new) != len(state):
        raise ValueError(f"{name}.step must return a state of the fields {', '.join(state._fields)}, not {_told(new)}")
    batch = x.shape[0]
    if not isinstance(y, Tensor) or y.shape != (batch, cell.output_size):
        raise ValueError(f"{name}.step must return an output of ({batch}, {cell.output_size}), not {_told(y)}")
    for field, one, other in zip(state._fields, new, state, strict=True):
        if not isinstance(one, Tensor) or one.shape != other.shape:
            raise ValueError(f"{name}.step must return a state.{field} of {tuple(other.shape)}, not {_told(one)}")
    if watched and versions != [tensor._version for tensor in given]:
        raise ValueError(
            f"{name}.step changes its input or state in place; "
            "make new tensors (h = 0.9 * state.h, not state.h.mul_(0.9))"
        )
    return y, new


def _told(value: Any) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def at_step(noise: Any, t: int) -> Any:
    """Step ``t`` of noise: its tensors are (B, T, ...), and tuples of them may nest."""
    if noise is None:
        return None
    if isinstance(noise, Tensor):
        return noise[:, t]
    return tuple(at_step(part, t) for part in noise)
