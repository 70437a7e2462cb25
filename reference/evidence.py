"""From which evidence each field of each preset comes, and what is still unsettled.

A field that has the default of its dataclass needs none. Fields that a preset takes over from another one
(``INHERITS``) have the other one's evidence.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

from reference.contract import GEMM_CONTRACTS, NORM_QUANT_CONTRACTS, Contract, GemmContract, NormQuantContract

Kind = Literal["source", "machine code", "run", "document", "definition"]
KINDS: dict[str, str] = {
    "source": "a named place in public source code",
    "machine code": "instructions of a compiled kernel, read or executed by an interpreter",
    "run": "outputs of the code itself, on hardware or on a CPU",
    "document": "a vendor's document of an instruction or a function",
    "definition": "a form that this suite defines and carries out itself",
}


class Evidence(NamedTuple):
    """kind: one of ``KINDS``. where: what was read or run, in a few words."""

    kind: Kind
    where: str


_RCP = Evidence("document", "v_rcp_f32 and v_rsq_f32: 1 ulp = 2u (LLVM AMDGPU, HIP tables); exact for powers of two")
_RSQRTF = Evidence("document", "CUDA's table of functions: rsqrtf 2 ulp = 4u")
_NO_NAN = Evidence(
    "source", "fmaxf and v_max3 drop a NaN, clamps turn one into -Q: no source says what a row with NaN holds"
)
_HIP = "rmsnorm_quant_kernels.cu, add_rmsnorm_quant_kernel"
_QUANT_HIP = "aiter quant_kernels.cu, data_to_per_row_scale and scaled_quant_impl"
_FLUSHES = Evidence("machine code", "aiter's HIP kernel for gfx942 and gfx950: denorm_mode_32 = 0, flushed in and out")
_INDUCTOR = Evidence("definition", "validators/kernels/inductor.py, the form that is compiled")
_EAGER = Evidence("definition", "validators/kernels/torch_native.py, the form that is run")
_NORM = Evidence("source", "Hugging Face transformers, RMSNorm of Llama and GLM: weight * hidden.to(input_dtype)")
_PASSED = "0.24 binaries on an H200: 91 of 91 norm and 72 of 72 quantizer cases PASSED with a division, none without"
_TORCHAO = "torchao quant_primitives.py, _choose_scale_float8 and _quantize_affine_float8"
_CT = "compressed-tensors quantization/utils/helpers.py, calculate_qparams"
_CPU = "torchao 0.17 and 0.18 on a CPU: 0 of 2.6 million codes and of 512 scales differ"

INHERITS = {
    "aiter-hip-gfx942": "aiter-hip-gfx950",
    "vllm-native": "vllm",
    "torchao": "eager",
    "compressed-tensors": "eager",
}

EVIDENCE: dict[str, dict[str, Evidence]] = {
    "aiter-hip-gfx950": {
        "norm_input": Evidence("source", f"{_HIP}: thread_data_float holds the fp32 sum"),
        "residual_store": Evidence("source", f"{_HIP}: static_cast on gfx950, the hardware's conversion"),
        "division": Evidence("source", f"{_HIP}: v_rcp_f32, then a product"),
        "nonfinite": _NO_NAN,
        "amax_floor": Evidence("source", f"{_HIP}: thread_max starts at 1e-10"),
        "scale_rule": Evidence("source", f"{_HIP}: max * inverted_DTYPE_MAX"),
        "reciprocal_u": _RCP,
        "reduction": Evidence("source", f"{_HIP}: at most 32 elements per thread, then block_reduce"),
        "mean_u": Evidence("document", "-ffast-math may turn the division by n into v_rcp and a product: 3u, + eps 1u"),
        "rsqrt_u": _RCP,
        "denormals": _FLUSHES,
    },
    "aiter-hip-gfx942": {
        "residual_store": Evidence(
            "machine code", "bf16 truncated (OPUS_FP32_to_BF16_DEFAULT = 2), fp16 by v_cvt_f16_f32, to nearest"
        ),
    },
    "aiter-triton": {
        "norm_input": Evidence("source", "aiter rmsnorm.py, _quant_fused_add_rmsnorm_kernel: row += res_in in T"),
        "zero_scale": Evidence("source", "aiter rmsnorm.py, _per_token_quant: scale 0 becomes 1.0"),
        "scale_u": Evidence("document", "Triton's fp32 division: div.full, 2 ulp on CUDA; 2.5 ulp = 5u on AMD"),
        "reciprocal_u": Evidence("document", "Triton's fp32 division: div.full, 2 ulp on CUDA; 2.5 ulp = 5u on AMD"),
        "reduction": Evidence(
            "definition", "tl.sum of a block: assumed to be at most 128 elements per thread, then a tree"
        ),
        "mean_u": Evidence("document", "the same division by n, 5u, and + eps 1u"),
        "overflow": Evidence("source", "aiter rmsnorm.py, _per_token_quant: no clamp"),
        "denormals": Evidence("document", "PTX .ftz and the AMD mode register are options of the compiler"),
    },
    "vllm": {
        "norm_input": Evidence("source", "layernorm_utils.cuh: x += residual in fp32, and x is read"),
        "scale_rule": Evidence("source", "layernorm_utils.cuh: scale / qmax"),
        "rsqrt_u": _RSQRTF,
        "nonfinite": _NO_NAN,
        "round_after_normalize": Evidence("source", "layernorm_utils.cuh: static_cast<scalar_t>(x * rms) * weight"),
        "round_after_weight": Evidence("source", "layernorm_utils.cuh: the product with weight is of scalar_t"),
        "scale_floor_divisor": Evidence("source", "min_scaling_factor: 1 / (max * 512)"),
        "division": Evidence("run", _PASSED + " (and quant_conversions.cuh: x / scale)"),
        "fnuz_max": Evidence("source", "quant_type_max: 224 for e4m3fnuz"),
        "reduction": Evidence("source", "layernorm_utils.cuh: a block of up to 1024 threads, then cub::BlockReduce"),
        "denormals": Evidence("document", "--ftz is an option of the build, and of hipcc on AMD"),
    },
    "vllm-native": {
        "division": Evidence("source", "input_quant_fp8.py, QuantFP8.forward_native: x * scale.reciprocal()"),
        "reduction": Evidence("definition", "torch's reduction on CPU and GPU: at least 8 partial sums"),
        "nonfinite": Evidence("source", "torch's max and clamp keep a NaN (input_quant_fp8.py, forward_native)"),
    },
    "torch-compile": {
        "norm_input": _INDUCTOR,
        "amax_floor": _INDUCTOR,
        "scale_u": Evidence("document", "Inductor emits Triton on a GPU, whose division is 2 ulp = 4u"),
        "reciprocal_u": Evidence("document", "Inductor emits Triton on a GPU, whose division is 2 ulp = 4u"),
        "reduction": Evidence("definition", "at least 8 partial sums, as vectorized code has"),
        "mean_u": Evidence("document", "the same division by n, and + eps"),
        "denormals": Evidence("document", "PTX .ftz is an option of the compiler"),
        "nonfinite": _INDUCTOR,
        "batch_invariant": Evidence("run", "torch 2.13 on a CPU: one row compiles to another order of the sum"),
    },
    "eager": {
        "norm_input": _EAGER,
        "round_after_normalize": _NORM,
        "round_after_weight": _NORM,
        "amax_floor": _EAGER,
        "division": _EAGER,
        "reduction": Evidence("definition", "torch's reduction on CPU and GPU: at least 8 partial sums"),
        "nonfinite": _EAGER,
    },
    "torchao": {
        "round_scale": Evidence("run", f"{_CPU} ({_TORCHAO})"),
        "zero_scale": Evidence("run", "torchao 0.17 and 0.18 on a CPU: scale 0; its codes, NaN, are judged a defect"),
    },
    "compressed-tensors": {
        "round_scale": Evidence("run", f"compressed-tensors 0.17 and 0.20 on a CPU, as above ({_CT})"),
        "zero_scale": Evidence("source", f"{_CT}: the epsilon of the scale's type where it is 0"),
        "round_quotient": Evidence("run", "compressed-tensors 0.17 and 0.20 on a CPU (lifecycle/forward.py, quantize)"),
    },
    "unfused": {
        "round_after_weight": Evidence("source", "SGLang before #21403: the norm kernel stores y in T"),
        "scale_rule": Evidence("source", f"{_QUANT_HIP}: absMax * inverted_DTYPE_MAX"),
        "reciprocal_u": _RCP,
        "reduction": Evidence("source", f"{_HIP}, without FUSE_QUANT"),
        "mean_u": Evidence("document", "-ffast-math may turn the division by n into v_rcp and a product: 3u, + eps 1u"),
        "rsqrt_u": _RCP,
        "denormals": _FLUSHES,
    },
    "fp32": {},
    "dequantized-fp32": {
        "scaling": Evidence("run", "torch 2.13 on a CPU: bit-equal to fl32(a*sa) @ fl32(b*sb) in fp32"),
        "bias": Evidence("run", "torch 2.13 on a CPU"),
    },
    "hopper-fast": {"accumulator": Evidence("run", "H200, torch 2.11: 48 of 48 configurations equal bit for bit")},
    "hopper-promote128": {"accumulator": Evidence("run", "H200, torch 2.11: moved to fp32 every 128, bit for bit")},
    "ada": {"accumulator": Evidence("run", "recorded outputs of Ada RTX and L40S: 5000 of 5000 equal")},
    "cdna3-mfma": {"accumulator": Evidence("document", "two published models that agree; no recorded MI300X outputs")},
    "unknown": {
        "accumulator": Evidence("definition", "an assumption about units without a public model (docs/derivations.md)"),
        "bias": Evidence("definition", "both places are admitted"),
    },
}

OPEN: dict[str, tuple[str, ...]] = {
    "aiter-hip-gfx950": (
        "The kernel never ran on AMD hardware here: its fields come from source and from its machine code.",
        "A row with NaN or Inf depends on v_med3_f32; the documents say that it gives the smallest operand: -Q.",
    ),
    "aiter-triton": ("A value above Q always saturates on NVIDIA; on gfx950 the mode register decides.",),
    "vllm": ("Builds for ROCm, and builds with other compiler flags than the wheel's, did not run here.",),
    "vllm-native": ("Under the engine's own torch.compile it rounds at other places; that is another contract.",),
    "torch-compile": ("Without emulate_precision_casts Inductor keeps stored values in fp32; no contract has that.",),
    "torchao": (
        "A row that is not zero and whose scale underflows in fp16 (amax below 1.3e-5) has scale 0 and codes of 448 or "
        "NaN: reported, not judged.",
        "On GPUs from compute capability 9.0 up the library may call another package's kernel.",
    ),
    "unfused": (
        "Rows of zeros: without a floor the scale is 0 and the codes are any number times 0; reported, not judged.",
    ),
    "cdna3-mfma": ("The model was not checked against silicon. Each kernel chooses which k share a group.",),
    "unknown": ("The arithmetic of every unit that this contract is used for, above all CDNA4.",),
}
"""What is still unsettled beyond the fields that are sets, in sentences."""


def evidence_of(preset: str) -> dict[str, Evidence]:
    """Field -> evidence, with what the preset inherits."""
    contract = contract_of(preset)
    parent = INHERITS.get(preset)
    inherited = evidence_of(parent) if parent else {}
    own = EVIDENCE[preset]
    same = {f: e for f, e in inherited.items() if getattr(contract, f) == getattr(contract_of(str(parent)), f)}
    return {**same, **own}


def evidence_for(op: str, preset: str) -> Mapping[str, Evidence]:
    """``evidence_of`` the preset of any op: an op that has a module here for its contracts has ``EVIDENCE`` there."""
    if preset in EVIDENCE and op in contract_of(preset).ops:
        return evidence_of(preset)
    found: Mapping[str, Evidence] = importlib.import_module(f"reference.{op}").EVIDENCE[preset]
    return found


def contract_of(preset: str) -> NormQuantContract | GemmContract:
    """The preset of either table."""
    return NORM_QUANT_CONTRACTS[preset] if preset in NORM_QUANT_CONTRACTS else GEMM_CONTRACTS[preset]


def declared(contract: Contract) -> dict[str, object]:
    """Fields in which the contract differs from the defaults of its dataclass, name and source aside."""
    plain = type(contract)(name="plain")  # type: ignore[call-arg]
    fields = dataclasses.fields(contract)  # type: ignore[arg-type]
    names = [f.name for f in fields if f.name not in ("name", "source", "unsettled")]
    return {name: getattr(contract, name) for name in names if getattr(contract, name) != getattr(plain, name)}


assert set(KINDS) == set(get_args(Kind))
