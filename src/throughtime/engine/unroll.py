"""Running a cell through time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from throughtime.cells.cell import Cell, first_parameter
from throughtime.engine.cpu.backend import Offer, run_together
from throughtime.engine.explain import choose
from throughtime.engine.sequence import (
    Result,
    Sequence,
    check_input,
    check_lengths,
    check_precision,
    check_resets,
    check_state,
    map_state,
)


def unroll(
    cell: Cell,
    x: Tensor,
    state: Any = None,
    *,
    lengths: Any = None,
    resets: Any = None,
    reverse: bool = False,
    return_states: bool = False,
    backend: str = "auto",
    parameters: Mapping[str, Tensor] | None = None,
) -> Any:
    r"""Runs a cell through time: (y_t, s_t) = step(x_t, s_{t-1}) for t = 0 ... T-1.

    >>> import throughtime as tt
    >>> import torch
    >>> y, state = unroll(tt.cells.LSTM(3, 5), torch.zeros(2, 7, 3), lengths=[7, 4])
    >>> y.shape, state.c.shape
    (torch.Size([2, 7, 5]), torch.Size([2, 5]))

    In pieces or at once, the result is the same: the final state of one call is the ``state`` of the next.

    Args:
        cell: any `Cell`.
        x: input (B, T, I). B and T may be 0.
        state: the state before the first step; the cell's initial one unless given.
        lengths: (B,) real steps of each sequence, in any order, 0 allowed. Outputs (and all states) past a length
            are zero, the final state is that of the last real step, and what stands in the padding of ``x`` is
            not read.
        resets: (B, T) bool, borders within a row (episodes, documents packed together): where true, the state
            goes back to initial before that step. In reverse it does so on the other side of the same border,
            after that step, so that nothing crosses in either direction.
        reverse: from the last real step to the first; outputs stand where their inputs stand.
        return_states: also return all states, as a state with fields (B, T, ...).
        backend: "auto", or the name of one; see `explain`.
        parameters: stand-ins for the cell's parameters, by name, as in `torch.func.functional_call`.

    Returns:
        ``(y, final_state)``, or ``(y, final_state, states)`` with ``return_states``. y is (B, T, O).

    Raises:
        ValueError: an argument's shape or precision does not fit, the backend cannot take the cell, or its step returns
            what no step may (an output or state of another shape, a state changed in place).
        TypeError: x or a part of the state is no tensor.

    Warns:
        SlowPathWarning: once for each reason, where "auto" is left with the loop in plain PyTorch.
    """
    if parameters is not None:
        unknown = set(parameters) - {name for name, _ in cell.named_parameters(remove_duplicate=False)}
        if unknown:
            raise ValueError(f"{type(cell).__name__} has no parameters named {', '.join(sorted(unknown))}")
        stand_ins = {f"cell.{name}": value for name, value in parameters.items()}
        options = {
            "lengths": lengths,
            "resets": resets,
            "reverse": reverse,
            "return_states": return_states,
            "backend": backend,
        }
        return functional_call(_Unroll(cell), stand_ins, (x, state), options)
    run = _choose(cell, x, state, lengths, resets, reverse, backend)
    y, final, states = run(return_states)
    return (y, final, states) if return_states else (y, final)


def unroll_both(
    forward: Cell,
    backward: Cell,
    x: Tensor,
    states: tuple[Any, Any] | None = None,
    *,
    lengths: Any = None,
    resets: Any = None,
    return_states: bool = False,
    backend: str = "auto",
) -> tuple[Any, Any]:
    """Runs one cell from the first step to the last and one from the last to the first, over the same input.

    As two calls of `unroll`, the second with ``reverse``; kernels run side by side where that is faster.

    >>> import throughtime as tt
    >>> import torch
    >>> (y, _), (z, _) = unroll_both(tt.cells.GRU(3, 5), tt.cells.GRU(3, 4), torch.zeros(2, 7, 3))
    >>> y.shape, z.shape
    (torch.Size([2, 7, 5]), torch.Size([2, 7, 4]))

    Args:
        states: the two states before the first step of each; initial ones unless given.

    Returns:
        What `unroll` returns, for each.
    """
    one, other = (None, None) if states is None else states
    runs = [
        _choose(forward, x, one, lengths, resets, False, backend),
        _choose(backward, x, other, lengths, resets, True, backend),
    ]
    if all(isinstance(run, Offer) for run in runs):
        results = run_together([run for run in runs if isinstance(run, Offer)], return_states)
    else:
        results = [run(return_states) for run in runs]
    first, second = (result if return_states else result[:2] for result in results)
    return first, second


def _choose(
    cell: Cell, x: Tensor, state: Any, lengths: Any, resets: Any, reverse: bool, backend: str
) -> Callable[[bool], Result]:
    """How the cell will be run, once all is checked."""
    check_input(x, cell.input_size)
    check_precision(x, cell)
    lengths = check_lengths(lengths, x)
    resets = check_resets(resets, x)
    initial = cell.initial_state(x.shape[0])
    if first_parameter(cell) is None:
        initial = map_state(lambda field: field.to(x), initial)
    state = initial if state is None else check_state(state, initial)
    sequence = Sequence(x, state, initial, cell.noise(x.shape[0], x.shape[1]), lengths, resets, reverse)
    return choose(cell, backend, sequence)


class _Unroll(nn.Module):
    """`unroll` as a module, for `functional_call`."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor, state: Any, **options: Any) -> Any:
        return unroll(self.cell, x, state, **options)
