"""Records of real kernels on a GPU in the form that the repository keeps, and the tables that are made of them.

``python -m tests.benchmarks.real_records DIR --findings FILE --write`` reads the records that ``python -m validators
run --records`` left under DIR, in one folder or in several, and writes

- ``docs/records/real-GPU/KERNEL.jsonl``: a first line about the run, then one line per case;
- ``docs/records/real-GPU/signoff.md`` and ``.json``, from ``python -m validators signoff DIR``;
- ``docs/records/real-GPU/findings.jsonl``, from FILE, which ``tests.benchmarks.real_findings --out`` wrote;
- the table of docs/real-kernels.md and the two rows of docs/results.md.

Without --write it prints the table. Without DIR the tables are made of the records that are kept already.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from validators.records.record import Record, Status
from validators.records.store import load

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "docs" / "records"
PAGE, RESULTS = ROOT / "docs" / "real-kernels.md", ROOT / "docs" / "results.md"
START, END = "<!-- verdicts -->", "<!-- end of verdicts -->"
PROVIDERS = ("vllm", "sgl_kernel")
WHEELS = {"vllm": "vLLM", "sglang-kernel": "sglang-kernel", "sgl-kernel": "sgl-kernel"}
_ORDER = (Status.PASSED, Status.FAILED, Status.NONDETERMINISTIC, Status.MISTRUSTED, Status.ERROR, Status.UNSUPPORTED)
_OF_THE_RUN = ("commit", "dirty", "python", "torch", "gpu", "kernel_versions")

Line = dict[str, Any]


class RecordsError(ValueError):
    """Records that must not be kept; its message is one sentence."""


def compact(records: Sequence[Record]) -> list[Line]:
    """The lines of one kernel's file. Raises RecordsError for doubles, for two runs in one, and for a case twice."""
    first = records[0]
    if first.fake or first.emulated:
        raise RecordsError(f"the records of {first.kernel} are of a test double or of an emulated kernel")
    runs = {json.dumps(_run(r), sort_keys=True) for r in records}
    if len(runs) > 1:
        raise RecordsError(f"the records of {first.kernel} are of {len(runs)} runs that differ in source or machine")
    twice = [case for case, count in Counter(r.case for r in records).items() if count > 1]
    if twice:
        raise RecordsError(f"{first.kernel} has two records of {twice[0]}")
    lines = [_case(r) for r in records]
    totals = {name: sum(line.get(name, 0) for line in lines) for name in ("judged", "single", "violations")}
    statuses = {status.value: count for status in _ORDER if (count := sum(r.status is status for r in records))}
    return [{**_run(first), "date": first.provenance.date, "statuses": statuses, **totals}, *lines]


def _run(record: Record) -> Line:
    about = {name: getattr(record.provenance, name) for name in _OF_THE_RUN}
    named = {"kernel": record.kernel, "op": record.op, "contract": record.contract, "arch": record.arch}
    return {**named, "contract_from": record.contract_from, **about}


def _case(record: Record) -> Line:
    """A case in one line; what is empty is left out."""
    line: Line = {"case": record.case, "lane": record.lane, "status": record.status.value}
    if record.comparisons:
        for name in ("judged", "single", "unspecified", "violations"):
            line[name] = sum(getattr(c, name) for c in record.comparisons)
    observed = [f"{c.output}: {c.observed}" for c in record.comparisons if c.observed]
    broken = [f"{c.name}: {c.detail}" for c in record.checks if c.ok is False]
    more = {
        "reasons": record.reasons,
        "explanations": [e.text for e in record.explanations],
        "checks": broken,
        "observed": observed,
    }
    return {**line, **{name: list(found) for name, found in more.items() if found}}


def kept(folder: Path = KEPT) -> list[Line]:
    """First lines of every kept file, by GPU and kernel."""
    files = sorted(folder.glob("real-*/*.jsonl"))
    return [json.loads(path.read_text(encoding="utf-8").splitlines()[0]) for path in files if path.stem != "findings"]


def verdict(head: Line) -> str:
    """``72 PASSED, 18 UNSUPPORTED``."""
    return ", ".join(f"{count} {status}" for status, count in head["statuses"].items())


def table(heads: Sequence[Line]) -> str:
    """The table of docs/real-kernels.md."""
    rows = [
        "| kernel | version | GPU, torch | contract | cases | values judged | with one admissible value |",
        "|---|---|---|---|---|---|---|",
    ]
    for head in heads:
        share = head["single"] / head["judged"] if head["judged"] else 0.0
        # Rounded down: 100 % is said of all of them only.
        exact = "100 %" if share == 1.0 else f"{int(share * 1000) / 10:.1f} %"
        gpu = str(head["gpu"]).removeprefix("NVIDIA ")
        rows.append(
            f"| `{head['kernel']}` | {_version(head)} | {gpu}, {head['torch']} | `{head['contract']}` "
            f"| {verdict(head)} | {head['judged']:,} | {exact} |"
        )
    return "\n".join(rows) + "\n"


def _version(head: Line) -> str:
    versions = head["kernel_versions"]
    return next((f"{words} {versions[name]}" for name, words in WHEELS.items() if name in versions), "unknown")


