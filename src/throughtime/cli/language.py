"""``train language``, and ``evaluate`` and ``generate`` for its runs; ``demo``."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import torch
import typer

from throughtime.cli.app import evaluate, generate, root, train
from throughtime.cli.options import with_training
from throughtime.cli.settings import with_settings
from throughtime.errors import UserError
from throughtime.learning import Training
from throughtime.learning.processes import first_process
from throughtime.tasks import language
from throughtime.tasks.form import Form
from throughtime.tasks.language import Evaluation, LanguageModel, Settings

PANEL = "Text and model"
LENGTH = 500  # units that are written where nothing else is asked for
_RUN = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)]


@train.command("language")
@with_training(language.TRAINING)
@with_settings(Settings, PANEL)
def train_language(
    *,
    text: Annotated[Path, typer.Option("--text", help="A text file in UTF-8, or a folder of them.")],
    out: Annotated[Path, typer.Option("--out", help="The folder of the run; made if need be.")],
    settings: Settings,
    training: Training,
    resume: bool,
) -> None:
    """Train a model that writes text: prose, poems, source code."""
    if settings.document_separator is not None:
        settings = dataclasses.replace(settings, document_separator=_unescaped(settings.document_separator))
    _trained(language.train(text, out, settings, training, resume=resume), out)


@evaluate.command("language")
def evaluate_language(
    run: _RUN,
    *,
    text: Annotated[Path, typer.Option("--text", help="A text file in UTF-8, or a folder of them.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    streams: Annotated[
        int, typer.Option(min=1, help="Parts read side by side: faster, and off by the little that begins anew.")
    ] = 1,
    glob: Annotated[str | None, typer.Option(help="Which files of a folder; as in training by default.")] = None,
    document_separator: Annotated[str | None, typer.Option(help="As in training by default.")] = None,
    field: Annotated[str | None, typer.Option(help="As in training by default.")] = None,
) -> None:
    """Measure how well a model foretells a text; the state is carried over the whole of it."""
    model = language.load(run)
    settings = model.settings
    if document_separator is not None or field is not None:
        separator = None if document_separator is None else _unescaped(document_separator)
        settings = dataclasses.replace(settings, document_separator=separator, field=field)
    if glob is not None:
        settings = dataclasses.replace(settings, glob=glob)
    found = model.evaluate(settings.source(text, documents=model.documents, without=run), streams=streams)
    print(json.dumps(found.to_json()) if as_json else _told(found))  # noqa: T201


@generate.command("language")
def generate_language(
    run: _RUN,
    *,
    prompt: Annotated[str, typer.Option(help="What the text begins with.")] = "",
    length: Annotated[int | None, typer.Option(help=f"Units to write; {LENGTH} by default.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Below 1 the likely grows likelier; 0.8 by default.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from the k likeliest units only.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the fewest units whose chances sum to p.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draws: the same seed, the same text.")] = 1,
    beam: Annotated[int | None, typer.Option(help="Search the likeliest text with so many beams.")] = None,
    bfloat16: Annotated[
        bool, typer.Option("--bfloat16", help="Round the weights, each by at most 1/256: large models write faster.")
    ] = False,
    count: Annotated[int, typer.Option(min=1, help="Texts to write, an empty line between them; seeds count up.")] = 1,
    lines: Annotated[int | None, typer.Option(help="Hold the text to so many lines.")] = None,
    line_length: Annotated[int | None, typer.Option(help="Hold each line to so many letters (ideographs).")] = None,
    heads: Annotated[str, typer.Option(help="First characters of the lines, in order: an acrostic.")] = "",
    punctuation: Annotated[str, typer.Option(help="Marks to end lines of a set length with, in turn.")] = "",
) -> None:
    """Let a model write; the text shows as it comes."""
    form = _form(lines, line_length, heads, punctuation)
    if form is not None and length is not None:
        raise UserError("a form has a length of its own; leave out --length")
    if beam is not None and (temperature, top_k, top_p) != (None, None, None):
        raise UserError("a beam search draws nothing; leave out --temperature, --top-k and --top-p")
    if beam is not None and bfloat16:
        raise UserError("a beam search is made with the weights as they are; leave out --bfloat16")
    if beam is not None and count > 1:
        raise UserError("a beam search has one result; leave out --count")
    model = language.load(run)
    for k in range(count):
        pieces = model.generate(
            prompt,
            length=LENGTH if length is None else length,
            form=form,
            temperature=0.8 if temperature is None else temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed + k,
            beam=beam,
            weights=torch.bfloat16 if bfloat16 else None,
        )
        _show(prompt, pieces)
        if k < count - 1:
            _show("", "\n")


@root.command("demo")
def demo(
    *,
    out: Annotated[Path, typer.Option("--out", help="The folder of the run; made if need be.")],
    minutes: Annotated[float, typer.Option(help="How long to train.")] = 2.0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in this folder stopped.")] = False,
) -> None:
    """Train a model on the source code of Python's own library, as found here, and let it write."""
    settings = Settings(
        glob="**/*.py",
        exclude="site-packages,dist-packages,test,tests,idle_test,lib2to3,__pycache__",
        vocabulary_size=128,  # rare characters of other scripts are <unk>
        valid_fraction=0.05,
        valid_units=50_000,
    )
    training = language.TRAINING.bounded(minutes=minutes)
    source = Path(sysconfig.get_path("stdlib"))
    model = language.train(source, out, settings, training, resume=resume)
    if first_process():
        _show("def ", model.generate("def ", length=600))
        _trained(model, out)


def _trained(model: LanguageModel, out: Path) -> None:
    if first_process():
        print(f"report: {out / 'report.html'}\nnext:   throughtime generate {out} --length 500")  # noqa: T201


def _form(lines: int | None, length: int | None, heads: str, punctuation: str) -> Form | None:
    if lines is None and length is None and not heads and not punctuation:
        return None
    if lines is None and not heads:
        raise UserError("how many lines? give --lines, or --heads with a character for each")
    return Form(len(heads) if lines is None else lines, length, heads, punctuation)


def _show(prompt: str, pieces: Iterable[str]) -> None:
    """Writes text as it comes, in UTF-8 whatever the locale, and a line break at its end."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    last = ""
    for piece in itertools.chain([prompt], pieces):
        sys.stdout.write(piece)
        sys.stdout.flush()
        last = piece or last
    if not last.endswith("\n"):
        sys.stdout.write("\n")
    sys.stdout.flush()


def _told(found: Evaluation) -> str:
    lines = [f"{name:<10} {value:.4f}" for name, value in found.to_json().items() if isinstance(value, float)]
    lines.append(f"{'units':<10} {found.units:,}")
    note = " (not in the vocabulary; each counts as <unk>)" if found.unknown else ""
    lines.append(f"{'unknown':<10} {found.unknown:,}{note}")
    return "\n".join(lines)


def _unescaped(text: str) -> str:
    r"""Line breaks and tabs as one writes them on a command line.

    >>> _unescaped(r"\n\n")
    '\n\n'
    """
    return text.replace("\\n", "\n").replace("\\t", "\t").replace("\\r", "\r")
