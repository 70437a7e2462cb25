"""What the machine says where it cannot or must not go on; each message is one sentence with file and line."""

from __future__ import annotations

from validators.errors import RunFault, UserError


class TextError(UserError):
    """The text is not understood: an unknown mnemonic, modifier, operand, directive or target."""


class MachineFault(RunFault):
    """The code did what a GPU would fault on or leave undefined, or what this interpreter does not implement."""
