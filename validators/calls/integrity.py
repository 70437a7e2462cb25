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

from validators.cases.tensors import (
    GemmInputs,
    GemmOutputs,
    Inputs,
    NormQuantInputs,
    NormQuantOutputs,
    Outputs,
    QuantOutputs,
)
from validators.judge.where import where_words
from validators.records.record import Check

POISONS = (0x7F, 0x4B)
"""Poison bytes of the first and second call. Repeated 0x7F is NaN in e4m3fn and fp16, the largest code of e4m3fnuz and
3.4e38 in bf16 and fp32. Repeated 0x4B is of moderate size everywhere (1.3e7 in bf16 and fp32, 14.6 in fp16, 5.5 in
e4m3fn), so that a kernel that adds to old content, or takes a maximum with it, gives two different results."""

MIN_GUARD_BYTES = 4096
MAX_GUARD_BYTES = 1 << 20
GUARD_ROWS = 16

_SIGNED = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_OUTPUT_TYPES: dict[str, type] = {
    "add_rmsnorm_quant": NormQuantOutputs,
    "per_token_quant": QuantOutputs,
    "ptpc_gemm": GemmOutputs,
}


class OutputError(RuntimeError):
    """Outputs that cannot be judged (wrong type, shape, dtype, device or memory); its message is one sentence."""


def named_tensors(bundle: Inputs | Outputs) -> dict[str, torch.Tensor]:
    """The tensors of an inputs or outputs dataclass by field name, in field order, without the absent ones."""
    found = {f.name: getattr(bundle, f.name) for f in fields(bundle)}
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def _expected(inputs: Inputs) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    if isinstance(inputs, GemmInputs):
        return {"out": ((inputs.a.shape[0], inputs.b.shape[0]), inputs.out_dtype)}
    shape = tuple(inputs.x.shape)
    expected = {"codes": (shape, inputs.fp8_dtype), "scale": ((*shape[:-1], 1), torch.float32)}
    if isinstance(inputs, NormQuantInputs) and inputs.residual is not None:
        expected["residual_out"] = (shape, inputs.x.dtype)
    return expected


def _outputs(inputs: Inputs, tensors: dict[str, torch.Tensor]) -> Outputs:
    if isinstance(inputs, GemmInputs):
        return GemmOutputs(**tensors)
    return NormQuantOutputs(**tensors) if isinstance(inputs, NormQuantInputs) else QuantOutputs(**tensors)


def _device(inputs: Inputs) -> torch.device:
    return (inputs.a if isinstance(inputs, GemmInputs) else inputs.x).device


