"""``train label``, and ``evaluate`` and ``predict`` for its runs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

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
from throughtime.data.sentences import FORMATS, format_by_name, format_of
from throughtime.errors import UserError
from throughtime.learning import Training
from throughtime.learning.processes import first_process
from throughtime.tasks import label
from throughtime.tasks.label import Labelled, LabelModel, Settings


@train.command("label")
@with_training(label.TRAINING)
@with_settings(Settings, "Data and model")
def train_label(
    *,
    data: Annotated[Path, typer.Option("--data", help="A file of labelled sentences, or a folder of parallel files.")],
    out: Annotated[Path, typer.Option("--out", help="The folder of the run; made if need be.")],
    settings: Settings,
    training: Training,
    resume: bool,
) -> None:
    """Train a model that labels each word: names, slots, parts of speech, the borders of words."""
    label.train(data, out, settings, training, resume=resume)
    if first_process():
        say(f"report: {out / 'report.html'}\nnext:   throughtime evaluate {out} --data FILE")


@evaluate.command("label")
def evaluate_label(run: RUN, *, data: DATA, as_json: JSON = False) -> None:
    """Compare a model's labels with the right ones."""
    say_figures(label.load(run).evaluate(data).to_json(), as_json)


@predict.command("label")
def predict_label(
    run: RUN,
    *,
    input_: INPUT = Path("-"),
    form: Annotated[str, format_option(FORMATS)] = "auto",
    as_json: JSON_LINES = False,
    stream: Annotated[
        bool, typer.Option("--stream", help="Label a word as soon as it can be: one word and label a line.")
    ] = False,
    look_ahead: Annotated[
        int | None, typer.Option(help="Words that a stream waits for; by default what the model needs.")
    ] = None,
) -> None:
    """Label sentences, one a line, or those of a file like the training data's, whose labels are not read.

    Written are LABEL/PROBABILITY for each word, or the words that characters make; one sentence a line.
    """
    model = label.load(run)
    form, input_ = read_as(form, input_, FORMATS, _by_name(model, input_) if form == "auto" else None)
    if look_ahead is not None and not stream:
        raise UserError("a look-ahead is for a stream; give --stream too")
    if stream and form != "lines":
        raise UserError(f"a stream is read by lines, not as {form}; leave out --stream, or give --format lines")
    if stream:
        _streamed(model, input_, look_ahead, as_json)
        return

    def told(found: Iterable[Labelled]) -> None:
        for one in found:
            say(json.dumps(_record(model, one), ensure_ascii=False) if as_json else _told(model, one))

    if form != "lines":
        told(model.predict_read(model.read(input_, labelled=False, form=form)))
        return
    for lines in groups(lines_of(input_), str(input_) != "-"):
        told(model.predict_read([model.sentence(line) for line in lines]))


def _by_name(model: LabelModel, path: Path) -> str | None:
    """The format that a file's name tells; .conll has two, so the training data's goes first."""
    named, trained = format_by_name(path), model.settings.format
    if named != "conll":
        return named
    return trained if trained in ("conll", "conllu") else format_of(path)


def _told(model: LabelModel, one: Labelled) -> str:
    if model.segments:
        return " ".join(one.segments)
    labels = " ".join(f"{name}/{chance:.3f}" for name, chance in zip(one.labels, one.probabilities, strict=True))
    return labels if one.intent is None else f"{one.intent}/{one.intent_probability:.3f}\t{labels}"


def _record(model: LabelModel, one: Labelled) -> dict[str, Any]:
    record: dict[str, Any] = {"words": one.segments} if model.segments else {"words": one.words}
    record |= {"labels": one.labels, "probabilities": [round(chance, 6) for chance in one.probabilities]}
    if model.scheme != "none" and not model.segments:
        record["spans"] = [
            {"kind": s.kind, "start": s.start, "stop": s.stop, "words": one.words[s.start : s.stop]} for s in one.spans
        ]
    if one.intent is not None:
        record |= {"intent": one.intent, "intent_probability": one.intent_probability}
    return record


def _streamed(model: LabelModel, path: Path, look_ahead: int | None, as_json: bool) -> None:
    """A line of input ends a sentence."""
    stream = model.stream(look_ahead)
    for line in lines_of(path):
        for word in model.sentence(line).words:
            _say_words(stream.push(word), as_json)
        _say_words(stream.close(), as_json)
        if not as_json:
            say("")


def _say_words(found: list[Any], as_json: bool) -> None:
    for one in found:
        say(
            json.dumps(one._asdict(), ensure_ascii=False)
            if as_json
            else f"{one.word}\t{one.label}\t{one.probability:.3f}"
        )
