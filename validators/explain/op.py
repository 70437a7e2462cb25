"""What an op's file in ``ops`` says about explaining its outputs, and where that file is found."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from validators.explain.lines import Text
from validators.records.record import Comparison, Explanation


class Diagnosis(NamedTuple):
    """explanations: best first. near: ``eager, but for an amax floor of 1e-10`` where a contract with one or
    two changed fields admits every element, else None."""

    explanations: tuple[Explanation, ...]
    near: str | None = None


class Asked(NamedTuple):
    """Outputs with violations. contract: with every field settled. failing: outputs that have violations."""

    inputs: Any
    outputs: Any
    contract: Any
    failing: Sequence[str]
    comparisons: Sequence[Comparison]


def _nothing(inputs: Any, outputs: Any, contract: Any) -> Mapping[str, list[object]]:
    return {}


def _no_units(inputs: Any, outputs: Any) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True, kw_only=True)
class ExplainOp:
    """How outputs of one op are explained; ``EXPLAIN`` of ``validators/explain/ops/NAME.py``.

    diagnose(asked) -> what would explain the violations. cases: (recipe, shape and options) of the cases that tell its
    contracts apart, or that show its units. without_effect(contract, inputs) -> fields that say nothing about these
    inputs. observed(inputs, outputs, contract) -> numbers that the outputs show, by field of the contract.
    lines(text, inputs, outputs, contract, row, col, output): adds the arithmetic of an element to its report; None where
    the sets of the oracle say it all.
    units(inputs, outputs) -> sentences about the matrix unit; asked of the last case.
    bits(scenes, contract) -> what the bits show where nothing fits.
    changes: whether identification tries presets with changed fields. zeros: the recipe of ``cases`` with rows of
    zeros, which a contract may leave open. small: the recipe with rows of every size, asked of changed presets alone:
    it tells a floor from a rule for rows of zeros.
    """

    diagnose: Callable[[Asked], Diagnosis]
    cases: tuple[tuple[str, Mapping[str, Any]], ...]
    without_effect: Callable[[Any, Any], set[str]] = lambda contract, inputs: set()
    observed: Callable[[Any, Any, Any], Mapping[str, list[object]]] = _nothing
    lines: Callable[[Text, Any, Any, Any, int, int, str], None] | None = None
    units: Callable[[Any, Any], tuple[str, ...]] = _no_units
    bits: Callable[[Sequence[tuple[Any, Any]], Any], tuple[str, ...]] = lambda scenes, contract: ()
    changes: bool = True
    zeros: str = ""
    small: str = ""


@functools.cache
def op_explained(name: str) -> ExplainOp:
    """What is known of the op ``name``."""
    found = importlib.import_module(f"validators.explain.ops.{name}").EXPLAIN
    assert isinstance(found, ExplainOp)
    return found
