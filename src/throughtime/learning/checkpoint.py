"""All that is needed to go on, on disk, whole or not there.

::

    RUN/checkpoint/step-000001200/weights.safetensors     the model
                                  optimizer.safetensors   its optimiser's memory
                                  best.safetensors        the best weights so far, where they are kept
                                  average.safetensors     the mean of the weights, where it is taken
                                  process-0.safetensors   each process's carried state and random generators
                                  checkpoint.json         the step, the time, the best validation, the settings

The folder is written beside, brought down to the disk, and then given its name in one move; only after that is the one
before it removed. So a run that is killed at any moment leaves the old checkpoint, the new one, or both, and the one of
the highest step is the one to go on from.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from throughtime.errors import UserError
from throughtime.learning.run_folder import CHECKPOINT
from throughtime.learning.storage import (
    full_disk_told,
    json_bytes,
    read_json,
    read_tensors,
    sync_folder,
    tensor_bytes,
    write_through,
)

_KIND = "checkpoint"
_ABOUT = "checkpoint.json"
_NAME = re.compile(r"step-(\d{9,})(?:-(\d+))?")


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds: plain values, and tensors by the name of their file."""

    about: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


def write_checkpoint(run: Path, step: int, snapshot: Snapshot) -> None:
    """Writes a checkpoint, then removes the one before it.

    Raises:
        UserError: the system refuses (a full disk); the checkpoint before it stands.
    """
    folder = run / CHECKPOINT
    kept = _checkpoints(folder)
    then = "go on with --resume" + (f" from step {max(kept)[0]:,}" if kept else "")
    writing = folder / ".writing"
    again = max((a for s, a in kept if s == step), default=-1) + 1
    with full_disk_told(folder, then):
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".*"):
            shutil.rmtree(leftover)
        try:
            writing.mkdir()
            for name, tensors in snapshot.tensors.items():
                write_through(writing / f"{name}.safetensors", tensor_bytes(_KIND, tensors))
            about = {**snapshot.about, "files": sorted(snapshot.tensors)}
            write_through(writing / _ABOUT, json_bytes(_KIND, about))
            sync_folder(writing)
            writing.rename(folder / _name(step, again))
        except OSError:
            shutil.rmtree(writing, ignore_errors=True)
            raise
        sync_folder(folder)
        for old in kept:  # first the name, so that no half of it is ever taken for a checkpoint
            shutil.rmtree((folder / _name(*old)).rename(folder / f".removing-{_name(*old)}"))


def has_checkpoint(run: Path) -> bool:
    """Whether there is a checkpoint to go on from."""
    return bool(_checkpoints(run / CHECKPOINT))


def read_checkpoint(run: Path) -> Snapshot:
    """The last checkpoint.

    Raises:
        UserError: there is none, or a file of it is missing, cut short, altered or newer.
    """
    found = _checkpoints(run / CHECKPOINT)
    if not found:
        raise UserError(f"{run / CHECKPOINT} holds no checkpoint; begin anew, without --resume")
    folder = run / CHECKPOINT / _name(*max(found))
    about = read_json(folder / _ABOUT, _KIND)
    return Snapshot(about, {name: read_tensors(folder / f"{name}.safetensors", _KIND) for name in about["files"]})


def _checkpoints(folder: Path) -> list[tuple[int, int]]:
    """Of each checkpoint in a folder its step, and how often that step was saved before."""
    if not folder.is_dir():
        return []
    found = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return [(int(match[1]), int(match[2] or 0)) for match in found if match]


def _name(step: int, again: int) -> str:
    return f"step-{step:09d}" + (f"-{again}" if again else "")


# Carried state and optimiser memory as tensors with names


def flatten_state(state: Any, name: str = "state") -> dict[str, Tensor]:
    """A state (tensors in nested tuples, or None) as tensors by path.

    >>> list(flatten_state((torch.zeros(1), (torch.zeros(1), None))))
    ['state.0', 'state.1.0']
    """
    if state is None:
        return {}
    if isinstance(state, Tensor):
        return {name: state}
    return {path: t for k, part in enumerate(state) for path, t in flatten_state(part, f"{name}.{k}").items()}


def shape_of_state(state: Any) -> Any:
    """The nesting of a state, without its tensors: 0 for a tensor, None, or a list of these."""
    if state is None:
        return None
    return 0 if isinstance(state, Tensor) else [shape_of_state(part) for part in state]


def unflatten_state(tensors: Mapping[str, Tensor], shape: Any, name: str = "state") -> Any:
    """The state again, in plain tuples."""
    if shape is None:
        return None
    if shape == 0:
        return tensors[name]
    return tuple(unflatten_state(tensors, part, f"{name}.{k}") for k, part in enumerate(shape))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's memory: tensors named ``parameter.quantity``."""
    memory = optimizer.state_dict()["state"]
    return {
        f"{k}.{name}": value
        for k, quantities in memory.items()
        for name, value in quantities.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Gives the optimiser its memory back; its learning rate and other settings stay as they are."""
    memory: dict[int, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        k, name = path.split(".", 1)
        memory.setdefault(int(k), {})[name] = tensor
    optimizer.load_state_dict({"state": memory, "param_groups": optimizer.state_dict()["param_groups"]})
