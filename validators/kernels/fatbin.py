"""GPU code inside a shared object: where it is, and for which architectures.

nvcc puts the GPU code of a host library into the ELF section ``.nv_fatbin`` (``__nv_relfatbin`` before the device
linker). The section is a sequence of regions, one a translation unit, padded with zeros to 8 bytes. All numbers are
little-endian:

region   u32 0xBA55ED50, u16 version, u16 size of this header, u64 size of the entries that follow
entry    u16 kind (1 PTX, 2 ELF), u16 version, u32 size of this header, u64 size of the payload (offset 8),
         u32 architecture (offset 28; 90 for sm_90 and sm_90a), u64 flags (offset 40), then the payload

The driver chooses an entry by these headers alone, so that a payload which it does not choose may be anything.
Standard library only: this runs where torch is not installed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from validators.errors import UserError

SECTIONS = (".nv_fatbin", "__nv_relfatbin")
_MAGIC = 0xBA55ED50
_KINDS = {1: "PTX", 2: "ELF"}
_SMALLEST_ENTRY = 48


class FatbinError(UserError):
    """A file without GPU code, or one whose GPU code cannot be read; its message is one sentence."""


@dataclass(frozen=True)
class Image:
    """One entry of a region: ``kind`` "PTX", "ELF" or "kind N", ``arch`` 90, payload at ``start``, ``size`` bytes."""

    kind: str
    arch: int
    start: int
    size: int


@dataclass(frozen=True)
class Region:
    """One translation unit's GPU code, compiled for one or more architectures. start: offset in the file."""

    start: int
    images: tuple[Image, ...]


def architecture(name: str) -> int:
    """90 for ``"sm_90"``, ``"sm_90a"`` or ``"90"``. Raises FatbinError for anything else."""
    match = re.fullmatch(r"(?:sm_?)?(\d{2,3})[af]?", name)
    if match is None:
        raise FatbinError(f"{name!r} is no architecture; known is the form sm_90")
    return int(match[1])


def regions(data: bytes | bytearray | memoryview) -> list[Region]:
    """The regions of an ELF file's GPU sections. Raises FatbinError where there are none or where they are cut."""
    found = [region for start, size in _sections(data) for region in _walk(data, start, size)]
    if not found:
        raise FatbinError(f"holds no GPU code (no section {' or '.join(SECTIONS)} with a region)")
    return found


def loaded(images: tuple[Image, ...], arch: int) -> tuple[Image, ...]:
    """The images that a driver may load on a GPU of architecture ``arch``.

    ELF images run on their own major version, from their minor version upwards. Where a region has none that fits,
    the driver compiles its newest PTX that is not newer than the GPU.
    """
    fitting = tuple(i for i in images if i.kind == "ELF" and i.arch // 10 == arch // 10 and i.arch <= arch)
    if fitting:
        return fitting
    portable = [i for i in images if i.kind == "PTX" and i.arch <= arch]
    newest = max((i.arch for i in portable), default=0)
    return tuple(i for i in portable if i.arch == newest)


def slim(data: bytearray, arch: int) -> list[Image]:
    """Fills every payload that a GPU of ``arch`` does not load with zeros, in place; returns the images that stay.

    Sizes, offsets and headers stay as they are, so that the library loads as before. Raises FatbinError as
    ``regions`` does, and where nothing would stay.
    """
    kept: list[Image] = []
    for region in regions(data):
        stay = loaded(region.images, arch)
        kept += stay
        for image in region.images:
            if image not in stay:
                data[image.start : image.start + image.size] = bytes(image.size)
    if not kept:
        raise FatbinError(f"holds no GPU code that sm_{arch} could load")
    return kept


def _sections(data: bytes | bytearray | memoryview) -> Iterator[tuple[int, int]]:
    """(offset, size) of the GPU sections of a 64-bit little-endian ELF file."""
    if bytes(data[:6]) != b"\x7fELF\x02\x01":
        raise FatbinError("is no 64-bit little-endian ELF file")
    try:
        (table,) = struct.unpack_from("<Q", data, 0x28)
        width, count, names = struct.unpack_from("<HHH", data, 0x3A)
        headers = [struct.unpack_from("<IIQQQQ", data, table + i * width) for i in range(count)]
        strings = headers[names][4] if names < count else 0
        for name, _, _, _, offset, size in headers:
            begin = strings + name
            text = bytes(data[begin : begin + max(map(len, SECTIONS)) + 1]).split(b"\0")[0]
            if text.decode("ascii", "replace") in SECTIONS:
                if offset + size > len(data):
                    raise FatbinError("is cut: a section with GPU code ends behind the end of the file")
                yield offset, size
    except struct.error:
        raise FatbinError("is cut: its table of sections is not whole") from None


def _walk(data: bytes | bytearray | memoryview, start: int, size: int) -> Iterator[Region]:
    position, end = start, start + size
    while position + 16 <= end:
        magic, _, header, length = struct.unpack_from("<IHHQ", data, position)
        if magic == 0:
            position += 8
            continue
        if magic != _MAGIC or header < 16 or position + header + length > end:
            raise FatbinError(f"has something other than a fat binary at offset {position}")
        stop = position + header + length
        yield Region(position, tuple(_entries(data, position + header, stop)))
        # Regions begin at multiples of 8 bytes.
        position = stop + -(stop - start) % 8


def _entries(data: bytes | bytearray | memoryview, position: int, stop: int) -> Iterator[Image]:
    while position + _SMALLEST_ENTRY <= stop:
        kind, _, header, payload = struct.unpack_from("<HHIQ", data, position)
        (arch,) = struct.unpack_from("<I", data, position + 28)
        if header < _SMALLEST_ENTRY or position + header + payload > stop:
            raise FatbinError(f"has an entry of a fat binary that is not whole at offset {position}")
        yield Image(_KINDS.get(kind, f"kind {kind}"), arch, position + header, payload)
        position += header + payload
