"""How what goes wrong is told: one line on stderr, and an exit status that scripts can go by.

====== =====================================================================
status when
====== =====================================================================
0      all is well
2      something the user can mend: an option, a file, a full disk, too little memory
130    Ctrl-C (128 + SIGINT); 143 for SIGTERM
141    who read the output went away (128 + SIGPIPE), as in ``| head``
====== =====================================================================

Anything else is a defect of ours and shows its traceback. With ``--debug`` so does everything.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from throughtime.errors import UserError

_BROKEN_PIPE = 141


class Frame(TyperGroup):
    """The outermost command, around all others."""

    def invoke(self, ctx: Any) -> Any:
        with told(bool(ctx.params.get("debug"))):
            return super().invoke(ctx)


@contextlib.contextmanager
def told(debug: bool) -> Iterator[None]:
    """Turns what can go wrong inside into a line and an exit status.

    Raises:
        typer.Exit: with that status.
    """
    try:
        yield
    except UserError as error:
        _fail(str(error), 2, debug)
    except KeyboardInterrupt as error:  # `Interrupted` of the training loop among them, which knows its signal
        _fail(str(error) or "stopped", 128 + getattr(error, "signal", 2), debug)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at exit
        raise typer.Exit(_BROKEN_PIPE) from None
    except OSError as error:
        if error.strerror is None:
            raise
        where = f" ({error.filename})" if error.filename else ""
        remedy = "; make room and try again" if error.errno == errno.ENOSPC else ""
        _fail(f"{error.strerror}{where}{remedy}", 2, debug)
    except (MemoryError, RuntimeError) as error:
        if not _memory_ran_out(error):
            raise
        _fail("the memory does not suffice; ask for less: fewer --hidden units, a smaller --batch-size", 2, debug)


def _memory_ran_out(error: Exception) -> bool:
    """Whether it is Python's, a GPU's or, told by its text alone, a CPU's refusal (PyTorch is not imported here)."""
    kind = type(error).__name__
    return kind in ("MemoryError", "OutOfMemoryError") or "DefaultCPUAllocator" in str(error)


def _fail(text: str, status: int, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    process = "" if os.environ.get("RANK", "0") == "0" else f" (process {os.environ['RANK']})"
    print(f"throughtime: {' '.join(text.split())}{process}", file=sys.stderr)  # noqa: T201
    raise typer.Exit(status) from None
