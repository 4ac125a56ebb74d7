"""Learning to classify: a sentiment, an intent, a gesture, a digit for a whole sequence.

>>> from tempfile import TemporaryDirectory
>>> from throughtime.learning import Training
>>> text = "text,label\\n" + "so good,yes\\nso bad,no\\n" * 20
>>> with TemporaryDirectory() as folder:
...     _ = Path(folder, "train.csv").write_text(text)
...     settings = Settings(hidden=8, embedding=8, batch_size=4)
...     training = Training(epochs=10, optimizer="adam", learning_rate=0.02)
...     model = train(Path(folder, "train.csv"), Path(folder, "run"), settings, training)
>>> model.predict(model.examples(["very good"]))[0].label
'yes'
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from throughtime.data.buckets import Buckets, in_order
from throughtime.data.index import WordIndex, split_validation
from throughtime.data.series import series_of_line
from throughtime.data.streams import IGNORED
from throughtime.errors import UserError
from throughtime.layers import TokenFeatures, Tokens
from throughtime.learning import Loss, Training, begin_run, fit, load_model, load_settings, seed_all
from throughtime.learning.processes import first_process
from throughtime.learning.run_folder import refuse_overwriting
from throughtime.tasks.classify_data import Example, words_of_text
from throughtime.tasks.classify_network import Classifier
from throughtime.tasks.classify_settings import Settings
from throughtime.tasks.held_out import remember_held_out
from throughtime.tasks.label_scores import class_scores
from throughtime.tasks.reading import Frames, SeriesFeatures, moved

JOB = "classify"
TRAINING = Training(epochs=30, optimizer="adam", schedule="plateau", patience=8, clip_norm=5.0)  # usual for this job
_ROWS = 256  # sequences that are measured together


class Batch(NamedTuple):
    """Sequences with their classes, as numbers."""

    inputs: Tokens | Frames
    labels: Tensor  # (B,)


@dataclass(frozen=True)
class Classified:
    """What a model says of a sequence."""

    label: str
    probability: float
    probabilities: dict[str, float]  # of all classes


@dataclass(frozen=True)
class Scores:
    """What a classification is worth."""

    accuracy: float
    macro_f1: float  # the mean over the classes that come
    nats: float  # the mean of -ln p(right class), over examples whose class is known
    examples: int
    unseen: int  # examples of classes that the training data did not have; they count as missed
    classes: dict[str, dict[str, float]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class ClassifyModel:
    """A trained model, with what is needed to classify."""

    network: Classifier
    index: WordIndex | None  # None for series
    channels: int  # of series
    labels: list[str]
    form: str  # of the training data
    settings: Settings

    def read(self, path: str | Path, *, labelled: bool = True, form: str | None = None) -> list[Example]:
        """The examples of a file of the kind that the model was trained on; their labels only where wanted."""
        settings = self.settings if form is None else replace(self.settings, format=form)
        form, examples = settings.read(Path(path), "test", labelled=labelled)
        if Settings.is_series(form) != (self.index is None):
            was = "series" if self.index is None else "text"
            raise UserError(f"{path}: {form} files are not what this model was trained on, which is {was}")
        for example in examples:
            self.check(example)
        return examples

    def examples(self, lines: Iterable[str]) -> list[Example]:
        """Examples from lines of text, or of values as in a .ts file without label.

        Raises:
            UserError: a value is no number, or the channels are not those of the training data.
        """
        found = []
        for number, line in enumerate(lines, 1):
            if self.index is not None:
                words = tuple(line.split()) if self.form == "trees" else words_of_text(line, self.settings.unit)
                found.append(Example(words, None, "", f"input:{number}"))
            else:
                series = series_of_line(line, Path("input"), number, labelled=False)
                found.append(Example((), series.values, "", series.where))
                self.check(found[-1])
        return found

    def check(self, example: Example) -> None:
        """
        Raises:
            UserError: a series has other channels than the training data.
        """
        if example.values is not None and example.values.shape[1] != self.channels:
            raise UserError(
                f"{example.where}: {example.values.shape[1]} channels, where the training data have {self.channels}"
            )

    def predict(self, examples: Sequence[Example]) -> list[Classified]:
        """Says the class of each."""
        found: list[Classified] = []
        for row in self.probabilities(examples).tolist():
            chances = dict(zip(self.labels, row, strict=True))
            label = max(chances, key=lambda name: chances[name])
            found.append(Classified(label, chances[label], chances))
        return found

    @torch.no_grad()
    def probabilities(self, examples: Sequence[Example]) -> Tensor:
        """(N, classes) of the examples, in order."""
        self.network.eval()
        found = torch.zeros(len(examples), len(self.labels))
        for rows in in_order([example.length for example in examples], _ROWS):
            inputs = self.inputs([examples[row] for row in rows])
            found[rows] = self.network(inputs)[0].float().softmax(-1).cpu()
        return found

    def evaluate(self, data: str | Path | Sequence[Example]) -> Scores:
        """Compares with the right classes.

        Raises:
            UserError: the file cannot be read, or has no labels.
        """
        examples = self.read(data) if isinstance(data, (str, Path)) else data
        chances = self.probabilities(examples)
        numbers = {label: number for number, label in enumerate(self.labels)}
        gold = torch.tensor([numbers.get(example.label, -1) for example in examples])
        known = gold >= 0
        own = chances[known].gather(1, gold[known][:, None]).clamp(min=1e-30).log()
        said = [self.labels[k] for k in chances.argmax(1).tolist()]
        right = [example.label for example in examples]
        classes = class_scores(right, said)
        there = [row["f1"] for row in classes.values() if row["count"]]
        return Scores(
            accuracy=sum(a == b for a, b in zip(right, said, strict=True)) / len(examples),
            macro_f1=sum(there) / len(there),
            nats=float(-own.mean()) if bool(known.any()) else 0.0,
            examples=len(examples),
            unseen=int((~known).sum()),
            classes=classes,
        )

    def inputs(
        self, examples: Sequence[Example], drawn: np.random.Generator | None = None, *, move: bool = True
    ) -> Tokens | Frames:
        """Examples as the network takes them; changed at random as the settings say where ``drawn`` is given."""
        if self.index is not None:
            forget = self.settings.forget_rare if drawn is not None else 0.0
            words = [example.words for example in examples]
            inputs: Any = Tokens(*self.index.encode(words, forget, drawn))
        else:
            inputs = _frames([_values(example) for example in examples], self.channels)
            if drawn is not None:
                inputs = self._changed(inputs, drawn, examples[0].columns if examples else 0)
        return moved(inputs, self.network.output.weight.device) if move else inputs

    def _changed(self, frames: Frames, drawn: np.random.Generator, columns: int) -> Frames:
        settings, values = self.settings, frames.values
        if columns:
            images = values.reshape(len(values), -1, columns)
            values = settings.warp(images, drawn).reshape(values.shape)
        features = self.network.features
        assert isinstance(features, SeriesFeatures)
        if settings.stretch:
            scale = 1 + settings.stretch * drawn.uniform(-1, 1, (len(values), 1, 1))
            mean = features.mean.cpu()
            values = (values - mean) * torch.from_numpy(scale).float() + mean
        if settings.jitter:
            noise = torch.from_numpy(drawn.standard_normal(tuple(values.shape))).float()
            values = values + settings.jitter * features.deviation.cpu() * noise
        return Frames(values, frames.lengths)


class ClassifyProblem:
    """What the training loop is handed."""

    def __init__(
        self, model: ClassifyModel, training: Sequence[Example], held_out: Sequence[Example], seed: int
    ) -> None:
        self.model: nn.Module = model.network
        self._classifier = model
        self._training, self._held_out, self._seed = training, held_out, seed
        self._numbers = {label: number for number, label in enumerate(model.labels)}
        self._buckets = Buckets([example.length for example in training], model.settings.batch_size, seed=seed)
        self.steps_per_epoch = self._buckets.steps

    def batch(self, step: int, rank: int, world: int) -> Batch:
        chosen = [self._training[k] for k in self._buckets(step, rank, world)]
        drawn = np.random.default_rng([self._seed, step, rank])
        labels = torch.tensor([self._numbers[example.label] for example in chosen], dtype=torch.int64)
        return Batch(self._classifier.inputs(chosen, drawn, move=False), labels)

    def loss(self, batch: Batch, state: Any) -> Loss:
        network = self._classifier.network
        device = network.output.weight.device
        if len(batch.labels) == 0:
            return Loss(torch.zeros((), device=device), 0)
        scores, _ = network(moved(batch.inputs, device))
        cost = nn.functional.cross_entropy(scores, batch.labels.to(device), ignore_index=IGNORED)
        return Loss(cost, len(batch.labels))

    def validate(self) -> dict[str, float]:
        """Goes by the share of errors, and by the loss where that is equal, as it often is on few examples."""
        scores = self._classifier.evaluate(self._held_out)
        tie = scores.nats / (1 + scores.nats) / scores.examples  # less than one error counts
        return {"error": 1 - scores.accuracy + tie, "accuracy": scores.accuracy, "nats": scores.nats}


def train(
    data: str | Path,
    out: str | Path,
    settings: Settings | None = None,
    training: Training | None = None,
    *,
    resume: bool = False,
) -> ClassifyModel:
    """Trains a model on labelled sequences and leaves the run folder ``out``: weights, settings, metrics, report.html.

    Args:
        data: a file, or a folder of IDX files.
        out: the folder of the run.
        settings: what is read and built.
        training: how long and how; thirty epochs of Adam at most unless given.
        resume: go on with the run in ``out``, where there is one.

    Raises:
        UserError: data, settings or folder will not do.
    """
    settings, training, out = settings or Settings(), training or TRAINING, Path(out)
    refuse_overwriting(out, resume)
    form, learnt = settings.read(Path(data), "train")
    settings.check_form(form, data)
    labels = sorted({example.label for example in learnt})
    if len(labels) < 2:
        raise UserError(f"{data}: all examples are of the class {labels[0]!r}; at least two classes are needed")
    if settings.valid is not None:
        rest = None
        other, held_out = settings.read(Path(settings.valid), "valid")
        if Settings.is_series(other) != Settings.is_series(form):
            raise UserError(f"{settings.valid}: {other} files are not what {data} is, which is {form}")
    else:
        chosen, rest = split_validation([example.label for example in learnt], settings.valid_fraction, training.seed)
        if not rest:
            raise UserError(f"{data}: one example of each class, none to validate on; give some with --valid")
        learnt, held_out = [learnt[k] for k in chosen], [learnt[k] for k in rest]
    seed_all(training.seed)
    index = None if Settings.is_series(form) else settings.index([example.words for example in learnt])
    channels = 0 if index is not None else _values(learnt[0]).shape[1]
    network = _network(settings, index, channels, len(labels))
    if isinstance(network.features, SeriesFeatures):
        network.features.measure(torch.from_numpy(_values(example)) for example in learnt)
    elif index is not None:
        settings.use_vectors(network.features, index)
    model = ClassifyModel(network, index, channels, labels, form, settings)
    for example in held_out:
        model.check(example)
    made = {"words": None if index is None else index.to_json(), "channels": channels, "labels": labels, "form": form}
    begin_run(out, JOB, {**asdict(settings), "model": made}, resume=resume, usual=asdict(Settings()))
    if rest is not None:
        remember_held_out(out, Path(data), rest, held_out)
    fit(ClassifyProblem(model, learnt, held_out, training.seed), out, training, resume=resume, items="sequences")
    network.eval()
    if first_process():
        from throughtime.tasks.classify_report import report  # its figures load slowly; using need not wait for them

        report(model, held_out, out, training)
    return model


def load(run: str | Path) -> ClassifyModel:
    """The model of a run folder.

    Raises:
        UserError: the folder is missing, damaged, newer, or of another job.
    """
    settings, said = load_settings(run, JOB, Settings)
    made = said["model"]
    index = None if made["words"] is None else WordIndex.from_json(made["words"])
    network = _network(settings, index, made["channels"], len(made["labels"]))
    load_model(Path(run), network)
    return ClassifyModel(network.eval(), index, made["channels"], made["labels"], made["form"], settings)


def _network(settings: Settings, index: WordIndex | None, channels: int, classes: int) -> Classifier:
    features: TokenFeatures | SeriesFeatures
    features = SeriesFeatures(channels, settings.window) if index is None else settings.token_features(index)
    recurrent = settings.recurrent(features.output_size)
    return Classifier(features, recurrent, settings.pool(recurrent.output_size), classes, settings.dropout)


def _values(example: Example) -> Any:
    assert example.values is not None
    return example.values


def _frames(series: Sequence[Any], channels: int) -> Frames:
    lengths = torch.tensor([len(values) for values in series], dtype=torch.int64)
    padded = np.zeros((len(series), max(map(len, series), default=0), channels), dtype=np.float32)
    for row, values in enumerate(series):
        padded[row, : len(values)] = values
    return Frames(torch.from_numpy(padded), lengths)
