"""Every defect behind every guard: real bugs hide behind a condition, and must be caught there too.

Behind a limit of shapes (``zoo.SHAPE_GUARDS``) a defect is tried on the cases of the default suite that are beyond it.
Where its bits equal the clean kernel's on all of those it is "unseen": either it is none there (one row has no next
row), or no case beyond the limit has what it needs (fp16, a stride, a NaN).

``python -m tests.benchmarks.guards --write FILE`` validates each pair on the defect's own cases, with the nearest shape
that meets the guard, and appends one JSON line a pair; pairs that FILE holds already are not tried again, so a run that
is cut goes on where it was. A pair whose outputs equal the clean kernel's on every one of its cases is no defect there
(a wrong scale is not confined to a block of columns), nor is one of HARMLESS: equivalent, and counts for nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from tests import zoo
from tests.benchmarks.power import CAUGHT
from validators.calls.buffers import POISONS, make_buffers
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.tensors import as_ints
from validators.run import validate

HARMLESS = {
    ("N05", "one block"): "a wrong rms cancels in y/s, so that codes are right; the scale, which shows it, is clean",
    ("N08", "one block"): "a wrong rms cancels in y/s, so that codes are right; the scale, which shows it, is clean",
}
"""Pairs whose bits differ from the clean kernel's and whose every value is right, with the reason."""


def equivalent(identity: str, guard: str) -> bool:
    """Does the guarded defect give the clean kernel's bits on all of its cases, at the first call and the second?"""
    reveals = zoo.guarded(zoo.find_defect(identity), guard).reveals
    for text in reveals:
        defect = zoo.guarded(zoo.find_defect(identity), guard)
        clean = zoo.clean_kernel(defect.op)
        inputs = build(Case.parse(text))
        for poison in POISONS:
            found = []
            for kernel in (defect.kernel, clean):
                buffers = make_buffers(inputs, poison=poison)
                found.append(kernel.call(inputs, buffers.outputs))
            pairs = [(getattr(found[0], f.name), getattr(found[1], f.name)) for f in dataclasses.fields(found[0])]
            for one, other in pairs:
                if one is not None and not torch.equal(as_ints(one), as_ints(other)):
                    return False
    return True


def attempt(identity: str, guard: str) -> dict[str, object]:
    """One pair: the first case that catches it, or that none does."""
    statuses = []
    for text in zoo.guarded(zoo.find_defect(identity), guard).reveals:
        # "second call" counts the calls of one kernel, so every case gets its own.
        defect = zoo.guarded(zoo.find_defect(identity), guard)
        record = validate(defect.kernel, Case.parse(text))
        statuses.append(record.status.value)
        if record.status in CAUGHT:
            return {
                "defect": identity,
                "guard": guard,
                "outcome": "caught",
                "case": text,
                "status": record.status.value,
            }
    known = (identity, guard) in HARMLESS
    same = "unseen" if guard in zoo.SHAPE_GUARDS else "equivalent"
    outcome = same if known or equivalent(identity, guard) else "missed"
    seen = ", ".join(dict.fromkeys(statuses))
    return {"defect": identity, "guard": guard, "outcome": outcome, "case": "", "status": seen}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if a pair that is a defect was missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.guards", description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE", help="append one JSON line a pair; go on where it ends")
    parser.add_argument(
        "--guard", action="append", choices=(*zoo.GUARDS, *zoo.SHAPE_GUARDS), help="only these; repeatable"
    )
    options = parser.parse_args(arguments)
    done: dict[tuple[str, str], dict[str, object]] = {}
    if options.write and options.write.exists():
        for line in options.write.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            done[entry["defect"], entry["guard"]] = entry
    for guard in options.guard or (*zoo.GUARDS, *zoo.SHAPE_GUARDS):
        for defect in zoo.all_defects():
            if (defect.id, guard) in done or not zoo.concerns(guard, defect.op):
                continue
            entry = attempt(defect.id, guard)
            done[defect.id, guard] = entry
            if entry["outcome"] != "caught":
                print(f"{entry['outcome']}: {defect.id} {defect.name} behind {guard}", flush=True)
            if options.write:
                with options.write.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(entry) + "\n")
    counts = Counter(str(entry["outcome"]) for entry in done.values())
    print(f"{len(done)} pairs of defect and guard: " + ", ".join(f"{n} {what}" for what, n in sorted(counts.items())))
    return int(counts["missed"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
