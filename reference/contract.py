"""Contracts: the declared arithmetic of a kernel.

Two correct kernels of one op rarely agree bit for bit, because they round at different places. A
contract names those places, so that the admissible set of every output can be derived instead of
tuned. All error constants are in units of the fp32 rounding unit ``u = 2**-24`` (one ulp is at
most ``2u`` relative); ``1.0`` always means "correctly rounded".
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar

from reference import notation

C = TypeVar("C", bound="Contract")
ReductionKind = Literal["any", "lanes", "serial"]


@dataclass(frozen=True)
class Reduction:
    """How a row's sum of squares may be associated.

    ``any``: any order, one serial chain included. ``lanes``: at least ``count`` partial sums of equal
    length, combined by a tree. ``serial``: no thread adds more than ``count`` terms in sequence, and the
    partial sums are combined by a tree.
    """

    kind: ReductionKind = "any"
    count: int = 0

    def depth(self, n: int) -> int:
        """Longest chain of additions that any of ``n`` summands goes through (``d`` of docs/derivations.md 3)."""
        if n <= 1:
            return 0
        if self.kind == "any":
            return n - 1
        if self.kind == "lanes":
            return min(n - 1, math.ceil(n / self.count) + math.ceil(math.log2(self.count)))
        partials = max(1, math.ceil(n / self.count))
        return min(n - 1, self.count + (math.ceil(math.log2(partials)) if partials > 1 else 0))


class Contract:
    """What the contracts of all ops have: frozen dataclasses with these fields, and named presets by op."""

    ops: ClassVar[tuple[str, ...]]
    """The ops whose kernels may declare it."""
    name: str
    source: str
    deterministic: bool
    batch_invariant: bool
    unsettled: tuple[tuple[str, tuple[object, ...]], ...] = ()
    """Fields that the sources leave open, each with its possible values, the field's own one first. One call of a
    kernel follows one choice of them in all its rows (``members``): which one may depend on the build or the shape,
    but not on the row. A field that is changed is settled by that."""

    def __post_init__(self) -> None:
        if self.unsettled:
            kept = tuple((name, values) for name, values in self.unsettled if values[0] == getattr(self, name))
            object.__setattr__(self, "unsettled", kept)

    @property
    def floor(self) -> float:
        """The amax below which the contract's scale is a constant; 0 without a floor."""
        return 0.0

    def members(self: C) -> tuple[C, ...]:
        """The contracts with every field settled that this one represents, its own values first."""
        if not self.unsettled:
            return (self,)
        names = [name for name, _ in self.unsettled]
        chosen = itertools.product(*(values for _, values in self.unsettled))
        return tuple(self.replace(unsettled=(), **dict(zip(names, values, strict=True))) for values in chosen)

    def replace(self: C, **changes: object) -> C:
        """The same contract with some fields changed (used to explain violations)."""
        return dataclasses.replace(self, **changes)  # type: ignore


