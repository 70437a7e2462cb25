"""What one GPU needs of a wheel.

    python -m validators wheel slim vllm-0.24.0-cp38-abi3-manylinux_2_28_x86_64.whl --arch sm_90 --zip vllm.zip

An engine's wheel is hundreds of megabytes, most of them code for other GPUs and for ops that this suite does not call.
``slim`` works on your own copy: it takes the shared objects that hold the ops of this suite's adapters, fills the GPU
code of other architectures with zeros (validators/kernels/fatbin.py), and writes them into a zip archive, in which the
zeros vanish. Nothing is added, moved or recompiled. On the other machine the standard library unpacks it::

    python -m zipfile -e vllm.zip vllm
    VLLM_PATH=vllm python -m validators list kernels

Standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from validators.commands import options
from validators.commands.wheel import WheelError, add_wheel, members, shared_objects, unreadable
from validators.kernels import fatbin
from validators.process.guard import Exit

# The ops of validators/kernels/vllm.py and sgl_kernel.py; a library registers an op under "name(arguments".
OPS = (
    "rms_norm_dynamic_per_token_quant",
    "dynamic_per_token_scaled_fp8_quant",
    "cutlass_scaled_mm",
    "sgl_per_token_quant_fp8",
    "fp8_scaled_mm",
)

INTERRUPTED = "nothing was written"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_wheel(parser)
    options.add(parser, "--arch", "of the GPU; sm_90 is an H100 or H200", required=True)
    parser.add_argument("--zip", metavar="FILE", type=Path, required=True, help="zip archive to write")
    parser.add_argument(
        "--library-op",
        metavar="NAME",
        action="append",
        help="take the libraries that register this op (may be repeated; default: those of this suite's adapters)",
    )


def command(parsed: argparse.Namespace) -> Exit:
    """Write the archive."""
    try:
        return _slim(parsed)
    except zipfile.BadZipFile as error:
        raise unreadable(parsed.wheel, error) from None


def _slim(parsed: argparse.Namespace) -> Exit:
    arch, ops = fatbin.architecture(parsed.arch), tuple(parsed.library_op or OPS)
    written, others = [], 0
    temporary = parsed.zip.with_name(parsed.zip.name + ".part")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_LZMA) as archive:
            names = {name for name, _ in members(parsed.wheel)}
            for name, data in shared_objects(parsed.wheel):
                if not _serves(name, names, arch) or not any(f"{op}(".encode() in data for op in ops):
                    others += 1
                    continue
                note = {"arch": f"sm_{arch}", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
                changed = bytearray(data)
                try:
                    kept = fatbin.slim(changed, arch)
                except fatbin.FatbinError as error:
                    raise WheelError(f"{name} {error}") from None
                _add(archive, name, bytes(changed))
                _add(archive, f"{name}.slim.json", json.dumps(note).encode())
                size = archive.getinfo(name).compress_size
                written.append(f"{name}: {len(data):,} -> {size:,} bytes, {_sum(kept)}")
            if not written:
                raise WheelError(f"{parsed.wheel} holds no shared object that registers {' or '.join(ops)}")
            for name, read in members(parsed.wheel):
                if name.endswith(".dist-info/METADATA"):
                    _add(archive, name, read())
        os.replace(temporary, parsed.zip)
    finally:
        temporary.unlink(missing_ok=True)
    for line in [] if parsed.quiet else written:
        print(line)
    print(f"{parsed.zip}: {parsed.zip.stat().st_size:,} bytes for sm_{arch}; left out: {others} shared objects")
    if not parsed.quiet:
        print(f"unpack it with: python -m zipfile -e {parsed.zip.name} FOLDER")
    return Exit.YES


def _sum(kept: Sequence[fatbin.Image]) -> str:
    counts = Counter((image.arch, image.kind) for image in kept)
    return "kept " + ", ".join(f"{count} {kind} of sm_{arch}" for (arch, kind), count in sorted(counts.items()))


def _serves(name: str, names: set[str], arch: int) -> bool:
    """Whether ``name`` is the build for ``arch`` where a wheel has builds of one library in folders smNN.

    sglang-kernel has sm90/common_ops for Hopper and sm100/common_ops for every other GPU.
    """
    path = Path(name)
    folder = path.parent.name
    if not (folder.startswith("sm") and folder[2:].isdigit()):
        return True
    if folder == f"sm{arch}":
        return True
    return str(path.parent.parent / f"sm{arch}" / path.name) not in names


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    # A fixed date: the same wheel gives the same archive.
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_LZMA
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, data)
