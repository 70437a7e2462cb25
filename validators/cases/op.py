"""What an op's file in ``ops`` says about its cases, and where that file is found."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from validators.cases.case import Case, CaseError
from validators.cases.recipe import RecipeInfo
from validators.cases.tensors import Inputs
from validators.words import OPS

Suite = Callable[[str, str], Iterator[Case]]
"""(dtype, fp8) -> cases, in a fixed order; ids may repeat."""


@dataclass(frozen=True, kw_only=True)
class CaseOp:
    """Cases and inputs of one op; ``OP`` of ``validators/cases/ops/NAME.py``. Its name is the file's.

    inputs: their type, which names the outputs' type. recipes: in the order of the suites. build(case, device) -> the
    inputs of a case that is possible. suites: by depth. bytes_per_element: what one validation holds at a time for each
    element of the largest tensor, from above.
    norm: whether a case has a residual, a weight and eps to vary. bias: whether it may have a bias. inner: whether it
    has an inner dimension k. batches: whether inputs may have three dimensions.
    """

    name: str
    inputs: type[Inputs]
    recipes: tuple[RecipeInfo, ...]
    build: Callable[[Case, str], Inputs]
    suites: Mapping[str, Suite]
    bytes_per_element: int
    norm: bool = False
    bias: bool = False
    inner: bool = False
    batches: bool = True

    def small(self, recipe: str, **options: Any) -> Case:
        """A case of the smoke suite's size."""
        if self.inner:
            return Case(self.name, 24, 48, recipe, k=176, **options)
        return Case(self.name, 24, 520, recipe, **options)

    def impossible(self, case: Case) -> str | None:
        """One sentence why the op has no such case, whatever the recipe is, or None."""
        if self.inner != (case.k > 0):
            return f"impossible shape m={case.m} n={case.n} k={case.k} for op {self.name}"
        if not self.norm and (case.gamma != "T" or case.gemma or case.eps != "1e-5" or not case.residual):
            return f"{self.name} has no residual, weight or eps to vary"
        if case.bias and not self.bias:
            return f"{self.name} has no bias"
        if case.layout in ("3d", "3dstrided") and not self.batches:
            return f"{self.name} takes two-dimensional operands only"
        return None

    def words(self, case: Case) -> str:
        """Op, shape, types and options of a case, separated by commas."""
        if self.inner:
            what = f"{self.name} {case.m} x {case.n} x {case.k} (m, n, k), {case.fp8} operands, {case.dtype} output"
        else:
            what = f"{self.name} {case.m} x {case.n}, {case.dtype} to {case.fp8}"
        options = [
            *(["no residual"] if self.norm and not case.residual else []),
            *(["fp32 weight"] if case.gamma == "fp32" else []),
            *(["1 + weight"] if case.gemma else []),
            *([f"eps {case.eps}"] if self.norm else []),
            *([f"{case.layout} layout"] if case.layout != "contiguous" else []),
            *(["bias"] if case.bias else []),
        ]
        return ", ".join([what, *options])


def normed(case: Case) -> bool:
    """Whether the case's op has a residual, a weight and eps."""
    return op_named(case.op).norm


def adds_residual(case: Case) -> bool:
    """Whether the case has a residual to add."""
    return normed(case) and case.residual


@functools.cache
def op_named(name: str) -> CaseOp:
    """The op ``name``, one of ``OPS``; raises CaseError otherwise."""
    if name not in OPS:
        raise CaseError(f"unknown op {name!r}; known: {', '.join(OPS)}")
    found = importlib.import_module(f"validators.cases.ops.{name}").OP
    assert isinstance(found, CaseOp)
    assert found.name == name
    return found
