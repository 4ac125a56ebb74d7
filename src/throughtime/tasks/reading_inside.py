"""What there is to look into in models that read sequences: the network along one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from throughtime.data.lines import numbered_lines
from throughtime.errors import UserError
from throughtime.tasks.classify import ClassifyModel
from throughtime.tasks.held_out import held_out_again
from throughtime.tasks.label import LabelModel, rewritten

LEAST = 5  # steps that are worth a look


class Along(NamedTuple):
    """A network along one sequence."""

    network: nn.Module
    x: Tensor  # (1, T, E): embedded steps
    target: Tensor  # (1, T): what each step is to say
    pieces: list[str]  # what each step reads; [] for series


class Steps(nn.Module):
    """A model's scores at each step: of the step's label, or of the class as if this step were what is pooled."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.recurrent, self.output = network.recurrent, network.output
        self.attention = getattr(network, "attention", None)
        self._scores = network.scores

    def forward(self, x: Tensor) -> Tensor:
        """``(B, T, E) -> (B, T, N)``."""
        lengths = torch.full(x.shape[:1], x.shape[1])
        return self._scores(x, lengths)


def along_classified(
    model: ClassifyModel, run: Path, text: Path | None, data: Path | None, length: int, *, labelled: bool = True
) -> Along:
    """Along a line of a text, or the longest example of data, by default the run's validation data.

    Without labels each step is to say the class that the model says of the whole.

    Raises:
        UserError: there is nothing to read, or too little.
    """
    if text is not None:
        where, examples = text, model.examples(line for _, line in numbered_lines(text) if line.strip())
    elif data is not None:
        where, examples = data, model.read(data, labelled=labelled)
    elif model.settings.valid is not None:
        where = _there(model.settings.valid)
        examples = model.settings.read(where, "valid")[1]
    else:
        where, examples = held_out_again(run, lambda path: model.settings.read(path, "train")[1])
    example = examples[_longest([example.length for example in examples], length, where)]
    cut = example._replace(
        words=example.words[:length], values=None if example.values is None else example.values[:length]
    )
    features: Any = model.network.eval().features
    with torch.no_grad():
        x = features.embed(model.inputs([cut]))
    label = example.label if example.label in model.labels else model.predict([cut])[0].label
    target = torch.full(x.shape[:2], model.labels.index(label))
    return Along(Steps(model.network), x, target, list(cut.words))


def along_labelled(
    model: LabelModel, run: Path, text: Path | None, data: Path | None, length: int, *, labelled: bool = True
) -> Along:
    """Along a line of a text, or the longest sentence of data, by default the run's validation data.

    Without labels each step is to say what the model says of it.

    Raises:
        UserError: there is nothing to read, or too little; or the model needs more than a text has.
    """
    if text is not None:
        where, sentences = text, [model.sentence(line) for _, line in numbered_lines(text) if line.strip()]
    elif data is not None:
        where, sentences = data, model.read(data, labelled=labelled)
    elif model.settings.valid is not None:
        where = _there(model.settings.valid)
        sentences = model.read(where)
    else:
        where, sentences = held_out_again(run, model.settings.read)
    sentence = sentences[_longest([len(sentence.words) for sentence in sentences], length, where)]
    labels = rewritten(sentence.labels, model.scheme)
    cut = sentence._replace(words=sentence.words[:length], extras=tuple(values[:length] for values in sentence.extras))
    network = Steps(model.network.eval())
    with torch.no_grad():
        x = model.network.features.embed(model.tokens([cut]))
        target = network(x).argmax(-1)  # what is said, where nobody knows better
    numbers = {label: number for number, label in enumerate(model.labels)}
    for t, label in enumerate(labels[:length]):
        target[0, t] = numbers.get(label, int(target[0, t]))
    return Along(network, x, target, list(cut.words))


def _there(path: str) -> Path:
    if not Path(path).exists():
        raise UserError(f"{path}: the run's validation data are not there; say what to read, with --data or --text")
    return Path(path)


def _longest(lengths: Sequence[int], most: int, where: Any) -> int:
    """The longest that need not be cut; the longest of all where each must be or is too short."""
    whole = [length for length in lengths if length <= most]
    best = max(whole, default=0)
    if best < LEAST:
        best = max(lengths, default=0)
    if best < LEAST:
        raise UserError(f"{where}: {best} steps are too few to look into; give at least {LEAST}")
    return lengths.index(best)
