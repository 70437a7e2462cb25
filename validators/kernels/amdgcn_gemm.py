"""A Triton FP8 GEMM of this project as machine code of gfx942 and gfx950: ``tl.dot`` on e4m3, per-token and per-channel
scales after the sum.

On gfx942 the declared accumulator is the published model of its unit, so an output has one admissible value; Triton 3.8
feeds k in its logical order. On gfx950 nothing is published: the contract is ``unknown``, and the verdict is given
under both readings of the interpreter.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from validators import arch
from validators.cases.case import Case
from validators.cases.tensors import GemmInputs, GemmOutputs
from validators.kernels.amdgcn import (
    Compiled,
    Seen,
    as_value,
    compile_triton,
    interpreted_only,
    needs_a_target,
    on_target,
    run_grid,
    signature_of,
)
from validators.kernels.kernel import Kernel

_ROWS, _COLUMNS, _INNER, _WARPS = 16, 64, 128, 4
_CONTRACTS = {"gfx942": "cdna3-mfma", "gfx950": "unknown"}

# Triton resolves names in a kernel through the module's globals, so the lazy import has to land here.
tl: Any = None


@functools.lru_cache(maxsize=1)
def kernel_function() -> Any:
    """The ``@triton.jit`` function; Triton is imported when it is first asked for."""
    global tl
    import triton
    import triton.language

    tl = triton.language

    @triton.jit
    def ptpc_gemm(  # type: ignore[no-untyped-def]
        a_ptr,
        b_ptr,
        a_scale_ptr,
        b_scale_ptr,
        bias_ptr,
        out_ptr,
        a_stride,
        b_stride,
        m,
        n,
        k,
        HAS_BIAS: tl.constexpr,
        ROWS: tl.constexpr,
        COLUMNS: tl.constexpr,
        INNER: tl.constexpr,
    ):
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        inner = tl.arange(0, INNER)
        total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for start in range(0, k, INNER):
            place = start + inner
            a = tl.load(
                a_ptr + row[:, None] * a_stride + place[None, :],
                mask=(row[:, None] < m) & (place[None, :] < k),
                other=0.0,
            )
            b = tl.load(
                b_ptr + column[None, :] * b_stride + place[:, None],
                mask=(column[None, :] < n) & (place[:, None] < k),
                other=0.0,
            )
            total = tl.dot(a, b, total)
        total = total * tl.load(a_scale_ptr + row, mask=row < m, other=0.0)[:, None]
        total = total * tl.load(b_scale_ptr + column, mask=column < n, other=0.0)[None, :]
        if HAS_BIAS:
            total = total + tl.load(bias_ptr + column, mask=column < n, other=0.0).to(tl.float32)[None, :]
        inside = (row[:, None] < m) & (column[None, :] < n)
        tl.store(out_ptr + row[:, None] * n + column[None, :], total.to(out_ptr.dtype.element_ty), mask=inside)

    return ptpc_gemm


@functools.lru_cache(maxsize=256)
def _compiled(target: str, signature: tuple[Any, ...]) -> Compiled:
    return compile_triton(kernel_function(), target, signature, _WARPS)


def _ptpc_gemm(target: str, seen: Seen, inputs: GemmInputs, buffers: GemmOutputs) -> GemmOutputs:
    m, n, k = inputs.shape
    if m == 0:
        return buffers
    arguments: dict[str, object] = {
        "a_ptr": inputs.a,
        "b_ptr": inputs.b,
        "a_scale_ptr": inputs.a_scale,
        "b_scale_ptr": inputs.b_scale,
        "bias_ptr": inputs.bias,
        "out_ptr": buffers.out,
        "a_stride": inputs.a.stride(0),
        "b_stride": inputs.b.stride(0),
        "m": m,
        "n": n,
        "k": k,
    }
    constants: Mapping[str, object] = {
        "HAS_BIAS": inputs.bias is not None,
        "ROWS": _ROWS,
        "COLUMNS": _COLUMNS,
        "INNER": _INNER,
    }
    signature = signature_of(arguments, constants)
    given = [as_value(name, arguments[name], name == "out_ptr") for name, kind, *_ in signature if kind != "constexpr"]
    run_grid(_compiled(target, signature), given, (-(-m // _ROWS), -(-n // _COLUMNS), 1), seen)
    return buffers


def _unsupported(case: Case) -> str | None:
    if case.m * case.n * case.k > 2**31:
        return "an interpreted GEMM of more than 2^31 products takes minutes"
    return None


def _for_device(device: str) -> dict[str, Any]:
    return {**on_target(device, _unsupported, _ptpc_gemm), "contract": _CONTRACTS[arch.architecture(device)]}


def kernels() -> list[Kernel]:
    """This project's Triton GEMM, compiled for gfx942 or gfx950."""
    return [
        Kernel(
            name="amdgcn/triton/ptpc_gemm",
            op="ptpc_gemm",
            contract="unknown",
            call=needs_a_target,
            in_place=True,
            emulated=True,
            unavailable=interpreted_only,
            unsupported=_unsupported,
            versions=functools.partial(arch.versions, "triton"),
            options={"num_warps": _WARPS, "tile": f"{_ROWS}x{_COLUMNS}x{_INNER}"},
            notes="machine code, interpreted on a CPU; no hardware has run it",
            for_device=_for_device,
        )
    ]