def result_cell(heads: Sequence[Line], provider: str) -> str:
    """What docs/results.md says about the kernels of ``vllm`` or ``sgl_kernel``."""
    mine = [head for head in heads if head["kernel"].startswith(f"{provider}/")]
    total: Counter[str] = Counter()
    for head in mine:
        total.update(head["statuses"])
    counts = ", ".join(f"{total[s.value]} {s.value}" for s in _ORDER if total[s.value])
    versions, gpus = sorted({_version(head) for head in mine}), sorted({str(head["gpu"]) for head in mine})
    return (
        f"{', '.join(versions)} on {', '.join(gpus)}: {counts}; " if mine else "UNTESTED; "
    ) + "[how, and what was found](real-kernels.md)"


def sign_offs(folder: Path = KEPT) -> str:
    """Links to the kept sign-offs, as docs/real-kernels.md has them."""
    names = [path.parent.name for path in sorted(folder.glob("real-*/signoff.md"))]
    links = [f"[{name.removeprefix('real-').upper()}](records/{name}/signoff.md)" for name in names]
    return f"Sign-off of these records: {', '.join(links)}.\n" if links else ""


def with_table(page: str, heads: Sequence[Line]) -> str:
    """The page with the table of ``heads``, and links to the sign-offs."""
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise RecordsError(f"{PAGE.name} has no {START} ... {END}")
    return f"{before}{START}\n\n{table(heads)}\n{sign_offs()}\n{END}{after}"


def _with_cell(cell: str, found: re.Match[str]) -> str:
    return f"{found[1]} {cell} |"


def with_rows(page: str, heads: Sequence[Line]) -> str:
    """docs/results.md with the third cells of its two rows."""
    for provider in PROVIDERS:
        cell = result_cell(heads, provider)
        page, count = re.subn(
            rf"^(\| `{provider}/\*`[^|]*\|[^|]*\|)[^|]*\|", functools.partial(_with_cell, cell), page, flags=re.M
        )
        if count != 1:
            raise RecordsError(f"{RESULTS.name} has {count} rows of {provider}/*, not one")
    return page


def keep(directory: Path, findings: Path | None = None, folder: Path = KEPT) -> Path:
    """Writes the kept form of ``directory``; returns its folder. What it held of the same kernels is replaced."""
    by_kernel: dict[str, list[Record]] = {}
    for record in load(directory):
        if record.kernel.split("/")[0] in PROVIDERS:
            by_kernel.setdefault(record.kernel, []).append(record)
    if not by_kernel:
        raise RecordsError(f"{directory} has no record of {' or '.join(PROVIDERS)}")
    files = {kernel: compact(records) for kernel, records in by_kernel.items()}
    gpus = {str(lines[0]["gpu"]) for lines in files.values()}
    if len(gpus) > 1:
        raise RecordsError(f"{directory} has records of several GPUs: {', '.join(sorted(gpus))}")
    model = re.search(r"[A-Z]+\d+\w*", gpus.pop())
    target = folder / f"real-{model[0].lower() if model else 'gpu'}"
    target.mkdir(parents=True, exist_ok=True)
    for kernel, lines in files.items():
        _write(target / f"{kernel.replace('/', '-')}.jsonl", lines)
    if findings is not None:
        _write(target / "findings.jsonl", [json.loads(line) for line in findings.read_text("utf-8").splitlines()])
    _sign(directory, target)
    return target


def _write(path: Path, lines: Sequence[Line]) -> None:
    path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines), encoding="utf-8")


def _sign(directory: Path, target: Path) -> None:
    """The decision over ``directory``, named by its last part alone: the page must not tell of a machine's folders."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "validators", "signoff", directory.resolve().name, "--out", scratch]
        search = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        done = subprocess.run(
            command,
            cwd=directory.resolve().parent,
            env={**os.environ, "PYTHONPATH": search},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode not in (0, 1):
            raise RecordsError(f"the sign-off ended with status {done.returncode}: {done.stderr.strip()}")
        for name in ("signoff.md", "signoff.json"):
            shutil.copy(Path(scratch) / name, target / name)


def main(argv: Sequence[str] | None = None) -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("directory", metavar="DIR", nargs="?", type=Path)
    parser.add_argument("--findings", metavar="FILE", type=Path)
    parser.add_argument("--write", action="store_true")
    parsed = parser.parse_args(argv)
    try:
        if parsed.directory is not None:
            with tempfile.TemporaryDirectory() as scratch:
                folder = KEPT if parsed.write else Path(scratch)
                target = keep(parsed.directory, parsed.findings, folder)
                heads = kept(folder)
                size = sum(path.stat().st_size for path in target.iterdir())
                print(f"{target.name}: {size / 1024:,.0f} KiB\n")
        else:
            heads = kept()
        print(table(heads), end="")
        if parsed.write:
            PAGE.write_text(with_table(PAGE.read_text("utf-8"), heads), encoding="utf-8")
            RESULTS.write_text(with_rows(RESULTS.read_text("utf-8"), heads), encoding="utf-8")
    except (RecordsError, OSError, ValueError) as error:
        print(f"real_records: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
