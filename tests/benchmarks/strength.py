"""The table behind the strength sentence: which defects of the zoo each representative case catches.

``python -m tests.benchmarks.strength --write`` runs every defect on every case of ``representatives`` and writes
``validators/signoff/data/strength.json``; ``--op`` and ``--recipe`` measure a part and print it. The cases are those of
the smoke suite in both FP8 formats, their recipes once more at a shape without ragged ends, and the options of the
default suite at that small size: what a case of the default or deep suite is at least worth.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

from reference.contract import get_contract, presets
from tests import zoo
from tests.benchmarks.power import CAUGHT
from validators.calls import invariance
from validators.calls.call import KernelFault, run_kernel
from validators.cases.case import Case
from validators.cases.recipes import reasons_impossible
from validators.cases.situations import EVERY
from validators.cases.suite import cases_for
from validators.records.verdict import decide
from validators.run import judge
from validators.signoff.strength import DECLARED, SCHEMA, TABLE
from validators.words import FP8_FORMATS, OPS

LARGE_GRID = 512
"""Outputs larger than this on both sides are measured as they are: a defect of large grids shows nowhere else."""


def representatives(op: str) -> list[Case]:
    """The cases to measure for ``op``, ids unique, in a fixed order."""
    found: dict[str, Case] = {}
    for fp8 in FP8_FORMATS:
        wanted: list[Case] = list(cases_for(op, depth="smoke", fp8=fp8))
        for case in cases_for(op, depth="default", fp8=fp8):
            wanted += [dataclasses.replace(case, **shape) for shape in _small_shapes(case)]
        for case in wanted:
            if reasons_impossible(case) is None:
                found.setdefault(case.id, case)
    return list(found.values())


def _small_shapes(case: Case) -> list[dict[str, Any]]:
    """Small shapes that a case of the default suite contains, if any: its traits but not its size."""
    if case.recipe in ("model", "shape_walk") or case.recipe.startswith(EVERY) or case.m == 0:
        return []
    if case.op == "ptpc_gemm" and min(case.m, case.n) > LARGE_GRID:
        return [{"k": 128}]
    if case.op == "ptpc_gemm":
        m = min(case.m, 16 if case.m % 16 == 0 else 21 if case.m % 2 else 24)
        return [{"m": m, "n": 48 if case.n % 128 else 128, "k": 160 if case.k % 128 else 256}]
    if case.n % 1024 == 0:
        # 34 rows of 1024 pass the zoo's wrap, 32 do not: where the case has fewer rows it is not worth that defect.
        return [{"m": max(1, min(case.m, 34) // 2 * 2), "n": 1024}]
    # The ragged widths of the tail recipes: the same remainders modulo 8 at the smallest width in use.
    return [{"m": min(case.m, 25 if case.m % 2 else 24), "n": 264 + case.n % 8}]


def catches(defect: zoo.Defect, case: Case) -> bool:
    """Does the case fail the defect's kernel? As ``validate`` decides, without the search for an explanation."""
    contract = get_contract(defect.op, str(defect.kernel.contract))
    try:
        claim = run_kernel(defect.kernel, case, "cpu")
    except KernelFault:
        return False
    comparisons, statistical = judge(claim, contract)
    checks = [*claim.checks, *statistical]
    if decide(comparisons, checks)[0] in CAUGHT:
        return True
    judged = contract.batch_invariant
    checks.append(invariance.batch_invariance(defect.kernel, claim.inputs, claim.outputs, judged=judged))
    if case.layout != "contiguous":
        checks.append(invariance.layout_equals_contiguous(defect.kernel, claim.inputs, claim.outputs, judged=judged))
    return decide(comparisons, checks)[0] in CAUGHT


def row(case: Case, defects: Iterable[zoo.Defect]) -> list[str]:
    """Ids of the defects of the case's op that it catches, sorted."""
    return sorted(defect.id for defect in defects if defect.op == case.op and catches(defect, case))


def declared_fields(ops: Sequence[str]) -> dict[str, dict[str, dict[str, object]]]:
    """op -> preset -> what it says of the fields that make a defect another arithmetic."""
    fields = sorted({field for changed in DECLARED.values() for field in changed})
    return {
        op: {
            name: {field: getattr(contract, field) for field in fields if hasattr(contract, field)}
            for name, contract in presets(op).items()
        }
        for op in ops
    }


def measure(ops: Sequence[str], recipe: str | None = None, *, echo: bool = False) -> dict[str, object]:
    """The table for ``ops``, all recipes or one."""
    zoo_defects = zoo.all_defects()
    rows: dict[str, dict[str, list[str]]] = {}
    for op in ops:
        rows[op] = {}
        for case in representatives(op):
            if recipe in (None, case.recipe):
                rows[op][case.id] = row(case, zoo_defects)
                if echo:
                    print(f"{len(rows[op][case.id]):3} {case.id}", flush=True)
    return {
        "schema": SCHEMA,
        "contracts": {op: zoo.clean_kernel(op).contract for op in ops},
        "defects": {op: {d.id: d.name for d in zoo_defects if d.op == op} for op in ops},
        "fields": declared_fields(ops),
        "rows": rows,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if some defect is caught by no row of a full measurement."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.strength", description=__doc__)
    parser.add_argument("--op", choices=OPS)
    parser.add_argument("--recipe")
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}; with --op the rows of that op")
    options = parser.parse_args(arguments)
    partial = options.op is not None or options.recipe is not None
    if options.write and options.recipe:
        parser.error("--write replaces the rows of whole ops, so it goes without --recipe")
    start = time.perf_counter()
    table = measure([options.op] if options.op else OPS, options.recipe, echo=True)
    uncaught = [
        identity
        for op, known in table["defects"].items()  # type: ignore[attr-defined]
        for identity in known
        if not any(identity in found for found in table["rows"][op].values())  # type: ignore[index]
    ]
    print(f"{time.perf_counter() - start:.0f} s; caught by no row: {', '.join(uncaught) or 'none'}")
    if options.write:
        TABLE.parent.mkdir(parents=True, exist_ok=True)
        if partial:
            kept = json.loads(TABLE.read_text(encoding="utf-8"))
            for part in ("contracts", "defects", "fields", "rows"):
                table[part] = {op: (table if op in table[part] else kept)[part][op] for op in OPS}  # type: ignore
        TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return 1 if uncaught and not partial else 0


if __name__ == "__main__":
    raise SystemExit(main())
