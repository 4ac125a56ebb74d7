"""The picture of every textbook, from measurements: what becomes of a gradient in each kind of recurrence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure

from throughtime.cells import GRU, LRU, LSTM, AdditiveMemory, Cell, Elman
from throughtime.insight.figures import colour, finish, legend, new_figure
from throughtime.insight.gradient_flow import FlowCurve, gradient_flow
from throughtime.insight.jacobian import jacobian_spectrum
from throughtime.learning.initialisation import orthogonal_


@dataclass(frozen=True)
class Comparison:
    """One recurrence: what gradients do, and what the step's Jacobians say they must do."""

    name: str
    flow: FlowCurve
    spectral_rate: float  # exp of the largest Lyapunov exponent of the step's Jacobians, the mean over sequences

    @property
    def difference(self) -> float:
        """Of the fitted rate from that of the spectrum, as a share."""
        return self.flow.rate / self.spectral_rate - 1


def textbook(hidden: int = 64, steps: int = 300, sequences: int = 4, seed: int = 0) -> tuple[Comparison, ...]:
    """Gradient flow and Jacobian spectrum of seven recurrences with random inputs, in float64.

    Args:
        hidden: units of each.
        steps: the length of the sequences.
        sequences: how many.
        seed: of weights and inputs.
    """
    results = []
    for name, make in _RECURRENCES:
        torch.manual_seed(seed)
        cell = make(4, hidden).double()
        x = torch.randn(sequences, steps, 4, dtype=torch.float64)
        flow = gradient_flow(cell, x)
        exponents = [jacobian_spectrum(cell, x, row=row, steps=steps)[0].lyapunov[0] for row in range(sequences)]
        results.append(Comparison(name, flow.curves[-1], float(np.exp(np.mean(exponents)))))
    return tuple(results)


def textbook_figure(results: tuple[Comparison, ...]) -> Figure:
    """Norm of the gradient against lag, measured (solid) and as the spectrum has it (dashed)."""
    figure, (axes,) = new_figure(width=8, height=4.5)
    for n, result in enumerate(results):
        norms = result.flow.norms
        norms = norms[: 1 + min(200, len(norms) - 1)]
        lags = np.arange(len(norms))
        scale = np.nanmax(norms[:2])
        label = f"{result.name}: ×{result.flow.rate:.3f} a step (spectrum: {result.spectral_rate:.3f})"
        axes.semilogy(lags, norms / scale, color=colour(n), label=label)
        anchor = len(norms) // 2
        if np.isfinite(norms[anchor]) and norms[anchor] > 0:
            line = norms[anchor] / scale * result.spectral_rate ** (lags - anchor).astype(float)
            axes.semilogy(lags, line, color=colour(n), linestyle="--", linewidth=0.7)
    axes.set_ylim(1e-12, 1e12)
    finish(axes, "What is left of a gradient on its way back", "lag t - k, steps", "norm of dL_t/ds_k, 1 at first")
    legend(axes)
    return figure


def _elman(gain: float) -> Callable[[int, int], Cell]:
    def make(inputs: int, hidden: int) -> Cell:
        cell = Elman(inputs, hidden)
        orthogonal_(cell, gain)
        with torch.no_grad():  # small inputs, so that tanh is not flat and the recurrent matrix decides
            cell.input.weight.mul_(0.1)
        return cell

    return make


_RECURRENCES: tuple[tuple[str, Callable[[int, int], Cell]], ...] = (
    ("Elman, singular values 0.9", _elman(0.9)),
    ("Elman, singular values 2.5", _elman(2.5)),
    ("LSTM, forget bias 0", lambda i, h: LSTM(i, h, forget_bias=0.0)),
    ("LSTM, forget bias 5", lambda i, h: LSTM(i, h, forget_bias=5.0)),
    ("GRU", GRU),
    ("additive memory", AdditiveMemory),
    ("diagonal linear (LRU, |λ| to 0.97)", lambda i, h: LRU(i, h, radius=(0.96, 0.97))),
)


def main() -> None:
    """Draws docs/figures/gradient-flow.png: ``python -m throughtime.insight.textbook docs/figures``."""
    import sys
    from pathlib import Path

    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    folder.mkdir(parents=True, exist_ok=True)
    results = textbook()
    textbook_figure(results).savefig(folder / "gradient-flow.png", dpi=110)
    for result in results:
        sys.stdout.write(
            f"{result.name:36s} fitted {result.flow.rate:.4f}  spectrum {result.spectral_rate:.4f}  "
            f"{result.difference:+.1%}  {result.flow.verdict}\n"
        )


if __name__ == "__main__":
    main()
