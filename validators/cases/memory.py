"""Whether a machine can hold a case: only cases of more than 2^31 elements are asked about."""

from __future__ import annotations

import torch

from validators.cases.case import Case
from validators.cases.op import op_named

LARGE_ELEMENTS = 2**31
"""Elements of a tensor past which a signed 32-bit offset wraps. Such cases are for a GPU: a CPU takes minutes."""


def elements(case: Case) -> int:
    """Elements of the case's largest tensor."""
    return max(case.m * case.n, case.m * case.k, case.n * case.k)


def beyond_memory(case: Case, device: str) -> str | None:
    """One sentence why ``device`` ("cpu", "cuda", "cuda:1") cannot hold a case of more than 2^31 elements, or None."""
    count = elements(case)
    if count <= LARGE_ELEMENTS:
        return None
    needed = count * op_named(case.op).bytes_per_element / 1e9
    what = f"the case has a tensor of {count:,} elements and needs about {needed:.0f} GB"
    if device == "cpu":
        return f"{what}; cases of more than 2^31 elements run on a GPU only"
    offered = torch.cuda.get_device_properties(device).total_memory / 1e9
    if offered < needed:
        return f"{what} of GPU memory; this GPU has {offered:.0f} GB"
    return None