@dataclass(frozen=True)
class NormQuantContract(Contract):
    """Declared arithmetic of ``add_rmsnorm_quant`` and of its last stage, ``per_token_quant``.

    With ``z`` the norm's input, ``rms = 1/sqrt(mean(z^2) + eps)``, ``y = z * rms * w``,
    ``s`` the row's scale and T the storage type (bf16 or fp16)::

        z            = fl32(x + r)            norm_input "unrounded"
                     = residual_out           norm_input "stored"
        residual_out = RNE_T(fl32(x + r))     residual_store "rne"; toward zero for "truncate"; toward zero in bf16
                                              and to nearest in fp16 for "truncate_bf16"
        h            = z * rms                rounded to T if round_after_normalize
        y            = h * w                  rounded to T if round_after_weight
        amax         = max(max|y|, amax_floor)
        s            = amax * fl32(1/Q)       scale_rule "multiply"
                     = amax / Q               scale_rule "divide"; then raised to 1/(Q*scale_floor_divisor)
                                              rounded to T if round_scale; then zero_scale replaces a scale of 0
        t            = y / s                  division "divide", or y * fl32(1/s) for "reciprocal"
                                              rounded to T if round_quotient
        code         = RNE_fp8(t)

    ``per_token_quant`` uses the fields from ``amax_floor`` on, with ``y = x``. Every operation is also rounded to fp32
    before it is rounded to T; both roundings are monotone, so a set is given by its ends.
    """

    ops: ClassVar[tuple[str, ...]] = ("add_rmsnorm_quant", "per_token_quant")
    name: str
    norm_input: Literal["unrounded", "stored"] = "unrounded"
    residual_store: Literal["rne", "truncate", "truncate_bf16"] = "rne"
    round_after_normalize: bool = False
    round_after_weight: bool = False
    amax_floor: float = 0.0
    scale_rule: Literal["multiply", "divide"] = "divide"
    scale_floor_divisor: float | None = None
    round_scale: bool = False
    """The scale is a value of T, as where a framework's code divides amax in T."""
    zero_scale: float | Literal["eps"] | None = None
    """What replaces a scale that comes out as 0, as that of an all-zero row does when no floor applies: a number, or
    the distance from 1 to the next value of T; None leaves an all-zero row unspecified. An all-zero row has codes that
    decode to zero, whatever its scale."""
    division: Literal["divide", "reciprocal"] = "reciprocal"
    round_quotient: bool = False
    """What is encoded is a value of T, as where a framework's code divides in T."""
    fnuz_max: float = 240.0
    """Largest code value used on e4m3fnuz (vLLM declares 224)."""
    overflow: Literal["saturate", "nan"] = "saturate"
    nonfinite: Literal["propagate", "unspecified"] = "unspecified"
    """A row that holds NaN or Inf: its scale and codes are all NaN, or not settled by any source."""
    denormals: Literal["preserve", "either"] = "preserve"
    """fp32 results below 2**-126 are kept, or may also be flushed (AMD -fgpu-flush-denormals-to-zero, PTX .ftz)."""
    reduction: Reduction = Reduction()
    mean_u: float = 3.0
    """Relative error of the division by n plus the rounding of ``+ eps``, without the reduction."""
    rsqrt_u: float = 4.0
    """Maximal relative error of the reciprocal square root."""
    scale_u: float = 1.0
    """Maximal relative error of the operation that forms the scale; 1.0 is correctly rounded."""
    reciprocal_u: float = 1.0
    """Maximal relative error of 1/s (or of y/s for "divide"); exact for powers of two in every preset."""
    deterministic: bool = True
    batch_invariant: bool = True
    source: str = ""
    """Where the declaration comes from, for reports; ``reference.evidence`` has it field by field."""
    unsettled: tuple[tuple[str, tuple[object, ...]], ...] = ()

    @property
    def floor(self) -> float:
        return max(self.amax_floor, 1.0 / self.scale_floor_divisor if self.scale_floor_divisor else 0.0)

    def qmax(self, fp8: str) -> float:
        """Value that a row's largest element is scaled to, for format ``"e4m3fn"`` or ``"e4m3fnuz"``."""
        if fp8 == "e4m3fn":
            return 448.0
        if fp8 == "e4m3fnuz":
            return self.fnuz_max
        raise ValueError(f"unknown FP8 format {fp8!r}; known: e4m3fn, e4m3fnuz")

    @property
    def rounds_y(self) -> bool:
        """Whether y is rounded to T before the quantizer."""
        return self.round_after_normalize or self.round_after_weight

    @property
    def cancels(self) -> bool:
        """Whether the kernel's rms is a factor of both y and s, so that it cancels (``budgets.code_budget``)."""
        return not (self.rounds_y or self.round_scale)

    def store(self, storage: str) -> Literal["rne", "truncate"]:
        """How the residual is stored in T, ``"bf16"`` or ``"fp16"``."""
        if self.residual_store == "truncate_bf16":
            return "truncate" if storage == "bf16" else "rne"
        return self.residual_store


@dataclass(frozen=True)
class GemmContract(Contract):
    """Declared arithmetic of ``ptpc_gemm``: ``out = store_T((sum_k a*b) * sa * sb (+ bias))``."""

    ops: ClassVar[tuple[str, ...]] = ("ptpc_gemm",)
    name: str
    accumulator: str = "fp32"
    """``fp32``: every product exact, every addition an fp32 RNE, any order. ``unknown``: a fused
    matrix unit of unpublished width, under the assumption stated in ``budgets.unknown_unit_budget``. Any other: a
    matrix unit of ``accumulators.UNITS``, emulated bit for bit, so that an output has one admissible value."""
    splits: int = 1
    """Slices along K whose partial sums are added in order in fp32 (known units only)."""
    k_map: str = "identity"
    """Name in ``accumulators.K_MAPS``: which logical k each physical k holds (known units only)."""
    scale_order: Literal["any", "token_first", "channel_first", "scales_first"] = "any"
    """(acc*sa)*sb, (acc*sb)*sa or acc*(sa*sb), each operation rounded to fp32 (known units only)."""
    scaling: Literal["epilogue", "operands"] = "epilogue"
    """Scales multiply the finished sum, or each operand in fp32 before the sum (a dequantize-first fallback)."""
    bias: Literal["epilogue", "after_store", "either"] = "epilogue"
    """Bias added in fp32 before the store, or in T after it (one more rounding)."""
    deterministic: bool = True
    batch_invariant: bool = False
    source: str = ""


