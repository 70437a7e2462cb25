"""Which matrix unit, promotion interval, split-K and epilogue do the outputs of a GEMM follow?

Every candidate of a closed list is emulated bit for bit on a sample of outputs; the answer is the share of outputs that
it predicts exactly. No tolerance is involved: a right candidate predicts all of them, and wrong ones fall off quickly
with K (measured on an H200: 0 to 36 % for a wrong promotion interval).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from reference.accumulators import K_MAPS, add_to_odd, emulate, get_unit, slices
from reference.formats import decode, format_of
from validators.cases.tensors import GemmInputs, GemmOutputs
from validators.records.record import Explanation

Order = Literal["token-first", "channel-first", "product-first"]
Bias = Literal["none", "epilogue", "epilogue-fma", "after-store"]
ORDERS: tuple[Order, ...] = ("token-first", "channel-first", "product-first")
BIASES: tuple[Bias, ...] = ("epilogue", "epilogue-fma", "after-store")
EXACT = "exact"
"""Not a unit: the exact sum rounded once to fp32. Outputs that follow it and nothing else had little to round."""
_FN_UNITS = (
    "hopper-promote128",
    "hopper-fast",
    "ada",
    "blackwell-mma",
    "blackwell-tcgen05",
    "fp32-serial",
    EXACT,
    "hopper-promote32",
    "hopper-promote64",
    "hopper-promote256",
    "hopper-promote512",
)
_FNUZ_UNITS = ("cdna3-mfma", "fp32-serial", EXACT)
_SPLIT_UNITS = ("hopper-promote128", "hopper-fast", "cdna3-mfma")
SPLITS = (2, 3, 4, 8)
SAMPLE_ROWS, SAMPLE_COLS = 16, 64


class GemmCandidate(NamedTuple):
    """One way to compute the GEMM. promotion: products a chain, None for one chain. k_map: a name of ``K_MAPS``."""

    unit: str
    promotion: int | None
    splits: int
    order: Order
    bias: Bias = "none"
    k_map: str = "identity"

    @property
    def name(self) -> str:
        """``hopper-fast, token-first`` with what differs from the plain form: slices, k-map, place of the bias."""
        parts = [self.unit]
        parts += [f"split-K {self.splits}"] if self.splits > 1 else []
        parts += [f"k-map {self.k_map}"] if self.k_map != "identity" else []
        parts += [self.order]
        parts += [f"bias {self.bias}"] if self.bias != "none" else []
        return ", ".join(parts)


def candidates(fp8: str = "e4m3fn", *, k: int = 1 << 20, bias: bool = False) -> list[GemmCandidate]:
    """The closed list for an FP8 format, likeliest first, without what K products cannot show.

    Splits that cut K alike are listed once, and those that equal a promotion interval under its name: a chain promoted
    every L products adds the same partial sums as slices of L products.
    """
    found = []
    for unit in _FN_UNITS if fp8 == "e4m3fn" else _FNUZ_UNITS:
        promotion = None if unit == EXACT else get_unit(unit).promote
        if promotion and promotion >= k and unit != "hopper-promote128":
            continue
        maps = tuple(K_MAPS) if unit == "cdna3-mfma" else ("identity",)
        splits = _distinct_splits(unit, k) if unit in _SPLIT_UNITS else [1]
        places: tuple[Bias, ...] = BIASES if bias else ("none",)
        found += [
            GemmCandidate(unit, promotion, s, order, place, k_map)
            for s in splits
            for k_map in maps
            for order in ORDERS
            for place in places
        ]
    return found


def _distinct_splits(unit: str, k: int) -> list[int]:
    chain = {"hopper-fast": (32, 64, 128, 256, 512), "hopper-promote128": (128,)}.get(unit, ())
    found, seen = [1], {k, *chain}
    for splits in SPLITS:
        parts = slices(k, splits)
        length = parts[0][1]
        # Later slices of one chain each are added in the same order as one promoted chain after another.
        same = unit == "hopper-promote128" and all(last - first <= 128 for first, last in parts[1:])
        if length not in seen and not same:
            found.append(splits)
        seen.add(length)
    return found


class SampledGemm(NamedTuple):
    """Rows and columns of a GEMM: codes a [m, K], b [n, K]; sa fp32 [m], sb fp32 [n]; bias [n] or None; got [m, n]."""

    a: Tensor
    b: Tensor
    sa: Tensor
    sb: Tensor
    bias: Tensor | None
    got: Tensor


def sample(
    inputs: GemmInputs, outputs: GemmOutputs, rows: int | Tensor = SAMPLE_ROWS, cols: int | Tensor = SAMPLE_COLS
) -> SampledGemm:
    """Evenly spread (int) or given (int64 indices) rows and columns."""

    def chosen(count: int, wanted: int | Tensor) -> Tensor:
        if isinstance(wanted, Tensor):
            return wanted.to(outputs.out.device)
        return torch.linspace(0, count - 1, min(count, wanted), device=outputs.out.device).round().long()

    m, n = outputs.out.shape
    r, c = chosen(m, rows), chosen(n, cols)
    # Indexing FP8 tensors is not implemented everywhere; bytes are.
    return SampledGemm(
        inputs.a.view(torch.uint8)[r],
        inputs.b.view(torch.uint8)[c],
        inputs.a_scale.reshape(-1)[r].float(),
        inputs.b_scale.reshape(-1)[c].float(),
        None if inputs.bias is None else inputs.bias[c],
        outputs.out[r][:, c],
    )


def epilogue(accumulator: Tensor, scene: SampledGemm, order: Order, bias: Bias, dtype: torch.dtype) -> Tensor:
    """fp32 accumulator [m, n] -> ``dtype``: two fp32 multiplications in ``order``, the bias, one store (RNE)."""
    sa, sb = scene.sa[:, None], scene.sb[None, :]
    first, last = {
        "token-first": (accumulator * sa, sb),
        "channel-first": (accumulator * sb, sa),
        "product-first": (accumulator, sa * sb),
    }[order]
    if bias == "none" or scene.bias is None:
        return (first * last).to(dtype)
    shift = scene.bias[None, :].float()
    if bias == "epilogue-fma":
        # A product of two fp32 numbers is exact in float64; rounding to odd keeps the single rounding of the FMA.
        return add_to_odd(first.double() * last.double(), shift.double().expand_as(first)).float().to(dtype)
    if bias == "after-store":
        return ((first * last).to(dtype).float() + shift).to(dtype)
    return (first * last + shift).to(dtype)


def match_shares(
    inputs: GemmInputs,
    outputs: GemmOutputs,
    *,
    rows: int | Tensor = SAMPLE_ROWS,
    cols: int | Tensor = SAMPLE_COLS,
    emulator: Callable[..., Tensor] = emulate,
) -> dict[str, float]:
    """Share (0..1) of the sampled outputs that each candidate predicts bit for bit, best first.

    NaN equals NaN, and -0 equals +0. rows, cols: how many, evenly spread, or which. emulator: ``accumulators.emulate``
    or something that equals it. Cost: the sample times K for every unit, split and k-map of the list.
    """
    fmt = format_of(inputs.a.dtype)
    scene = sample(inputs, outputs, rows, cols)
    k = scene.a.shape[1]
    shares, sums = {}, dict[tuple[str, int, str], Tensor]()
    for c in candidates(fmt.name, k=k, bias=scene.bias is not None):
        key = (c.unit, c.splits, c.k_map)
        if key not in sums:
            if c.unit == EXACT:
                sums[key] = (decode(scene.a, fmt) @ decode(scene.b, fmt).t()).float()
            else:
                k_map = None if c.k_map == "identity" else K_MAPS[c.k_map]
                sums[key] = emulator(scene.a, scene.b, fmt, c.unit, k_map=k_map, splits=c.splits)
        want = epilogue(sums[key], scene, c.order, c.bias, outputs.out.dtype)
        same = (want == scene.got) | (want.isnan() & scene.got.isnan())
        shares[c.name] = float(same.double().mean())
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def followed(shares: dict[str, float]) -> tuple[Explanation, ...]:
    """What predicts every output; nothing where no candidate does."""
    perfect = [name for name, share in shares.items() if share == 1.0]
    # An exact sum rounded once is what every good accumulator tends to, so it is named before any unit.
    perfect.sort(key=lambda name: not name.startswith(EXACT))
    if not perfect:
        return ()
    rest = max((s for s in shares.values() if s < 1.0), default=0.0)
    equal = f" (as do {len(perfect) - 1} more that this sample cannot tell apart)" if len(perfect) > 1 else ""
    words = f"100 % of the outputs bit for bit; the next candidate {100 * rest:.1f} %"
    return (Explanation(f"{perfect[0]}{equal}", words, 1.0, "contract"),)


def sentences(shares: dict[str, float]) -> tuple[str, ...]:
    """The answer in words: what predicts every output, or that nothing does and what comes closest."""
    if found := followed(shares):
        return tuple(explanation.text for explanation in found)
    name, share = next(iter(shares.items()))
    return (f"follows no known matrix unit: the closest, {name}, predicts {100 * share:.1f} % of the outputs",)
