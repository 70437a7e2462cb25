"""Where a record comes from: the suite's commit, the machine, the libraries and the kernel's source.

Needs neither torch nor a kernel: torch is named where it is installed.
"""

from __future__ import annotations

import datetime
import functools
import os
import platform
import re
import socket
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

VARIABLES = ("AITER_", "HIPBLASLT_", "PYTORCH_TUNABLEOP_", "TORCH_BLAS_", "TRITON_", "VLLM_ROCM_", "SGLANG_USE_AITER")
"""Beginnings of the environment variables that choose a kernel, a table or a compiler's options; records keep them."""
_SET_BY_AITER = ("AITER_ASM_DIR",)  # a path, which its import sets itself


@dataclass(frozen=True)
class Source:
    """A kernel's own source. sha256: of the file and what it takes from its folder; files: name -> SHA-256 of each."""

    sha256: str
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Provenance:
    """Where a record comes from. Every field may be unknown: a record never fails for its provenance."""

    commit: str | None = None
    """Commit of this suite; None where git or a checkout is absent."""
    dirty: bool | None = None
    """Whether a Python or TOML file of the suite differs from the commit or is not in it; None without a commit."""
    python: str = ""
    torch: str | None = None
    platform: str = ""
    host: str = ""
    cpu: str = ""
    gpu: str | None = None
    """None on device "cpu", and where CUDA was not in use yet: asking for its name would create a context."""
    date: str = ""
    """When the process looked these facts up: UTC, ISO 8601."""
    environment: dict[str, str] = field(default_factory=dict)
    """The variables of ``VARIABLES`` that were set."""
    arguments: tuple[str, ...] = ()
    """The command line, without its program."""
    kernel_versions: dict[str, str] = field(default_factory=dict)
    """Library -> version, as the kernel's adapter states them."""
    kernel_source: Source | None = None
    """Of a kernel whose source can be read."""
    chosen: dict[str, str] = field(default_factory=dict)
    """What a library chose for the case, such as ``gemm library`` -> ``ck``."""
    worker_output: str = ""
    """The last that a worker printed before it died."""


def provenance(device: str | None = None) -> Provenance:
    """What is known here, for a record made on ``device``. All but the GPU is looked up once per process."""
    return replace(_machine(), gpu=_gpu(device), environment=_environment(), arguments=tuple(sys.argv[1:]))


def _environment() -> dict[str, str]:
    """The variables of ``VARIABLES`` that are set, in the order of their names."""
    named = sorted(name for name in os.environ if name.startswith(VARIABLES) and name not in _SET_BY_AITER)
    return {name: os.environ[name] for name in named}


@functools.cache
def _machine() -> Provenance:
    commit, dirty = _git()
    return Provenance(
        commit=commit,
        dirty=dirty,
        python=platform.python_version(),
        torch=_torch_version(),
        platform=platform.platform(),
        host=socket.gethostname(),
        cpu=_cpu(),
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


_SOURCES = ("reference", "validators", "golden", "evals", "tests")


def _git() -> tuple[str | None, bool | None]:
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*command, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        # Sources of the suite only: records, reports and kernels of one's own may be in the checkout. A kernel's own
        # source is told by its digest.
        status = [*command, "status", "--porcelain", "--", *(f"{folder}/*.py" for folder in _SOURCES)]
        status += [f"{folder}/*.toml" for folder in _SOURCES]
        state = subprocess.run(status, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None, None
    return head.stdout.strip(), bool(state.stdout.strip())


def _torch_version() -> str | None:
    try:
        import torch
    except ImportError:
        return None
    return str(torch.__version__)


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def _gpu(device: str | None) -> str | None:
    torch = sys.modules.get("torch")
    if torch is None or device == "cpu" or (device or "").startswith("amdgcn"):
        return None
    if not torch.cuda.is_available() or (device is None and not torch.cuda.is_initialized()):
        return None
    return str(torch.cuda.get_device_name(device if device and ":" in device else None))
