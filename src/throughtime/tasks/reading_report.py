"""What the reports of jobs that read sequences share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from throughtime.insight.report import Curve, Section, Shaded, Table, draw_curves
from throughtime.learning import read_metrics

CLASSES = 20  # classes that a table shows, at most
ERRORS = 12  # errors that are shown
_MEASURES = ("precision", "recall", "f1")
_STEPS = 200  # of a sequence that are shown


def course(run: Path, measure: str) -> list[Section]:
    """How loss and a measure of the validation went."""
    records = read_metrics(run)
    loss = [(r["step"], r["loss"]) for r in records if r["loss"] is not None]
    validation = [(r["step"], r[f"validation_{measure}"]) for r in records if f"validation_{measure}" in r]
    name = measure.replace("_", " ")
    sentences = []
    if validation:
        step, best = max(validation, key=lambda point: point[1])
        sentences = [f"It was highest, {best:.4f}, after {step:,} steps."]
    return [
        Section(
            f"The validation's {name}",
            sentences,
            draw_curves([Curve(name, *_axes(validation), marked=True)], x_label="steps", y_label=name),
            f"{name} of the validation over steps",
        ),
        Section(
            "The loss in training",
            [
                "Lower is better; where it goes on falling while the validation's figure does not rise, more data or "
                "more dropout may help."
            ],
            draw_curves([Curve("training", *_axes(loss))], x_label="steps", y_label="loss"),
            "Training loss over steps",
        ),
    ]


def class_section(classes: Mapping[str, Mapping[str, float]]) -> Section:
    """Precision, recall and F1 of each class, the most frequent first."""
    ranked = sorted(classes, key=lambda name: -classes[name]["count"])
    rows = [
        [name, *(f"{100 * classes[name][m]:.1f}" for m in _MEASURES), f"{int(classes[name]['count']):,}"]
        for name in ranked
    ]
    left = f" The {CLASSES} most frequent of {len(rows)} are shown." if len(rows) > CLASSES else ""
    return Section(
        "Class by class",
        [f"Of what is found, how much is right (precision); of what is there, how much is found (recall).{left}"],
        table=Table(["class", "precision %", "recall %", "F1", "count"], rows[:CLASSES]),
    )


def confusion_section(gold: Sequence[str], found: Sequence[str]) -> Section:
    """What was taken for what: the classes with most errors where there are many."""
    counts = Counter(zip(gold, found, strict=True))
    wrong: Counter[str] = Counter()
    for (one, other), count in counts.items():
        if one != other:
            wrong[one] += count
            wrong[other] += count
    names = sorted({*gold, *found})
    told = f"Of {len(gold):,}, {sum(a != b for a, b in zip(gold, found, strict=True)):,} are wrong. Rows: what it is."
    if len(names) > CLASSES:
        names = sorted(name for name, _ in wrong.most_common(CLASSES))
        told += f" The {len(names)} classes with most errors are shown."
    totals = Counter(gold)
    rows = [[name, *(f"{counts[name, other]}" if counts[name, other] else "" for other in names)] for name in names]
    shades = [[0.0, *(0.8 * counts[name, other] / max(totals[name], 1) for other in names)] for name in names]
    return Section("What is taken for what", [told], table=Table(["", *names], rows, shades))


def saliency(judge: Callable[[Tensor], Tensor], x: Tensor) -> list[float]:
    """What each step counts for in a score, 0 to 1: the gradient times the input (Shrikumar et al. 2017).

    Args:
        judge: from embedded steps (1, T, E) to the score, a scalar.
        x: those steps.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(judge(x), x)
    weight = (gradient * x).detach().sum(-1)[0].abs()  # (T,)
    top = float(weight.max()) if len(weight) else 0.0
    return [0.7 * value / top if top else 0.0 for value in weight.tolist()]


def shaded(title: str, words: Sequence[str], shades: Sequence[float], *, apart: str = " ") -> Shaded:
    """A text with its words shaded."""
    parts = [(word + apart, shade) for word, shade in zip(words, shades, strict=True)][:_STEPS]
    return Shaded(title, [*parts, ("…", 0.0)] if len(words) > _STEPS else parts)


def settings_table(*groups: Mapping[str, Any]) -> dict[str, Any]:
    """Settings for the end of the report."""
    merged = {name: value for group in groups for name, value in group.items() if value is not None}
    return {name.replace("_", " "): value for name, value in merged.items()}


def _axes(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
