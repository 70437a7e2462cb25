"""vLLM's fused norm, per-token quantizer and CUTLASS GEMM, through ``torch.ops._C``.

Schemas (vLLM ``csrc``, unchanged since 0.7)::

    rms_norm_dynamic_per_token_quant(Tensor! result, Tensor input, Tensor weight, Tensor! scale,
                                     float epsilon, Tensor? scale_ub, Tensor!? residual) -> ()
    dynamic_per_token_scaled_fp8_quant(Tensor! result, Tensor input, Tensor! scale, Tensor? scale_ub) -> ()
    cutlass_scaled_mm(Tensor! out, Tensor a, Tensor b, Tensor a_scales, Tensor b_scales, Tensor? bias) -> ()

The extension that registers them is loaded by its path (``VLLM_PATH``, or the installed package); vLLM itself is
not imported. docs/real-kernels.md says how to bring one onto a machine.
"""

from __future__ import annotations

import functools

import torch

from validators import arch
from validators.cases import tensors
from validators.cases.case import Case
from validators.kernels import extension
from validators.kernels.kernel import Kernel
from validators.words import native_fp8


def _patterns() -> tuple[tuple[str, ...], ...]:
    # Newer builds (0.20 and later) register the ops from the second extension, still in the namespace _C.
    return (("_C_stable_libtorch.*so", "_C.*so"),)


LIBRARY = extension.Library("vllm", "VLLM_PATH", "_C", ("vllm",), _patterns)

# Messages of the checks that newer builds make; older ones demand contiguous input as a whole.
_LAST_DIMENSION = {
    "rms_norm_dynamic_per_token_quant": b"Input must be contiguous in the last dimension",
    "dynamic_per_token_scaled_fp8_quant": b"last dimension of input must be contiguous",
}


def _outputs(x: torch.Tensor, fp8_dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    codes = torch.empty(x.shape, dtype=fp8_dtype, device=x.device)
    return codes, torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)


def _rms_norm(inputs: tensors.NormQuantInputs, buffers: tensors.Outputs) -> tensors.NormQuantOutputs:
    codes, scale = _outputs(inputs.x, inputs.fp8_dtype)
    # The op overwrites the residual with the sum; the copy keeps the inputs as they were.
    residual = None if inputs.residual is None else inputs.residual.clone(memory_format=torch.contiguous_format)
    op = extension.op(LIBRARY, "rms_norm_dynamic_per_token_quant")
    op(codes, inputs.x, inputs.weight, scale, inputs.eps, None, residual)
    return tensors.NormQuantOutputs(codes, scale, residual)


def _per_token(inputs: tensors.QuantInputs, buffers: tensors.Outputs) -> tensors.QuantOutputs:
    codes, scale = _outputs(inputs.x, inputs.fp8_dtype)
    extension.op(LIBRARY, "dynamic_per_token_scaled_fp8_quant")(codes, inputs.x, scale, None)
    return tensors.QuantOutputs(codes, scale)


def _scaled_mm(inputs: tensors.GemmInputs, buffers: tensors.Outputs) -> tensors.GemmOutputs:
    shape = (inputs.a.shape[0], inputs.b.shape[0])
    out = torch.empty(shape, dtype=inputs.out_dtype, device=inputs.a.device)
    # The transposed view of (N, K) is the column-major (K, N) that the op wants.
    extension.op(LIBRARY, "cutlass_scaled_mm")(out, inputs.a, inputs.b.t(), inputs.a_scale, inputs.b_scale, inputs.bias)
    return tensors.GemmOutputs(out)


def _wrong_format(case: Case) -> str | None:
    name = arch.rocm_architecture() or "sm_90"
    wanted = native_fp8(name)
    if case.fp8 == wanted:
        return None
    return f"vLLM's FP8 type on this platform is {wanted}, not {case.fp8}"


