"""Integrity: did the kernel write its outputs, all of them, and nothing else?

The kernel is called twice into buffers that hold two different byte patterns (the poison) and are surrounded by
guard bytes. An element that still holds the poison after both calls was never written; a guard byte that changed was
written past the end; an input whose bytes changed was overwritten. Everything is compared as bytes, so NaN payloads
and the sign of zero count. Results are data (``validators.records.record.Check``); only outputs that cannot be
judged at all raise ``OutputError``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch

from validators.calls.buffers import poison_int
from validators.cases.tensors import Inputs, Outputs, as_ints, named_tensors
from validators.errors import RunFault
from validators.judge.where import where_words
from validators.records.record import Check


class OutputError(RunFault):
    """Outputs that cannot be judged (wrong type, shape, dtype, device or memory); its message is one sentence."""


def check_unwritten(first: Outputs, second: Outputs, poison1: int, poison2: int) -> Check:
    """Check "poison": elements that hold poison1 after the first call and poison2 after the second.

    No written element can do that unless the kernel is nondeterministic in just this way. One boolean an element is
    held; every output of op's type is looked at.
    """
    if poison1 == poison2:
        raise ValueError("the two calls need different poison bytes")
    found, elements = [], 0
    later = named_tensors(second)
    for name, tensor in named_tensors(first).items():
        size = tensor.element_size()
        elements += tensor.numel()
        unwritten = as_ints(tensor) == poison_int(poison1, size)
        if name not in later or not bool(unwritten.any()):
            continue
        unwritten &= as_ints(later[name]) == poison_int(poison2, size)
        count = int(unwritten.sum())
        if count:
            where = where_words(unwritten)
            found.append(f"{count:,} of {tensor.numel():,} elements of {name} were never written: {where}")
    return Check("poison", not found, "; ".join(found) or f"all {elements:,} output elements were written")


# ---- inputs


class Snapshot(NamedTuple):
    """Copies of the whole storages behind the input tensors, gaps included; name -> uint8 [bytes]."""

    storages: dict[str, torch.Tensor]


def _storage_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def snapshot(inputs: Inputs) -> Snapshot:
    """A copy of every byte that the input tensors' storages hold, to be compared after the call."""
    return Snapshot({name: _storage_bytes(tensor).clone() for name, tensor in named_tensors(inputs).items()})


