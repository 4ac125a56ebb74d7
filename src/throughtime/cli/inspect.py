"""``throughtime inspect RUN``: what happens inside a trained model."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from throughtime.cli.app import root
from throughtime.errors import UserError


@root.command("inspect")
def inspect(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)],
    text: Annotated[
        Path | None, typer.Option(help="Text to read; by default a model that writes reads what it writes itself.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Data like the training data, for runs of classify and label; by default the run's validation data. "
            "The longest sequence in it is read."
        ),
    ] = None,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="Those data have no labels: what the model says stands for them.")
    ] = False,
    length: Annotated[int, typer.Option(min=10, max=2000, help="How many units of it.")] = 200,
    out: Annotated[Path | None, typer.Option(help="The page; RUN/inside.html by default.")] = None,
) -> None:
    """Draw what happens inside a trained model: gradients through time, memory, gates, states."""
    # here, as these bring matplotlib, which other commands need not wait for
    from throughtime.insight.report import write_report
    from throughtime.insight.sections import course_section, inside_sections
    from throughtime.learning import load_config, read_metrics

    config = load_config(run)
    if config.job not in _READERS:
        raise UserError(f"{run} is a run of {config.job!r}; inspect knows runs of {', '.join(_READERS)}")
    if text is not None and data is not None:
        raise UserError("one of --text and --data says what to read, not both")
    if unlabelled and data is None:
        raise UserError("--unlabelled is said of --data; give that too")
    network, x, target, pieces = _READERS[config.job](run, text, data, length, not unlabelled)

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), target, reduction="none")

    with _wide_fonts():
        sections = inside_sections(network, x, loss, text=pieces)
    course = course_section(read_metrics(run))
    if course is not None:
        sections.insert(0, course)
    page = run / "inside.html" if out is None else out
    write_report(
        page,
        title=f"Inside {run.resolve().name}",
        lead=" ".join(sections[1 if course is not None else 0].sentences[:1]),
        sections=sections,
        settings={
            name.replace("_", " "): value
            for name, value in config.settings.items()
            if name not in ("vocabulary", "model") and value is not None
        },
    )
    typer.echo(str(page))


@contextlib.contextmanager
def _wide_fonts() -> Iterator[None]:
    """Signs that the usual font lacks are taken from one that has them, if there is one; else a box stands for them."""
    import matplotlib as mpl
    from matplotlib.font_manager import fontManager

    there = {font.name for font in fontManager.ttflist}
    fonts: Any = {"font.family": ["DejaVu Sans", *(name for name in _WIDE if name in there)]}
    with mpl.rc_context(fonts), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        yield


def _language(
    run: Path, text: Path | None, data: Path | None, length: int, labelled: bool
) -> tuple[Any, torch.Tensor, torch.Tensor, list[str]]:
    """The network, what it reads, what comes next, and the units as text."""
    from throughtime.tasks import language

    if data is not None:
        raise UserError(f"{run} is a run of 'language', which reads a text: give it with --text")
    model = language.load(run)
    if text is None:
        try:
            read = "".join(model.generate(length=length + 1))
        except UserError as error:
            raise UserError(
                f"the model cannot write what to look along ({error}); give it a text with --text"
            ) from error
    else:
        try:
            with open(text, encoding="utf-8") as file:
                read = file.read(20 * length)
        except OSError as error:
            raise UserError(f"{text}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{text}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
    numbers = list(itertools.islice(model.vocabulary.encode(read), length + 1))
    if len(numbers) < 10:
        raise UserError(f"{text or run}: {len(numbers)} units are too few to look into; give at least 10")
    write = model.vocabulary.writer()
    pieces = [write(int(number)) for number in numbers[:-1]]
    known = torch.as_tensor(numbers, dtype=torch.long)[None]
    return model.network, known[:, :-1], known[:, 1:], pieces


def _classify(run: Path, text: Path | None, data: Path | None, length: int, labelled: bool) -> Any:
    from throughtime.tasks import classify
    from throughtime.tasks.reading_inside import along_classified

    return along_classified(classify.load(run), run, text, data, length, labelled=labelled)


def _label(run: Path, text: Path | None, data: Path | None, length: int, labelled: bool) -> Any:
    from throughtime.tasks import label
    from throughtime.tasks.reading_inside import along_labelled

    return along_labelled(label.load(run), run, text, data, length, labelled=labelled)


_WIDE = (  # fonts with Chinese signs, by the systems that bring them
    "Noto Sans CJK SC",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
    "PingFang SC",
    "Microsoft YaHei",
    "SimHei",
)
_READERS = {"language": _language, "classify": _classify, "label": _label}
