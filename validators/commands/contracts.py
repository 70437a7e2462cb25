"""The presets, their fields and their evidence: lines for ``list contracts``, and docs/contracts.md.

``python -m validators.commands.contracts`` prints the page; a test holds the kept page against it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator

from reference.contract import (
    GEMM_CONTRACTS,
    NORM_QUANT_CONTRACTS,
    Contract,
    GemmContract,
    NormQuantContract,
    Reduction,
    presets,
)
from reference.evidence import INHERITS, KINDS, OPEN, declared, evidence_for
from reference.notation import text_of
from validators.words import OPS

_INTRODUCTION = (
    "A contract is the declared arithmetic of a kernel. [reference/contract.py](../reference/contract.py) says what "
    "each field means, and the [glossary](glossary.md) explains the words. `python -m validators.commands.contracts` "
    "makes this page from [reference/evidence.py](../reference/evidence.py), and a test compares the two. A field with "
    "the default of its dataclass is left out unless there is evidence for it."
)
_SETS = (
    "A field that the sources do not settle is a set of values. The contract then means several contracts, one for "
    "each choice of values. One call of a kernel must follow one of them in all its rows and outputs. The choice may "
    "depend on the build or on the shape, but not on the row. If they give different values, the record says which one "
    'was followed. The table shows the values of such a field with "or" between them.'
)


_TITLES = (
    ("Norm and quantizer", "add_rmsnorm_quant"),
    ("GEMM", "ptpc_gemm"),
    *((f"`{op}`", op) for op in OPS if op not in (*NormQuantContract.ops, *GemmContract.ops)),
)
"""Sections of the page, and an op that has the contracts of each."""


def text(value: object) -> str:
    """A field's value in a few characters."""
    if isinstance(value, Reduction):
        return value.kind if value.kind == "any" else f"{value.kind} {value.count}"
    return text_of(value)


def _values(contract: Contract, field: str) -> str:
    sets = dict(contract.unsettled)
    return " or ".join(f"`{text(v)}`" for v in sets.get(field, (getattr(contract, field),)))


def brief(op: str) -> Iterator[str]:
    """Two or three lines per preset of ``op``: its source, the evidence for its fields, and sets of values."""
    for contract in presets(op).values():
        yield f"{op}  {contract.name}: {contract.source}"
        kinds = Counter(e.kind for e in evidence_for(op, contract.name).values())
        if kinds:
            yield "    evidence: " + ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
        if contract.unsettled:
            sets = "; ".join(f"{f} {' or '.join(text(v) for v in values)}" for f, values in contract.unsettled)
            yield f"    unsettled: {sets}"


def _section(op: str, name: str) -> Iterator[str]:
    contract, evidence = presets(op)[name], evidence_for(op, name)
    shared = contract in (*NORM_QUANT_CONTRACTS.values(), *GEMM_CONTRACTS.values())
    yield f"### `{name}`"
    yield ""
    parent = f" As `{INHERITS[name]}`, except for the fields below that differ." if shared and name in INHERITS else ""
    yield f"{contract.source}.{parent}"
    yield ""
    said = {*declared(contract), *evidence}
    if contract.unsettled:
        said |= {field for field, _ in contract.unsettled}
    fields = [f.name for f in dataclasses.fields(contract) if f.name in said]  # type: ignore[arg-type]
    if fields:
        yield "| field | value | evidence |"
        yield "|---|---|---|"
        for field in fields:
            found = evidence.get(field)
            words = f"{found.kind}: {found.where}" if found else "unsettled"
            yield f"| `{field}` | {_values(contract, field)} | {words.replace('|', chr(92) + '|')} |"
        yield ""
    for sentence in OPEN.get(name, ()) if shared else ():
        yield f"Unsettled: {sentence}"
        yield ""


def page() -> str:
    """The text of docs/contracts.md."""
    lines = ["# Contracts: fields, evidence, and what is unsettled", "", _INTRODUCTION, ""]
    lines += ["Each field of a preset has evidence of one of these kinds:", "", "| kind | what it is |", "|---|---|"]
    lines += [*(f"| {kind} | {meaning} |" for kind, meaning in KINDS.items()), "", _SETS, ""]
    for title, op in _TITLES:
        lines += [f"## {title}", ""]
        for name in presets(op):
            lines += _section(op, name)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    print(page(), end="")
