"""What an op's file in ``ops`` says about judging its outputs, and where that file is found.

An op without a file there is judged by the sets that its oracle gives (``sets``).
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from validators.judge.gpu.survey import Surveyor
from validators.judge.sets import compare_sets, open_rows
from validators.judge.tally import Tally
from validators.records.record import Check, Comparison


@dataclass(frozen=True, kw_only=True)
class JudgeOp:
    """How outputs of one op are judged; ``JUDGE`` of ``validators/judge/ops/NAME.py``.

    compare(inputs, outputs, contract, survey, tally) -> a comparison of each output, for one settled contract.
    open_rows(inputs, contract) -> rows that the contract leaves open, bool [m] on the CPU.
    whole(inputs, outputs, contract) -> the comparisons, and statistical checks of all outputs together; None without.
    """

    compare: Callable[[Any, Any, Any, Surveyor | None, type[Tally]], list[Comparison]]
    open_rows: Callable[[Any, Any], torch.Tensor]
    whole: Callable[[Any, Any, Any], tuple[list[Comparison], list[Check]]] | None = None


def _by_sets(inputs: Any, outputs: Any, contract: Any, survey: Surveyor | None, tally: type[Tally]) -> list[Comparison]:
    return compare_sets(inputs, outputs, contract, tally)


_BY_SETS = JudgeOp(compare=_by_sets, open_rows=open_rows)


@functools.cache
def op_judged(name: str) -> JudgeOp:
    """How the op ``name`` is judged."""
    module = f"validators.judge.ops.{name}"
    if importlib.util.find_spec(module) is None:
        return _BY_SETS
    found = importlib.import_module(module).JUDGE
    assert isinstance(found, JudgeOp)
    return found
