"""What is wrong with the input, in one sentence; commands print it and exit with code 2."""

from __future__ import annotations

from validators.errors import UserError


class EvalError(UserError):
    """Input that cannot be used or compared: a file, a run, an option, a server; its message is one sentence."""
