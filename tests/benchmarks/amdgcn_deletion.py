"""Every executed vector, LDS and memory instruction of a kernel deleted in turn: which deletions does the suite see?

``python -m tests.benchmarks.amdgcn_deletion [any.gfx942 ...]`` prints a table for the fixtures named, or for all four.
A deletion is seen where a case is FAILED, or ERROR because the machine met what a GPU leaves undefined. Those that
are not seen are listed with their lines; what they lack is a case or a reason.
"""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from collections.abc import Iterator

from tests.support.amdgcn_edit import FP8, compiled, kernel_of, text_of
from tests.support.amdgcn_fixtures import TARGETS, WIDTHS
from validators.cases.case import Case
from validators.records.record import Status
from validators.run import validate

CASES = {
    "any": (
        "m17-n1002-bf16-{}-gaussian-s0",
        "m9-n1002-bf16-{}-nonfinite-s0",
        "m9-n1001-bf16-{}-midpoints-s0",
        "m32-n1002-bf16-{}-zero_rows-s0",
        "m34-n1002-bf16-{}-subnormal_rows-s0",
        "m33-n1002-bf16-{}-crest_ladder-s0",
        "m34-n1002-bf16-{}-gaussian-strided-s0",
        "m9-n520-bf16-{}-uniform_bytes-s0",
    ),
    "vector": (
        "m17-n1024-bf16-{}-gaussian-s0",
        "m9-n1024-bf16-{}-nonfinite-s0",
        "m9-n1024-bf16-{}-midpoints-s0",
        "m32-n1024-bf16-{}-zero_rows-s0",
        "m34-n1024-bf16-{}-subnormal_rows-s0",
        "m33-n1024-bf16-{}-crest_ladder-s0",
        "m34-n1024-bf16-{}-gaussian-strided-s0",
        "m9-n528-bf16-{}-uniform_bytes-s0",
    ),
}
_DELETED = re.compile(r"\s*(v_|ds_|buffer_|global_)\w+ ")


def deletions(text: str) -> Iterator[tuple[int, str, str]]:
    """(line, instruction, text without it) of every instruction that is deleted."""
    lines = text.splitlines(keepends=True)
    executed = {found.line for found in compiled(text).machine.program.instructions}
    for number, line in enumerate(lines, start=1):
        if number in executed and _DELETED.match(line):
            yield number, " ".join(line.split()), "".join([*lines[: number - 1], *lines[number:]])


def seen(text: str, target: str, name: str) -> str:
    """The status of the first case that is not PASSED, or "not seen"."""
    kernel = kernel_of(text)
    for case in CASES[name]:
        record = validate(
            kernel, Case.parse(f"add_rmsnorm_quant-{case.format(FP8[target])}"), device=f"amdgcn:{target}"
        )
        if record.status is not Status.PASSED:
            return record.status.value
    return "not seen"


def main(names: list[str]) -> None:
    """Print the table."""
    for wanted in names or [f"{name}.{target}" for target in TARGETS for name in WIDTHS]:
        name, target = wanted.split(".")
        text, start = text_of(target, name), time.monotonic()
        statuses: Counter[str] = Counter()
        for line, instruction, without in deletions(text):
            status = seen(without, target, name)
            statuses[status] += 1
            if status == "not seen":
                print(f"{wanted}:{line}: {instruction}", flush=True)
        told = ", ".join(f"{count} {status}" for status, count in statuses.most_common())
        print(f"{wanted}: {sum(statuses.values())} deletions: {told}; {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
