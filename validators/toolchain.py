"""Which toolchain built what ran: ROCm, hipcc, aiter's commit, and the library that a GEMM was given to.

One kernel source gives other results with another toolchain: the same code scored .001 on GSM8K under ROCm 7.0 and .946
under 7.2 (sgl-project/sglang#24651), so a record names them. Everything here answers "" where something is not known,
and never raises: a record must not fail for its provenance. Looked up once a process.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

_ROCM = "/opt/rocm"
_SHORT = 12


def _root() -> Path:
    return Path(os.environ.get("ROCM_PATH") or os.environ.get("ROCM_HOME") or _ROCM)


@functools.cache
def rocm() -> str:
    """Version of the installed ROCm, ``7.2.0-43``; it may be another one than the torch was built with."""
    for name in ("version", "version-rocm", "version-dev"):
        try:
            return (_root() / ".info" / name).read_text(encoding="utf-8").strip().split("\n")[0]
        except (OSError, ValueError):
            continue
    return ""


@functools.cache
def hipcc() -> str:
    """Version of the HIP compiler, which builds what a library compiles at its first call: ``7.2.26015-fc0010cf6a``."""
    program = str(_root() / "bin" / "hipcc")
    program = program if os.access(program, os.X_OK) else shutil.which("hipcc") or ""
    found = re.search(r"HIP version:\s*(\S+)", _output(program, "--version")) if program else None
    return found[1] if found else ""


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, ValueError, subprocess.SubprocessError):
        return ""


@functools.cache
def commit_of(distribution: str, folder: str) -> str:
    """Commit of an installed library: of the git checkout that holds ``folder`` ("+changes" where files differ), of
    pip's direct_url.json, or of a version such as 0.1.5+g1a2b3c4."""
    if folder:
        git = ("git", "-c", "safe.directory=*", "-C", folder)
        top, head = _output(*git, "rev-parse", "--show-toplevel").strip(), _output(*git, "rev-parse", "HEAD").strip()
        # A library in site-packages of a virtual environment may be inside a checkout of something else.
        if head and Path(top) in (Path(folder), Path(folder).parent):
            changed = _output(*git, "status", "--porcelain", "--untracked-files=no").strip()
            return head[:_SHORT] + ("+changes" if changed else "")
    try:
        found = importlib.metadata.distribution(distribution)
        direct = json.loads(found.read_text("direct_url.json") or "{}")
        told = str(direct.get("vcs_info", {}).get("commit_id", ""))
        in_version = re.search(r"\bg([0-9a-f]{7,40})\b", found.version)
    except (importlib.metadata.PackageNotFoundError, OSError, ValueError, AttributeError, TypeError):
        return ""
    return told[:_SHORT] or (in_version[1][:_SHORT] if in_version else "")


def of_rocm() -> Mapping[str, str]:
    """``rocm`` and ``hipcc``, as far as they are known."""
    return {name: text for name, text in (("rocm", rocm()), ("hipcc", hipcc())) if text}


def aiter_gemm(table: str, m: int, n: int, k: int, fp8_dtype: object) -> dict[str, str]:
    """What aiter's tuned table gives to a GEMM of this shape: ``gemm library`` (ck, cktile, flydsl), ``gemm kernel``,
    and the ``tuned table`` with the digest of its bytes.

    table: the attribute of ``AITER_CONFIGS`` that names it. A shape that is not in the table is given to CK with its
    default instance, as aiter's own code does. {} where this aiter has no such table.
    """
    try:
        ops = importlib.import_module("aiter.ops.gemm_op_a8w8")
        file = str(getattr(ops.AITER_CONFIGS, table))
        row = ops.get_GEMM_config_with_quant_type(m, n, k, fp8_dtype, file)
        found = {"tuned table": f"{Path(file).name} {_digest(file)}"}
        if row is None:
            return {"gemm library": "ck (shape not in the tuned table)", **found}
        parts = {"gemm library": row.get("libtype", "ck"), "gemm kernel": row.get("kernelName", ""), **found}
        parts["splitK"] = row.get("splitK", "")
        return {name: str(value) for name, value in parts.items() if str(value)}
    except Exception:  # a table of another form, another aiter: the verdict does not depend on it
        return {}


@functools.cache
def _digest(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:_SHORT]
