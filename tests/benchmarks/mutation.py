"""The mutation score of the suite: which share of generated wrong kernels its cases kill, and which they let through.

``python -m tests.benchmarks.mutation --op ptpc_gemm --depth smoke --workers 2 --out DIR`` runs every unguarded mutant
of the op and a seeded sample of guarded ones (``tests.mutants``) over the suite's cases, the cheapest first, until one
kills it. What survives is run on a large sample that meets its guard: with the clean kernel's bits everywhere it is
equivalent, with admissible bits it is within the contract, and with a violation it is a survivor. The score is killed /
(killed + survivors). ``DIR/OP-DEPTH.jsonl`` holds one line per mutant; a run that was stopped goes on from there.
With ``--matrix`` each mutant is run on all cases, and ``--out`` is a file: see ``tests.benchmarks.mutation_matrix``.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch

from tests import mutants
from tests.benchmarks import mutation_matrix
from tests.mutants import campaign
from tests.mutants.guards import Facts, Guard
from tests.mutants.operator import KINDS, OPS
from validators.cases.suite import cases_for
from validators.signoff.mutation import suite_digest
from validators.words import DEPTHS, FP8_FORMATS

_ROOT = Path(__file__).resolve().parents[2]
COLUMNS = (campaign.KILLED, campaign.EQUIVALENT, campaign.WITHIN, campaign.SURVIVOR)


class MutationError(ValueError):
    """A file of results that does not belong to this run; its message is one sentence."""


def source_digest() -> str:
    """SHA-256 over the harness's own files, the emulated kernels and the judge: other sources, other results."""
    total = hashlib.sha256()
    folders = ("tests/mutants", "validators/kernels", "validators/judge", "validators/calls", "reference")
    for folder in folders:
        for file in sorted((_ROOT / folder).rglob("*.py")):
            total.update(file.relative_to(_ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return total.hexdigest()[:16]


def header(op: str, depth: str, fp8: str, seed: int) -> dict[str, Any]:
    """What results must have in common to be counted together."""
    cases = suite_digest(case.id for case in cases_for(op, depth=depth, fp8=fp8))
    return {"schema": 1, "op": op, "depth": depth, "fp8": fp8, "seed": seed, "cases": cases, "source": source_digest()}


def read(path: Path, wanted: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Findings of an earlier run by id; a last line that was cut off is dropped from the file. Raises MutationError if
    the file is of another suite, seed or source."""
    if not path.exists():
        return {}
    whole = path.read_bytes()
    kept = whole[: whole.rfind(b"\n") + 1]
    if len(kept) < len(whole):
        path.write_bytes(kept)
    lines = [json.loads(line) for line in kept.splitlines()]
    if not lines:
        return {}
    if lines[0] != wanted:
        other = ", ".join(sorted(key for key in wanted if lines[0].get(key) != wanted[key]))
        raise MutationError(f"{path} is of another run ({other} differs); use another --out folder")
    return {line["id"]: line for line in lines[1:]}


def _quiet() -> None:
    # Ctrl-C is the parent's: it ends the workers, and the lines that are written stay.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _work(job: tuple[str, str, str]) -> dict[str, Any]:
    return campaign.judge_by_id(*job).asdict()


def _row(job: tuple[str, str, str]) -> dict[str, Any]:
    return mutation_matrix.row_by_id(*job)


_Work = Callable[[tuple[str, str, str]], dict[str, Any]]


def _findings(jobs: Sequence[tuple[str, str, str]], workers: int, work: _Work) -> Iterator[dict[str, Any]]:
    if workers <= 1:
        yield from map(work, jobs)
        return
    # Processes that are started afresh have no threads of the parent's torch.
    with multiprocessing.get_context("spawn").Pool(workers, _quiet) as pool:
        yield from pool.imap_unordered(work, jobs, chunksize=4)


def chosen(op: str, seed: int, kind: str | None, limit: int | None, guarded: int) -> list[str]:
    """Ids of the mutants of a run; with a limit a seeded part of them that keeps every class."""
    ids = [m.id for m in mutants.generate(op, seed, guarded=guarded) if kind in (None, m.kind)]
    if limit is None or limit >= len(ids):
        return ids
    return sorted(ids, key=lambda text: hashlib.sha256(f"{seed} {text}".encode()).digest())[:limit]


def measure(
    op: str,
    ids: Sequence[str],
    *,
    depth: str,
    fp8: str = "e4m3fn",
    seed: int = 0,
    workers: int = 1,
    path: Path | None = None,
    say: TextIO | None = None,
    matrix: bool = False,
) -> list[dict[str, Any]]:
    """The findings of the mutants, in the order of ``ids``. path: file that holds them, read first and added to.
    matrix: on all cases, not only to the first that kills."""
    head = {**header(op, depth, fp8, seed), **({"matrix": True} if matrix else {})}
    known = {} if path is None else read(path, head)
    jobs = [(text, depth, fp8) for text in ids if text not in known]
    # A seeded order mixes what is quick and slow, so that the time that is left can be told.
    jobs.sort(key=lambda job: hashlib.sha256(job[0].encode()).digest())
    start, last = time.monotonic(), 0.0
    sink = None
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        sink = path.open("a", encoding="utf-8")
        if not known and path.stat().st_size == 0:
            print(json.dumps(head), file=sink, flush=True)
    try:
        for count, found in enumerate(_findings(jobs, workers, _row if matrix else _work), start=1):
            known[found["id"]] = found
            if sink is not None:
                print(json.dumps(found), file=sink, flush=True)
            now = time.monotonic() - start
            if say is not None and (now - last > 5 or count == len(jobs)):
                last = now
                left = now / count * (len(jobs) - count)
                killed, lost = (sum(f["result"] == r for f in known.values()) for r in ("killed", "survivor"))
                print(
                    f"{op} {depth}: {count:,} of {len(jobs):,} in {now:.0f} s, about {left:.0f} s left; "
                    f"{killed:,} killed, {lost:,} survivors",
                    file=say,
                    flush=True,
                )
    finally:
        if sink is not None:
            sink.close()
    return [known[text] for text in ids if text in known]


def score(findings: Sequence[Mapping[str, Any]]) -> float:
    """Killed mutants of those that differ beyond the contract."""
    killed, lost = (sum(f["result"] == r for f in findings) for r in (campaign.KILLED, campaign.SURVIVOR))
    return killed / max(1, killed + lost)


def table(op: str, findings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of Markdown: mutants by class and result."""
    lines = [f"| {op} | mutants | {' | '.join(COLUMNS)} | score |", "|---" * (len(COLUMNS) + 3) + "|"]
    groups = [
        (f"{kind}, {what}", [f for f in findings if f["kind"] == kind and (f["id"].endswith("|always")) == plain])
        for kind in KINDS
        for what, plain in (("always", True), ("guarded", False))
    ]
    for name, part in [*groups, ("all", list(findings))]:
        if part:
            counts = collections.Counter(f["result"] for f in part)
            cells = " | ".join(f"{counts[column]:,}" for column in COLUMNS)
            share = f"{100 * score(part):.2f} %" if counts[campaign.KILLED] + counts[campaign.SURVIVOR] else "-"
            lines.append(f"| {name} | {len(part):,} | {cells} | {share} |")
    return lines


def reason(finding: Mapping[str, Any]) -> str:
    """Why the suite lets a survivor through, in words."""
    guard = Guard.parse(finding["id"].split("|")[2])
    if not guard.conditions:
        return "no case is sensitive to it"
    if not finding["met"]:
        return f"no case has a call, rows or columns that meet {guard.text}"
    return f"{finding['met']} cases meet {guard.text}, and none is sensitive there"


def survivors(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every survivor with its reason and a witness, those of one kind of guard together."""
    groups: dict[str, list[str]] = collections.defaultdict(list)
    for f in findings:
        if f["result"] == campaign.SURVIVOR:
            groups[_kind_of_guard(f)].append(f"{f['id']}: {reason(f)}; {f['by']} in {f['case']}")
    lines = []
    for name in sorted(groups, key=lambda key: (-len(groups[key]), key)):
        lines += [f"{name}: {len(groups[name])}", *(f"  {line}" for line in sorted(groups[name]))]
    return lines


def _kind_of_guard(finding: Mapping[str, Any]) -> str:
    guard = Guard.parse(finding["id"].split("|")[2])
    names = " x ".join(sorted(c.text if c.sort in ("option", "row-class") else c.about for c in guard.conditions))
    return f"{names or 'always'} ({'no case meets it' if not finding['met'] else 'cases meet it'})"


def _measured(options: argparse.Namespace, op: str, fp8: str, path: Path | None) -> list[dict[str, Any]] | int:
    """The findings of an op, or the exit status of a run that did not come to its end, which is said."""
    ids = chosen(op, options.seed, options.kind, options.limit, options.guarded)
    try:
        return measure(
            op,
            ids,
            depth=options.depth,
            fp8=fp8,
            seed=options.seed,
            workers=options.workers,
            path=path,
            say=sys.stderr,
            matrix=options.matrix,
        )
    except MutationError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        words = f"; the findings are in {path}, and the same command goes on from there" if path else ""
        print(f"stopped{words}", file=sys.stderr)
        return 130


def _matrix(options: argparse.Namespace) -> int:
    """Every op and format that was asked for, each written as soon as it is whole."""
    for op in options.op or OPS:
        for fp8 in [options.fp8] if options.fp8 else FP8_FORMATS:
            found = _measured(options, op, fp8, mutation_matrix.rows_path(options.out, op, fp8))
            if isinstance(found, int):
                return found
            head, ids = header(op, options.depth, fp8, options.seed), cases_for(op, depth=options.depth, fp8=fp8)
            part = mutation_matrix.part(op, head["cases"], head["source"], [case.id for case in ids], found)
            mutation_matrix.write_matrix({(op, fp8): part}, options.out)
            print("\n".join([fp8, *table(op, found), "", *survivors(found), ""]), flush=True)
    return 0


def unmet(op: str, depth: str, fp8: str, seed: int, guarded: int) -> list[str]:
    """Guards of the drawn mutants that no case of the suite meets, by kind, most first; nothing is run. Conditions on
    calls and on rows' inputs are not looked at."""
    facts = [Facts.of_case(case) for case in cases_for(op, depth=depth, fp8=fp8)]
    drawn = [m.guard for m in mutants.generate(op, seed, guarded=guarded) if m.guard.conditions]
    missed: dict[str, list[str]] = collections.defaultdict(list)
    for guard in drawn:
        if not any(guard.meets(known) for known in facts):
            missed[" x ".join(sorted(c.text if c.sort == "option" else c.about for c in guard.conditions))].append(
                guard.text
            )
    count = sum(map(len, missed.values()))
    lines = [f"{op} {depth}: {count:,} of {len(drawn):,} drawn guards are met by no case"]
    for name in sorted(missed, key=lambda key: (-len(missed[key]), key)):
        lines.append(f"  {name}: {len(missed[name])}; {', '.join(sorted(set(missed[name]))[:4])}")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 where it ran to its end, 2 for a file of another run, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.mutation", description=__doc__)
    parser.add_argument("--op", choices=OPS, action="append", help="default: all three")
    parser.add_argument("--class", dest="kind", choices=KINDS)
    parser.add_argument("--depth", choices=[d for d in DEPTHS if d != "deep"], default="default")
    parser.add_argument("--fp8", choices=FP8_FORMATS, help="format of the suite (e4m3fn; of --matrix: both)")
    parser.add_argument("--limit", type=int, help="at most so many mutants of each op, a seeded part")
    parser.add_argument("--guarded", type=int, default=mutants.GUARDED, help="guarded mutants that are drawn per op")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument(
        "--out", type=Path, help="folder of the results (of --matrix: file); a later run goes on from it"
    )
    parser.add_argument("--matrix", action="store_true", help="which case kills which mutant, for a sign-off's score")
    parser.add_argument("--write", type=Path, help="also write all findings to this file, sorted by id")
    parser.add_argument("--guards", action="store_true", help="only list the drawn guards that no case meets")
    parser.add_argument("--id", help="judge one mutant and say what became of it")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.matrix:
        if options.out is None or options.kind or options.id:
            parser.error("--matrix needs --out FILE, and takes mutants of every class")
        return _matrix(options)
    fp8 = options.fp8 or FP8_FORMATS[0]
    if options.id:
        print(mutants.find(options.id).sentence)
        print(json.dumps(campaign.judge_by_id(options.id, options.depth, fp8).asdict(), indent=1))
        return 0
    everything: list[dict[str, Any]] = []
    heads: list[dict[str, Any]] = []
    for op in options.op or OPS:
        if options.guards:
            print("\n".join(unmet(op, options.depth, fp8, options.seed, options.guarded)))
            continue
        path = options.out / f"{op}-{options.depth}.jsonl" if options.out else None
        found = _measured(options, op, fp8, path)
        if isinstance(found, int):
            return found
        print("\n".join([*table(op, found), "", *survivors(found), ""]), flush=True)
        everything += found
        heads.append(header(op, options.depth, fp8, options.seed))
    if options.write:
        lines = [*heads, *sorted(everything, key=lambda f: f["id"])]
        options.write.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
