"""Learning to label: a name, a slot, a part of speech, a border of a word for each step of a sequence.

>>> from tempfile import TemporaryDirectory
>>> from throughtime.learning import Training
>>> text = "to O\\nParis B-city\\n\\nfrom O\\nRome B-city\\n\\n"
>>> with TemporaryDirectory() as folder:
...     _ = Path(folder, "train").write_text(text * 20)
...     settings = Settings(hidden=8, embedding=8, batch_size=4)
...     training = Training(epochs=10, optimizer="adam", learning_rate=0.02)
...     model = train(Path(folder, "train"), Path(folder, "run"), settings, training)
>>> model.predict([["from", "Rome"]])[0].labels
['O', 'B-city']
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from throughtime.data.buckets import Buckets, in_order
from throughtime.data.index import WordIndex, split_validation
from throughtime.data.sentences import Sentence
from throughtime.data.spans import Span, labels_of, scheme_of, spans_of, words_of
from throughtime.data.streams import IGNORED
from throughtime.data.swap import SpanSwap
from throughtime.errors import UserError
from throughtime.layers import Tokens
from throughtime.learning import Loss, Training, begin_run, fit, load_model, load_settings, seed_all
from throughtime.learning.processes import first_process
from throughtime.learning.run_folder import CONFIG, refuse_overwriting
from throughtime.tasks.held_out import remember_held_out
from throughtime.tasks.label_network import Tagger
from throughtime.tasks.label_scores import Scores, oov_recalls, score
from throughtime.tasks.label_settings import Settings
from throughtime.tasks.reading import moved, tokens_of

JOB = "label"
TRAINING = Training(epochs=30, optimizer="adam", schedule="plateau", patience=8, clip_norm=5.0)  # usual for this job
_ROWS = 64  # sentences that are measured together


class Batch(NamedTuple):
    """Sentences with their labels, as numbers."""

    tokens: Tokens
    labels: Tensor  # (B, T)
    intents: Tensor | None  # (B,)


@dataclass(frozen=True)
class Labelled:
    """A sentence and what a model says of it."""

    words: list[str]
    labels: list[str]
    probabilities: list[float]  # of the labels, one each
    intent: str | None = None
    intent_probability: float | None = None

    @property
    def spans(self) -> list[Span]:
        return spans_of(self.labels)

    @property
    def segments(self) -> list[str]:
        """The words that labelled characters make."""
        return words_of(self.words, self.labels)


@dataclass(frozen=True)
class LabelModel:
    """A trained model, with what is needed to label."""

    network: Tagger
    index: WordIndex
    labels: list[str]
    intents: list[str]
    scheme: str  # that the model writes
    settings: Settings
    known: frozenset[str] | None = None  # the words of the training data, where borders of words are labelled
    width: int = 0  # the columns of the training data, where that must be known to read others without labels

    @property
    def segments(self) -> bool:
        """Whether what it labels are the borders of words."""
        return set(self.labels) <= set("BMES")

    def read(self, path: str | Path, *, labelled: bool = True, form: str | None = None) -> list[Sentence]:
        """The sentences of a file of the kind that the model was trained on; their labels only where wanted."""
        return self.settings.read(Path(path), labelled=labelled, form=form, width=self.width)

    def predict(self, sentences: Iterable[Sequence[str]]) -> list[Labelled]:
        """Labels sentences of words (of characters, for the borders of words); an empty one gets none.

        Raises:
            UserError: the model needs further columns beside the words; `predict_read` takes them.
        """
        return self.predict_read([self._bare(words) for words in sentences])

    def predict_read(self, sentences: Sequence[Sentence]) -> list[Labelled]:
        """Labels sentences as they are read from files, with their further columns; their labels are not looked at."""
        found: list[Labelled] = [Labelled([], [], [])] * len(sentences)
        self.network.eval()
        for rows in in_order([len(sentence.words) for sentence in sentences], _ROWS):
            chosen = [sentences[row] for row in rows]
            for row, labelled in zip(rows, self._labelled(chosen), strict=True):
                found[row] = labelled
        return found

    def evaluate(self, data: str | Path | Sequence[Sentence]) -> Scores:
        """Compares with the right labels.

        Raises:
            UserError: the file cannot be read, or has no labels.
        """
        sentences = self.read(data) if isinstance(data, (str, Path)) else data
        return self.score(sentences, self.predict_read(sentences))

    def score(self, sentences: Sequence[Sentence], found: Sequence[Labelled]) -> Scores:
        """The scores of what was predicted."""
        also: dict[str, Any] = {"unseen": self.unseen(sentences)}
        if self.intents and all(sentence.intent for sentence in sentences):
            right = sum(one.intent == sentence.intent for one, sentence in zip(found, sentences, strict=True))
            also["intent_accuracy"] = right / len(sentences)
        gold = [rewritten(sentence.labels, self.scheme) for sentence in sentences]
        said = [one.labels for one in found]
        if self.known is not None:
            also |= oov_recalls([sentence.words for sentence in sentences], gold, said, self.known)
        return score(gold, said, self.scheme, **also)

    def unseen(self, sentences: Sequence[Sentence]) -> int:
        """How many labels, and intents, the model does not have, so that it must miss them."""
        known, intents = set(self.labels), set(self.intents)
        missed = sum(label not in known for s in sentences for label in rewritten(s.labels, self.scheme))
        return missed + sum(bool(intents and s.intent) and s.intent not in intents for s in sentences)

    def sentence(self, line: str) -> Sentence:
        """A line of text as the model reads it: its words, or its characters where borders of words are labelled.

        Raises:
            UserError: the model needs further columns beside the words.
        """
        return self._bare("".join(line.split()) if self.segments else line.split())

    def _bare(self, words: Sequence[str]) -> Sentence:
        if self.settings.has_extras:
            raise UserError(
                "the model reads further columns beside the words, which a line of words does not have; give a file "
                "of columns (to predict, with --format conll)"
            )
        return Sentence(tuple(words), (), "", Path(), 0)

    def tokens(self, sentences: Sequence[Sentence]) -> Tokens:
        """Sentences as the network takes them, on its device."""
        words, extras = [s.words for s in sentences], [s.extras for s in sentences]
        return tokens_of(self.index, words, self.network.output.weight.device, extras)

    def stream(self, look_ahead: int | None = None) -> Any:
        """Labels words as they come; see `throughtime.tasks.label_stream.LabelStream`."""
        from throughtime.tasks.label_stream import LabelStream

        return LabelStream(self, look_ahead)

    @torch.inference_mode()
    def _labelled(self, sentences: Sequence[Sentence]) -> Iterator[Labelled]:
        tokens = self.tokens(sentences)
        scores, intent = self.network(tokens)
        best = self.network.labels(scores, tokens.lengths)
        chances = self.network.probabilities(scores, tokens.lengths).cpu()
        intents = None if intent is None else intent.softmax(-1).max(-1)
        for row, numbers in enumerate(best):
            own = chances[row, torch.arange(len(numbers)), torch.tensor(numbers, dtype=torch.int64)].tolist()
            labelled = Labelled(list(sentences[row].words), [self.labels[n] for n in numbers], own)
            if intents is not None:
                name = self.intents[int(intents.indices[row])]
                labelled = Labelled(labelled.words, labelled.labels, own, name, float(intents.values[row]))
            yield labelled


class LabelProblem:
    """What the training loop is handed."""

    def __init__(
        self, model: LabelModel, training: Sequence[Sentence], held_out: Sequence[Sentence], seed: int
    ) -> None:
        self.model: nn.Module = model.network
        self._labeller = model
        self._training, self._held_out, self._seed = training, held_out, seed
        self._numbers = {label: number for number, label in enumerate(model.labels)}
        self._intents = {intent: number for number, intent in enumerate(model.intents)}
        lengths = [len(sentence.words) for sentence in training]
        self._buckets = Buckets(lengths, model.settings.batch_size, seed=seed)
        self.steps_per_epoch = self._buckets.steps
        self._swap = SpanSwap(training if model.settings.swap_spans else (), model.scheme)

    def batch(self, step: int, rank: int, world: int) -> Batch:
        chosen = [self._training[k] for k in self._buckets(step, rank, world)]
        drawn = np.random.default_rng([self._seed, step, rank])
        if self._labeller.settings.swap_spans:
            chosen = [self._swap(sentence, self._labeller.settings.swap_spans, drawn) for sentence in chosen]
        words, extras = [sentence.words for sentence in chosen], [sentence.extras for sentence in chosen]
        tokens = Tokens(*self._labeller.index.encode(words, self._labeller.settings.forget_rare, drawn, extras))
        labels = torch.full(tokens.words.shape, IGNORED)
        for row, sentence in enumerate(chosen):
            spelled = rewritten(sentence.labels, self._labeller.scheme)
            labels[row, : len(spelled)] = torch.tensor([self._numbers[label] for label in spelled])
        intents = torch.tensor([self._intents[s.intent] for s in chosen]) if self._intents else None
        return Batch(tokens, labels, intents)

    def loss(self, batch: Batch, state: Any) -> Loss:
        network = self._labeller.network
        count = len(batch.labels)
        device = network.output.weight.device
        if count == 0:
            return Loss(torch.zeros((), device=device), 0)
        labels, intents = batch.labels.to(device), None if batch.intents is None else batch.intents.to(device)
        return Loss(network.cost(moved(batch.tokens, device), labels, intents) / count, count)

    def validate(self) -> dict[str, float]:
        scores = self._labeller.evaluate(self._held_out)
        error = 1 - scores.main if scores.main else 2 - scores.accuracy  # before there is any right span, single labels
        if scores.intent_accuracy is not None:
            error = (error + 1 - scores.intent_accuracy) / 2  # both jobs count alike
        measures = {"error": error, "accuracy": scores.accuracy}
        if scores.f1 is not None:
            measures["f1"] = scores.f1
        if scores.intent_accuracy is not None:
            measures["intent_accuracy"] = scores.intent_accuracy
        return measures


def train(
    data: str | Path,
    out: str | Path,
    settings: Settings | None = None,
    training: Training | None = None,
    *,
    resume: bool = False,
) -> LabelModel:
    """Trains a model on labelled sentences and leaves the run folder ``out``: weights, settings, metrics, report.html.

    Args:
        data: a file, or a folder of parallel files.
        out: the folder of the run.
        settings: what is read and built.
        training: how long and how; thirty epochs of Adam at most unless given.
        resume: go on with the run in ``out``, where there is one.

    Raises:
        UserError: data, settings or folder will not do.
    """
    settings, training, out = settings or Settings(), training or TRAINING, Path(out)
    begun = resume and (out / CONFIG).exists()  # by an older version, maybe, where this was taken and meant nothing
    if settings.intent_pooling != "max" and not settings.intent and not begun:
        raise UserError(f"there is no intent for {settings.intent_pooling!r} pooling; give --intent too")
    refuse_overwriting(out, resume)
    learnt, held_out, rest = _read(Path(data), settings, training.seed)
    scheme = settings.scheme
    if scheme == "auto":
        scheme = scheme_of(label for sentence in learnt for label in sentence.labels)
    if scheme == "none" and settings.swap_spans:
        raise UserError(f"{data}: its labels spell no spans to swap; leave out --swap-spans")
    labels = sorted({label for sentence in learnt for label in rewritten(sentence.labels, scheme)})
    intents = sorted({sentence.intent for sentence in learnt}) if settings.intent else []
    columns = range(len(learnt[0].extras))
    extras = [[value for sentence in learnt for value in sentence.extras[column]] for column in columns]
    index = settings.index([sentence.words for sentence in learnt], extras)
    seed_all(training.seed)
    network = settings.network(index, labels, scheme, len(intents))
    settings.use_vectors(network.features, index)
    model = LabelModel(network, index, labels, intents, scheme, settings)
    if model.segments:
        known = frozenset(word for sentence in learnt for word in words_of(sentence.words, sentence.labels))
        model = replace(model, known=known)
    config = {**asdict(settings), "model": {"words": index.to_json(), "labels": labels, "intents": intents}}
    config["model"] |= {"scheme": scheme, "known": None if model.known is None else sorted(model.known)}
    if width := settings.width(Path(data)):
        config["model"]["width"], model = width, replace(model, width=width)
    begin_run(out, JOB, config, resume=resume, usual=asdict(Settings()))
    if rest is not None:
        remember_held_out(out, Path(data), rest, held_out)
    fit(LabelProblem(model, learnt, held_out, training.seed), out, training, resume=resume, items="sentences")
    network.eval()
    if first_process():
        from throughtime.tasks.label_report import report  # its figures load slowly; labelling need not wait for them

        report(model, held_out, out, training)
    return model


def load(run: str | Path) -> LabelModel:
    """The model of a run folder.

    Raises:
        UserError: the folder is missing, damaged, newer, or of another job.
    """
    settings, said = load_settings(run, JOB, Settings)
    made = said["model"]
    index = WordIndex.from_json(made["words"])
    network = settings.network(index, made["labels"], made["scheme"], len(made["intents"]))
    load_model(Path(run), network)
    known = None if made.get("known") is None else frozenset(made["known"])
    return LabelModel(
        network.eval(), index, made["labels"], made["intents"], made["scheme"], settings, known, made.get("width", 0)
    )


def rewritten(labels: Sequence[str], scheme: str) -> list[str]:
    """The same spans spelled in a scheme; as they are, where they are no spans.

    >>> rewritten(["I-x", "I-x", "O"], "bioes")
    ['B-x', 'E-x', 'O']
    """
    return list(labels) if scheme == "none" else labels_of(spans_of(labels), len(labels), scheme)


def _read(data: Path, settings: Settings, seed: int) -> tuple[list[Sentence], list[Sentence], list[int] | None]:
    """Sentences to train on and to validate on; and which those are, where they were set aside."""
    learnt, valid = settings.read(data), None
    if settings.valid is not None:
        held_out = settings.read(Path(settings.valid))
    else:
        if len(learnt) < 2:
            raise UserError(f"{data}: one sentence, so none is left to validate on; give some with --valid")
        train, valid = split_validation([""] * len(learnt), settings.valid_fraction, seed)
        learnt, held_out = [learnt[k] for k in train], [learnt[k] for k in valid]
    if not any(sentence.words for sentence in learnt):
        raise UserError(f"{data}: no sentence to learn from has words")
    if not any(sentence.words for sentence in held_out) and not settings.intent:
        raise UserError(f"{settings.valid or data}: no sentence to validate on has words; give others with --valid")
    if settings.intent:
        for sentence in (*learnt, *held_out):
            if not sentence.intent:
                raise UserError(f"{sentence.where}: no intent for this sentence; leave out --intent")
    if settings.scheme not in ("auto", "none"):
        for sentence in learnt:
            if scheme_of(sentence.labels) == "none":
                bad = next(label for label in sentence.labels if scheme_of([label]) == "none")
                raise UserError(f"{sentence.where}: {bad!r} spells no span; leave out --scheme")
    return learnt, held_out, valid
