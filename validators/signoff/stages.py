"""The stages of evidence, which stage a record belongs to, and the command that would fill a cell that is empty."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from validators.cases.case import Case, CaseError
from validators.records.command_line import command_line, of_op, of_ops
from validators.records.record import Record
from validators.signoff.claims import Target
from validators.signoff.policy import ANY
from validators.words import FUSED, GEMM, PATH, QUANT

GOLDENS = Path(__file__).resolve().parents[2] / "golden" / "data" / "manifest.json"
_OTHERS = {
    FUSED: "emulated/aiter-hip-gfx950",
    QUANT: "emulated/aiter-hip-gfx950",
    GEMM: "emulated/unknown",
}
"""Kernels that complete a path for a claim about one op."""
LAYERS_TOKENS = 256
"""Tokens of the walk that a sign-off asks for: enough for the sign test on glm-tiny to decide, chosen once."""

MACHINES = {
    "cpu": "any machine",
    "sm_80": "an A100",
    "sm_89": "an L40S or RTX 4090",
    "sm_90": "an H100 or H200",
    "sm_100": "a B200",
    "gfx942": "an MI300X or MI325X",
    "gfx950": "an MI350X or MI355X",
}
"""What people call the machines with an architecture."""


def may_have_goldens(kernel: str) -> bool:
    """Whether bits of ``kernel`` can be accepted: not of a user's own, which nobody else could check."""
    return ":" not in kernel


def is_truth(record: Record) -> bool:
    """Whether the record says that the reference or the inputs are as accepted; it concerns every claim."""
    return record.subject == "truth"


def machine(arch: str) -> str:
    """``an MI350X or MI355X`` for ``gfx950``."""
    return MACHINES.get(arch, f"a machine with {arch}")


def device(arch: str) -> str:
    """The device that a command names there; a ROCm build of torch calls its GPUs ``cuda`` too."""
    return "cpu" if arch == "cpu" else "cuda"


@dataclass(frozen=True)
class Step:
    """Something to run. note: what a person has to know.

    stage: whose empty cells it would fill. subject: the kernel that they are about, "" for a whole path. lanes: of the
    stage ``ops`` the empty ones; every: whether the kernel has no other.
    """

    machine: str
    stage: str
    commands: tuple[str, ...]
    note: str = ""
    subject: str = ""
    lanes: tuple[str, ...] = ()
    every: bool = False

    @property
    def covers(self) -> str:
        """In words: ``ops, demo/fused: every lane``, ``layers``."""
        lanes = "every lane" if self.every else ", ".join(self.lanes)
        return f"{self.stage}, {self.subject}: {lanes}" if self.subject else self.stage


def ops_step(
    target: Target,
    op: str,
    kernel: str,
    lanes: Sequence[str],
    every: bool,
    depth: str,
    like: Record | None,
    records_dir: str,
) -> Step:
    """Run the cases of one kernel: all lanes, or only those that are empty. like: a record to take options from."""
    known = target.arch not in ("", "unknown") or like is None
    command = command_line(
        "validators",
        "run",
        kernel=of_op(op, kernel),
        lane=() if every else lanes,
        depth=None if depth in ("default", ANY) else depth,
        device=device(target.arch) if known or like is None else like.device,
        contract=like.contract if like is not None and like.contract_from == "given" else None,
        **(_types(like.case) if like is not None else {}),
        records=records_dir,
    )
    return Step(machine(target.arch), "ops", (command,), subject=kernel, lanes=tuple(lanes), every=every)


def _types(case: str) -> dict[str, str]:
    """The options for the types of a case of the suite, where they are not the usual ones."""
    try:
        like = Case.parse(case)
    except CaseError:
        return {}
    usual = {"dtype": "bf16", "fp8": "e4m3fn"}
    return {name: value for name, value in vars(like).items() if name in usual and value != usual[name]}


def layers_step(target: Target, records_dir: str, given: Mapping[str, str] | None = None) -> Step:
    """The walk through a small model's layers by the claim's kernels; by emulated ones for the ops that it has none of.

    given: op -> contract that the kernel was held to on the command line, which the walk would not know otherwise.
    """
    command = command_line(
        "validators",
        "layers",
        model="glm-tiny",
        tokens=LAYERS_TOKENS,
        kernel=[of_op(op, (target.kernels.get(op) or (_OTHERS[op],))[0]) for op in PATH],
        contract=of_ops(given or {}),
        device=None if target.arch == "cpu" else device(target.arch),
        records=records_dir,
    )
    return Step(machine(target.arch), "layers", (command,))


def goldens_step(target: Target, kernels: Sequence[str], records_dir: str) -> Step:
    """Check the accepted bits; where none are recorded on the architecture, propose and accept them first."""
    recorded = [k for k in kernels if (k, target.arch) in recorded_goldens()]
    where = device(target.arch)
    check = command_line("golden", "check", device=where, kernel=kernels, records=records_dir)
    if recorded:
        return Step(machine(target.arch), "goldens", (check,))
    propose = command_line("golden", "propose", device=where, kernel=kernels, out="proposal")
    accept = command_line("golden", "accept", "proposal", why="first recorded set")
    note = f"No golden of {' or '.join(kernels)} is recorded on {target.arch}: propose them, and let a person accept."
    return Step(machine(target.arch), "goldens", (propose, accept, check), note)


def parity_step(target: Target, records_dir: str) -> Step:
    """The embedded end-to-end evaluation of the claim's kernels; of its default ones where the claim has many."""
    arms = {}
    if target.one_path:
        chosen = {op: target.kernels[op][0] for op in PATH if target.kernels.get(op)}
        unfused = {op: name for op, name in chosen.items() if op != FUSED}
        arms = {"baseline": ",".join(["unfused", *of_ops(unfused)]), "candidate": ",".join(["fused", *of_ops(chosen)])}
    command = command_line("evals", "parity", **arms, device=device(target.arch), records=records_dir)
    return Step(machine(target.arch), "parity", (command,))


def trace_step(target: Target, records_dir: str) -> Step:
    """Launch counts of the serving engine, from a profiler trace that somebody has to record."""
    contract = target.contracts.get(FUSED)
    command = command_line(
        "validators",
        "trace",
        "trace.json.gz",
        layers=92,
        kernel=target.norm,
        contract=contract,
        arch=target.arch,
        records=records_dir,
    )
    note = "Record trace.json.gz with the serving engine's torch profiler while it decodes a few steps."
    return Step(machine(target.arch), "trace", (command,), note)


@cache
def recorded_goldens() -> frozenset[tuple[str, str]]:
    """(kernel, architecture) of every kernel golden in the repository's store; empty where it cannot be read."""
    try:
        rows = json.loads(GOLDENS.read_text(encoding="utf-8"))["goldens"]
        return frozenset((row["kernel"], row["arch"]) for row in rows if row.get("kernel"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return frozenset()
