"""Matrix instructions (MFMA): not implemented yet, so a kernel that has one is refused with a sentence."""

from __future__ import annotations

from collections.abc import Callable

from validators.amdgcn.state import State
from validators.amdgcn.text import Instruction


def build(found: Instruction, place: str) -> Callable[[State], None] | None:
    """None: no matrix instruction is known."""
    return None
