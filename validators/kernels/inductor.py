"""``torch.compile`` of the fused forms, the contract ``torch-compile``.

    z = (x.float() + r.float()) rounded to T, stored as residual_out
    y = z.float() * rsqrt(mean(z^2) + eps) * weight.float()          no rounding to T
    s = max(amax(|y|), 1e-12) / Q;  codes = fp8(clamp(y * (1/s), -Q, Q))

What the source says is not what the default options compile: Inductor keeps a stored value in fp32 where it fuses
across the store. Measured on an H100 (torch 2.11.0, N = 520): the whole norm uses the unrounded sum, and about
2 % of the codes leave the contract. On a CPU (torch 2.13.0) with row-strided x: only the mean of squares does, and
the scale is off by 1200 to 13000 units of 2^-24. The contract is kept, on both, with
``emulate_precision_casts``, under which ``inductor/add_rmsnorm_quant`` compiles; ``default_options`` is the other one.

One function is compiled for each combination of types, options and scalars, because eps and Q are constants in
the model code that this represents. On a CPU both sizes are dynamic, so that one compilation (about 3 s,
25 s for the first in a process) serves every shape. On a GPU only the row count is: there the width
decides whether Inductor picks a persistent reduction, and models compile with a fixed width.

Inductor keeps what it has compiled on disk, and the key of that cache holds its options but not
``ATEN_CPU_CAPABILITY``. Measured with torch 2.13 on a CPU with AVX-512: after one run with the variable at avx512
another one with avx2 loads the same kernel and computes 83 to 90 % of the codes wrong; the other way round the heap is
corrupted. So on a CPU the vector width that the variable leads to is given as an option.
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import types
from collections.abc import Callable
from typing import Any, cast

import torch

from validators import arch
from validators.cases.case import Case
from validators.cases.tensors import (
    NormQuantInputs,
    NormQuantOutputs,
    Outputs,
    QuantInputs,
    QuantOutputs,
)
from validators.kernels.kernel import Kernel

_AMAX_FLOOR = 1e-12
_STRICT_CASTS = "emulate_precision_casts"
_numbers = itertools.count()


def _quantize(y: Any, fp8_dtype: Any, qmax: float) -> tuple[Any, Any]:
    """y: fp32 [..., N] -> (codes [..., N], scale [..., 1]). amax and clamp propagate NaN."""
    scale = y.abs().amax(dim=-1, keepdim=True).clamp(min=_AMAX_FLOOR) / qmax
    inverse = 1.0 / scale
    return (y * inverse).clamp(-qmax, qmax).to(fp8_dtype), scale


def _fused(x: Any, residual: Any, weight: Any, eps: float, gemma: bool, fp8_dtype: Any, qmax: float) -> Any:

    stored = x if residual is None else (x.float() + residual.float()).to(x.dtype)
    z = stored.float()
    rms = torch.rsqrt(z.square().mean(dim=-1, keepdim=True) + eps)
    scaled = weight.float() + 1.0 if gemma else weight.float()
    codes, scale = _quantize(z * rms * scaled, fp8_dtype, qmax)
    return codes, scale, None if residual is None else stored


def _per_token(x: Any, fp8_dtype: Any, qmax: float) -> Any:
    return _quantize(x.float(), fp8_dtype, qmax)


_RECOMPILATIONS: dict[str, Any] = {"recompile_limit": 1024, "accumulated_recompile_limit": 1 << 16}


@functools.cache
def _compiled(
    function: Callable[..., Any], key: tuple[object, ...], dynamic: bool | None, strict_casts: bool
) -> Callable[..., Any]:
    """``function`` compiled for one combination ``key`` of types and constants.

    Every key gets its own code object under its own name: dynamo counts recompilations by code object and
    remembers dynamic sizes by name, and would otherwise mix the keys. fullgraph=True because a
    fall-back to eager would be judged as if it were compiled.
    """
    original = cast(types.FunctionType, function)
    code = original.__code__.replace(co_name=f"{original.__name__}_{next(_numbers)}")
    own = types.FunctionType(code, original.__globals__, code.co_name)
    options: dict[str, Any] = {_STRICT_CASTS: True} if strict_casts else {}
    if key[0] == "cpu":
        options["cpp.simdlen"] = _vector_bits()
    return torch.compile(own, dynamic=dynamic, fullgraph=True, options=options or None)


def _vector_bits() -> int:
    """Width of the vectors that Inductor would choose on this CPU under ``ATEN_CPU_CAPABILITY``; 0 for none."""
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    return int(pick_vec_isa().bit_width())


def _run(
    function: Callable[..., Any],
    x: Any,
    args: tuple[Any, ...],
    constants: tuple[Any, ...],
    strict_casts: bool = False,
) -> Any:
    """Compiles if needed and calls ``function(x, *args, *constants)``; ``args`` are tensors or None."""
    import torch._dynamo as dynamo

    dynamic: bool | None = True
    shape: tuple[object, ...] = (x.dim(),)
    if x.is_cuda:
        dynamic = None
        shape = (x.dim(), x.shape[-1])
        # "maybe": a single row is specialized, as every size of 1 is
        for tensor in (x, *(a for a in args if a is not None and a.dim() == x.dim())):
            dynamo.maybe_mark_dynamic(tensor, 0)
    signature = tuple(None if a is None else (a.dtype, a.is_contiguous()) for a in (x, *args))
    key = (x.device.type, shape, signature, constants)
    compiled = _compiled(function, key, dynamic, strict_casts)
    # Scalars stay constants of the graph; dynamic shapes would turn them into fp64 inputs otherwise. A suite meets more
    # shapes than the 8 recompilations that dynamo allows by default: one row, and strides that are equal by chance,
    # are compiled for themselves.
    with torch.no_grad(), dynamo.config.patch(specialize_float=True, **_RECOMPILATIONS):
        return compiled(x, *args, *constants)


def _add_rmsnorm_quant(inputs: NormQuantInputs, buffers: Outputs, strict_casts: bool = False) -> NormQuantOutputs:
    qmax = torch.finfo(inputs.fp8_dtype).max
    tensors = (inputs.residual, inputs.weight)
    constants = (inputs.eps, inputs.gemma, inputs.fp8_dtype, qmax)
    return NormQuantOutputs(*_run(_fused, inputs.x, tensors, constants, strict_casts))


def _per_token_quant(inputs: QuantInputs, buffers: Outputs) -> QuantOutputs:
    qmax = torch.finfo(inputs.fp8_dtype).max
    return QuantOutputs(*_run(_per_token, inputs.x, (), (inputs.fp8_dtype, qmax)))


def _unavailable(device: str) -> str | None:
    if device.partition(":")[0] == "cpu":
        compilers = [os.environ.get("CXX", ""), "g++", "clang++"]
        if not any(name and shutil.which(name) for name in compilers):
            return "torch.compile on a CPU needs a C++ compiler; found none of $CXX, g++, clang++"
        return None
    return arch.no_gpu(device) or arch.no_triton(interpreted=False)


def _unsupported_norm(case: Case) -> str | None:
    stored_sum = case.residual and (case.m == 1 or case.layout.endswith("strided"))
    if stored_sum and torch.__version__.startswith("2.9.") and not torch.cuda.is_available():
        # Measured with 2.9.1: where a row's bits differ, they follow the unrounded sum (10 of 22 cases of one row, and
        # padded rows). All 151 other cases of depth default hold; 2.11, 2.13 and 2.14 need no limit.
        rows = "a single row" if case.m == 1 else "padded rows"
        return f"Inductor of torch 2.9 skips the rounding of a stored sum in {rows} on a CPU, strict casts or not"
    return _unsupported(case)


def _unsupported(case: Case) -> str | None:
    if case.fp8 == "e4m3fnuz" and torch.cuda.is_available() and not arch.is_rocm():
        return "Inductor's GPU back end, Triton, has no e4m3fnuz on NVIDIA"
    return None


def _common(unsupported: Callable[[Case], str | None]) -> dict[str, Any]:
    return {
        "contract": "torch-compile",
        "unavailable": _unavailable,
        "unsupported": unsupported,
        "versions": functools.partial(arch.versions, "triton"),
    }


def default_options() -> Kernel:
    """The fused form under Inductor's default options: a real defect against the source that was compiled.

    Not among ``kernels()``, because it is known to fail: A test shows that it is caught.
    """
    return Kernel(
        name="inductor/default_options",
        op="add_rmsnorm_quant",
        call=_add_rmsnorm_quant,
        notes="default options: Inductor may skip the rounding of a stored sum that it uses again",
        **_common(_unsupported_norm),
    )


def kernels() -> list[Kernel]:
    """The fused form, compiled with strict casts, and the quantizer; on a CPU or a GPU."""
    return [
        Kernel(
            name="inductor/add_rmsnorm_quant",
            op="add_rmsnorm_quant",
            call=functools.partial(_add_rmsnorm_quant, strict_casts=True),
            options={_STRICT_CASTS: True},
            **_common(_unsupported_norm),
        ),
        Kernel(name="inductor/per_token_quant", op="per_token_quant", call=_per_token_quant, **_common(_unsupported)),
    ]
