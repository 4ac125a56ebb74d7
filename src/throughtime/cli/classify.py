"""``train classify``, and ``evaluate`` and ``predict`` for its runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from throughtime.cli.app import evaluate, predict, train
from throughtime.cli.options import with_training
from throughtime.cli.reading import (
    DATA,
    INPUT,
    JSON,
    JSON_LINES,
    RUN,
    format_option,
    groups,
    lines_of,
    read_as,
    say,
    say_figures,
)
from throughtime.cli.settings import with_settings
from throughtime.learning import Training
from throughtime.learning.processes import first_process
from throughtime.tasks import classify
from throughtime.tasks.classify import Classified, Settings
from throughtime.tasks.classify_data import FORMATS, format_by_name


@train.command("classify")
@with_training(classify.TRAINING)
@with_settings(Settings, "Data and model")
def train_classify(
    *,
    data: Annotated[Path, typer.Option("--data", help="A file of labelled sequences, or a folder of IDX files.")],
    out: Annotated[Path, typer.Option("--out", help="The folder of the run; made if need be.")],
    settings: Settings,
    training: Training,
    resume: bool,
) -> None:
    """Train a model that classifies sequences: texts, series, images read as time."""
    classify.train(data, out, settings, training, resume=resume)
    if first_process():
        say(f"report: {out / 'report.html'}\nnext:   throughtime evaluate {out} --data FILE")


@evaluate.command("classify")
def evaluate_classify(run: RUN, *, data: DATA, as_json: JSON = False) -> None:
    """Compare a model's classes with the right ones; of a folder of IDX files, the test files are read."""
    say_figures(classify.load(run).evaluate(data).to_json(), as_json)


@predict.command("classify")
def predict_classify(
    run: RUN,
    *,
    input_: INPUT = Path("-"),
    form: Annotated[str, format_option(FORMATS)] = "auto",
    as_json: JSON_LINES = False,
) -> None:
    """Classify texts or series, one a line, or those of a file like the training data's: CLASS, a tab, its probability.

    Labels are not needed, and not read; of a table, the column of texts that the model was trained on is.
    """
    model = classify.load(run)
    form, input_ = read_as(form, input_, FORMATS, format_by_name(input_))
    if form != "lines":
        for one in model.predict(model.read(input_, labelled=False, form=form)):
            say(_told(one, as_json))
        return
    for lines in groups(lines_of(input_), str(input_) != "-"):
        for one in model.predict(model.examples(lines)):
            say(_told(one, as_json))


def _told(one: Classified, as_json: bool) -> str:
    if not as_json:
        return f"{one.label}\t{one.probability:.4f}"
    return json.dumps(
        {"label": one.label, "probability": one.probability, "probabilities": one.probabilities}, ensure_ascii=False
    )