# By their sources: the norm views x as rows, which such a slice does not allow; the quantizer takes the stride of the
# last but one dimension for all rows of all batches. tests/benchmarks/real_findings.py shows what the binaries do.
_BATCHES = {
    "rms_norm_dynamic_per_token_quant": "raises where rows of all batches have no common stride",
    "dynamic_per_token_scaled_fp8_quant": "takes one row stride for all batches and does not check it",
}


def _layout(op: str, case: Case) -> str | None:
    if "strided" in case.layout and not extension.holds(LIBRARY, _LAST_DIMENSION[op]):
        return f"{op} takes contiguous input only (in this version of vLLM)"
    if case.layout == "3dstrided":
        return f"{op} {_BATCHES[op]}, so it offers no slice of three dimensions"
    return None


def _no_rows(op: str) -> str:
    # Measured on an H200 (0.24.0): the call returns, and the next launch of anything raises "invalid argument".
    return f"{op} returns on no rows (m = 0) and leaves a CUDA error behind"


def _norm_unsupported(case: Case) -> str | None:
    if reason := _layout("rms_norm_dynamic_per_token_quant", case):
        return reason
    if case.m == 0:
        return _no_rows("rms_norm_dynamic_per_token_quant")
    if case.gamma != "T":
        return "rms_norm_dynamic_per_token_quant reads the weight in the type of x and takes no fp32 weight"
    if case.gemma:
        return "rms_norm_dynamic_per_token_quant has no 1 + weight"
    return _wrong_format(case)


def _quant_unsupported(case: Case) -> str | None:
    if case.m == 0:
        return _no_rows("dynamic_per_token_scaled_fp8_quant")
    return _layout("dynamic_per_token_scaled_fp8_quant", case) or _wrong_format(case)


def _gemm_unsupported(case: Case) -> str | None:
    # Its checks: c.stride(0) % 16 == 0 and b.stride(1) % 16 == 0, in elements; rows of c hold N, of b K elements.
    if case.k % 16 or case.n % 16:
        return f"cutlass_scaled_mm wants K and N in multiples of 16, not K={case.k} N={case.n}"
    if case.fp8 != "e4m3fn":
        return f"cutlass_scaled_mm takes e4m3fn, not {case.fp8}"
    if "strided" in case.layout:
        # It builds the strides of a and b from their shapes (c3x/cutlass_gemm_caller.cuh) and checks none of them. On
        # an H200 (0.24.0) 5,279 of 5,280 outputs were wrong, as if both were packed.
        return "cutlass_scaled_mm reads rows of a and b as packed and does not check it, so it offers no row stride"
    if case.m == 0:
        return "cutlass_scaled_mm raises Error Internal on no rows (m = 0)"
    return None


def _gemm_unavailable(device: str) -> str | None:
    if not extension.is_fake(LIBRARY) and arch.is_rocm():
        return "cutlass_scaled_mm needs an NVIDIA GPU; this torch is a ROCm build"
    return extension.unavailable(LIBRARY, "cutlass_scaled_mm", device)


def kernels() -> list[Kernel]:
    """vLLM's three ops: contract ``vllm`` for the norm and the quantizer; the GEMM's follows from the GPU."""
    kernel = functools.partial(extension.kernel, LIBRARY)
    return [
        kernel(
            "rms_norm_dynamic_per_token_quant",
            op="add_rmsnorm_quant",
            contract="vllm",
            call=_rms_norm,
            unsupported=_norm_unsupported,
            notes="the op overwrites its residual, so it is given a copy",
        ),
        kernel(
            "dynamic_per_token_scaled_fp8_quant",
            op="per_token_quant",
            contract="vllm",
            call=_per_token,
            unsupported=_quant_unsupported,
        ),
        kernel(
            "cutlass_scaled_mm",
            op="ptpc_gemm",
            contract=arch.fast_gemm_contract(),
            call=_scaled_mm,
            unavailable=_gemm_unavailable,
            unsupported=_gemm_unsupported,
            notes=arch.FAST_GEMM,
        ),
    ]
