"""Results as they come, one JSON object a line: what a killed study leaves behind is whole but for its last line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from throughtime.errors import UserError
from throughtime.learning.run_folder import refuse_overwriting
from throughtime.learning.storage import full_disk_told

Result = TypeVar("Result")


def check_writable(results: Path) -> None:
    """Makes the file's folder, so that what is wrong with it is told before the work, not after it.

    Raises:
        UserError: the folder cannot be written to, or is a file.
    """
    refuse_overwriting(results.parent, resume=True)
    with full_disk_told(results.parent):
        results.parent.mkdir(parents=True, exist_ok=True)


def read_lines(path: Path, parse: Callable[[dict[str, Any]], Result], study: str) -> list[Result]:
    """The results in a file; none where there is none. A last line that was cut short is passed over.

    Args:
        path: the file.
        parse: from a line's values to a result.
        study: whose results they must be, for the message.

    Raises:
        UserError: a line is not a result.
    """
    if not path.exists():
        return []
    results = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as results of {study} ({error}); give another file") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                results.append(parse(json.loads(line)))
            except (AttributeError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
                raise UserError(f"{path}:{number} is not a result of {study}; give another file") from error
    return results


def append_line(path: Path, result: Any) -> None:
    """Adds a dataclass as a line, whole; what an interrupted line left goes first.

    Raises:
        UserError: the file cannot be written.
    """
    line = json.dumps(asdict(result)) + "\n"
    with full_disk_told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b") as file:
            file.seek(0)
            content = file.read()
            if content and not content.endswith(b"\n"):
                file.truncate(content.rfind(b"\n") + 1)
            file.seek(0, 2)
            file.write(line.encode())
