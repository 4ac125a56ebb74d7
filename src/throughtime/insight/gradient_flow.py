"""What is left of a gradient on its way back through time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from throughtime.insight.figures import Array, colour, finish, legend, log_where_positive, new_figure
from throughtime.insight.record import Layer, check_finite, record_run

# A gradient that changes by less than this factor over the lags looked at is said to hold.
HOLDS_WITHIN = 100.0


@dataclass(frozen=True)
class FlowCurve:
    """The norm of dL_t/ds_k for one field of one layer's state, against the lag t - k."""

    name: str  # "layer 0 c"
    norms: Array  # (lags,), the geometric mean over sequences and t; nan where there was no gradient
    rate: float  # the factor per step back, fitted; nan where there was too little to fit
    verdict: str  # "vanishing", "holding", "exploding" or "none"


@dataclass(frozen=True)
class GradientFlow:
    """See `gradient_flow`."""

    curves: tuple[FlowCurve, ...]

    def __getitem__(self, name: str) -> FlowCurve:
        return next(curve for curve in self.curves if curve.name == name)

    @property
    def slowest(self) -> FlowCurve:
        """The curve that falls least, by which a gradient gets furthest."""
        return max(self.curves, key=lambda curve: -math.inf if math.isnan(curve.rate) else curve.rate)

    @property
    def verdict(self) -> str:
        """That of the curve that falls least."""
        return self.slowest.verdict

    @property
    def sentence(self) -> str:
        """What to see in the figure."""
        curve = self.slowest
        if math.isnan(curve.rate):
            return "No gradient reaches the past at all."
        lags = len(curve.norms) - 1
        where = f"by way of {curve.name}, the best way there is," if len(self.curves) > 1 else ""
        change = f"each step back multiplies it by {curve.rate:.3g}"
        return {
            "vanishing": f"The gradient vanishes: {where} {change}, so hardly anything is left after {lags} steps.",
            "holding": f"The gradient holds over these {lags} steps: {where} {change}.",
            "exploding": f"The gradient explodes: {where} {change}, so after {lags} steps the past drowns the present.",
        }[curve.verdict].replace(":  ", ": ")

    def draw(self, axes: Axes) -> None:
        """Norm against lag, on a logarithmic scale, with the fitted line."""
        for n, curve in enumerate(self.curves):
            lags = np.arange(len(curve.norms))
            label = f"{curve.name}: ×{curve.rate:.3g} a step, {curve.verdict}"
            axes.plot(lags, curve.norms, color=colour(n), linewidth=1.5, label=label)
            line = _fit(curve.norms)
            if line is not None:
                slope, intercept, first = line
                kept = lags[first:]
                axes.plot(kept, np.exp(intercept + slope * kept), color=colour(n), linewidth=0.7, linestyle="--")
        log_where_positive(axes)
        finish(axes, "Gradient of the loss at t by the state at k", "lag t - k, steps", "norm")
        legend(axes)

    def figure(self) -> Figure:
        """`draw` as a figure of its own."""
        figure, (axes,) = new_figure()
        self.draw(axes)
        return figure


def gradient_flow(
    network: nn.Module,
    x: Tensor,
    loss: Callable[[Tensor], Tensor] | None = None,
    *,
    at: int | Sequence[int] = 8,
    **options: Any,
) -> GradientFlow:
    r"""The norm of dL_t/ds_k against the lag t - k, for each layer and each field of the state.

    >>> import throughtime as tt
    >>> flow = gradient_flow(tt.cells.AdditiveMemory(3, 5), torch.zeros(2, 20, 3))
    >>> flow["h"].verdict, round(flow["h"].rate, 6)
    ('holding', 1.0)

    By the chain rule dL_t/ds_k is dL_t/ds_t times t - k Jacobians of the step, so that the norm goes like a power of
    the lag; its base is the fitted ``rate`` (a straight line through the logarithm, without the first quarter of the
    lags). "holding" is said of what changes by less than a factor of 100 over the lags seen. The fields of a state
    are taken as coordinates: the gradient by c leaves out the way through h of the same step.

    Args:
        network: a `Cell`, a `Recurrent`, or any module with a `Recurrent` in it, called as ``network(x, **options)``.
        x: its input, (B, T, ...).
        loss: from the output to losses (B, T), L_t a sequence; a fixed random projection of each output unless given.
        at: the steps t, or how many of them, spread over the second half.
        options: passed to the network (state, lengths, resets).

    Raises:
        ValueError: the loss is not one number a sequence and step; a state is not finite; lengths with cells that run
            in reverse.
    """
    y, layers = record_run(network, x, **options)
    check_finite(layers)
    losses = _projection(y) if loss is None else loss(y)
    if losses.shape != x.shape[:2]:
        raise ValueError(
            f"loss must give {tuple(x.shape[:2])}, one number a sequence and step, not {tuple(losses.shape)}"
        )
    if options.get("lengths") is not None and any(layer.reverse for layer in layers):
        raise ValueError("lags of cells that run in reverse need sequences of one length; leave out lengths")
    return flow_of(layers, losses, at)


