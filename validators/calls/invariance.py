"""Invariance: the same row gives the same bits in another batch and in another layout.

Each function calls the kernel again with fresh poisoned buffers, compares bits and returns one ``Check``. Nothing here
needs a reference. ``judged=False`` reports the finding with ``ok=None``: a contract may declare that a row's result
depends on its batch, and a kernel that its runs differ.

Between batches and layouts any NaN equals any NaN: its sign and payload follow the instruction that formed it, and a
vector body and a scalar tail may use two. Scales and codes of rows that the contract leaves open are not judged;
``open_rows`` says which those are, and is asked only where bits differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from validators.calls import integrity
from validators.calls.buffers import POISONS, make_buffers
from validators.cases.tensors import Inputs, Outputs, as_ints, named_tensors
from validators.process import doing
from validators.records.record import Check

if TYPE_CHECKING:
    from validators.kernels.kernel import Kernel


OpenRows = Callable[[], torch.Tensor]
"""Which rows of the flattened inputs the contract leaves open: bool [m]."""


def batch_invariance(
    kernel: Kernel,
    inputs: Inputs,
    outputs: Outputs,
    *,
    rows: int = 4,
    judged: bool = True,
    open_rows: OpenRows | None = None,
) -> Check:
    """Check "batch invariance": a row gives the same bits alone and in another batch.

    ``rows`` sampled rows (first, last and evenly between) are run one by one; every other row is run as a batch of
    half the size in reversed order, so that a row has other neighbours, another index and another batch size. Not
    judged for one row, and not where the kernel raises on the other batch: that is a limit of shapes.
    """
    name, kind = "batch invariance", "invariance"
    flat, wanted = inputs.flat(), outputs.flat()
    m = flat.row_count
    if m < 2:
        return Check(
            name, None, f"the case has {'one row' if m else 'no row'}, so there is no other batch", kind, "nothing"
        )
    sampled = sorted({round(i * (m - 1) / max(1, rows - 1)) for i in range(rows)})
    batches = [("alone", [row]) for row in sampled]
    batches.append(("in a batch of every other row, reversed", list(range(0, m, 2))[::-1]))
    for run, (words, indices) in enumerate(batches, start=1):
        which = f"row {indices[0]}" if len(indices) == 1 else f"{len(indices)} rows"
        with doing.during(f"{which} {'was' if len(indices) == 1 else 'were'} run {words} ({name})"):
            got, problem = _call(kernel, flat.take_rows(indices), run)
        if got is None:
            return Check(name, None, f"not judged, for {which} {words}: {problem}", kind, "raised")
        differing = _differences(wanted.take_rows(indices), got, indices, open_rows)
        if differing:
            return _verdict(name, kind, judged, f"{which} {words} of {m} rows: {differing}")
    detail = f"{len(sampled)} rows alone and {(m + 1) // 2} of {m} rows in another batch and order gave the same bits"
    return Check(name, True if judged else None, detail, kind)


def layout_equals_contiguous(
    kernel: Kernel, inputs: Inputs, outputs: Outputs, *, judged: bool = True, open_rows: OpenRows | None = None
) -> Check:
    """Check "strided equals contiguous": strided or 3-D inputs give the bits of the contiguous 2-D inputs."""
    name, kind = "strided equals contiguous", "invariance"
    tensors = named_tensors(inputs)
    if all(tensor.is_contiguous() and tensor.dim() <= 2 for tensor in tensors.values()):
        words = "the inputs are contiguous and two-dimensional, so there is no other layout"
        return Check(name, None, words, kind, "nothing")
    with doing.during(f"it was run on contiguous two-dimensional inputs ({name})"):
        got, problem = _call(kernel, inputs.flat(), 1)
    if got is None:
        return Check(name, None, f"not judged, on contiguous inputs: {problem}", kind, "raised")
    flat = outputs.flat()
    differing = _differences(flat, got, list(range(inputs.row_count)), open_rows)
    if differing:
        return _verdict(name, kind, judged, f"against the same values in contiguous rows: {differing}")
    return Check(name, True if judged else None, "the bits equal those of contiguous two-dimensional inputs", kind)


def _verdict(name: str, kind: str, judged: bool, detail: str) -> Check:
    return Check(name, False if judged else None, detail, kind)


def _call(kernel: Kernel, inputs: Inputs, run: int) -> tuple[Outputs, str] | tuple[None, str]:
    """The kernel's outputs, or None and a sentence why there are none."""
    buffers = make_buffers(inputs, poison=POISONS[run % 2])
    try:
        outputs = kernel.call(inputs, buffers.outputs)
        integrity.check_outputs(inputs, outputs, strict=False)
    except integrity.OutputError as error:
        return None, str(error)
    except Exception as error:
        # A kernel may raise anything; then this check is not judged, and says why.
        return None, f"the kernel raised {type(error).__name__}: {error}"
    return outputs, ""


def _differences(wanted: Outputs, got: Outputs, indices: list[int], open_rows: OpenRows | None) -> str:
    """What differs, in words, without NaN against NaN and without the scales and codes of open rows; empty if nothing.

    indices: which rows of the flattened inputs the rows of both are.
    """
    differing = integrity.describe_differences(integrity.same_bits(wanted, got))
    if not differing:
        return ""
    ours, theirs = named_tensors(wanted), named_tensors(got)
    values: dict[str, Any] = {}
    rows = None if open_rows is None else open_rows()[torch.tensor(indices, dtype=torch.long)]
    for name, tensor in theirs.items():
        values[name] = tensor
        if name not in ours or ours[name].shape != tensor.shape:
            continue
        skip = nan_elements(ours[name]) & nan_elements(tensor)
        if rows is not None and name in ("codes", "scale"):
            skip |= rows.to(skip.device)[:, None]
        same = torch.where(skip, as_ints(ours[name]), as_ints(tensor))
        values[name] = same.view(tensor.dtype)
    return integrity.describe_differences(integrity.same_bits(wanted, dataclasses.replace(got, **values)))


def nan_elements(tensor: torch.Tensor) -> torch.Tensor:
    """Which elements are NaN, by their bits where the type is an FP8 one."""
    if tensor.element_size() > 1:
        return tensor.isnan()
    bits = as_ints(tensor)
    return (bits == 0x80) if tensor.dtype == torch.float8_e4m3fnuz else (bits & 0x7F) == 0x7F
