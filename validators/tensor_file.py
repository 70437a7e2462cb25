"""Files of the safetensors format: a header (its length as 8 little-endian bytes, then JSON) and raw bytes.

Own code, so that checkpoints are read where torch alone is installed, without a copy in memory, and with one sentence
for a file that is cut. Source: the format's README (huggingface/safetensors).
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from validators.errors import UserError

DTYPES = {
    "F8_E4M3": torch.float8_e4m3fn,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class CheckpointError(UserError):
    """A directory that is no checkpoint of this kind, or a file that is cut; its message is one sentence."""


class Entry(NamedTuple):
    """What a header says of a tensor."""

    dtype: str
    shape: tuple[int, ...]


class Shard:
    """One safetensors file, mapped. Tensors are views of the file; do not write to them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                size = path.stat().st_size
                length = int.from_bytes(file.read(8), "little") if size > 8 else 0
                if not 2 <= length <= size - 8:
                    raise CheckpointError(f"{path} is no safetensors file or is cut: its header does not fit into it")
                header = json.loads(file.read(length))
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise CheckpointError(f"{path} is no safetensors file: its header is no JSON") from error
        if not isinstance(header, dict):
            raise CheckpointError(f"{path} is no safetensors file: its header is no table of tensors")
        self._first, self._size = 8 + length, size
        self.entries: dict[str, Any] = {k: v for k, v in header.items() if k != "__metadata__"}

    def entry(self, name: str) -> Entry:
        """Type and shape of the tensor ``name``; raises CheckpointError if it is not there or described otherwise."""
        if name not in self.entries:
            raise CheckpointError(f"{self.path} holds no tensor {name!r}")
        try:
            return Entry(str(self.entries[name]["dtype"]), tuple(int(n) for n in self.entries[name]["shape"]))
        except (KeyError, TypeError, ValueError) as error:
            raise self._not_understood(name) from error

    def _not_understood(self, name: str) -> CheckpointError:
        text = str(self.entries[name])
        return CheckpointError(f"{self.path} describes {name!r} in a way that is not understood: {text[:200]}")

    def tensor(self, name: str) -> Tensor:
        """The tensor ``name``; raises CheckpointError if it is not there or not all there."""
        kind, shape = self.entry(name)
        try:
            start, stop = (int(n) for n in self.entries[name]["data_offsets"])
            dtype = DTYPES[kind]
        except (KeyError, TypeError, ValueError) as error:
            raise self._not_understood(name) from error
        count = torch.Size(shape).numel()
        if stop - start != count * dtype.itemsize or start < 0 or self._first + stop > self._size:
            raise CheckpointError(f"{self.path} is cut: {name!r} is not inside it with its {count:,} elements")
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        raw = torch.frombuffer(self._map, dtype=torch.uint8, count=stop - start, offset=self._first + start)
        # A header's length is free, so the data may be at an odd address, which a view of wider elements must not.
        raw = raw.clone() if raw.data_ptr() % dtype.itemsize else raw
        return raw.view(dtype).view(shape)


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write ``tensors`` as one safetensors file."""
    header: dict[str, Any] = {}
    at = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
