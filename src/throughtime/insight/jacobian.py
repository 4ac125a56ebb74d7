"""The Jacobian of the step along a real sequence: what each step does to a gradient that passes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from throughtime.insight.figures import Array, finish, legend, new_figure
from throughtime.insight.record import Layer, check_finite, record_run
from throughtime.learning.flat import StepFunction, field_slices, flatten_state

AT_ONCE = 2**22  # numbers of Jacobians held at a time


@dataclass(frozen=True)
class JacobianSpectrum:
    """See `jacobian_spectrum`. S is the size of the state looked at."""

    name: str
    singular_values: Array  # (T, S), the largest first
    spectral_radius: Array  # (T,)
    lyapunov: Array  # (S,) exponents a step, the largest first; -inf where nothing is left

    @property
    def rate(self) -> float:
        """What a gradient is multiplied by at each step, in the long run: exp of the largest Lyapunov exponent."""
        return float(np.exp(self.lyapunov[0]))

    @property
    def sentence(self) -> str:
        """What to see in the figure."""
        top = self.singular_values[:, 0]
        where = f" in {self.name}" if self.name else ""
        if top.max() == 0:
            return f"No gradient passes a step{where}: every singular value of its Jacobian is 0."
        long_run = f"it is multiplied by {self.rate:.3g} a step" if self.rate else "nothing of it is left"
        return (
            f"One step stretches a gradient{where} by at most {top.min():.3g} to {top.max():.3g} (the largest singular "
            f"value); in the long run {long_run}."
        )

    def draw(self, axes: Axes) -> None:
        """Largest, median and smallest singular value along the sequence, the spectral radius, and the long run."""
        t = np.arange(len(self.spectral_radius))
        values = self.singular_values
        axes.fill_between(t, values[:, -1], values[:, 0], color="#0072B2", alpha=0.15, linewidth=0)
        axes.plot(t, values[:, 0], color="#0072B2", linewidth=1.2, label="largest singular value")
        axes.plot(t, np.median(values, axis=1), color="#56B4E9", linewidth=1, label="median singular value")
        axes.plot(t, self.spectral_radius, color="#D55E00", linewidth=1, label="spectral radius")
        axes.axhline(self.rate, color="#009E73", linestyle="--", linewidth=1, label=f"in the long run: {self.rate:.3g}")
        axes.axhline(1, color="black", linewidth=0.5)
        finish(axes, f"Jacobian of the step {self.name}".strip(), "step t", "value")
        legend(axes)

    def figure(self) -> Figure:
        """`draw`, and the Lyapunov exponents beside it."""
        figure, (left, right) = new_figure(1, 2, width=9)
        self.draw(left)
        right.plot(np.arange(1, len(self.lyapunov) + 1), self.lyapunov, ".", color="#009E73")
        right.axhline(0, color="black", linewidth=0.5)
        finish(right, "Lyapunov exponents", "rank", "nats a step")
        return figure


def jacobian_spectrum(
    network: nn.Module, x: Tensor, *, field: str | None = None, row: int = 0, steps: int = 200, **options: Any
) -> tuple[JacobianSpectrum, ...]:
    r"""Singular values, spectral radius and Lyapunov exponents of ds_t/ds_{t-1} along a sequence; one result a layer.

    >>> import throughtime as tt
    >>> spectrum, = jacobian_spectrum(tt.cells.AdditiveMemory(3, 5), torch.zeros(1, 20, 3))
    >>> float(spectrum.singular_values.min()), round(spectrum.rate, 6)
    (1.0, 1.0)

    The state is that of one layer with all its fields side by side (h and c of an LSTM, which only together are the
    whole of what goes on), a complex unit counting as two real ones. Lyapunov exponents are the mean growth of
    volumes, by the QR method (Benettin et al. 1980), from the second quarter of the steps on.

    Args:
        network: as in `gradient_flow`.
        x: its input.
        field: one field of the state alone, "h" say: the others are held fixed.
        row: which sequence of the batch.
        steps: at most so many, the last ones. The cost of each is that of a singular value decomposition, S^3.
        options: passed to the network.

    Raises:
        ValueError: no state has such a field, or one is no longer finite.
    """
    with torch.no_grad():
        _, layers = record_run(network, x, **options)
    check_finite(layers)
    results = []
    for layer in layers:
        slices = field_slices(layer.record.before[0])
        if field is not None and field not in slices:
            continue
        part = slice(None) if field is None else slices[field]
        values, radii = [], []
        for j in layer_jacobians(layer, row, steps):
            j = j[:, part, part]
            values.append(torch.linalg.svdvals(j))
            radii.append(torch.linalg.eigvals(j).abs().amax(-1))
        jacobians = (j[part, part] for chunk in layer_jacobians(layer, row, steps) for j in chunk)
        name = layer.name if field is None else layer.curve_name(field)
        count = min(steps, len(layer.record.before))
        results.append(
            JacobianSpectrum(
                name, _array(torch.cat(values)), _array(torch.cat(radii)), _array(lyapunov_exponents(jacobians, count))
            )
        )
    if not results:
        raise ValueError(f"no state of this network has a field {field!r}")
    return tuple(results)


def layer_jacobians(layer: Layer, row: int, steps: int | None = None) -> Iterator[Tensor]:
    """ds_t/ds_{t-1} of one sequence, (steps, S, S) in chunks that fit into memory."""
    x, flat, noise = flat_points(layer, row, steps)
    step = StepFunction(layer.cell)
    at_once = max(1, AT_ONCE // step.size**2)
    for start in range(0, len(x), at_once):
        piece = slice(start, start + at_once)
        yield step.state_jacobian(x[piece], flat[piece], sliced(noise, piece))


def flat_points(layer: Layer, row: int, steps: int | None = None) -> tuple[Tensor, Tensor, Any]:
    """What each of the last steps was given: x (T, I), flat states (T, S), noise."""
    x, state, noise = layer.points(row)
    last = slice(None if steps is None else -min(steps, len(x)), None)
    return x[last], flatten_state(state)[last], sliced(noise, last)


def sliced(noise: Any, piece: slice) -> Any:
    """Those steps of noise (T, ...)."""
    if noise is None:
        return None
    return noise[piece] if isinstance(noise, Tensor) else tuple(sliced(part, piece) for part in noise)


def lyapunov_exponents(jacobians: Iterator[Tensor], steps: int) -> Tensor:
    """Mean log growth along each of S directions that are kept orthogonal; the first quarter lets them settle."""
    total = q = None
    settled = steps // 4
    for t, j in enumerate(jacobians):
        j = j.double()
        if total is None or q is None:
            # directions in general position, so that none is missed by a Jacobian that is diagonal
            generator = torch.Generator().manual_seed(0)
            q = torch.linalg.qr(torch.randn(j.shape, dtype=j.dtype, generator=generator).to(j.device))[0]
            total = torch.zeros(j.shape[0], dtype=j.dtype, device=j.device)
        q, r = torch.linalg.qr(j @ q)
        if t >= settled:
            total += r.diagonal().abs().log()
    assert total is not None
    return (total / (steps - settled)).sort(descending=True).values


def _array(tensor: Tensor) -> Array:
    return np.asarray(tensor.cpu().numpy())
