"""Which cases are golden, for which kernels and architectures.

A case that is listed here must have a row for its kernel once the kernel is recorded on an architecture, and a row must
be listed here: ``verify`` holds both. Shapes suit every kernel of the suite (widths and K in multiples of 16, bf16, the
architecture's own FP8 format), so that one list serves all.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from validators.cases.case import Case
from validators.cases.op import op_named
from validators.cases.recipes import reasons_impossible, recipe_names
from validators.kernels.kernel import Kernel
from validators.kernels.registry import all_kernels
from validators.words import OPS, native_fp8

CPU = "cpu"
CPU_KERNELS = (
    "emulated/aiter-hip-gfx950",
    "emulated/aiter-hip-gfx942",
    "emulated/aiter-triton",
    "emulated/unknown",
    "torch_native/eager",
    "torch_native/scaled_mm",
    "inductor/add_rmsnorm_quant",
    "inductor/per_token_quant",
)
"""Recorded on every CPU checkout; on a GPU every kernel that runs there and is not emulated."""

_CASES = {
    # rows with exact ties of the residual, codes on rounding boundaries, an outlier at every column, long rows of the
    # model (stored as digests with sampled rows), and the first layer's form without residual
    "add_rmsnorm_quant": (
        "m24-n528-bf16-{fp8}-gaussian_gain-s0",
        "m24-n272-bf16-{fp8}-residual_ties-s0",
        "m24-n528-bf16-{fp8}-midpoints-s0",
        "m24-n272-bf16-{fp8}-spike_walk-s0",
        "m24-n272-bf16-{fp8}-crest_ladder-s0",
        "m24-n272-bf16-{fp8}-gaussian-nores-s0",
        "m16-n5120-bf16-{fp8}-model-s0",
    ),
    "per_token_quant": (
        "m24-n528-bf16-{fp8}-gaussian-s0",
        "m24-n528-bf16-{fp8}-midpoints-s0",
        "m24-n272-bf16-{fp8}-spike_walk-s0",
        "m24-n272-bf16-{fp8}-crest_ladder-s0",
        "m16-n5120-bf16-{fp8}-model-s0",
    ),
    # small_integers and one_hot_k have the same bits in every order of summation: they drift only with a defect
    "ptpc_gemm": (
        "m32-n64-k256-bf16-{fp8}-gaussian-s0",
        "m32-n64-k256-bf16-{fp8}-random_bytes-s0",
        "m32-n64-k256-bf16-{fp8}-scale_ladder-s0",
        "m32-n64-k256-bf16-{fp8}-small_integers-s0",
        "m32-n64-k256-bf16-{fp8}-one_hot_k-s0",
        "m16-n1792-k512-bf16-{fp8}-gaussian-s0",
    ),
}

REFERENCE_CASES = (
    "add_rmsnorm_quant-m16-n72-bf16-e4m3fn-gaussian_gain-s0",
    "add_rmsnorm_quant-m16-n72-fp16-e4m3fnuz-gaussian_gain-gammafp32-gemma-s0",
    "add_rmsnorm_quant-m16-n72-bf16-e4m3fn-midpoints-s0",
    "add_rmsnorm_quant-m16-n72-bf16-e4m3fnuz-magnitude_ladder-s0",
    "add_rmsnorm_quant-m16-n72-bf16-e4m3fn-zero_rows-nores-eps1e-6-s0",
    "add_rmsnorm_quant-m16-n72-bf16-e4m3fn-nonfinite-s0",
    "per_token_quant-m16-n72-bf16-e4m3fn-gaussian-s0",
    "per_token_quant-m16-n72-fp16-e4m3fnuz-midpoints-s0",
    "per_token_quant-m16-n72-bf16-e4m3fn-zero_rows-s0",
    "ptpc_gemm-m16-n32-k200-bf16-e4m3fn-random_bytes-s0",
    "ptpc_gemm-m16-n32-k72-fp16-e4m3fnuz-gaussian-bias-s0",
    "ptpc_gemm-m16-n32-k72-bf16-e4m3fn-huge_scales-s0",
    "static_quant-m16-n72-bf16-e4m3fn-double_rounding-s0",
    "static_quant-m16-n72-fp16-e4m3fnuz-gaussian-s0",
    "static_quant-m16-n72-bf16-e4m3fn-nonfinite-s0",
)
"""Judged under every contract of their op; narrow, see ``truth.SUM_ORDER``."""

_INPUT_VARIANTS = (
    "add_rmsnorm_quant-m18-n264-bf16-e4m3fn-gaussian-strided-s0",
    "add_rmsnorm_quant-m18-n264-bf16-e4m3fn-gaussian-3d-s0",
    "add_rmsnorm_quant-m24-n520-fp16-e4m3fnuz-midpoints-s1",
    "per_token_quant-m24-n520-fp16-e4m3fnuz-uniform_bytes-s1",
    "ptpc_gemm-m33-n160-k528-fp16-e4m3fnuz-gaussian-strided-s1",
    "ptpc_gemm-m37-n144-k528-fp16-e4m3fnuz-small_integers-bias-s1",
    # larger than one chunk of the generator, and a seed beyond 32 bits
    "per_token_quant-m300-n5120-bf16-e4m3fn-gaussian-s0",
    "add_rmsnorm_quant-m4-n264-bf16-e4m3fn-gaussian-s6000000007",
)


class Marked(NamedTuple):
    """A golden that has to exist: kind, kernel (None for reference and inputs), arch (None likewise) and case id."""

    kind: str
    kernel: Kernel | None
    arch: str | None
    case: str

    @property
    def id(self) -> str:
        """``<case>@<kernel>@<arch>``, ``<case>@reference`` or ``<case>@inputs``."""
        return golden_id(self.kind, self.case, self.kernel.name if self.kernel else None, self.arch)


def golden_id(kind: str, case: str, kernel: str | None, arch: str | None) -> str:
    """The id of a golden; see ``Marked.id``."""
    return f"{case}@{kernel}@{arch}" if kind == "kernel" else f"{case}@{kind}"


def kernel_cases(op: str, fp8: str) -> list[str]:
    """Ids of the golden cases of ``op`` in an FP8 format."""
    return [f"{op}-{rest.format(fp8=fp8)}" for rest in _CASES.get(op, ())]


def format_for(kernel: str, arch: str) -> str:
    """FP8 format that a kernel is recorded in: the architecture's own; an emulated one's is what it represents."""
    return native_fp8("gfx942" if kernel == "emulated/aiter-hip-gfx942" else arch)


def marked_kernels(arch: str, recorded: set[tuple[str, str]] | None = None) -> list[Marked]:
    """What has to exist on ``arch``; ``recorded``: (kernel, op) pairs, None for every kernel that belongs there.

    Cases that a kernel does not offer are left out.
    """
    found = []
    for kernel in all_kernels():
        if arch == CPU:
            wanted = kernel.name in CPU_KERNELS
        else:
            wanted = not kernel.emulated and (recorded is None or (kernel.name, kernel.op) in recorded)
        if wanted:
            cases = kernel_cases(kernel.op, format_for(kernel.name, arch))
            found += [Marked("kernel", kernel, arch, c) for c in cases if kernel.unsupported(Case.parse(c)) is None]
    return found


def marked_truth() -> list[Marked]:
    """The reference goldens, and the input goldens: a small case of every recipe and op, and the variants."""
    every = [op_named(op).small(name) for op in OPS for name in recipe_names(op)]
    inputs = [case.id for case in every if reasons_impossible(case) is None]
    return [
        *(Marked("reference", None, None, case) for case in REFERENCE_CASES),
        *(Marked("inputs", None, None, case) for case in dict.fromkeys([*inputs, *_INPUT_VARIANTS])),
    ]


def isa_of(kernel: str, arch: str) -> str | None:
    """Vector ISA that a CPU golden's bits may belong to, or None where they do not depend on it.

    The emulated kernels are made of operations that IEEE 754 rounds in one way, in an order of their own: the same bits
    on every CPU. What ATen, Inductor, MKL and oneDNN vectorise may sum in another order on another
    CPU, and MKL's roots round otherwise there: bits that differ there, and are admissible, are not called drift.
    """
    if arch != CPU or kernel.startswith("emulated/"):
        return None
    return this_isa()


def this_isa() -> str:
    """``"AVX512"``, ``"AVX2"``, ``"DEFAULT"``, ...: what this process's ATen uses."""
    import torch

    return str(torch.backends.cpu.get_cpu_capability())


