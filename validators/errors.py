"""What ends a command with a sentence, not a traceback; ``validators.process.guard`` gives each its exit status."""

from __future__ import annotations


class UserError(Exception):
    """The message is one sentence that a user can act on. Bad usage (status 2), unless a subclass says otherwise."""


class NoDecision(UserError):
    """Nothing was wrong with what was asked, and this machine or these records cannot answer it: exit status 3."""


class RunFault(UserError):
    """A kernel or this suite broke while it worked, so there is no verdict: exit status 4."""


class UsageError(UserError):
    """A command line that asks for nothing that can be done."""
