"""What came of one golden, and of all of them: data and its few derived numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from validators.process.guard import Exit

if TYPE_CHECKING:
    from golden.tensors import Drift
    from validators.records.record import Record


class State(str, Enum):
    """State of a golden. Only UNCHANGED is good; MISSING and UNTESTED say nothing of the golden, and say why."""

    UNCHANGED = "UNCHANGED"
    DRIFTED = "DRIFTED"  # other bits, still admissible: to be accepted or explained
    FAILED = "FAILED"  # not admissible, no output, or other inputs or truth than recorded
    MISSING = "MISSING"  # its kernel or architecture is not here
    UNTESTED = "UNTESTED"  # other bits, admissible, on a CPU of another vector ISA or with other libraries


@dataclass(frozen=True)
class Outcome:
    """State of one golden. sentence: why, empty for UNCHANGED. drifts: per output whose bits differ.

    record: verdict of the kernel's outputs under the contract; of reference and inputs goldens, whether they
    are as accepted.
    """

    id: str
    kind: str
    name: str
    arch: str
    state: State
    sentence: str = ""
    drifts: tuple[Drift, ...] = ()
    record: Record | None = None
    seconds: float = 0.0


def exit_code(outcomes: Iterable[Outcome]) -> Exit:
    """YES if everything checked is UNCHANGED, and something was; NO if anything DRIFTED or FAILED."""
    states = {outcome.state for outcome in outcomes}
    if states & {State.DRIFTED, State.FAILED}:
        return Exit.NO
    return Exit.YES if State.UNCHANGED in states else Exit.NO_DECISION
