"""What the report of a language run says."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from throughtime.insight.report import Curve, Sample, Section, draw_curves, write_report
from throughtime.insight.sections import course_section
from throughtime.learning import Training, read_metrics

if TYPE_CHECKING:
    from throughtime.tasks.language import LanguageModel

_LENGTH = {"char": 600, "word": 150, "bpe": 200}  # units of a sample
_NAME = {"char": "character", "word": "word", "bpe": "sub-word"}
_MOST = 6  # documents in a sample
_LEARNT_BY_HEART = 0.1  # nats between training and validation that are worth a word


def report(model: LanguageModel, run: Path, training: Training) -> Path:
    """Writes ``report.html`` into the folder of a run: how the loss fell, what the model writes, the settings.

    Raises:
        UserError: the run has no metrics, or the file cannot be written.
    """
    records = read_metrics(run)
    loss = [(r["seconds"] / 60, r["loss"]) for r in records if r["loss"] is not None]
    validation = [(r["seconds"] / 60, r["validation_nats"]) for r in records if "validation_nats" in r]
    rate = [(r["seconds"] / 60, r["learning_rate"]) for r in records]
    chance = math.log(model.vocabulary.size)
    settings = {**asdict(model.settings), **{f"training: {k}": v for k, v in training.to_json().items()}}
    settings["parameters"] = f"{sum(p.numel() for p in model.network.parameters()):,}"
    settings["vocabulary"] = f"{model.vocabulary.size:,} units"
    unit = _NAME[model.settings.unit]
    course = course_section(records)
    path = run / "report.html"
    write_report(
        path,
        title=f"A model of text: {run.resolve().name}",
        lead=_lead(model, validation),
        sections=[
            Section(
                f"How well it foretells the next {unit}",
                _seen(loss, validation, chance, training.keep),
                draw_curves(
                    [
                        Curve("training", *_axes(loss)),
                        Curve("validation", *_axes(validation), marked=True),
                    ],
                    x_label="minutes",
                    y_label=f"nats a {unit}",
                ),
                "Training and validation loss over time",
            ),
            Section(
                "The learning rate",
                ["How large the steps were. A schedule that ends near zero lets the loss settle at the end."],
                draw_curves([Curve("learning rate", *_axes(rate))], x_label="minutes", y_label="learning rate"),
                "Learning rate over time",
            ),
            *([course] if course is not None else []),
        ],
        settings={name.replace("_", " "): value for name, value in settings.items() if value is not None},
        samples=_samples(model),
        commands=[
            f"throughtime generate {run} --length 500 --temperature 0.8",
            f"throughtime evaluate {run} --text FILE",
            f"throughtime inspect {run}",
        ],
    )
    return path


def _axes(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _lead(model: LanguageModel, validation: list[tuple[float, float]]) -> str:
    settings = model.settings
    made = f"{settings.layers} layer{'s' if settings.layers > 1 else ''} of {settings.hidden} {settings.cell} units"
    if not validation:
        return f"{made}, not validated."
    best = min(y for _, y in validation)
    return (
        f"{made}: {best:.3f} nats ({best / math.log(2):.3f} bits) a {_NAME[settings.unit]} on text it was not trained "
        f"on, as if it chose among {math.exp(best):.1f} equally likely ones each time."
    )


def _seen(
    loss: list[tuple[float, float]], validation: list[tuple[float, float]], chance: float, keep: str
) -> list[str]:
    sentences = [
        f"Lower is better; blind guessing would cost {chance:.2f} nats.",
    ]
    if validation:
        minutes, best = min(validation, key=lambda point: point[1])
        kept = "; those weights were kept" if keep == "best" else ""
        sentences.append(f"Validation was lowest, {best:.3f}, after {minutes:.1f} minutes{kept}.")
        if validation[-1][1] > best + 0.01:
            sentences.append("After that it rose: the model went on to learn the training text by heart.")
    if validation and loss:
        gap = validation[-1][1] - loss[-1][1]
        if gap > _LEARNT_BY_HEART:
            sentences.append(
                f"At the end training stands {gap:.2f} below validation: more text, or dropout, may help more than a "
                "larger model."
            )
        else:
            sentences.append(
                "At the end training and validation lie close together: a longer run or a larger model may still help."
            )
    return sentences


def _samples(model: LanguageModel) -> list[Sample]:
    length = _LENGTH[model.settings.unit]
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("temperature 0.5: what it is sure of", {"temperature": 0.5}),
        ("temperature 0.8", {"temperature": 0.8}),
        ("temperature 1.0: as it learnt", {"temperature": 1.0}),
    ]
    return [Sample(title, _written(model, length, cut)) for title, cut in kinds]


def _written(model: LanguageModel, length: int, cut: dict[str, Any]) -> str:
    """About so much text: one, or as many short documents as make it up."""
    texts: list[str] = []
    left = length
    while left > 0 and len(texts) < _MOST:
        pieces = list(model.generate(length=left, seed=len(texts) + 1, **cut))
        texts.append("".join(pieces))
        left -= len(pieces)
    return "\n\n".join(text.strip("\n") for text in texts)