def as_ints(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as integers of the element's size (uint8, int16, int32, int64), any strides."""
    return tensor.detach().view(_SIGNED[tensor.element_size()])


def _poison_int(byte: int, element_size: int) -> int:
    return byte if element_size == 1 else int.from_bytes(bytes([byte]) * element_size, "little", signed=True)


# ---- buffers, poison and guards


def _guard_pattern(nbytes: int, poison: int, device: torch.device) -> torch.Tensor:
    # Every position has its own byte, and no two calls the same, so that no constant fill goes unseen.
    step = torch.arange(nbytes, dtype=torch.int32, device=device)
    return (step * 167 + poison + 91).bitwise_and_(0xFF).to(torch.uint8)


@dataclass(frozen=True)
class Guarded:
    """Poisoned outputs with guard bytes on both sides.

    outputs: views into ``storages`` (one uint8 tensor an output: guard, elements, guard). guards: bytes of one guard.
    """

    outputs: Outputs
    poison: int
    storages: dict[str, torch.Tensor]
    guards: dict[str, int]

    def check(self) -> Check:
        """Check "guards": which output, which side, how many bytes changed, and how far from the output."""
        found = []
        for name, storage in self.storages.items():
            size = self.guards[name]
            pattern = _guard_pattern(size, self.poison, storage.device)
            for side, now in (("before", storage[:size]), ("after", storage[-size:])):
                if torch.equal(now, pattern):
                    continue
                changed = (now != pattern).nonzero().flatten()
                far = size - int(changed[0]) if side == "before" else int(changed[-1]) + 1
                found.append(f"{len(changed):,} bytes {side} {name} were overwritten, up to {far:,} bytes away")
        total = 2 * sum(self.guards.values())
        return Check("guards", not found, "; ".join(found) or f"all {total:,} guard bytes around the outputs unchanged")


def make_buffers(inputs: Inputs, *, poison: int) -> Guarded:
    """Output tensors for ``inputs``, every byte ``poison`` (0..255), each between guards in a storage of its own.

    A guard holds at least 4,096 bytes and up to 16 rows of the output, so that a store of whole tiles past the last
    row hits the guard and not foreign memory. Views are contiguous and at least 64-byte aligned on cpu.
    """
    if not 0 <= poison <= 255:
        raise ValueError(f"poison {poison} is not a byte")
    tensors, storages, guards = {}, {}, {}
    for name, (shape, dtype) in _expected(inputs).items():
        itemsize = torch.empty(0, dtype=dtype).element_size()
        nbytes = itemsize * torch.Size(shape).numel()
        rows_bytes = GUARD_ROWS * shape[-1] * itemsize
        guard = min(MAX_GUARD_BYTES, max(MIN_GUARD_BYTES, (rows_bytes + 255) // 256 * 256))
        storage = torch.empty(guard + nbytes + guard, dtype=torch.uint8, device=_device(inputs))
        pattern = _guard_pattern(guard, poison, storage.device)
        storage[:guard] = pattern
        storage[guard : guard + nbytes] = poison
        storage[guard + nbytes :] = pattern
        tensors[name] = storage[guard : guard + nbytes].view(dtype).view(shape)
        storages[name], guards[name] = storage, guard
    return Guarded(_outputs(inputs, tensors), poison, storages, guards)


def poison_allocator(inputs: Inputs, *, poison: int) -> None:
    """Leave poisoned free blocks behind, so that ``torch.empty`` inside a kernel that allocates is likely not zero.

    PyTorch's caching allocator on a GPU hands a freed block of the same size out again; on cpu the C library does so
    for small blocks only. A hint, never evidence: the check that follows is the same.
    """
    for shape, dtype in _expected(inputs).values():
        block = torch.empty(shape, dtype=dtype, device=_device(inputs))
        as_ints(block).fill_(_poison_int(poison, block.element_size()))
        del block


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
        unwritten = as_ints(tensor) == _poison_int(poison1, size)
        if name not in later or not bool(unwritten.any()):
            continue
        unwritten &= as_ints(later[name]) == _poison_int(poison2, size)
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
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())  # type: ignore[call-overload]


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
        old_view = old[:whole].view(_SIGNED[itemsize]).as_strided(*layout)
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


def check_outputs(inputs: Inputs, outputs: object, op: str, *, strict: bool) -> Check:
    """Check "dtype and shape" of what a kernel returned; raises OutputError with one sentence if it is no output.

    Wanted: the op's outputs dataclass with dense tensors on the inputs' device; codes [M, N] (or [B, S, N]) FP8,
    scale [M, 1] (or [B, S, 1]) fp32, residual_out like x exactly if there is a residual; out [M, N] of out_dtype.
    No output may overlap an input or another output. strict: also contiguous, because the next kernel takes rows
    back to back by pointer.
    """
    wanted = _OUTPUT_TYPES[op]
    if not isinstance(outputs, wanted):
        raise OutputError(f"the kernel returned {type(outputs).__name__} where {op} returns {wanted.__name__}")
    expected, device = _expected(inputs), _device(inputs)
    for field in fields(outputs):  # type: ignore[arg-type]
        value = getattr(outputs, field.name)
        if field.name not in expected:
            if value is not None:
                raise OutputError(f"{field.name} was returned although the case has no residual")
            continue
        _check_one(field.name, value, *expected[field.name], device, strict)
    actual = named_tensors(outputs)  # type: ignore[arg-type]
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
