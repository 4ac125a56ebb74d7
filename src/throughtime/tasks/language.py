"""Learning to write from a text: a model of the next character, word or sub-word.

>>> from pathlib import Path
>>> from tempfile import TemporaryDirectory
>>> from throughtime.learning import Training
>>> settings = Settings(hidden=16, embedding=8, batch_size=4, window=16)
>>> with TemporaryDirectory() as folder:
...     _ = Path(folder, "text").write_text("to be or not to be " * 200)
...     model = train(Path(folder, "text"), Path(folder, "run"), settings, Training(steps=2))
>>> len("".join(model.generate("to be", length=20)))
20
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from throughtime.data import (
    DOCUMENT,
    UNKNOWN,
    Numbers,
    Streams,
    TextSource,
    Vocabulary,
    Window,
    encode_to_disk,
    learn_vocabulary,
    vocabulary_from,
)
from throughtime.errors import UserError
from throughtime.learning import Loss, Training, begin_run, fit, load_model, load_settings, seed_all
from throughtime.learning.processes import first_process
from throughtime.learning.run_folder import refuse_overwriting
from throughtime.tasks.decoding import Free, Rule, beam_search, sample, sample_natively
from throughtime.tasks.form import Form
from throughtime.tasks.language_settings import Settings
from throughtime.tasks.measuring import Evaluation, loss_of, measure
from throughtime.tasks.network import NextUnit

JOB = "language"
TRAINING = Training(minutes=3, learning_rate=0.004, rmsprop_decay=0.99, schedule="cosine")  # the usual one of this job
ITEMS = {"char": "characters", "word": "words", "bpe": "sub-words"}
_WARM_UP = 256  # units that a stream of the validation reads before what it counts
_STREAMS = 32  # of the validation


class LanguageProblem:
    """What the training loop is handed."""

    def __init__(self, model: NextUnit, training: Numbers, held_out: Numbers, settings: Settings, seed: int) -> None:
        self.model: nn.Module = model
        self._network = model
        self._streams = Streams(training, settings.batch_size, settings.window, shift=settings.shift, seed=seed)
        self._held_out = held_out.head(settings.valid_units)
        if len(held_out) < 2:
            raise UserError(
                f"the validation text has {len(held_out)} units; at least 2 are needed: raise --valid-fraction"
            )
        self.steps_per_epoch = self._streams.steps

    def batch(self, step: int, rank: int, world: int) -> Window:
        return self._streams(step, rank, world)

    def loss(self, batch: Window, state: Any) -> Loss:
        return loss_of(self._network, batch, state)

    def validate(self) -> dict[str, float]:
        return {"nats": measure(self._network, self._held_out, _STREAMS, _WARM_UP).nats}


@dataclass(frozen=True)
class LanguageModel:
    """A trained model, with what is needed to write."""

    network: NextUnit
    vocabulary: Vocabulary
    settings: Settings
    documents: bool  # whether it was trained on documents kept apart

    def evaluate(self, source: TextSource | str | Path, *, streams: int = 1) -> Evaluation:
        """What a text costs this model. Units it does not know count as <unk>."""
        if not isinstance(source, TextSource):
            source = self.settings.source(Path(source), documents=self.documents)
        self.network.eval()
        return measure(self.network, encode_to_disk(source, self.vocabulary), streams, _WARM_UP)

    def generate(
        self,
        prompt: str = "",
        *,
        length: int = 500,
        form: Form | None = None,
        temperature: float = 0.8,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 1,
        beam: int | None = None,
        weights: torch.dtype | None = None,
    ) -> Iterator[str]:
        """Writes on from a prompt, piece after piece.

        Args:
            prompt: what the text begins with; the form counts it as written.
            length: units to write; fewer where a document ends.
            form: what the text is held to, in place of a length.
            temperature: below 1, the likely grows likelier; 0 takes the likeliest unit each time.
            top_k: draw from the k likeliest units only.
            top_p: draw from the fewest units whose chances sum to p.
            seed: of the draws.
            beam: width of a beam search for the likeliest text, in place of drawing.
            weights: torch.bfloat16 keeps matrices rounded to it while it writes, the embedding's aside: large models
                write faster, and each weight is off by at most 1/256 of itself.

        Raises:
            UserError: the prompt has unknown units or does not fit the form; a setting is out of range; there are no
                kernels for rounded weights.

        Warns:
            SlowPathWarning: there are no kernels for this model, and it writes step by step in plain PyTorch.
        """
        _check_generation(length, temperature, top_k, top_p, beam)
        numbers, missing = self.vocabulary.prompt(prompt)
        if missing:
            named = ", ".join(repr(unit) for unit in missing[:10])
            raise UserError(f"the prompt has units that the model's text did not have: {named}; leave them out")
        rule: Rule
        if form is not None:
            rule = form.rule(self.vocabulary).through(prompt, numbers)
        else:
            mask = torch.ones(self.vocabulary.size, dtype=torch.bool)
            mask[UNKNOWN], mask[DOCUMENT] = False, self.documents
            rule = Free(mask, length, DOCUMENT)
        context = numbers if prompt and form is None and not self.documents else [self._start(), *numbers]
        if beam is not None and weights is not None:
            raise UserError("a beam search is made with the weights as they are; leave the rounding out")
        return self._written(context, rule, beam, seed, weights, temperature=temperature, top_k=top_k, top_p=top_p)

    def _written(
        self, context: list[int], rule: Rule, beam: int | None, seed: int, weights: torch.dtype | None, **cut: Any
    ) -> Iterator[str]:
        write = self.vocabulary.writer()
        for number in context:
            write(number)  # a prompt may end within a character's bytes
        self.network.eval()
        if beam is not None:
            numbers: Iterable[int] = beam_search(self._step, context, rule, beam)
        else:
            numbers = self._drawn(context, rule, torch.Generator().manual_seed(seed), weights, cut)
        for number in numbers:
            yield write(number)

    def _drawn(
        self,
        context: list[int],
        rule: Rule,
        generator: torch.Generator,
        weights: torch.dtype | None,
        cut: dict[str, Any],
    ) -> Iterator[int]:
        """By one native call for many units where the kernels take the cells; else step by step."""
        try:
            writer = self.network.writer(context, weights)
        except ValueError as error:
            raise UserError(str(error)) from None
        if writer is None:
            return sample(self._step, context, rule, generator, **cut)
        return sample_natively(writer, rule, generator, **cut)

    def _step(self, numbers: Tensor, state: Any) -> tuple[Tensor, Any]:
        device = self.network.embedding.weight.device
        with torch.inference_mode():
            logits, state = self.network.step(numbers.to(device), state)
        return logits.cpu(), state

    def _start(self) -> int:
        """What stands before the first unit: the border of a document, or else a line break."""
        line_break = self.vocabulary.encode("\n")
        known = not self.documents and len(line_break) == 1 and line_break[0] != UNKNOWN
        return int(line_break[0]) if known else DOCUMENT


def train(
    text: str | Path,
    out: str | Path,
    settings: Settings | None = None,
    training: Training | None = None,
    *,
    resume: bool = False,
) -> LanguageModel:
    """Trains a model on a text and leaves the run folder ``out``: weights, settings, metrics, report.html.

    Args:
        text: a file or a folder.
        out: the folder of the run.
        settings: what is read and built.
        training: how long and how; three minutes of RMSprop along a cosine unless given.
        resume: go on with the run in ``out``, where there is one.

    Raises:
        UserError: text, settings or folder will not do.
    """
    settings, training, out = settings or Settings(), training or TRAINING, Path(out)
    refuse_overwriting(out, resume)
    source = settings.source(Path(text), without=out)
    vocabulary = learn_vocabulary(source, settings.unit, settings.vocabulary_size)
    numbers = encode_to_disk(source, vocabulary)
    if settings.valid is None:
        learnt, held_out = numbers.split(settings.valid_fraction)
    else:
        valid = settings.source(Path(settings.valid), documents=source.apart, without=out)
        learnt, held_out = numbers, encode_to_disk(valid, vocabulary)
    seed_all(training.seed)
    network = settings.network(vocabulary.size)
    problem = LanguageProblem(network, learnt, held_out, settings, training.seed)
    config = {
        **asdict(settings),
        "documents": source.apart,
        "sha256 of the text": numbers.digest,
        "vocabulary": vocabulary.to_json(),
    }
    begin_run(out, JOB, config, resume=resume, usual=asdict(Settings()))
    _watched(problem, out, training, resume, ITEMS[settings.unit])
    model = LanguageModel(network.eval(), vocabulary, settings, source.apart)
    if first_process():
        from throughtime.tasks.language_report import report  # its figures load slowly; writing need not wait for them

        report(model, out, training)
    return model


def _watched(problem: LanguageProblem, out: Path, training: Training, resume: bool, items: str) -> None:
    """Trains, and looks at what gradients, gates and units do meanwhile; a word where they keep it from learning."""
    if not first_process():
        fit(problem, out, training, resume=resume, items=items)
        return
    from throughtime.insight.monitor import Monitor  # here, as it brings matplotlib, which writing need not wait for

    console = Console(stderr=True)

    def say(text: str) -> None:
        console.print(f"warning: {text}", markup=False, highlight=False, soft_wrap=True)

    with contextlib.closing(Monitor(problem.model, say=say)) as monitor:
        fit(problem, out, training, resume=resume, items=items, on_record=monitor, console=console)


def load(run: str | Path) -> LanguageModel:
    """The model of a run folder.

    Raises:
        UserError: the folder is missing, damaged, newer, or of another job.
    """
    settings, said = load_settings(run, JOB, Settings)
    vocabulary = vocabulary_from(said["vocabulary"])
    network = settings.network(vocabulary.size)
    load_model(Path(run), network)
    return LanguageModel(network.eval(), vocabulary, settings, said["documents"])


def _check_generation(
    length: int, temperature: float, top_k: int | None, top_p: float | None, beam: int | None
) -> None:
    for name, value in (("length", length), ("top-k", top_k), ("beam", beam)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature must be at least 0, not {temperature:g}")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top-p must be above 0 and at most 1, not {top_p:g}")
