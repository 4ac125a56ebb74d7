"""How long a state remembers an input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from throughtime.insight.figures import Array, colour, counted, finish, legend, log_where_positive, new_figure
from throughtime.insight.jacobian import flat_points, layer_jacobians, sliced
from throughtime.insight.record import check_finite, record_run
from throughtime.learning.flat import StepFunction, field_slices

STILL_MOVES = 0.01  # of the largest influence


@dataclass(frozen=True)
class Memory:
    """See `memory`. S is the size of the state, its fields side by side."""

    name: str
    influence: Array  # (T,) norm of ds_T / dx_{T - lag}
    by_unit: Array  # (T, S) the same for each number of the state
    half_life: Array  # (S,) steps until a unit keeps half of a change of the state at most; inf where that is not seen
    time_constant: Array  # (S,) steps of a unit's own leak, -1 / log of the mean of ds_t,u/ds_t-1,u; inf from 1 on
    fields: dict[str, slice]

    @property
    def reach(self) -> int:
        """The largest lag at which an input still moves the state by a hundredth of what it can; 0 for none at all."""
        moves = (self.influence >= STILL_MOVES * self.influence.max()) & (self.influence > 0)
        return int(np.flatnonzero(moves)[-1]) if moves.any() else 0

    @property
    def sentence(self) -> str:
        """What to see in the figure."""
        seen = len(self.influence) - 1
        more = " or more" if self.reach == seen else ""
        where = f"of {self.name} " if self.name else ""
        if not self.influence.any():
            return f"No input moves the state {where}at all.".replace("  ", " ")
        median = float(np.median(self.half_life))
        middle = (
            f"half of the units have lost half of a change within {counted(median, 'step')}"
            if np.isfinite(median)
            else "most units keep more than half of a change all along"
        )
        return f"An input still moves the state {where}after {self.reach}{more} steps; {middle}."

    def figure(self) -> Figure:
        """Influence against lag; half-lives and time constants of the units."""
        figure, (left, right) = new_figure(1, 2, width=9)
        for n, (field, part) in enumerate(self.fields.items()):
            norm = np.linalg.norm(self.by_unit[:, part], axis=1)
            left.plot(np.where(norm > 0, norm, np.nan), color=colour(n), label=field)
        log_where_positive(left)
        left.axhline(STILL_MOVES * self.influence.max(), color="black", linewidth=0.5, linestyle=":")
        left.axvline(self.reach, color="black", linewidth=0.5)
        finish(left, f"Influence of an input on the state {self.name}".strip(), "lag, steps", "norm of ds_T / dx")
        legend(left)
        seen = len(self.influence)
        bins = np.geomspace(0.5, 4 * seen, 30)
        for n, (field, part) in enumerate(self.fields.items()):
            right.hist(
                np.clip(self.time_constant[part], bins[0], bins[-1]),
                bins=list(bins),
                color=colour(n),
                alpha=0.6,
                label=f"{field}: own leak",
            )
        right.hist(
            np.clip(self.half_life, bins[0], bins[-1]),
            bins=list(bins),
            histtype="step",
            color="black",
            label="half-life (all)",
        )
        right.set_xscale("log")
        finish(right, "Memory of the units (right edge: longer)", "steps", "units")
        legend(right)
        return figure


def memory(network: nn.Module, x: Tensor, *, row: int = 0, steps: int = 200, **options: Any) -> tuple[Memory, ...]:
    r"""For which lag an input still moves the state: exact ds_T/dx_{T - lag}, T the last step; one result a layer.

    >>> import throughtime as tt
    >>> result, = memory(tt.cells.AdditiveMemory(3, 5), torch.zeros(1, 20, 3))
    >>> result.reach, bool(np.isinf(result.half_life).all())
    (19, True)

    The input of a layer is the output of the one below. A half-life is of what the steps make of a change of the state,
    whatever brought it about, as inputs differ in how much they move. The time constant of a unit comes from the
    diagonal of the step's Jacobian, averaged over the sequence: for c of an LSTM that is the forget gate exactly.

    Args:
        network: as in `gradient_flow`.
        x: its input.
        row: which sequence of the batch.
        steps: at most so many lags.
        options: passed to the network.
    """
    with torch.no_grad():
        _, layers = record_run(network, x, **options)
    check_finite(layers)
    results = []
    for layer in layers:
        step = StepFunction(layer.cell)
        inputs, flat, noise = flat_points(layer, row, steps)
        jacobians = torch.cat([j.cpu() for j in layer_jacobians(layer, row, steps)])  # (T, S, S)
        count = len(inputs)
        by_unit = torch.zeros(count, step.size, dtype=torch.float64)
        kept = torch.zeros(count, step.size, dtype=torch.float64)
        back = torch.eye(step.size, dtype=torch.float64)  # ds_T / ds_{T - lag}
        for lag in range(count):
            t = count - 1 - lag
            piece = slice(t, t + 1)
            entry = step.input_jacobian(inputs[piece], flat[piece], sliced(noise, piece))[0]  # (S, I)
            by_unit[lag] = torch.linalg.vector_norm(back @ entry.cpu().double(), dim=1)
            kept[lag] = torch.linalg.vector_norm(back, dim=1)
            back = back @ jacobians[t].double()
        leak = jacobians.double().diagonal(dim1=1, dim2=2).mean(0)  # (S,)
        tau = torch.where(leak >= 1, torch.inf, -1 / leak.clamp(1e-12, 1 - 1e-12).log())
        curves = by_unit.numpy()
        results.append(
            Memory(
                layer.name,
                np.linalg.norm(curves, axis=1),
                curves,
                _half_life(kept.numpy()),
                tau.numpy(),
                field_slices(layer.record.before[0]),
            )
        )
    return tuple(results)


def _half_life(curves: Array) -> Array:
    """(T, S) -> (S,): steps after its largest value at which a curve first is half of it."""
    peak = curves.argmax(0)
    lag = np.arange(len(curves))[:, None]
    below = (curves <= curves.max(0) / 2) & (lag > peak)
    return np.where(below.any(0), below.argmax(0) - peak, np.inf)
