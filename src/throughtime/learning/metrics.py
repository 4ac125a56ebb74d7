"""metrics.jsonl: one JSON object a line, each appended whole."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from throughtime.errors import UserError
from throughtime.learning.storage import full_disk_told


class MetricsFile:
    """The file, open for appending at a position that a checkpoint remembers."""

    def __init__(self, path: Path, position: int) -> None:
        """Opens it and drops what stands behind the position: lines of steps that will be taken again."""
        self.path = path
        with full_disk_told(path):
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            self._lock()
            size = os.fstat(self._handle).st_size
            self.lost = max(0, position - size)  # bytes that the checkpoint saw and that are gone
            self.position = min(size, position)
            os.ftruncate(self._handle, self.position)
            if self.lost:
                self._drop_broken_line()

    def _lock(self) -> None:
        """One process at a time trains in a folder; the system lets go of the lock however that process ends."""
        if sys.platform == "win32":
            return
        import fcntl

        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._handle)
            raise UserError(
                f"another process is training in {self.path.parent}; wait for it, stop it, or name another folder"
            ) from error

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds a line, whole or not at all.

        Raises:
            UserError: the system refuses, a full disk for one.
        """
        line = (json.dumps(record, ensure_ascii=False) + "\n").encode()
        with full_disk_told(self.path, "go on with --resume"):
            try:
                written = os.write(self._handle, line)
                if written != len(line):
                    os.write(self._handle, line[written:])
            except OSError:
                os.ftruncate(self._handle, self.position)
                raise
        self.position += len(line)

    def sync(self) -> None:
        """Makes what was appended last."""
        with full_disk_told(self.path, "go on with --resume"):
            os.fsync(self._handle)

    def close(self) -> None:
        os.close(self._handle)

    def _drop_broken_line(self) -> None:
        content = self.path.read_bytes()
        self.position = content.rfind(b"\n") + 1
        os.ftruncate(self._handle, self.position)


def read_metrics(run: Path | str) -> list[dict[str, Any]]:
    """The records of a run, in the order of its steps.

    Raises:
        UserError: there are none, or a line is damaged.
    """
    from throughtime.learning.run_folder import METRICS

    path = Path(run) / METRICS
    try:
        lines = path.read_bytes().decode().splitlines()
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; check the folder's name") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged: it is not UTF-8") from error
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(dict(json.loads(line)))
        except ValueError as error:
            raise UserError(f"{path}:{number} is damaged: it is not a JSON object") from error
    return records
