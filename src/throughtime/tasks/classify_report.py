"""What the report of a classification run says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from throughtime.insight.report import Section, Shaded, write_report
from throughtime.learning import Training
from throughtime.tasks.classify import Classified, ClassifyModel
from throughtime.tasks.classify_data import Example
from throughtime.tasks.reading_report import (
    ERRORS,
    class_section,
    confusion_section,
    course,
    saliency,
    settings_table,
    shaded,
)

_LONGEST = 1000  # steps of a sequence that is looked into


def report(model: ClassifyModel, examples: Sequence[Example], run: Path, training: Training) -> Path:
    """Writes ``report.html`` into the folder of a run: scores on the validation data, errors and what led to them.

    Raises:
        UserError: the run has no metrics, or the file cannot be written.
    """
    scores = model.evaluate(examples)
    found = model.predict(examples)
    wrong = [k for k, one in enumerate(found) if one.label != examples[k].label]
    settings = model.settings
    made = f"{settings.layers} layer{'s' if settings.layers > 1 else ''} of {settings.hidden} {settings.cell} units"
    by = "the weights of attention" if settings.pooling == "attention" else "gradient times input"
    path = run / "report.html"
    write_report(
        path,
        title=f"A model that classifies: {run.resolve().name}",
        lead=(
            f"{made}: {100 * scores.accuracy:.2f} % of the {scores.examples:,} validation examples are right. The best "
            "weights were chosen on these, so that others are likely to fare a little worse."
        ),
        sections=[
            *course(run, "accuracy"),
            class_section(scores.classes),
            confusion_section([example.label for example in examples], [one.label for one in found]),
            Section(
                "The surest errors",
                [f"Shaded by how much each step counted for the wrong class ({by})."]
                if wrong
                else ["There is none on the validation data."],
                texts=_errors(model, examples, found, wrong),
            ),
        ],
        settings=settings_table(
            asdict(settings),
            {f"training: {name}": value for name, value in training.to_json().items()},
            {"parameters": f"{sum(p.numel() for p in model.network.parameters()):,}"},
        ),
        commands=[f"throughtime evaluate {run} --data FILE", f"throughtime predict {run} --input FILE"],
    )
    return path


def _errors(
    model: ClassifyModel, examples: Sequence[Example], found: Sequence[Classified], wrong: Sequence[int]
) -> list[Shaded]:
    texts: list[Shaded] = []
    for k in sorted(wrong, key=lambda k: -found[k].probability):
        example, one = examples[k], found[k]
        if len(texts) == ERRORS:
            break
        if not 0 < example.length <= _LONGEST:
            continue
        title = f"{example.label}, taken for {one.label} with {one.probability:.2f} ({example.where})"
        words = example.words or [f"{t}" for t in range(example.length)]
        texts.append(shaded(title, words, steps_that_count(model, example, one.label)))
    return texts


def steps_that_count(model: ClassifyModel, example: Example, label: str) -> list[float]:
    """How much each step counts for a class, 0 to 0.7: by attention where the model has it, or else by gradient."""
    model.network.eval()
    inputs = model.inputs([example])
    with torch.no_grad():
        x = model.network.features.embed(inputs)  # type: ignore[arg-type]
        weights = model.network.judge(x, inputs.lengths)[1]
    if weights is not None:
        top = float(weights.max())
        return [0.7 * value / top for value in weights[0].tolist()]

    def judge(x: Tensor) -> Tensor:
        return model.network.judge(x, inputs.lengths)[0][0, model.labels.index(label)]

    return saliency(judge, x)