_AITER_HIP = NormQuantContract(
    name="aiter-hip-gfx950",
    norm_input="unrounded",
    residual_store="rne",
    amax_floor=1e-10,
    scale_rule="multiply",
    division="reciprocal",
    # v_rcp_f32 is documented to 1 ulp = 2u; rcp of a power of two is exact (ISA examples).
    reciprocal_u=2.0,
    # at most 32 elements per thread, then a tree over the block (docs/contracts.md); -ffast-math
    # may turn the division by n into a multiplication by v_rcp: 3u, plus 1u for + eps.
    reduction=Reduction("serial", 32),
    mean_u=4.0,
    rsqrt_u=2.0,
    denormals="either",
    nonfinite="unspecified",
    source="aiter csrc/kernels/rmsnorm_quant_kernels.cu, add_rmsnorm_quant_kernel",
)

_VLLM = NormQuantContract(
    name="vllm",
    norm_input="unrounded",
    round_after_normalize=True,
    round_after_weight=True,
    scale_rule="divide",
    scale_floor_divisor=512.0,
    # quant_fn divides by the scale (quant_conversions.cuh, is_scale_inverted false for FP8). Binaries of 0.24 on an
    # H200: 91 of 91 norm cases and 72 of 72 quantizer cases PASSED so, none with the reciprocal.
    division="divide",
    fnuz_max=224.0,
    # block of up to 1024 threads, at most n/64 elements per thread for the sizes in use
    reduction=Reduction("lanes", 64),
    mean_u=3.0,
    rsqrt_u=4.0,
    denormals="either",
    nonfinite="unspecified",
    source="vLLM csrc/quantization/fused_kernels, rms_norm_dynamic_per_token_quant",
)

_EAGER = NormQuantContract(
    name="eager",
    norm_input="stored",
    round_after_normalize=True,
    round_after_weight=True,
    amax_floor=1e-12,
    scale_rule="divide",
    division="divide",
    reduction=Reduction("lanes", 8),
    mean_u=3.0,
    rsqrt_u=4.0,
    nonfinite="propagate",
    source="Hugging Face RMSNorm followed by a per-token quantizer, in eager PyTorch",
)

