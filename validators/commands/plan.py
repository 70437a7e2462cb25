"""What a command line asks to run: kernels, their devices and their cases. Asking for nothing is an error.

The functions take the parsed options (``op, kernel, all_available, contract, case, lane, device, dtype,
fp8, depth``). They raise UsageError, KernelError, CaseError or, where no case is left or this machine cannot run one,
NoDecision; each with one sentence.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch

from reference.contract import get_contract
from validators import words
from validators.arch import INTERPRETED_DEVICES, architecture
from validators.cases.case import Case
from validators.cases.suite import cases_for, find
from validators.errors import NoDecision, UsageError
from validators.kernels.kernel import Kernel
from validators.kernels.registry import all_kernels, find_kernels
from validators.records.command_line import name_of, of_op
from validators.words import OPS


class Planned(NamedTuple):
    """Cases for one kernel on one device. name: of the kernel, by which a worker finds it again."""

    name: str
    op: str
    device: str
    cases: list[Case]


def make_plan(parsed: argparse.Namespace) -> list[Planned]:
    """Everything to run, in the registry's order; raises NoDecision rather than plan nothing."""
    if parsed.all_available == bool(parsed.kernel):
        raise UsageError("say which kernel with --kernel, or --all-available for every one; not both.")
    if parsed.all_available:
        if parsed.case or parsed.contract not in (None, "identify"):
            raise UsageError("--case and a named --contract belong to one kernel, so they need --kernel.")
        chosen = _available(parsed)
    else:
        chosen = _chosen(parsed)
    named = _named_cases(parsed, {kernel.op for kernel, _ in chosen}) if parsed.case else []
    plan = []
    for kernel, device in chosen:
        fp8 = parsed.fp8 or native_fp8(device)
        own = [case for case in named if case.op == kernel.op]
        cases = own if parsed.case else cases_of(parsed, kernel.op, fp8)
        if cases:
            plan.append(Planned(kernel.name, kernel.op, device, cases))
    if not plan:
        raise NoDecision("no case has all the properties asked for; 'list cases' shows what there is.")
    return plan


def _chosen(parsed: argparse.Namespace) -> list[tuple[Kernel, str]]:
    """Each kernel of ``--kernel`` and its device, in the order given; the ops of ``--case`` say which of a name."""
    ops = [parsed.op] if parsed.op else list(dict.fromkeys(Case.parse(text).op for text in parsed.case)) or OPS
    found = {(k.op, k.name): k for text in parsed.kernel for k in find_kernels(text, ops)}
    return [(kernel, _checked(kernel, parsed)) for kernel in found.values()]


def _available(parsed: argparse.Namespace) -> list[tuple[Kernel, str]]:
    chosen = []
    for kernel in all_kernels():
        if parsed.op in (None, kernel.op):
            device = next((d for d in devices(parsed.device, interpreted=True) if kernel.refuses(d) is None), None)
            if device is not None:
                chosen.append((kernel, device))
    if not chosen:
        on = f" on {parsed.device}" if parsed.device else ""
        raise NoDecision(f"this machine can run none of the kernels{on}; 'list kernels' says why.")
    return chosen


def one_kernel(parsed: argparse.Namespace, ops: Sequence[str] = OPS) -> tuple[Kernel, str]:
    """(kernel, device) of a ``--kernel`` that must name one kernel of ``ops``, its contract option checked."""
    if len(parsed.kernel) > 1:
        raise UsageError(f"one kernel is needed, and --kernel names {len(parsed.kernel)}: {', '.join(parsed.kernel)}.")
    found = find_kernels(parsed.kernel[0], ops)
    if len(found) > 1:
        each = " or ".join(f"--kernel {of_op(kernel.op, kernel.name)}" for kernel in found)
        raise UsageError(f"kernel {found[0].name} computes {len(found)} ops; say which: {each}.")
    device = _checked(found[0], parsed)
    return found[0].on(device), device


def _checked(kernel: Kernel, parsed: argparse.Namespace) -> str:
    """The device for ``kernel``, its contract option checked."""
    contract_for(kernel.op, getattr(parsed, "contract", None))
    return _device_for(kernel, parsed.device)


def contract_for(op: str, text: str | None) -> str | None:
    """The name in ``--contract [OP=]NAME`` for a kernel of ``op``, or "identify"; UsageError for one that is none."""
    contract = name_of(text, op, "contract")
    if contract in (None, "identify"):
        return contract
    try:
        get_contract(op, contract)
    except KeyError as error:
        known = ", identify" if "; known: " in error.args[0] and "+" not in contract else ""
        raise UsageError(f"{error.args[0]}{known}") from None
    return contract


def _device_for(kernel: Kernel, wanted: str | None) -> str:
    """``wanted``, or the first device that the kernel can use; raises NoDecision with the kernel's reason."""
    reasons = []
    tried = devices(wanted, interpreted=True)
    for device in tried:
        reason = kernel.refuses(device)
        if reason is None:
            return device
        reasons.append(reason)
    raise NoDecision(f"kernel {kernel.name} cannot run on {tried[0]} here: {reasons[0]}")


def devices(wanted: str | None = None, *, interpreted: bool = False) -> list[str]:
    """Devices to try, the preferred one first. interpreted: one that interprets machine code will do."""
    if wanted is None:
        return ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    if wanted in INTERPRETED_DEVICES:
        if not interpreted:
            raise UsageError(f"{wanted} interprets single kernels: run, identify and explain take it.")
        return [wanted]
    if not re.fullmatch(r"cpu|cuda(:\d+)?", wanted):
        raise UsageError(f"unknown device {wanted!r}; known: cpu, cuda, cuda:N")
    if wanted != "cpu" and not torch.cuda.is_available():
        raise NoDecision(f"device {wanted} was asked for, and this torch finds no GPU.")
    count = torch.cuda.device_count() if ":" in wanted else 0
    if ":" in wanted and int(wanted.split(":")[1]) >= count:
        raise NoDecision(f"device {wanted} was asked for, and this torch finds {count} GPUs.")
    return [wanted]


def native_fp8(device: str) -> str:
    """FP8 format of the device's architecture; gfx94x computes in e4m3fnuz, everything else in e4m3fn."""
    return words.native_fp8(architecture(device))


def cases_of(parsed: argparse.Namespace, op: str, fp8: str) -> list[Case]:
    """The suite's cases of ``op`` for the lanes, depth and dtype asked for."""
    depth, dtype = parsed.depth or "default", parsed.dtype or "bf16"
    return list(cases_for(op, depth=depth, lanes=parsed.lane or None, dtype=dtype, fp8=fp8))


def _named_cases(parsed: argparse.Namespace, ops: set[str]) -> list[Case]:
    if parsed.lane or parsed.dtype or parsed.fp8 or parsed.depth:
        raise UsageError("a case id fixes lane and types, so --case goes without --lane, --dtype, --fp8 and --depth.")
    cases = list(find(parsed.case))
    for case in cases:
        if case.op not in ops:
            kernels = " and ".join(parsed.kernel)
            raise UsageError(f"case {case.id} is of op {case.op}, and kernel {kernels} computes {' and '.join(ops)}.")
    return cases
