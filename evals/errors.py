"""What ends an evaluation with one sentence, and with which exit status of ``validators.process.guard.Exit``."""

from __future__ import annotations

from validators.errors import NoDecision, RunFault, UserError


class EvalError(UserError):
    """Input that cannot be used or compared: a file, a run, an option, a server address. Status 2."""


class NotDecided(EvalError, NoDecision):
    """The input is right, and does not suffice: an unfinished run, or what this machine lacks. Status 3."""


class WorkFault(EvalError, RunFault):
    """A kernel or a server broke during the work. Status 4."""
