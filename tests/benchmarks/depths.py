"""The cases of each depth as a table that a sign-off can read without torch.

``python -m tests.benchmarks.depths --write`` writes ``validators/signoff/data/depths.json``: op -> depth -> lane ->
the ids of its bf16 cases. ``{fp8}`` is the format of the machine and ``{other}`` the one it does not have.
"""

from __future__ import annotations

import argparse
import json

from validators.cases.recipes import lane_of
from validators.cases.suite import cases_for
from validators.signoff.depths import SCHEMA, TABLE
from validators.words import DEPTHS, FP8_FORMATS, OPS


def table(native: str = "e4m3fn") -> dict[str, object]:
    """The table's content, from the suite of a machine whose FP8 format is ``native``."""
    [other] = [name for name in FP8_FORMATS if name != native]
    found: dict[str, dict[str, dict[str, list[str]]]] = {}
    for op in OPS:
        for depth in DEPTHS:
            lanes = found.setdefault(op, {}).setdefault(depth, {})
            for case in cases_for(op, depth=depth, fp8=native):
                text = case.id.replace(f"-{native}-", "-{fp8}-").replace(f"-{other}-", "-{other}-")
                lanes.setdefault(lane_of(case), []).append(text.removeprefix(f"{op}-"))
    return {"schema": SCHEMA, "cases": found}


def main() -> None:
    """Write the table, or print its size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    text = json.dumps(table(), separators=(",", ":")) + "\n"
    if parser.parse_args().write:
        TABLE.write_text(text, encoding="utf-8")
        print(f"written: {TABLE}")
    print(f"{len(text):,} bytes")


if __name__ == "__main__":
    main()
