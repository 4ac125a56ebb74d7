"""The views of a trained network as sections of its report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.insight.figures import colour, counted, finish, legend, log_where_positive, new_figure, picture
from throughtime.insight.gates import gates
from throughtime.insight.gradient_flow import gradient_flow
from throughtime.insight.jacobian import jacobian_spectrum
from throughtime.insight.memory import memory
from throughtime.insight.record import Layer, overflow, record_run
from throughtime.insight.report import Section
from throughtime.insight.states import inside, position_in_line, states
from throughtime.learning.flat import flatten_state

STEPS = 64  # whose Jacobians are decomposed: the dearest of the views
SHOWN = 12  # units in the heat map of those that respond


def inside_sections(
    network: nn.Module,
    x: Tensor,
    loss: Callable[[Tensor], Tensor] | None = None,
    *,
    text: Sequence[str] = (),
    **options: Any,
) -> list[Section]:
    """What happens inside a network on one batch: gradients, Jacobians, memory, gates, states.

    >>> import torch, throughtime as tt
    >>> found = inside_sections(tt.Recurrent(tt.cells.GRU, 3, 5), torch.randn(1, 20, 3))
    >>> [section.title for section in found][:2]
    ['Gradients through time', 'What one step does to a gradient']

    Args:
        network: as in `throughtime.insight.gradient_flow`; best in eval mode.
        x: its input, (B, T, ...); one to two hundred steps of a few sequences will do.
        loss: as in `gradient_flow`.
        text: what the first sequence reads at each step: the heat map then shows the units that follow the position in
            the line and quotes.
        options: passed to the network.
    """
    with torch.no_grad():
        _, layers = record_run(network, x, **options)
    lost = overflow(layers)
    sections: list[Section] = []
    if lost is not None:
        steps = lost[1]
        cut = steps > 1 and not options and not any(layer.reverse for layer in layers)
        sections.append(_overflow_section(*lost, followed=cut))
        if not cut:
            return sections
        x, text, loss = x[:, :steps], text[:steps], None  # the loss is of all steps; a projection will do
    flow = gradient_flow(network, x, loss, **options)
    sections.append(
        Section(
            "Gradients through time",
            [flow.sentence, "Solid is measured, dashed the fitted line; a horizontal line is a memory that holds."],
            picture(flow.figure()),
            "Norm of the gradient of the loss by earlier states against the lag",
        )
    )
    for spectrum in jacobian_spectrum(network, x, steps=STEPS, **options):
        sections.append(
            Section(
                "What one step does to a gradient",
                [spectrum.sentence],
                picture(spectrum.figure()),
                f"Singular values of the step's Jacobian, {spectrum.name}",
            )
        )
    for remembered in memory(network, x, **options):
        sections.append(
            Section(
                "How long an input is remembered",
                [remembered.sentence],
                picture(remembered.figure()),
                f"Influence of an input on the state against the lag, {remembered.name}",
            )
        )
    opened = gates(network, x, **options)
    if opened.gates:
        sections.append(Section("Gates", [opened.sentence], picture(opened.figure()), "Histograms of gates"))
    seen = states(network, x, text=text, **options)
    sections.append(
        Section("States", [seen.sentence], picture(seen.figure()), "Heat map of the last layer's units over steps")
    )
    if text:
        for title, measured in (("the position in the line", position_in_line(text)), ("quotes", inside(text))):
            if len(set(measured)) > 1:
                units = seen.responding(measured)[:SHOWN]
                first, correlation = units[0]
                sections.append(
                    Section(
                        f"Units that follow {title}",
                        [f"Unit {first} follows it most closely, with a correlation of {correlation:.2f}."],
                        picture(seen.figure([unit for unit, _ in units])),
                        f"Heat map of the units that follow {title}",
                    )
                )
    return sections


def _overflow_section(layer: Layer, steps: int, *, followed: bool) -> Section:
    """How a state grew until it was no number any more."""
    norms = [float(flatten_state(state).detach().norm(dim=1).max()) for state in layer.record.after[: steps + 1]]
    figure, (axes,) = new_figure()
    axes.plot([norm if math.isfinite(norm) else math.nan for norm in norms], color=colour(0))
    log_where_positive(axes)
    finish(axes, f"Size of the state of {layer.name or 'the cell'}", "step", "norm")
    return Section(
        "The state overflows",
        [
            f"The state of {layer.name or 'the cell'} is no longer finite after {counted(steps, 'step')}.",
            "Try smaller recurrent weights (orthogonal_, spectral_radius_), a cell whose state is bounded, clipping "
            "and a smaller learning rate." + (" What follows is of the steps before." if followed else ""),
        ],
        picture(figure),
        "Norm of the state over steps",
    )


def course_section(records: Sequence[Mapping[str, Any]]) -> Section | None:
    """What the `Monitor` saw in the course of a run, from the records of metrics.jsonl; None where it saw nothing.

    Args:
        records: of `throughtime.learning.read_metrics`.
    """
    names = [name for name in dict.fromkeys(key for r in records for key in r) if name.startswith("flow ")]
    if not names:
        return None
    figure, (axes,) = new_figure()
    for n, name in enumerate(names):
        points = [(r["step"], r[name]) for r in records if name in r and "step" in r]
        axes.plot([x for x, _ in points], [y for _, y in points], color=colour(n), label=name.removeprefix("flow "))
    axes.axhline(1, color="black", linewidth=0.5)
    finish(axes, "Factor of the gradient a step back", "training step", "factor")
    legend(axes)
    warnings = [text for record in records for text in record.get("monitor", ())]
    said = [f"The monitor said: {text}" for text in warnings] or ["The monitor had nothing to say against it."]
    return Section(
        "Gradients through time, in the course of training",
        ["At 1 a gradient holds, below it vanishes, above it explodes.", *said],
        picture(figure),
        "Factor of the gradient for each step back, over training",
    )
