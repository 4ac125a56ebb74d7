"""Fixed points of a recurrence left to itself (Sussillo & Barak 2013)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from throughtime.cells.cell import Cell
from throughtime.engine import unroll
from throughtime.insight.figures import Array, finish, legend, new_figure
from throughtime.learning.flat import StepFunction, flatten_state


@dataclass(frozen=True)
class FixedPoints:
    """See `fixed_points`. S is the size of the state, its fields side by side."""

    points: Array  # (N, S)
    speed: Array  # (N,) q, half the squared distance that a step moves
    eigenvalues: Array  # (N, S) complex, of the Jacobian there, the largest modulus first
    visited: Array  # (M, S) states of real sequences, for the figure

    @property
    def stable(self) -> Array:
        """(N,) whether every eigenvalue lies within the unit circle."""
        return np.asarray(np.abs(self.eigenvalues[:, :1]).max(1, initial=0) < 1)

    @property
    def unstable_directions(self) -> Array:
        """(N,) how many eigenvalues lie outside: 0 an attractor, some a saddle, all a repeller."""
        return np.asarray((np.abs(self.eigenvalues) > 1).sum(1))

    @property
    def sentence(self) -> str:
        """What to see in the figure."""
        count = len(self.points)
        if not count:
            return "No fixed point was found from the states visited: left to itself, the network keeps moving."
        held = int(self.stable.sum())
        return (
            f"Left to itself, the network has {count} fixed point{'s' * (count != 1)} near the states it visits; "
            f"{held} of them {'is' if held == 1 else 'are'} stable, where it can come to rest and hold a value."
        )

    def draw(self, axes: Axes) -> None:
        """Fixed points in the two directions in which the visited states vary most."""
        centre = self.visited.mean(0)
        _, _, directions = np.linalg.svd(self.visited - centre, full_matrices=False)
        plane = np.zeros((2, self.visited.shape[1]))
        plane[: min(2, len(directions))] = directions[:2]
        path = (self.visited - centre) @ plane.T
        axes.plot(path[:, 0], path[:, 1], ".", color="0.8", markersize=2, label="visited")
        at = (self.points - centre) @ plane.T
        for chosen, colour, label in ((self.stable, "#009E73", "stable"), (~self.stable, "#D55E00", "unstable")):
            if chosen.any():
                axes.plot(at[chosen, 0], at[chosen, 1], "o", color=colour, label=label)
        finish(axes, "Fixed points", "first direction of the states", "second")
        legend(axes)

    def figure(self) -> Figure:
        """`draw`, and the eigenvalues in the complex plane."""
        figure, (left, right) = new_figure(1, 2, width=8, height=3.6)
        self.draw(left)
        angle = np.linspace(0, 2 * np.pi, 200)
        right.plot(np.cos(angle), np.sin(angle), color="black", linewidth=0.5)
        for eigenvalues, stable in zip(self.eigenvalues, self.stable, strict=True):
            right.plot(eigenvalues.real, eigenvalues.imag, ".", color="#009E73" if stable else "#D55E00", markersize=4)
        right.set_aspect("equal")
        finish(right, "Eigenvalues of the step there", "real", "imaginary")
        return figure


def fixed_points(
    cell: Cell,
    x: Tensor,
    *,
    constant: Tensor | None = None,
    starts: int = 64,
    spread: float = 0.1,
    iterations: int = 200,
    tolerance: float | None = None,
    apart: float = 1e-3,
    seed: int = 0,
    **options: Any,
) -> FixedPoints:
    r"""States that a step under a constant input leaves where they are, and whether they are stable.

    .. math:: q(s) = \tfrac12 \| F(s, x^*) - s \|^2 = 0

    >>> import throughtime as tt
    >>> cell = tt.cells.Elman(1, 1).double()
    >>> for parameter, value in zip(cell.parameters(), (1.0, 0.0, 2.0)):  # h = tanh(x + 2 h)
    ...     _ = parameter.data.fill_(value)
    >>> found = fixed_points(cell, torch.randn(4, 50, 1, dtype=torch.float64))
    >>> bool(found.stable.any()), float(abs(found.points).max().round(4))
    (True, 0.9575)

    The search starts from states that real sequences visit, with noise added, and goes down q by the method of
    Levenberg and Marquardt (the paper goes by gradients; the zeros are the same). Points nearer than ``apart`` are one.

    Args:
        cell: any `Cell`; a network of layers layer by layer, each with an input that it really has.
        x: real sequences (B, T, I), to start from.
        constant: the input x* (I,); zeros unless given.
        starts: from how many states.
        spread: the standard deviation of the noise, in those of the states visited.
        iterations: at most so many steps down.
        tolerance: q below which a point counts; 1e-20 in float64, 1e-9 in float32 unless given.
        apart: the distance under which two are one, a share of the state's size.
        seed: of the noise.
        options: passed to `throughtime.unroll`.

    Raises:
        TypeError: it is no cell.
    """
    if not isinstance(cell, Cell):
        raise TypeError(f"fixed points are those of a cell, not of {type(cell).__name__}; give one of its cells")
    with torch.no_grad():
        _, _, states = unroll(cell, x, return_states=True, **{"backend": "reference", **options})
    visited = flatten_state(type(states)(*(field.flatten(0, 1) for field in states)))  # (B * T, S)
    step = StepFunction(cell)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(visited), (starts,), generator=generator).to(visited.device)
    noise = torch.randn(starts, step.size, generator=generator, dtype=torch.float64).to(visited)
    s = visited[chosen] + spread * visited.std(0) * noise
    held = (x.new_zeros(cell.input_size) if constant is None else constant.to(x)).expand(starts, -1)
    s, q = _descend(step, held, s, iterations)
    limit = (1e-20 if s.dtype == torch.float64 else 1e-9) if tolerance is None else tolerance
    points: list[Tensor] = []
    speeds: list[float] = []
    size = float(visited.norm(dim=1).mean()) + 1e-12
    for n in q.argsort().tolist():
        near = any(float((s[n] - other).norm()) < apart * size for other in points)
        if q[n] <= limit and s[n].isfinite().all() and not near:
            points.append(s[n])
            speeds.append(float(q[n]))
    found = torch.stack(points) if points else s[:0]
    eigenvalues = np.zeros((0, step.size), dtype=complex)
    if points:
        eigenvalues = torch.linalg.eigvals(step.state_jacobian(held[: len(found)], found)).cpu().numpy()
        order = np.argsort(-np.abs(eigenvalues), axis=1)
        eigenvalues = np.take_along_axis(eigenvalues, order, axis=1)
    return FixedPoints(found.cpu().numpy(), np.array(speeds), eigenvalues, visited.cpu().numpy())


def _descend(step: StepFunction, x: Tensor, s: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Levenberg-Marquardt on r(s) = F(s) - s, all starts at once, each with its own damping."""

    def residual(s: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.func.vmap(lambda x, s: step(x, s)[1])(x, s) - s

    eye = torch.eye(step.size, dtype=s.dtype, device=s.device)
    r = residual(s)
    q = r.square().sum(1) / 2
    damping = torch.ones_like(q)
    for _ in range(iterations):
        j = step.state_jacobian(x, s) - eye  # (N, S, S)
        normal = j.mT @ j + damping[:, None, None] * eye
        tried = s - torch.linalg.solve(normal, (j.mT @ r[:, :, None]))[:, :, 0]
        r_tried = residual(tried)
        q_tried = r_tried.square().sum(1) / 2
        better = q_tried < q
        s = torch.where(better[:, None], tried, s)
        r = torch.where(better[:, None], r_tried, r)
        q = torch.where(better, q_tried, q)
        damping = torch.where(better, damping / 10, damping * 4).clamp(1e-14, 1e8)
        if not better.any() and bool((damping >= 1e8).all()):
            break
    return s, q
