"""aiter's HIP and CK kernels: the fused kernel that the suite exists for, the path before it, and PTPC GEMMs.

Call forms are those of ``aiter/ops/rmsnorm.py``, ``quant.py``, ``gemm_op_a8w8.py`` and ``shuffle.py`` (2026-08).
aiter is imported on first use only. On the package index the name ``aiter`` is an unrelated asyncio library
(AMD's distribution is ``amd-aiter``), and AMD's own raises RuntimeError where ROCm is missing, so every way
of not being there has its own sentence.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from validators import arch, toolchain
from validators.cases import tensors
from validators.cases.case import Case
from validators.kernels.kernel import Kernel, KernelError
from validators.words import native_fp8

# add_rmsnorm_quant_kernel has no instance for wider rows; its loads and stores move pairs of elements.
_WIDEST = 8192
_DEFAULT_ARCHITECTURE = "gfx950"


def aiter_module() -> Any:
    """The imported aiter; raises KernelError with the sentence of ``missing``."""
    reason = missing("__name__")
    if reason is not None:
        raise KernelError(reason)
    return sys.modules["aiter"]


def missing(function: str) -> str | None:
    """One sentence why ``aiter.function`` cannot be called here, or None. Imports aiter if it is installed."""
    module = sys.modules.get("aiter")
    if module is None:
        try:
            spec = importlib.util.find_spec("aiter")
        except (ImportError, ValueError):
            spec = None
        if spec is None:
            return "aiter is not installed (AMD's distribution is amd-aiter; ROCm images carry their own build)"
        reason = _import_failure(str(spec.origin))
        if reason is not None:
            return reason
        module = sys.modules["aiter"]
    if hasattr(module, function):
        return None
    where = getattr(module, "__file__", None) or "an unknown place"
    # The asyncio library's whole purpose is these names; AMD's package has none of them.
    if not hasattr(module, "dtypes") and not hasattr(module, "ops"):
        return f"the aiter at {where} is not AMD's but another library of that name (asyncio); it has no {function}"
    version = arch.distribution_version("amd-aiter", "aiter") or "of unknown version"
    # Set, they make aiter skip the imports of everything that is not Triton.
    left_out = [
        name for name in ("AITER_TRITON_ONLY", "AITER_AOT_IMPORT") if os.environ.get(name, "0") not in ("", "0")
    ]
    why = f"; {left_out[0]} is set, which leaves aiter's HIP functions out" if left_out else ""
    return f"this aiter ({version}, at {where}) has no {function}{why}"


@functools.lru_cache(maxsize=8)
def _import_failure(origin: str) -> str | None:
    """Imports aiter; a failed import is slow and never heals in a process, so it is remembered by its place."""
    try:
        importlib.import_module("aiter")
    except Exception as error:
        # The library's own code runs at import, and may raise anything.
        message = str(error).strip().split("\n")[0]
        return f"importing the aiter at {origin} raised {type(error).__name__}: {message}"
    return None


def _is_fake() -> bool:
    return bool(getattr(sys.modules.get("aiter"), "__fake__", False))


def _unavailable(function: str, device: str) -> str | None:
    if not _is_fake() and device.partition(":")[0] == "cpu":
        return "needs an AMD GPU; the device is cpu"
    return missing(function) or (None if _is_fake() else arch.no_amd_gpu(device))


def _versions() -> Mapping[str, str]:
    found = dict(arch.versions("amd-aiter", "triton"))
    module = sys.modules.get("aiter")
    version = getattr(module, "__version__", None)
    if "amd-aiter" not in found and version is not None:
        found["aiter"] = str(version)
    if commit := toolchain.commit_of("amd-aiter", _folder(module)):
        found["aiter commit"] = commit
    return found


def _folder(module: Any) -> str:
    file = getattr(module, "__file__", None)
    return str(Path(file).resolve().parent) if file else ""


def _gemm_chosen(table: str, case: Case) -> Mapping[str, str]:
    """Which library aiter gives the case to: a verdict that does not say so does not name the kernel."""
    dtype = torch.float8_e4m3fnuz if case.fp8 == "e4m3fnuz" else torch.float8_e4m3fn
    return toolchain.aiter_gemm(table, case.m, case.n, case.k, dtype)


def _architecture() -> str:
    return arch.rocm_architecture() or _DEFAULT_ARCHITECTURE


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """[..., N] as [M, N]: a view, because aiter takes two dimensions and writes outputs in place."""
    return tensor.view(-1, tensor.shape[-1])


def _gemma(inputs: tensors.NormQuantInputs) -> dict[str, bool]:
    # Older builds know no gemma_norm, so it is named only where it is needed.
    return {"gemma_norm": True} if inputs.gemma else {}


def _add_rmsnorm_quant(inputs: tensors.NormQuantInputs, buffers: tensors.NormQuantOutputs) -> tensors.NormQuantOutputs:
    aiter = aiter_module()
    codes, scale, x = _flat(buffers.codes), _flat(buffers.scale), _flat(inputs.x)
    if inputs.residual is None:
        aiter.rmsnorm_quant(codes, x, scale, inputs.weight, inputs.eps, group_size=0, **_gemma(inputs))
        return tensors.NormQuantOutputs(buffers.codes, buffers.scale, None)
    assert buffers.residual_out is not None
    aiter.add_rmsnorm_quant(
        codes,
        x,
        _flat(inputs.residual),
        _flat(buffers.residual_out),
        scale,
        inputs.weight,
        inputs.eps,
        group_size=0,
        **_gemma(inputs),
    )
    return buffers


def _unfused(inputs: tensors.NormQuantInputs, buffers: tensors.Outputs) -> tensors.NormQuantOutputs:
    aiter = aiter_module()
    x = _flat(inputs.x)
    if inputs.residual is None:
        normed, residual_out = aiter.rmsnorm2d_fwd(x, inputs.weight, inputs.eps), None
    else:
        normed = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        residual_out = torch.empty(inputs.residual.shape, dtype=x.dtype, device=x.device)
        residual = _flat(inputs.residual)
        aiter.add_rmsnorm(normed, x, residual, _flat(residual_out), inputs.weight, inputs.eps, **_gemma(inputs))
    codes, scale = aiter.per_token_quant_hip(normed, quant_dtype=inputs.fp8_dtype)
    shape = inputs.x.shape
    return tensors.NormQuantOutputs(codes.view(shape), scale.view(*shape[:-1], 1), residual_out)


def _per_token_quant_hip(inputs: tensors.QuantInputs, buffers: tensors.Outputs) -> tensors.QuantOutputs:
    codes, scale = aiter_module().per_token_quant_hip(inputs.x, quant_dtype=inputs.fp8_dtype)
    return tensors.QuantOutputs(codes, scale)


def shuffle_16x16(weight: torch.Tensor) -> torch.Tensor:
    """(N, K) weight of 1-byte elements in the tile order of ``gemm_a8w8_bpreshuffle``, same shape and dtype.

    Tiles of 16 rows by 32 columns, each stored as two halves of 16 columns, row by row. N % 16 == 0 and
    K % 32 == 0; raises KernelError otherwise. Used where aiter has no ``shuffle_weight``.
    """
    n, k = weight.shape
    if n % 16 or k % 32 or weight.element_size() != 1:
        raise KernelError(f"the 16x16 shuffle takes 1-byte (N % 16, K % 32) weights, not {weight.dtype} N={n} K={k}")
    tiles = weight.view(torch.uint8).view(n // 16, 16, k // 32, 2, 16)
    return tiles.permute(0, 2, 3, 1, 4).contiguous().view(n, k).view(weight.dtype)


def _shuffle(weight: torch.Tensor) -> torch.Tensor:
    try:
        shuffle_weight = importlib.import_module("aiter.ops.shuffle").shuffle_weight
    except (ImportError, AttributeError):
        return shuffle_16x16(weight)
    shuffled: torch.Tensor = shuffle_weight(weight, layout=(16, 16))
    return shuffled


def _bpreshuffle(inputs: tensors.GemmInputs, buffers: tensors.Outputs) -> tensors.GemmOutputs:
    out = aiter_module().gemm_a8w8_bpreshuffle(
        inputs.a, _shuffle(inputs.b), inputs.a_scale, inputs.b_scale, None, inputs.out_dtype
    )
    # The kernel takes no bias; SGLang adds it to the stored result, one rounding later than an epilogue would.
    return tensors.GemmOutputs(out if inputs.bias is None else out + inputs.bias)


def _ck(inputs: tensors.GemmInputs, buffers: tensors.Outputs) -> tensors.GemmOutputs:
    out = aiter_module().gemm_a8w8_CK(inputs.a, inputs.b, inputs.a_scale, inputs.b_scale, inputs.bias, inputs.out_dtype)
    return tensors.GemmOutputs(out)


def _wrong_format(case: Case) -> str | None:
    name = _architecture()
    wanted = native_fp8(name)
    return None if case.fp8 == wanted else f"aiter's FP8 type on {name} is {wanted}, not {case.fp8}"


def _norm_unsupported(case: Case) -> str | None:
    if case.n > _WIDEST:
        return f"aiter's kernel takes rows of at most {_WIDEST} elements, not {case.n}"
    if case.n % 2:
        return f"aiter's kernel moves pairs of elements and takes even widths only, not {case.n}"
    if case.gamma != "T":
        return "aiter's kernel reads the weight in the type of x and takes no fp32 weight"
    if case.layout == "strided" and case.n % 8:
        return "aiter's kernel loads 16 bytes; a strided case with n % 8 != 0 is not offered"
    if case.layout == "3dstrided":
        return "aiter's kernel takes one row stride, and rows of a slice of three dimensions have none"
    return _wrong_format(case)


def _unfused_unsupported(case: Case) -> str | None:
    if case.gemma and not case.residual:
        return "aiter.rmsnorm2d_fwd, the form without a residual, has no 1 + weight"
    return _norm_unsupported(case)


def _quant_unsupported(case: Case) -> str | None:
    if "strided" in case.layout:
        return "per_token_quant_hip takes contiguous input only"
    return _wrong_format(case)


def _bpreshuffle_unsupported(case: Case) -> str | None:
    if case.n % 16 or case.k % 64 or case.k < 192:
        return f"gemm_a8w8_bpreshuffle wants N % 16 == 0, K % 64 == 0 and K >= 192, not N={case.n} K={case.k}"
    return _wrong_format(case)


def _ck_unsupported(case: Case) -> str | None:
    if case.k % 16 or case.n % 8:
        return f"CK's instances load 16 bytes of K and store 8 columns; not offered: N={case.n} K={case.k}"
    return _wrong_format(case)


def _kernel(op: str, function: str, contract: str | None, **fields: Any) -> Kernel:
    common = {"name": f"aiter_hip/{function}", "versions": _versions, "fake": _is_fake(), "compiles": True}
    unavailable = functools.partial(_unavailable, function)
    return Kernel(op=op, contract=contract, unavailable=unavailable, **{**common, **fields})


def kernels() -> list[Kernel]:
    """aiter's kernels, with the contract of the AMD GPU that torch sees (of gfx950 where there is none).

    gfx942 stores bf16 by truncation (aiter's default build there). For the unfused path no preset has
    that store, so on gfx942 its contract is left to identification.
    """
    name = _architecture()
    fused = "aiter-hip-gfx942" if name == "gfx942" else "aiter-hip-gfx950"
    return [
        _kernel(
            "add_rmsnorm_quant",
            "add_rmsnorm_quant",
            fused,
            call=_add_rmsnorm_quant,
            in_place=True,
            unsupported=_norm_unsupported,
            notes="rmsnorm_quant where there is no residual",
            options={"group_size": 0},
        ),
        _kernel(
            "add_rmsnorm_quant",
            "add_rmsnorm",
            None if name == "gfx942" else "unfused",
            name="aiter_hip/unfused",
            call=_unfused,
            unsupported=_unfused_unsupported,
            notes="add_rmsnorm, then per_token_quant_hip: the path before SGLang #21403",
        ),
        _kernel(
            "per_token_quant",
            "per_token_quant_hip",
            "unfused",
            call=_per_token_quant_hip,
            unsupported=_quant_unsupported,
        ),
        _kernel(
            "ptpc_gemm",
            "gemm_a8w8_bpreshuffle",
            "unknown",
            call=_bpreshuffle,
            unsupported=_bpreshuffle_unsupported,
            chosen=functools.partial(_gemm_chosen, "AITER_CONFIG_GEMM_A8W8_BPRESHUFFLE_FILE"),
            notes="weight shuffled 16x16; bias added to the stored result, as SGLang does",
        ),
        _kernel(
            "ptpc_gemm",
            "gemm_a8w8_CK",
            "unknown",
            call=_ck,
            unsupported=_ck_unsupported,
            chosen=functools.partial(_gemm_chosen, "AITER_CONFIG_GEMM_A8W8_FILE"),
            notes="plain weight layout; splitK as aiter's tuned table says",
        ),
    ]
