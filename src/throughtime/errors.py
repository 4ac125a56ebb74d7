"""What is told to users."""

from __future__ import annotations


class UserError(Exception):
    """Something a user can mend. Its text is one line: what is wrong, where (file:line), what to do.

    The command line prints the line on stderr and ends with status 2; the traceback shows with ``--debug``.
    """
