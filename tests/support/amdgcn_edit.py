"""Kernels of the fixtures with lines of their text changed, and the kernel under test made of a text."""

from __future__ import annotations

import re
from typing import Any

from tests.support.amdgcn_fixtures import path_of
from validators.cases.case import Case
from validators.kernels import triton_own
from validators.kernels.amdgcn import Compiled, from_text, own_kernel
from validators.kernels.kernel import Kernel
from validators.records.record import Record
from validators.run import validate

FP8 = {"gfx942": "e4m3fnuz", "gfx950": "e4m3fn"}


def text_of(target: str, name: str) -> str:
    """The text of a fixture."""
    return path_of(target, name).read_text(encoding="utf-8")


def compiled(text: str) -> Compiled:
    """The kernel of a text that a fixture is or was made from; its LDS is in the comment of the first line."""
    found = re.search(r"lds (\d+)", text.split("\n")[0])
    assert found
    return from_text(text, "add_rmsnorm_quant", triton_own.WARPS, int(found[1]), "kernel.s")


def kernel_of(text: str) -> Kernel:
    """The kernel under test whose machine code is ``text``, whatever types are asked for."""
    made = compiled(text)

    def same(target: str, signature: tuple[Any, ...], warps: int) -> Compiled:
        return made

    return own_kernel(same, lambda device: None)


def judged(text: str, target: str, case: str = "m17-n1002-bf16-{fp8}-gaussian-s0") -> Record:
    """The record of the kernel of ``text`` on a case."""
    named = Case.parse(f"add_rmsnorm_quant-{case.format(fp8=FP8[target])}")
    return validate(kernel_of(text), named, device=f"amdgcn:{target}")


def edited(text: str, old: str, new: str, count: int = 1) -> str:
    """``text`` with the first ``count`` matches of the pattern ``old`` replaced; it has to be there."""
    changed, made = re.subn(old, new, text, count=count)
    assert made, f"{old!r} is not in the text"
    return changed
