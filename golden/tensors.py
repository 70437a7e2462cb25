"""Between torch tensors and what is stored: bytes, sampled rows, and where two outputs differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from golden.store import GoldenError, Output, Tensor
from reference.formats import FORMATS, bytes_of, decode, format_of, key_of, order_key
from validators.cases.tensors import Outputs
from validators.judge.tally import STEP_LIMIT, where_in_words

WHOLE_BYTES = 2**16
"""Larger outputs are stored as ``SAMPLED_ROWS`` rows, with the digest of the whole."""
SAMPLED_ROWS = 4

_STORED = {
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "U8",
    torch.float8_e4m3fnuz: "U8",
}
_TORCH = {str(dtype).removeprefix("torch."): dtype for dtype in _STORED}


def to_stored(tensor: torch.Tensor) -> Tensor:
    """A torch tensor (any device or layout) as stored bytes, little-endian."""
    flat = tensor.detach().cpu().contiguous()
    return Tensor(_STORED[flat.dtype], tuple(flat.shape), flat.reshape(-1).view(torch.uint8).numpy().tobytes())


def from_stored(tensor: Tensor, dtype: str) -> torch.Tensor:
    """The torch tensor of a stored one; dtype: the output's own, ``"float8_e4m3fn"``."""
    if dtype not in _TORCH or _STORED[_TORCH[dtype]] != tensor.dtype:
        raise GoldenError(f"an output of type {dtype!r} is not stored as {tensor.dtype}")
    raw = torch.frombuffer(bytearray(tensor.data), dtype=torch.uint8) if tensor.data else torch.empty(0)
    return raw.view(_TORCH[dtype]).reshape(tensor.shape)


def stored_outputs(outputs: Outputs | Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Outputs by name on the CPU, absent ones left out."""
    named = outputs if isinstance(outputs, Mapping) else vars(outputs)
    return {name: value.detach().cpu() for name, value in named.items() if isinstance(value, torch.Tensor)}


def sample(name: str, tensor: torch.Tensor, *, whole: bool) -> tuple[Output, Tensor]:
    """What the manifest says of an output and what is stored of it. whole: however large it is."""
    stored = to_stored(tensor)
    full = stored.digest()
    dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
    if whole or len(stored.data) <= WHOLE_BYTES:
        return Output(dtype, shape, full, full), stored
    rows = rows_of(tensor)
    last = rows.shape[0] - 1
    chosen = sorted({i * last // (SAMPLED_ROWS - 1) for i in range(SAMPLED_ROWS)})
    part = to_stored(rows[torch.tensor(chosen)])
    return Output(dtype, shape, full, part.digest(), tuple(chosen)), part


def rows_of(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as a matrix of its last dimension, FP8 as bytes."""
    plain = bytes_of(tensor) if tensor.element_size() == 1 and tensor.is_floating_point() else tensor
    return plain.reshape(-1, plain.shape[-1])


@dataclass(frozen=True)
class Drift:
    """How one output differs from its golden.

    elements: compared, which is the stored part. differing: how many have other bytes. rows: how many rows hold one.
    where: in words, by the output's own row numbers. ulp_histogram: steps of the output's format from the golden
    ("-1", ">=5"; "NaN" where either is none, "0" for zeros of other sign or NaN of other payload). sampled: the output
    is stored in part only, so differences elsewhere show in its digest alone.
    """

    output: str
    elements: int
    differing: int
    rows: int
    where: str
    ulp_histogram: dict[str, int]
    sampled: bool

    def sentence(self) -> str:
        """``codes: 3 of 5,280 elements differ; rows 1, 5 (...); steps -1: 2, 1: 1``."""
        part = " of the sampled rows" if self.sampled else ""
        if not self.differing:
            return f"{self.output}: its digest differs, but no element{part} does"
        steps = ", ".join(f"{k}: {v:,}" for k, v in self.ulp_histogram.items())
        return (
            f"{self.output}: {self.differing:,} of {self.elements:,} elements{part} differ; {self.where}; "
            f"steps of the format from the golden: {steps}"
        )


def drift_of(name: str, golden: Output, stored: Tensor, now: torch.Tensor) -> Drift | None:
    """How ``now`` differs from a golden, or None if no bit does. Raises GoldenError for another type or shape."""
    dtype, shape = str(now.dtype).removeprefix("torch."), tuple(now.shape)
    if (dtype, shape) != (golden.dtype, golden.shape):
        raise GoldenError(f"{name} is {dtype} {list(shape)} now and was {golden.dtype} {list(golden.shape)}")
    if to_stored(now).digest() == golden.sha256:
        return None
    matrix = rows_of(now.cpu())
    count = matrix.shape[0]
    before = rows_of(from_stored(stored, golden.dtype))
    chosen = list(range(count)) if golden.rows is None else list(golden.rows)
    after = matrix[torch.tensor(chosen)]
    differs = _bits(before) != _bits(after)
    row_counts = torch.zeros(count, dtype=torch.int64)
    row_counts[torch.tensor(chosen)] = differs.sum(dim=1)
    where = where_in_words(row_counts, differs.sum(dim=0)) if bool(differs.any()) else ""
    histogram = _steps(before[differs], after[differs], golden.dtype)
    return Drift(
        name,
        differs.numel(),
        int(differs.sum()),
        int((row_counts > 0).sum()),
        where,
        histogram,
        golden.rows is not None,
    )


def _bits(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.contiguous().view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[matrix.itemsize])


def _steps(before: torch.Tensor, after: torch.Tensor, dtype: str) -> dict[str, int]:
    """Histogram of after - before in steps of the format; both 1-D."""
    if dtype.startswith("float8"):
        fmt = format_of(_TORCH[dtype])
        nan = decode(before, fmt).isnan() | decode(after, fmt).isnan()
        steps = (order_key(after) - order_key(before)).double()
    else:
        fmt = FORMATS["fp32"] if dtype == "float32" else format_of(_TORCH[dtype])
        old, new = before.double(), after.double()
        nan = ~(old.isfinite() & new.isfinite())
        steps = key_of(torch.where(nan, 0.0, new), fmt) - key_of(torch.where(nan, 0.0, old), fmt)
    limited = steps[~nan].round().clamp(-STEP_LIMIT, STEP_LIMIT).long().tolist()
    names = {STEP_LIMIT: f">={STEP_LIMIT}", -STEP_LIMIT: f"<=-{STEP_LIMIT}"}
    found = {names.get(k, str(k)): v for k, v in sorted(Counter(limited).items())}
    return {**found, **({"NaN": int(nan.sum())} if bool(nan.any()) else {})}