NORM_QUANT_CONTRACTS: dict[str, NormQuantContract] = {
    c.name: c
    for c in (
        _AITER_HIP,
        _AITER_HIP.replace(
            name="aiter-hip-gfx942",
            # The macro is about bf16 only; machine code stores fp16 by v_cvt_f16_f32, to nearest.
            residual_store="truncate_bf16",
            source="aiter, OPUS_FP32_to_BF16_DEFAULT=2 (truncate), its default build for gfx942",
        ),
        NormQuantContract(
            name="aiter-triton",
            norm_input="stored",
            scale_rule="divide",
            zero_scale=1.0,
            division="reciprocal",
            # Triton's fp32 "/" is div.full (2 ulp) on CUDA and v_rcp based (2.5 ulp) on AMD.
            scale_u=5.0,
            reciprocal_u=5.0,
            reduction=Reduction("serial", 128),
            mean_u=6.0,
            rsqrt_u=4.0,
            overflow="nan",
            denormals="either",
            nonfinite="unspecified",
            source="aiter ops/triton rmsnorm.py, _quant_fused_add_rmsnorm_kernel",
            # The source has no clamp; whether the conversion saturates is up to the compiler's mode register.
            unsettled=(("overflow", ("nan", "saturate")),),
        ),
        _VLLM,
        # The engine's Python code, eager. Its own compiler fuses it into another arithmetic: see "torch-compile".
        _VLLM.replace(
            name="vllm-native",
            division="reciprocal",
            reduction=Reduction("lanes", 8),
            denormals="preserve",
            nonfinite="propagate",
            source="vLLM RMSNorm.forward_native (layernorm.py), then QuantFP8.forward_native (input_quant_fp8.py)",
        ),
        NormQuantContract(
            name="torch-compile",
            norm_input="stored",
            amax_floor=1e-12,
            scale_rule="divide",
            division="reciprocal",
            # on CUDA Inductor emits Triton, whose "/" is div.full: 2 ulp = 4u
            scale_u=4.0,
            reciprocal_u=4.0,
            reduction=Reduction("lanes", 8),
            mean_u=6.0,
            rsqrt_u=4.0,
            denormals="either",
            nonfinite="propagate",
            # A single row compiles to a graph of its own, which may reduce in another order (measured on a CPU).
            batch_invariant=False,
            source="torch.compile of the fp32 form, validators/kernels/inductor.py",
        ),
        _EAGER,
        # A framework's norm, then the library's dynamic per-token quantizer. Both libraries keep amax and its quotient
        # in the type of x. On bf16 and fp16 x, 0 of 2.6 million codes and of 512 scales differ from this, by
        # torchao 0.18 and compressed-tensors 0.17 to 0.20 on a CPU.
        _EAGER.replace(
            name="torchao",
            amax_floor=0.0,
            round_scale=True,
            # No floor: the scale of a zero row is 0, and 0/0 gives codes that are NaN. They are a defect, not a rule.
            zero_scale=0.0,
            source="torchao quant_primitives.py, _choose_scale_float8 and _quantize_affine_float8, after an eager norm",
        ),
        _EAGER.replace(
            name="compressed-tensors",
            amax_floor=0.0,
            round_scale=True,
            zero_scale="eps",
            round_quotient=True,
            source="compressed-tensors utils/helpers.py, calculate_qparams, and lifecycle/forward.py, quantize, with "
            "strategy token, after an eager norm",
        ),
        NormQuantContract(
            name="unfused",
            norm_input="unrounded",
            round_after_weight=True,
            scale_rule="multiply",
            division="reciprocal",
            reciprocal_u=2.0,
            reduction=Reduction("serial", 32),
            mean_u=4.0,
            rsqrt_u=2.0,
            denormals="either",
            nonfinite="unspecified",
            source="aiter add_rmsnorm then per_token_quant_hip, the path before SGLang #21403",
            # Two norm kernels serve that path, and the quantizer's maximum started at 1e-10 before it started at 0.
            unsettled=(("norm_input", ("unrounded", "stored")), ("amax_floor", (0.0, 1e-10))),
        ),
    )
}

GEMM_CONTRACTS: dict[str, GemmContract] = {
    c.name: c
    for c in (
        GemmContract("fp32", "fp32", source="fp32 FMA or multiply-add in any order"),
        GemmContract(
            "dequantized-fp32",
            "fp32",
            scaling="operands",
            bias="either",
            source="torch._scaled_mm rowwise on CPU: bit-equal to fl32(a*sa) @ fl32(b*sb) in fp32 (torch 2.13)",
        ),
        GemmContract(
            "hopper-fast", "hopper-fast", source="wgmma, one chain over K: torch._scaled_mm(use_fast_accum=True)"
        ),
        GemmContract(
            "hopper-promote128",
            "hopper-promote128",
            source="wgmma, moved to fp32 every 128 products: torch._scaled_mm(use_fast_accum=False)",
        ),
        GemmContract("ada", "ada", source="mma.sync m16n8k32 e4m3 on Ada"),
        GemmContract("cdna3-mfma", "cdna3-mfma", source="v_mfma_f32_16x16x32_fp8_fp8 in logical order of k"),
        GemmContract("unknown", "unknown", bias="either", source="matrix unit without a public model"),
    )
}


_HERE: dict[str, Mapping[str, Contract]] = {
    **dict.fromkeys(NormQuantContract.ops, NORM_QUANT_CONTRACTS),
    **dict.fromkeys(GemmContract.ops, GEMM_CONTRACTS),
}


def presets(op: str) -> Mapping[str, Contract]:
    """The contracts of ``op`` by name: of a table here, or ``CONTRACTS`` of the module of this folder with its name."""
    if op in _HERE:
        return _HERE[op]
    found: Mapping[str, Contract] = importlib.import_module(f"reference.{op}").CONTRACTS
    return found


def get_contract(op: str, name: str) -> Contract:
    """The preset ``name`` for ``op``, or a preset with changed fields (``eager+amax_floor=1e-10``, see ``notation``).

    Raises KeyError with one sentence: the known names, or what is wrong with a changed field.
    """
    table = presets(op)
    preset, changes = notation.split(name)
    if preset not in table:
        raise KeyError(f"unknown contract {name!r} for op {op}; known: {', '.join(sorted(table))}")
    if not changes:
        return table[preset]
    try:
        return notation.parse(table[preset], changes)
    except notation.NotationError as error:
        raise KeyError(f"contract {name!r}: {error}") from None