def library_of(kernel: str, arch: str) -> str | None:
    """Libraries that a CPU golden's bits belong to, with the CPU's maker; None where ``isa_of`` is."""
    return None if isa_of(kernel, arch) is None else _libraries(kernel)


def elsewhere(isa: str | None, library: str | None, kernel: str) -> str | None:
    """Why bits of a CPU recorded for ``isa`` and ``library`` may be others here, or None where they have to be the
    same: also where none were recorded."""
    here = this_isa(), _libraries(kernel)
    if isa is None or (isa, library or here[1]) == here:
        return None
    return f"its bits belong to {isa}{f' with {library}' if library else ''}, and here it is {' with '.join(here)}"


def _libraries(kernel: str) -> str:
    return this_library() + (f", {_compiler()}" if kernel.startswith("inductor/") else "")


@functools.cache
def this_library() -> str:
    """``"torch 2.13.0, MKL 2024.2, oneDNN 3.12.0 on AuthenticAMD"``: MKL takes other paths on other makers' CPUs."""
    import torch

    built = torch.__config__.show()
    found = [f"torch {torch.__version__.partition('+')[0]}"]
    for name, pattern in (("MKL", r"Math Kernel Library Version (\d[\w.]*)"), ("oneDNN", r"MKL-DNN v(\d[\w.]*)")):
        if match := re.search(pattern, built):
            found.append(f"{name} {match.group(1)}")
    if len(found) == 1 and (match := re.search(r"BLAS_INFO=(\w+)", built)):
        found.append(match.group(1))
    return f"{', '.join(found)} on {_maker()}"


def _maker() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    match = re.search(r"^(?:vendor_id|CPU implementer)\s*:\s*(\S+)", text, re.MULTILINE)
    return match.group(1) if match else os.uname().machine


@functools.cache
def _compiler() -> str:
    """First line of ``c++ --version``: Inductor's kernels are compiled on the machine that runs them."""
    try:
        command = [os.environ.get("CXX", "g++"), "--version"]
        told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        return told.splitlines()[0].strip()
    except (OSError, subprocess.SubprocessError, IndexError):
        return "no C++ compiler"
