"""Which architecture a device is, and what is installed on this machine.

Shared by the adapters: whether a kernel can run here, which FP8 format its device takes, and which
library versions go into a record.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from validators import toolchain
from validators.errors import UserError

INTERPRETED = "amdgcn"
INTERPRETED_DEVICES = ("amdgcn:gfx942", "amdgcn:gfx950")
"""Machine code of these targets is interpreted on a CPU, where the tensors are."""


class ArchError(UserError):
    """A device that does not exist on this machine; its message is one sentence."""


def tensor_device(device: str) -> str:
    """Where torch keeps the tensors of a run on ``device``: the CPU for an interpreted one."""
    return "cpu" if device in INTERPRETED_DEVICES else device


def is_rocm() -> bool:
    """Whether the installed torch is a ROCm build."""
    return torch.version.hip is not None


def architecture(device: str) -> str:
    """``"cpu"``, ``"sm_90"`` (NVIDIA) or ``"gfx942"`` (AMD) for ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    Raises ArchError for a device that torch does not see or that is neither a CPU nor a GPU.
    """
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return "cpu"
    if device in INTERPRETED_DEVICES:
        return index
    if kind != "cuda":
        raise ArchError(f"unknown device {device!r}; known: cpu, cuda, cuda:INDEX")
    if not torch.cuda.is_available():
        raise ArchError(f"device {device!r} does not exist here: torch {torch.__version__} sees no GPU")
    if index and not (index.isdigit() and int(index) < torch.cuda.device_count()):
        raise ArchError(f"device {device!r} does not exist here: torch sees {torch.cuda.device_count()} GPU(s)")
    properties = torch.cuda.get_device_properties(int(index) if index else torch.cuda.current_device())
    if is_rocm():
        # gcnArchName carries feature flags: "gfx942:sramecc+:xnack-"
        return str(properties.gcnArchName).split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def rocm_architecture() -> str | None:
    """Architecture of the first AMD GPU, ``"gfx942"``, or None where torch sees none."""
    if not is_rocm() or not torch.cuda.is_available():
        return None
    return architecture("cuda:0")


def nvidia_architecture() -> str | None:
    """Architecture of the current NVIDIA GPU, ``"sm_90"``, or None where torch sees none."""
    if is_rocm() or not torch.cuda.is_available():
        return None
    return architecture("cuda")


FAST_GEMM = "accumulates fast on Hopper: no promotion of partial sums to fp32"
"""What to know of a GEMM of ``fast_gemm_contract``."""


def fast_gemm_contract() -> str:
    """Contract of a CUTLASS GEMM with fast accumulation on this machine's GPU: known bit for bit on Hopper only."""
    return "hopper-fast" if nvidia_architecture() == "sm_90" else "unknown"


def no_gpu(device: str) -> str | None:
    """One sentence why ``device`` is not a usable GPU, or None."""
    if device.partition(":")[0] == "cpu":
        return "needs a GPU; the device is cpu"
    try:
        architecture(device)
    except ArchError as error:
        return str(error)
    return None


def no_amd_gpu(device: str) -> str | None:
    """One sentence why ``device`` is not a usable AMD GPU, or None."""
    if device.partition(":")[0] == "cpu":
        return "needs an AMD GPU; the device is cpu"
    if not is_rocm():
        return "needs an AMD GPU and a ROCm build of torch; this torch is built without ROCm"
    return no_gpu(device)


def no_triton(interpreted: bool) -> str | None:
    """One sentence why Triton kernels cannot run compiled (or, on a CPU, interpreted), or None.

    TRITON_INTERPRET is read when a kernel is decorated, so one process can do only one of the two.
    """
    if sys.modules.get("triton") is None and _find_spec("triton") is None:
        return "triton is not installed"
    switched_on = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
    if interpreted and not switched_on:
        return "runs in Triton's interpreter only; set TRITON_INTERPRET=1 before the process starts"
    if switched_on and not interpreted:
        return "TRITON_INTERPRET is set, so Triton kernels would be interpreted and not compiled"
    return None


def _find_spec(name: str) -> object | None:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None


def distribution_version(*names: str) -> str | None:
    """Version of the first installed distribution among ``names``, or None."""
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def distribution_folder(name: str, folder: str) -> Path | None:
    """Where the installed distribution ``name`` keeps ``folder``, found without importing it, or None."""
    try:
        found = Path(str(importlib.metadata.distribution(name).locate_file(folder)))
    except importlib.metadata.PackageNotFoundError:
        return None
    return found if found.is_dir() else None


def versions(*distributions: str) -> Mapping[str, str]:
    """Versions of torch, of its CUDA or HIP, of ROCm and hipcc, and of those ``distributions`` that are installed."""
    found = {"torch": str(torch.__version__)}
    if torch.version.cuda is not None:
        found["cuda"] = str(torch.version.cuda)
    if torch.version.hip is not None:
        found["hip"] = str(torch.version.hip)
        found.update(toolchain.of_rocm())
    for name in distributions:
        version = distribution_version(name)
        if version is not None:
            found[name] = version
    return found
