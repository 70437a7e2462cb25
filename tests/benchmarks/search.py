"""How long does the search take to find a defect behind two conditions? Twenty planted ones, each searched by itself.

``python -m tests.benchmarks.search`` runs ``python -m validators search --first`` on each kernel of ``search_planted``,
on one core with one stream, until it is found or ten minutes are over; ``--workers`` at a time. It prints for each how
long it took to see a failure and to reduce it, how many cases that were, and the sentence; then the medians.
``--write FILE`` appends one JSON line for each, and what FILE holds already is not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.search_planted import PLANTED, Planted, named
from validators.cases.case import Case

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Found:
    """Of one planted defect. seen, reduced: seconds from the first case to the first failure, and until it was printed;
    None where nothing was found. right: whether that failure is the planted one. cases: drawn until then."""

    name: str
    seed: int
    seen: float | None
    reduced: float | None
    cases: int
    case: str = ""
    sentence: str = ""
    right: bool = False
    said: str = ""

    def line(self) -> str:
        planted = named(self.name)
        head = f"{self.name:13} {planted.op:17} {planted.words}"
        if self.seen is None or self.reduced is None:
            return f"{head}\n    NOT FOUND in {self.cases:,} cases {self.said}"
        wrong = "" if self.right else "  ANOTHER FAILURE"
        times = f"seen after {self.seen:.1f} s and {self.cases:,} cases, reduced after {self.reduced:.1f} s"
        return f"{head}\n    {times}{wrong}\n    {self.case}\n    {self.sentence}"


def search(planted: Planted, minutes: float, seed: int) -> Found:
    """One search, in a process of its own on one core."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["search", "--kernel", planted.spec, "--device", "cpu", "--first", "--records", folder]
        words += ["--minutes", f"{minutes:g}", "--seed", str(seed), "--quiet"]
        ran = subprocess.run(
            [sys.executable, "-m", "validators", *words],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        file = Path(folder) / "search.json"
        if not file.exists():
            return Found(planted.name, seed, None, None, 0, said=ran.stderr.strip())
        summary = json.loads(file.read_text())
    if not summary["findings"]:
        return Found(planted.name, seed, None, None, summary["cases"], said=ran.stderr.strip())
    [one] = summary["findings"]
    # A case of more rows may show a defect of one row: the check of batch invariance runs rows alone.
    case = Case.parse(one["case"])
    right = any(planted.holds(dataclasses.replace(case, m=rows)) for rows in (case.m, 1))
    times = one["seen_seconds"], one["reduced_seconds"]
    return Found(planted.name, seed, *times, summary["cases"], one["case"], one["sentence"], right)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if a planted defect was not found."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.search", description=__doc__)
    parser.add_argument("--workers", type=int, default=2, help="searches at a time, each on one core (default: 2)")
    parser.add_argument("--minutes", type=float, default=10.0, help="for each at most (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of every search (default: 0)")
    names = [planted.name for planted in PLANTED]
    parser.add_argument("--only", action="append", choices=names, help="only this one; may be repeated")
    parser.add_argument("--write", type=Path, metavar="FILE", help="append one JSON line for each; go on where it ends")
    options = parser.parse_args(arguments)
    done: dict[tuple[str, int], Found] = {}
    if options.write and options.write.exists():
        for text in options.write.read_text(encoding="utf-8").splitlines():
            kept = Found(**json.loads(text))
            done[kept.name, kept.seed] = kept
    left = [named(name) for name in options.only or names if (name, options.seed) not in done]
    with ThreadPoolExecutor(options.workers) as pool:
        for future in as_completed([pool.submit(search, each, options.minutes, options.seed) for each in left]):
            found = future.result()
            done[found.name, found.seed] = found
            print(found.line(), flush=True)
            if options.write:
                with options.write.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(dataclasses.asdict(found)) + "\n")
    results = [found for found in done.values() if found.seed == options.seed]
    right = [found for found in results if found.right]
    print(
        f"seed {options.seed}: {len(right)} of {len(results)} planted defects found within {options.minutes:g} minutes"
    )
    for what in ("seen", "reduced"):
        times = [getattr(found, what) for found in right]
        if times:
            print(f"{what} after: median {statistics.median(times):.1f} s, longest {max(times):.1f} s")
    return int(len(right) < len(results))


if __name__ == "__main__":
    raise SystemExit(main())
