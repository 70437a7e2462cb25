"""``python -m validators machine``: run every stage that this machine can run, then sign off. ``make signoff`` is this.

Each stage is a process of its own, so that one that dies costs no other. What cannot run here is left out with a
sentence, and the sign-off shows it as UNTESTED with the command that would test it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from validators.arch import ArchError, architecture
from validators.commands import cli, options, plan
from validators.commands.signoff import lines
from validators.kernels.registry import find_kernel
from validators.process.guard import Exit
from validators.records import store
from validators.records.files import check_folder, new_folder
from validators.signoff import claims, decision, policy, stages
from validators.signoff.claims import ClaimError, Target
from validators.signoff.ruling import rule
from validators.signoff.write import write
from validators.words import PATH

PATHS = (
    ("aiter_hip/add_rmsnorm_quant", "aiter_hip/per_token_quant_hip", "aiter_hip/gemm_a8w8_bpreshuffle"),
    ("aiter_triton/add_rmsnorm_quant", "torch_native/eager", "torch_native/scaled_mm_hopper"),
    ("triton/add_rmsnorm_quant", "torch_native/eager", "torch_native/eager"),
    ("emulated/aiter-hip-gfx950", "emulated/aiter-hip-gfx950", "emulated/unknown"),
)
"""Norm, quantizer and GEMM of the walk through the layers: the first three that this machine has all of."""


@dataclass(frozen=True)
class Stage:
    """Something to run here. command: the words after the interpreter; () where ``left_out`` says why it cannot run."""

    title: str
    command: tuple[str, ...]
    left_out: str = ""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    options.add(parser, "--claim", "default: every kernel")
    options.add(parser, "--policy", "default: machine; with a claim: merge")
    options.add_device(parser)
    options.add(parser, "--out", "records and pages", default="signoff")


def command(parsed: argparse.Namespace) -> Exit:
    """Run, sign off, print; the exit status is the sign-off's."""
    chosen = policy.load(parsed.policy or ("merge" if parsed.claim else "machine"))
    target = claims.from_file(parsed.claim) if parsed.claim else None
    device = plan.devices(parsed.device)[0]
    # Stages take minutes, so a place that cannot be written is found before them.
    records = new_folder(Path(parsed.out) / "records")
    try:
        check_folder(parsed.out)
        planned = of_claim(target, chosen, device, str(records)) if target else of_machine(chosen, device, str(records))
    except BaseException:
        records.rmdir()
        raise
    start = time.monotonic()
    for number, stage in enumerate(planned, start=1):
        _run(stage, f"[{number}/{len(planned)}]", start, parsed)
    if not store.record_files(records):
        raise ClaimError("no stage wrote a record, so there is nothing to sign.")
    decided = decision.signoff_directory(
        records, warn=cli.warn, policy=chosen, target=(lambda _: [target]) if target else None
    )
    for line in lines(decided)[:1] if parsed.quiet else ["", *lines(decided)]:
        print(line)
    # After the decision, which a page that cannot be written must not cost.
    paths = write(decided, parsed.out, warn=cli.warn)
    page = paths[-1].resolve()
    print(f"{decided.decision} after {_clock(time.monotonic() - start)}; the report is {page}")
    return decided.exit_code


def of_claim(target: Target, chosen: policy.Policy, device: str, records: str) -> list[Stage]:
    """What the claim needs, as far as it can run on this machine."""
    arch = _architecture(device)
    if arch != target.arch:
        wanted = stages.machine(target.arch)
        raise ClaimError(f"claim {target.name!r} is about {target.arch} ({wanted}), and {device} here is {arch}.")
    planned = []
    for step in rule(target, chosen, [], records).steps:
        words = [shlex.split(text) for text in step.commands]
        kept = [w[1:] for w in words if "propose" not in w and "accept" not in w]
        if step.stage == "trace":
            planned.append(Stage(step.covers, (), "needs a trace of the serving engine"))
        elif step.note:
            planned.append(Stage(step.covers, (), step.note))
        elif step.stage == "parity":
            planned.append(_parity(tuple(kept[0])))
        else:
            planned += [Stage(step.covers, tuple(own)) for own in kept]
    return planned


def of_machine(chosen: policy.Policy, device: str, records: str) -> list[Stage]:
    """Every stage of the policy, with every kernel of this machine."""
    wanted = {r.stage: r for r in chosen.require}
    where = ("--records", records)
    planned = []
    if "ops" in wanted:
        depth = ("--depth", wanted["ops"].depth)
        planned.append(Stage("ops of every kernel", ("-m", "validators", "run", "--all-available", *depth, *where)))
    kind = device.split(":")[0]

    def here(path: tuple[str, ...]) -> bool:
        return all(find_kernel(n, op).unavailable(kind) is None for n, op in zip(path, PATH, strict=True))

    # The emulated path runs on any machine, on the CPU.
    path = next((p for p in PATHS if here(p)), PATHS[-1])
    arch = "cpu" if path is PATHS[-1] else _architecture(device)
    target = Target("", arch, {op: (name,) for op, name in zip(PATH, path, strict=True)})
    if "layers" in wanted:
        (text,) = stages.layers_step(target, records).commands
        planned.append(Stage(f"layers of glm-tiny by {path[0]}", tuple(shlex.split(text)[1:])))
    if "goldens" in wanted:
        planned.append(Stage("goldens", ("-m", "golden", "check", "--device", device, *where)))
    if "parity" in wanted:
        # On a CPU the evaluation's own default kernels: it knows which of them are fast enough there.
        (text,) = stages.parity_step(dataclasses.replace(target, one_path=arch != "cpu"), records).commands
        planned.append(_parity(tuple(shlex.split(text)[1:])))
    return planned


def _parity(words: tuple[str, ...]) -> Stage:
    if importlib.util.find_spec("evals.__main__") is None:
        return Stage("parity", (), "this checkout has no command 'evals'")
    return Stage("parity", words)


def _run(stage: Stage, number: str, start: float, parsed: argparse.Namespace) -> None:
    if stage.left_out:
        print(f"{number} {stage.title}: left out. {stage.left_out}", flush=True)
        return
    command = (*stage.command, *(["--quiet"] if parsed.quiet else ["--verbose"] if parsed.verbose else []))
    print(f"{number} {stage.title}: python {shlex.join(command)}", flush=True)
    begun = time.monotonic()
    environment = dict(os.environ)
    if stage.title != "parity" and not any(word.startswith("cuda") for word in stage.command):
        # The cases are small: with one thread all kernels of a CPU took 2:19 on two idle cores, with two 2:54; and a
        # second thread that waits for a busy core costs many times that.
        environment.setdefault("OMP_NUM_THREADS", "1")
    with _ended_with_us():
        done = subprocess.run([sys.executable, *command], check=False, env=environment)
    states: dict[int, str] = {
        Exit.YES: "done",
        Exit.NO: "done, and something is wrong",
        Exit.NO_DECISION: "done, and nothing decided",
    }
    state = states.get(done.returncode, f"ended with status {done.returncode}")
    print(
        f"{number} {stage.title}: {state}, {_clock(time.monotonic() - begun)} of {_clock(time.monotonic() - start)}",
        flush=True,
    )


class _Ended(BaseException):
    """A signal to end came."""


@contextlib.contextmanager
def _ended_with_us() -> Iterator[None]:
    """SIGTERM ends the stage as well, which would go on for minutes: ``subprocess.run`` kills it as this raises."""

    def end(*_: object) -> None:
        raise _Ended

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except _Ended:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _architecture(device: str) -> str:
    try:
        return architecture(device)
    except ArchError as error:
        raise ClaimError(str(error)) from None
