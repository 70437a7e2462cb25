"""SGLang's per-token quantizer and CUTLASS GEMM for NVIDIA GPUs, through ``torch.ops.sgl_kernel``.

Schemas (wheel ``sglang-kernel`` 0.4.5, formerly ``sgl-kernel``)::

    sgl_per_token_quant_fp8(Tensor input, Tensor! output_q, Tensor! output_s) -> ()
    fp8_scaled_mm(Tensor mat_a, Tensor mat_b, Tensor scales_a, Tensor scales_b, ScalarType out_dtype,
                  Tensor? bias) -> Tensor

The wheel has two builds of one library, and which one is loaded decides the arithmetic: ``sm90/common_ops`` is
compiled with fast math and serves Hopper only, ``sm100/common_ops`` is compiled without and serves every other GPU.
The library is loaded by its path (``SGL_KERNEL_PATH``, or the installed package); the package itself is not imported.

Contract of the quantizer, read from the sm_90 machine code of 0.4.5: the scale is ``FMUL.FTZ amax, 0x3b124925``
(amax times fl32(1/448): fast math turns the division of the source into that), the codes are
``x * MUFU.RCP(scale)``, clamped to +-448, denormals flushed, no floor. Those are the quantizer's fields of the
preset ``unfused``. Rows of zeros: scale 0; codes 448 below 16 rows per streaming multiprocessor (0 * inf is NaN, and
the clamp makes 448 of it), 0 above: no source settles them, and a scale of 0 makes both the same numbers.
The build for the other GPUs divides as the source says; its contract is identified from the outputs.
"""

from __future__ import annotations

import functools

import torch

from validators import arch
from validators.cases.case import Case
from validators.cases.tensors import GemmInputs, GemmOutputs, Outputs, QuantInputs, QuantOutputs
from validators.kernels import extension
from validators.kernels.kernel import Kernel


def _patterns() -> tuple[tuple[str, ...], ...]:
    # The choice that the package itself makes: sm90 on compute capability 9.0 and nowhere else.
    build = "sm90" if arch.nvidia_architecture() == "sm_90" else "sm100"
    return ((f"{build}/common_ops.*so",), ("common_ops.*so",))


LIBRARY = extension.Library("sgl_kernel", "SGL_KERNEL_PATH", "sgl_kernel", ("sglang-kernel", "sgl-kernel"), _patterns)


def _unavailable(op: str, device: str) -> str | None:
    if not extension.is_fake(LIBRARY) and arch.is_rocm():
        return f"{op} needs an NVIDIA GPU; this torch is a ROCm build"
    return extension.unavailable(LIBRARY, op, device)


def _per_token(inputs: QuantInputs, buffers: Outputs) -> QuantOutputs:
    x = inputs.x
    codes = torch.empty(x.shape, dtype=inputs.fp8_dtype, device=x.device)
    scale = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    width = x.shape[-1]
    # The op reads sizes 0 and 1 as rows and width, so that a 3-D input is passed as its rows, as SGLang does.
    extension.op(LIBRARY, "sgl_per_token_quant_fp8")(x.view(-1, width), codes.view(-1, width), scale.view(-1, 1))
    return QuantOutputs(codes, scale)


def _scaled_mm(inputs: GemmInputs, buffers: Outputs) -> GemmOutputs:
    # The transposed view of (N, K) is the column-major (K, N) that the op wants.
    b = inputs.b.t()
    op = extension.op(LIBRARY, "fp8_scaled_mm")
    return GemmOutputs(op(inputs.a, b, inputs.a_scale, inputs.b_scale, inputs.out_dtype, inputs.bias))


def _quant_unsupported(case: Case) -> str | None:
    if case.m == 0:
        # Measured on an H200 (0.4.5): the call returns, and the next launch of anything raises "invalid argument".
        return "sgl_per_token_quant_fp8 returns on no rows (m = 0) and leaves a CUDA error behind"
    if case.n % 4:
        return f"sgl_per_token_quant_fp8 wants N in multiples of 4, not N={case.n}"
    if "strided" in case.layout:
        return "sgl_per_token_quant_fp8 takes contiguous input only"
    return _wrong_format("sgl_per_token_quant_fp8", case)


def _gemm_unsupported(case: Case) -> str | None:
    # Its checks are in bytes: rows of a and b, and rows of the 2-byte output, hold a multiple of 16 bytes.
    if case.k % 16 or case.n % 8:
        return f"fp8_scaled_mm wants K in multiples of 16 and N in multiples of 8, not K={case.k} N={case.n}"
    if "strided" in case.layout:
        # On an H200 (0.4.5) one of 64 rows was right, with errors as large as the values, and nothing was raised.
        return "fp8_scaled_mm reads rows of a and b as packed and does not check it, so it offers no row stride"
    if case.m == 0:
        return "fp8_scaled_mm raises Error Internal on no rows (m = 0)"
    return _wrong_format("fp8_scaled_mm", case)


def _wrong_format(op: str, case: Case) -> str | None:
    return None if case.fp8 == "e4m3fn" else f"{op} takes e4m3fn, not {case.fp8}"


def kernels() -> list[Kernel]:
    """SGLang's two ops. On sm_90 both contracts are known; elsewhere the quantizer's is identified."""
    hopper = arch.nvidia_architecture() == "sm_90"
    quantizer, gemm = "sgl_per_token_quant_fp8", "fp8_scaled_mm"
    return [
        extension.kernel(
            LIBRARY,
            quantizer,
            op="per_token_quant",
            contract="unfused" if hopper else None,
            call=_per_token,
            unavailable=functools.partial(_unavailable, quantizer),
            unsupported=_quant_unsupported,
            notes="two kernels: a block per row below 16 rows per streaming multiprocessor, a warp per row above",
        ),
        extension.kernel(
            LIBRARY,
            gemm,
            op="ptpc_gemm",
            contract=arch.fast_gemm_contract(),
            call=_scaled_mm,
            unavailable=functools.partial(_unavailable, gemm),
            unsupported=_gemm_unsupported,
            notes=arch.FAST_GEMM,
        ),
    ]