def check_unchanged(inputs: Inputs, before: Snapshot) -> Check:
    """Check "inputs unchanged": names each changed tensor, its changed elements, the first index, and gap bytes."""
    found, total = [], 0
    for name, tensor in named_tensors(inputs).items():
        old, new = before.storages[name], _storage_bytes(tensor)
        total += old.numel()
        if torch.equal(old, new):
            continue
        itemsize = tensor.element_size()
        whole = old.numel() // itemsize * itemsize
        layout = (tensor.size(), tensor.stride(), tensor.storage_offset())
        old_view = old[:whole].view(as_ints(tensor).dtype).as_strided(*layout)
        changed = old_view != as_ints(tensor)
        count = int(changed.sum())
        if count:
            index = tuple(changed.nonzero()[0].tolist())
            found.append(
                f"{count:,} of {tensor.numel():,} elements of {name} changed, the first at {index} "
                f"({where_words(changed)})"
            )
        inside = torch.zeros(whole // itemsize, dtype=torch.bool, device=old.device)
        inside.as_strided(*layout).fill_(True)
        outside = old != new
        outside[:whole] &= ~inside.repeat_interleave(itemsize)
        if gap := int(outside.sum()):
            found.append(f"{gap:,} bytes between the rows of {name} were overwritten")
    return Check("inputs unchanged", not found, "; ".join(found) or f"all {total:,} input bytes unchanged")


# ---- outputs


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    last = sum((size - 1) * stride for size, stride in zip(tensor.size(), tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return start, start + (last + 1) * tensor.element_size() if tensor.numel() else start


def _overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    (a0, a1), (b0, b1) = _extent(a), _extent(b)
    return a.device == b.device and a0 < b1 and b0 < a1


def check_outputs(inputs: Inputs, outputs: object, *, strict: bool) -> Check:
    """Check "dtype and shape" of what a kernel returned; raises OutputError with one sentence if it is no output.

    Wanted: the op's outputs dataclass with dense tensors on the inputs' device; codes [M, N] (or [B, S, N]) FP8,
    scale [M, 1] (or [B, S, 1]) fp32, residual_out like x exactly if there is a residual; out [M, N] of out_dtype.
    No output may overlap an input or another output. strict: also contiguous, because the next kernel takes rows
    back to back by pointer.
    """
    wanted = inputs.OUTPUTS
    if not isinstance(outputs, wanted):
        raise OutputError(f"the kernel returned {type(outputs).__name__} where {inputs.op} returns {wanted.__name__}")
    expected, device = inputs.expected(), inputs.device
    for field in fields(outputs):
        value = getattr(outputs, field.name)
        if field.name not in expected:
            if value is not None:
                raise OutputError(f"{field.name} was returned although the case has no residual")
            continue
        _check_one(field.name, value, *expected[field.name], device, strict)
    actual = named_tensors(outputs)
    names = list(actual)
    for i, name in enumerate(names):
        for given, tensor in named_tensors(inputs).items():
            if _overlap(actual[name], tensor):
                raise OutputError(f"{name} shares memory with the input {given}, so one of them was overwritten")
        for other in names[i + 1 :]:
            if _overlap(actual[name], actual[other]):
                raise OutputError(f"{name} and {other} share memory, so one of them was overwritten")
    listed = ", ".join(f"{n} {_shape(t.shape)} {_dtype(t.dtype)}" for n, t in actual.items())
    return Check("dtype and shape", True, listed)


def _check_one(
    name: str, value: object, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, strict: bool
) -> None:
    if not isinstance(value, torch.Tensor):
        missing = "None" if value is None else f"a {type(value).__name__}"
        raise OutputError(f"{name} is {missing} where a tensor {_shape(shape)} {_dtype(dtype)} is expected")
    if value.layout != torch.strided:
        raise OutputError(f"{name} has layout {value.layout}, not a dense tensor")
    if value.device.type != device.type or (value.device.index or 0) != (device.index or 0):
        raise OutputError(f"{name} is on device {value.device}, the inputs are on {device}")
    if tuple(value.shape) != shape:
        raise OutputError(f"{name} has shape {_shape(value.shape)}, expected {_shape(shape)}")
    if value.dtype != dtype:
        raise OutputError(f"{name} has dtype {_dtype(value.dtype)}, expected {_dtype(dtype)}")
    # A broadcast (stride 0) would be judged as written although its rows are one memory.
    if any(stride == 0 and size > 1 for size, stride in zip(value.size(), value.stride(), strict=True)):
        raise OutputError(f"{name} is a broadcast: its strides are {tuple(value.stride())}")
    if strict and not value.is_contiguous():
        raise OutputError(f"{name} is not contiguous: its strides are {tuple(value.stride())}")


def _shape(shape: tuple[int, ...] | torch.Size) -> str:
    return f"[{', '.join(str(size) for size in shape)}]"


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class BitDifference:
    """How one output differs between two calls. first: index of the first differing element, None if none does."""

    count: int
    elements: int
    first: tuple[int, ...] | None
    where: str


def same_bits(a: Outputs, b: Outputs) -> dict[str, BitDifference]:
    """Elements whose bytes differ, by output name. An output that only one side has, or of another shape, is all."""
    left, right = named_tensors(a), named_tensors(b)
    found = {}
    for name in {**left, **right}:
        if name not in left or name not in right or left[name].shape != right[name].shape:
            tensor = left[name] if name in left else right[name]
            found[name] = BitDifference(tensor.numel(), tensor.numel(), None, "absent or of another shape in one call")
            continue
        ours, theirs = as_ints(left[name]), as_ints(right[name])
        if torch.equal(ours, theirs):
            found[name] = BitDifference(0, ours.numel(), None, "nowhere")
            continue
        differs = ours != theirs
        first = tuple(differs.nonzero()[0].tolist())
        found[name] = BitDifference(int(differs.sum()), differs.numel(), first, where_words(differs))
    return found


def describe_differences(differences: dict[str, BitDifference]) -> str:
    """One sentence that names each differing output, count, first index and place; empty if no bit differs."""
    return "; ".join(
        f"{d.count:,} of {d.elements:,} elements of {name} differ"
        + (f", the first at {d.first} ({d.where})" if d.first is not None else f" ({d.where})")
        for name, d in differences.items()
        if d.count
    )
