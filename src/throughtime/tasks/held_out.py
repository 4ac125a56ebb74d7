"""What a run set aside of its training data to validate on, so that it can be found again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from throughtime.errors import UserError
from throughtime.learning.processes import first_process
from throughtime.learning.storage import full_disk_told, json_bytes, read_json, write_file

FILE = "held_out.json"
_KIND = "validation data set aside"
_NOT_CONTENT = ("path", "line", "where")  # of an example: files may be moved
_INSTEAD = "say what to read, with --data or --text"
Example = TypeVar("Example", bound=Any)


def remember_held_out(run: Path, data: Path, rows: Sequence[int], examples: Sequence[Any]) -> None:
    """Writes down which examples of a file were set aside, and a digest of them.

    Args:
        run: the folder of the run.
        data: the training data, as they were named.
        rows: the numbers of the examples in it, counted from 0.
        examples: those, as named tuples.

    Raises:
        UserError: the folder cannot be written.
    """
    if first_process():
        content = {"data": str(data), "rows": list(rows), "examples": _digest(examples)}
        with full_disk_told(run / FILE):
            write_file(run / FILE, json_bytes(_KIND, content))


def held_out_again(run: Path, read: Callable[[Path], Sequence[Example]]) -> tuple[Path, list[Example]]:
    """The training data's file, and the examples of it that were set aside.

    Args:
        run: the folder of the run.
        read: all examples of a file, in the order of training.

    Raises:
        UserError: it is not known which they were, or the data are no longer there or no longer the same.
    """
    if not (run / FILE).exists():
        raise UserError(f"{run} does not say which of its training data it set aside to validate on; {_INSTEAD}")
    said = read_json(run / FILE, _KIND)
    path = Path(said["data"])
    if not path.exists():
        raise UserError(f"{path}: the run's training data, which it validated on a part of, are not there; {_INSTEAD}")
    every = read(path)
    examples = [every[row] for row in said["rows"] if row < len(every)]
    if _digest(examples) != said["examples"]:
        raise UserError(f"{path}: no longer what the run was trained and validated on; {_INSTEAD}")
    return path, examples


def _digest(examples: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        for name, value in example._asdict().items():
            if name in _NOT_CONTENT:
                continue
            if isinstance(value, np.ndarray):
                digest.update(f"{name} {value.dtype} {value.shape} ".encode() + value.tobytes())
            else:
                digest.update(f"{name} {value!r}\n".encode())
    return digest.hexdigest()