def flow_of(layers: list[Layer], losses: Tensor, at: int | Sequence[int] = 8) -> GradientFlow:
    """`gradient_flow` of a run that is on record: ``losses`` (B, T) are attached to it."""
    steps = losses.shape[1]
    times = list(at) if not isinstance(at, int) else _spread(steps, at)
    totals: dict[str, Array] = {}
    for t in times:
        fields: list[tuple[str, int, Tensor]] = []
        for layer in layers:
            last = steps - 1 - t if layer.reverse else t  # in the order in which the layer ran
            for lag in range(last + 1):
                state = layer.record.after[last - lag]
                fields += [
                    (layer.curve_name(name), lag, value) for name, value in zip(state._fields, state, strict=True)
                ]
        grads = torch.autograd.grad(
            losses[:, t].sum(), [value for _, _, value in fields], retain_graph=True, allow_unused=True
        )
        for (name, lag, _), grad in zip(fields, grads, strict=True):
            total = totals.setdefault(name, np.zeros((steps, 2)))
            if grad is None:
                continue
            norms = torch.linalg.vector_norm(grad.flatten(1), dim=1).double()  # (B,)
            seen = norms[(norms > 0) & norms.isfinite()]
            total[lag] += (float(seen.log().sum()), len(seen))
    curves = []
    for name, total in totals.items():
        with np.errstate(invalid="ignore", divide="ignore"):
            norms = np.exp(total[:, 0] / total[:, 1])
        norms = norms[: max(times) + 1]
        line = _fit(norms)
        rate = math.nan if line is None else math.exp(min(line[0], 700))
        curves.append(FlowCurve(name, norms, rate, verdict_of(rate, len(norms) - 1)))
    return GradientFlow(tuple(curves))


def verdict_of(rate: float, lags: int) -> str:
    """What a rate amounts to over so many lags.

    >>> verdict_of(0.9, 100), verdict_of(0.99, 100), verdict_of(1.1, 100)
    ('vanishing', 'holding', 'exploding')
    """
    if math.isnan(rate):
        return "none"
    change = lags * math.log(max(rate, 1e-300))
    bound = math.log(HOLDS_WITHIN)
    return "vanishing" if change < -bound else "exploding" if change > bound else "holding"


def _fit(norms: Array) -> tuple[float, float, int] | None:
    """Slope and intercept of log norm against lag, and the first lag of the fit."""
    lags = np.flatnonzero(np.isfinite(norms) & (norms > 0))
    if len(lags) < 3:
        return None
    # what float32 holds only in part (denormal numbers) would bend the line
    lags = lags[norms[lags] > 1e-36]
    if len(lags) < 3:
        return None
    lags = lags[len(lags) // 4 :]
    slope, intercept = np.polyfit(lags, np.log(norms[lags]), 1)
    return float(slope), float(intercept), int(lags[0])


def _projection(y: Tensor) -> Tensor:
    """L_t = v·y_t for a fixed random v of signs: (B, T)."""
    signs = torch.randint(0, 2, y.shape[2:], generator=torch.Generator().manual_seed(0)) * 2 - 1
    return (y * signs.to(y)).flatten(2).sum(-1)


def _spread(steps: int, count: int) -> list[int]:
    return sorted({int(t) for t in np.linspace(steps // 2, steps - 1, max(1, count))})
