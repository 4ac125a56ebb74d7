"""What the report of a labelling run says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from throughtime.data.sentences import Sentence
from throughtime.insight.report import Section, Shaded, write_report
from throughtime.learning import Training
from throughtime.tasks.label import Labelled, LabelModel, rewritten
from throughtime.tasks.label_scores import Scores
from throughtime.tasks.reading_report import (
    ERRORS,
    class_section,
    confusion_section,
    course,
    saliency,
    settings_table,
    shaded,
)

_LONGEST = 1000  # words of a sentence whose errors are looked into


def report(model: LabelModel, sentences: Sequence[Sentence], run: Path, training: Training) -> Path:
    """Writes ``report.html`` into the folder of a run: scores on the validation data, errors and what led to them.

    Raises:
        UserError: the run has no metrics, or the file cannot be written.
    """
    found = model.predict_read(sentences)
    scores = model.score(sentences, found)
    gold = [rewritten(sentence.labels, model.scheme) for sentence in sentences]
    wrong = [(k, t) for k, one in enumerate(found) for t in range(len(one.labels)) if one.labels[t] != gold[k][t]]
    labels = [(a, b) for one, other in zip(gold, found, strict=True) for a, b in zip(one, other.labels, strict=True)]
    sections = course(run, "accuracy" if scores.f1 is None else "f1")
    if scores.classes:
        sections.append(class_section(scores.classes))
    sections.append(confusion_section([a for a, _ in labels], [b for _, b in labels]))
    if model.intents:
        said = [one.intent or "" for one in found]
        intents = confusion_section([sentence.intent for sentence in sentences], said)
        sections.append(Section("Intents: " + intents.title.lower(), intents.sentences, table=intents.table))
    sections.append(
        Section(
            "The surest errors",
            ["Shaded by how much each word counted for the wrong label (gradient times input)."]
            if wrong
            else ["There is none on the validation data."],
            texts=_errors(model, sentences, gold, found, wrong),
        )
    )
    path = run / "report.html"
    write_report(
        path,
        title=f"A model that labels: {run.resolve().name}",
        lead=_lead(model, scores),
        sections=sections,
        settings=settings_table(
            asdict(model.settings),
            {f"training: {name}": value for name, value in training.to_json().items()},
            {"parameters": f"{sum(p.numel() for p in model.network.parameters()):,}", "labels": len(model.labels)},
        ),
        commands=[f"throughtime evaluate {run} --data FILE", f"throughtime predict {run} --input FILE"],
    )
    return path


def _lead(model: LabelModel, scores: Scores) -> str:
    settings = model.settings
    made = f"{settings.layers} layer{'s' if settings.layers > 1 else ''} of {settings.hidden} {settings.cell} units"
    way = "from both ends" if settings.bidirectional else "forwards"
    told = f"{made}, read {way}: {100 * scores.accuracy:.2f} % of the labels of the validation data are right"
    if scores.f1 is not None:
        told += f", with an F1 of {100 * scores.f1:.2f} over whole {'words' if model.segments else 'spans'}"
    if scores.oov_recall is not None:
        told += (
            f"; of the {100 * (scores.oov_rate or 0):.1f} % of words that the training data did not have, "
            f"{100 * scores.oov_recall:.2f} % are found"
        )
    if scores.intent_accuracy is not None:
        told += f" and {100 * scores.intent_accuracy:.2f} % of the intents"
    return told + ". What was chosen by these data suits them, so that others are likely to fare a little worse."


def _errors(
    model: LabelModel,
    sentences: Sequence[Sentence],
    gold: Sequence[Sequence[str]],
    found: Sequence[Labelled],
    wrong: Sequence[tuple[int, int]],
) -> list[Shaded]:
    texts: list[Shaded] = []
    shown: set[int] = set()
    for k, t in sorted(wrong, key=lambda at: -found[at[0]].probabilities[at[1]]):
        if len(texts) == ERRORS:
            break
        if k in shown or len(sentences[k].words) > _LONGEST:
            continue
        shown.add(k)
        one, sentence = found[k], sentences[k]
        title = (
            f"{sentence.words[t]!r} is {gold[k][t]}, taken for {one.labels[t]} with {one.probabilities[t]:.2f} "
            f"({sentence.where})"
        )
        shades = _shades(model, sentence, t, one.labels[t])
        texts.append(shaded(title, sentence.words, shades, apart="" if model.segments else " "))
    return texts


def _shades(model: LabelModel, sentence: Sentence, t: int, label: str) -> list[float]:
    tokens = model.tokens([sentence])
    number = model.labels.index(label)

    def judge(x: Tensor) -> Tensor:
        return model.network.judge(x, tokens.lengths)[0][0, t, number]

    with torch.no_grad():
        x = model.network.features.embed(tokens)
    return saliency(judge, x)
