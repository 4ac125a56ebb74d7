"""What stands where in the folder of a run.

::

    RUN/config.json         what was trained: the job and its settings (`begin_run`, `load_config`)
    RUN/model.safetensors   the weights to use: the best by validation, or the last (`save_model`, `load_model`)
    RUN/metrics.jsonl       one JSON object a line, as the run went
    RUN/checkpoint/         all that is needed to go on (`throughtime.learning.checkpoint`)
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn

from throughtime.errors import UserError
from throughtime.learning.processes import first_process
from throughtime.learning.storage import full_disk_told, json_bytes, read_json, read_tensors, tensor_bytes, write_file

CONFIG = "config.json"
MODEL = "model.safetensors"
METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoint"


class Config(NamedTuple):
    """What a run folder says of itself."""

    job: str  # "language", ...
    settings: dict[str, Any]  # whatever the job needs to build its model again; plain JSON


def begin_run(
    run: Path | str,
    job: str,
    settings: dict[str, Any],
    *,
    resume: bool = False,
    usual: dict[str, Any] | None = None,
) -> None:
    """Makes the folder of a run, or, with ``resume``, finds it to be the same run.

    Only the first of several processes writes.

    Args:
        run: the folder.
        job: what is trained.
        settings: whatever the job needs to build its model again.
        resume: whether there may be such a run already.
        usual: what settings are that a run of an older version does not name yet.

    Raises:
        UserError: there is a run already and ``resume`` is not asked for; there is another run to resume; the folder
            cannot be written.
    """
    if not first_process():
        return
    run = Path(run)
    refuse_overwriting(run, resume)
    if resume and (run / CONFIG).exists():
        before = load_config(run)
        if before.job != job:
            raise UserError(f"{run} holds a run of {before.job!r}, not of {job!r}; name another folder")
        was_begun = {**_plain(usual or {}), **before.settings}
        if was_begun.keys() == settings.keys():
            for name, value in _plain(settings).items():
                if (was := was_begun[name]) != value:
                    raise UserError(
                        f"{run} was begun with {name} {_short(was)}, not {_short(value)}; go on with the same, or "
                        "name another folder"
                    )
            return
        changed = sorted(was_begun.keys() ^ settings.keys())[0]
        raise UserError(f"{run} was begun with other settings ({changed}); name another folder")
    with full_disk_told(run / CONFIG):
        run.mkdir(parents=True, exist_ok=True)
        write_file(run / CONFIG, json_bytes("run", {"job": job, "settings": settings}))


def refuse_overwriting(run: Path | str, resume: bool) -> None:
    """Nothing that was trained is ever overwritten unasked.

    Raises:
        UserError: there is a run in the folder and ``resume`` is not asked for; there is a file of that name; or
            nothing can be written there, which is better known before the work than after it.
    """
    run = Path(run)
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file; name a folder for the run")
    nearest = next(folder for folder in (run, *run.absolute().parents) if folder.exists())
    if not os.access(nearest, os.W_OK):
        raise UserError(f"{nearest} may not be written to; name another folder for the run")
    if resume:
        return
    for name in (MODEL, CHECKPOINT):
        if (run / name).exists():
            raise UserError(f"{run} holds a run already; go on with it by --resume, or name another folder")


def load_config(run: Path | str) -> Config:
    """What the run is.

    Raises:
        UserError: the folder or its config.json is missing, cut short, altered or newer.
    """
    run = Path(run)
    if not run.exists():
        raise UserError(f"{run} does not exist; name the folder of a run")
    if run.is_dir() and not (run / CONFIG).exists():
        raise UserError(f"{run} is not the folder of a run: it has no {CONFIG}")
    content = read_json(run / CONFIG, "run")
    return Config(content["job"], content["settings"])


SettingsOf = TypeVar("SettingsOf")


def load_settings(run: Path | str, job: str, kind: type[SettingsOf]) -> tuple[SettingsOf, dict[str, Any]]:
    """The settings of a run of a job as their dataclass, and all that the run says of itself.

    Raises:
        UserError: as `load_config`; or the run is of another job.
    """
    config = load_config(run)
    if config.job != job:
        raise UserError(f"{run} is a run of {config.job!r}, not of {job!r}")
    named = (field.name for field in dataclasses.fields(kind))  # type: ignore[arg-type]
    known = (name for name in named if name in config.settings)  # a run of an older version has fewer
    return kind(**{name: config.settings[name] for name in known}), config.settings


def save_model(run: Path | str, model: nn.Module) -> None:
    """Writes the weights, whole or not at all.

    Raises:
        UserError: the folder cannot be written; what stood there still stands.
    """
    save_weights(run, model.state_dict())


def save_weights(run: Path | str, weights: Mapping[str, Tensor]) -> None:
    """The same for weights that stand in no model at the moment."""
    run = Path(run)
    with full_disk_told(run / MODEL):
        run.mkdir(parents=True, exist_ok=True)
        write_file(run / MODEL, tensor_bytes("model", weights))


def load_model(run: Path | str, model: nn.Module) -> None:
    """Puts the run's weights into a model built as its settings say.

    Raises:
        UserError: the weights are missing, cut short, altered, newer, or of another model.
    """
    run = Path(run)
    if run.is_dir() and not (run / MODEL).exists():
        raise UserError(f"{run} has no {MODEL} yet: its training saved nothing so far; go on with it by --resume")
    fill(model, read_tensors(run / MODEL, "model"), run / MODEL)


def fill(model: nn.Module, weights: dict[str, Any], path: Path) -> None:
    """Puts weights into a model of the same names and shapes.

    Raises:
        UserError: names or shapes differ.
    """
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if wanted != found:
        differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        name = differing[0]
        raise UserError(
            f"{path} holds the weights of another model: {name} is {found.get(name, 'absent')} there and "
            f"{wanted.get(name, 'absent')} here"
        )
    model.load_state_dict(weights)


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings as they come back from JSON: tuples as lists."""
    return dict(json.loads(json.dumps(settings)))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
