"""What of a wheel one GPU needs: ``python -m validators wheel show|slim``.

    python -m validators wheel show vllm-0.24.0-cp38-abi3-manylinux_2_28_x86_64.whl
    python -m validators wheel slim vllm-0.24.0-cp38-abi3-manylinux_2_28_x86_64.whl --arch sm_90 --out vllm.zip

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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from validators.errors import UserError
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


class WheelError(UserError):
    """A file that cannot be used; its message is one sentence."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    commands = parser.add_subparsers(metavar="show|slim", required=True)
    add = commands.add_parser("show", help="the GPU code of each shared object, by architecture")
    add.add_argument("wheel", type=Path, help="a wheel, the folder of an unpacked one, or a shared object")
    add.set_defaults(what=_show)
    add = commands.add_parser("slim", help="keep what one GPU needs of the ops that this suite calls")
    add.add_argument("wheel", type=Path, help="a wheel, the folder of an unpacked one, or a shared object")
    add.add_argument("--arch", required=True, help="the GPU: sm_90 for an H100 or H200")
    add.add_argument("--out", type=Path, required=True, help="zip archive to write")
    add.add_argument("--op", action="append", help="take the libraries that register this op (may be repeated)")
    add.set_defaults(what=_slim)


def command(parsed: argparse.Namespace) -> Exit:
    """Show or slim."""
    try:
        parsed.what(parsed)
    except zipfile.BadZipFile as error:
        raise WheelError(f"{parsed.wheel} is no wheel that can be read: {error}") from None
    return Exit.YES


def _show(parsed: argparse.Namespace) -> int:
    shown = 0
    for name, data in _shared_objects(parsed.wheel):
        try:
            found = fatbin.regions(data)
        except fatbin.FatbinError as error:
            print(f"{name}: {len(data):,} bytes, {error}")
            continue
        shown += 1
        sizes: Counter[tuple[str, int]] = Counter()
        for region in found:
            sizes.update({(i.kind, i.arch): 0 for i in region.images})
            for image in region.images:
                sizes[image.kind, image.arch] += image.size
        print(f"{name}: {len(data):,} bytes, {len(found)} regions of GPU code")
        for (kind, arch), size in sorted(sizes.items(), key=lambda item: (item[0][1], item[0][0])):
            print(f"  sm_{arch:<4} {kind:<4} {size:>12,} bytes")
    if not shown:
        raise WheelError(f"{parsed.wheel} holds no shared object with GPU code")
    return 0


def _slim(parsed: argparse.Namespace) -> int:
    arch, ops = fatbin.architecture(parsed.arch), tuple(parsed.op or OPS)
    written, others = [], 0
    temporary = parsed.out.with_name(parsed.out.name + ".part")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_LZMA) as archive:
            names = {name for name, _ in _members(parsed.wheel)}
            for name, data in _shared_objects(parsed.wheel):
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
            for name, read in _members(parsed.wheel):
                if name.endswith(".dist-info/METADATA"):
                    _add(archive, name, read())
        os.replace(temporary, parsed.out)
    finally:
        temporary.unlink(missing_ok=True)
    print("\n".join(written))
    print(f"{parsed.out}: {parsed.out.stat().st_size:,} bytes for sm_{arch}; left out: {others} shared objects")
    print(f"unpack it with: python -m zipfile -e {parsed.out.name} FOLDER")
    return 0


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


def _members(wheel: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """(name, how to read it) of every file of a wheel, a folder, or a single file."""
    if wheel.is_dir():
        for path in sorted(wheel.rglob("*")):
            if path.is_file():
                yield path.relative_to(wheel).as_posix(), path.read_bytes
    elif zipfile.is_zipfile(wheel):
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.infolist():
                yield entry.filename, lambda entry=entry: archive.read(entry)  # type: ignore[misc]
    elif wheel.exists():
        yield wheel.name, wheel.read_bytes
    else:
        raise WheelError(f"{wheel} does not exist")


def _shared_objects(wheel: Path) -> Iterator[tuple[str, bytes]]:
    found = False
    for name, read in _members(wheel):
        if ".so" in Path(name).suffixes or (wheel.is_file() and not zipfile.is_zipfile(wheel)):
            found = True
            yield name, read()
    if not found:
        raise WheelError(f"{wheel} holds no shared object (*.so)")
