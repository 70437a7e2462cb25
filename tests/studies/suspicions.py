"""Suspected live defects of aiter and SGLang on ROCm: the case that settles each, and an emulated kernel that has it.

None of them has been confirmed on hardware (``docs/suspicions.md`` says what to run). What can be shown without it is
shown here: were the defect there, the case would give the verdict that the document promises, and a kernel without it
would not. The functions at the end call the real libraries; ``--kernel tests/studies/suspicions.py:NAME`` runs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from reference.contract import NORM_QUANT_CONTRACTS
from tests import zoo
from validators.cases.tensors import Inputs, Outputs
from validators.kernels import emulated
from validators.kernels.kernel import Kernel
from validators.records.record import Status

WRAP_ELEMENTS = 1 << 15
"""Where L5's emulated row offset wraps; the suspected one wraps at 2**32 elements."""
CACHED_COLUMNS = 8192
"""Columns that L9's emulated kernel keeps in registers: 4 vectors of 8 for each of 256 threads."""
VECTOR = 8

ADD = emulated.STAGES["add_rmsnorm_quant"]
QUANT = emulated.STAGES["per_token_quant"]


@dataclass(frozen=True)
class Suspicion:
    """A suspected defect and its proof.

    id: L1 to L10. case: the case that the emulated kernel is run on; hardware_case: the one for the real kernel, where
    that needs another size. contract: held to this one, None for the declared one. kernel: emulated, has the defect.
    innocent: emulated, computes what the real kernel would without it, and passes. status: verdict on ``kernel``.
    evidence: words in its reasons or explanations.
    """

    id: str
    title: str
    case: str
    kernel: Kernel
    innocent: Kernel
    evidence: str
    contract: str | None = None
    status: Status = Status.FAILED
    hardware_case: str = ""


def _kernel(
    name: str, op: str, declares: str, executes: str | None = None, stages: Mapping[str, emulated.Stage] | None = None
) -> Kernel:
    contract = NORM_QUANT_CONTRACTS[executes or declares]

    def call(inputs: Inputs, buffers: Outputs) -> Outputs:
        return emulated.execute(inputs, buffers, contract, stages=stages)

    return Kernel(f"suspicion/{name}", op, declares, call, in_place=True, emulated=True)


def _residual_of_next_row(w: emulated.Work) -> None:
    """The store of an odd row rounds its end up to 4 bytes: one element of the next row, after that row's own store."""
    ADD["write"](w)
    if w.out_residual is not None and w.out_residual.shape[-1] % 2:
        w.out_residual[1:, 0] = 0


def _amax_of_wrapped_rows(w: emulated.Work) -> None:
    rows = torch.arange(len(w.x), device=w.x.device)
    w.y = w.y[rows % max(1, WRAP_ELEMENTS // w.x.shape[-1])]
    QUANT["amax"](w)


def _codes_wrap(w: emulated.Work) -> None:
    """Rows beyond the wrap are read from and written to the wrapped place; the scale's index is the row itself."""
    room = max(1, WRAP_ELEMENTS // w.x.shape[-1])
    w.out_codes[:room] = w.codes[:room]
    w.out_scale.copy_(w.scale)


def _gamma_plus_one(w: emulated.Work) -> None:
    ADD["gamma"](w)
    w.gamma = w.gamma + 1.0


def _group_of_power_of_two(w: emulated.Work) -> None:
    """group_size = n becomes the largest power of two that fits; the first group's scale is returned."""
    n = w.y.shape[-1]
    group = 1 << (n.bit_length() - 1)
    padded = torch.nn.functional.pad(w.y, (0, -n % group)).view(len(w.y), -1, group)
    scales = padded.abs().amax(-1).clamp_min(w.contract.amax_floor) * (1.0 / torch.tensor(w.qmax))
    w.scaled = (padded * (1.0 / scales[..., None])).view(len(w.y), -1)[:, :n]
    w.scale = scales[:, :1]


def _rounded_past_the_cache(w: emulated.Work) -> None:
    ADD["norm_input"](w)
    w.z = w.z.clone()
    w.z[:, CACHED_COLUMNS:] = w.stored[:, CACHED_COLUMNS:].float()


def _whole(w: emulated.Work) -> int:
    return w.x.shape[-1] // VECTOR * VECTOR


def _sum_of_whole_vectors(w: emulated.Work) -> None:
    z = w.z
    w.z = torch.cat([z[:, : _whole(w)], torch.zeros_like(z[:, _whole(w) :])], 1)
    ADD["square_sum"](w)
    w.z = z


def _write_whole_vectors(w: emulated.Work) -> None:
    n = _whole(w)
    w.out_codes[:, :n] = w.codes[:, :n]
    w.out_scale.copy_(w.scale)
    if w.out_residual is not None:
        w.out_residual[:, :n] = w.stored[:, :n]


def suspicions() -> list[Suspicion]:
    """L1 to L10, in order; L2 and L3 have two entries each, one for each half of the suspicion."""
    add, quant = "add_rmsnorm_quant", "per_token_quant"
    gfx950, gfx942, unfused = "aiter-hip-gfx950", "aiter-hip-gfx942", "unfused"
    fused_ok, quant_ok = _kernel("fused", add, gfx950), _kernel("quant", quant, gfx950)
    return [
        Suspicion(
            "L1",
            "residual_out is truncated on MI300X",
            f"{add}-m64-n1024-bf16-e4m3fnuz-residual_ties-s0",
            _kernel("L1-truncated", add, gfx950, gfx942),
            fused_ok,
            "residual_out",
        ),
        Suspicion(
            "L2",
            "the store of codes runs past a row whose length is no multiple of 4",
            f"{add}-m9-n1002-bf16-e4m3fnuz-shape_walk-s0",
            zoo.find_defect("Q21").kernel,
            fused_ok,
            "guards",
        ),
        Suspicion(
            "L2",
            "the store of residual_out runs past an odd row",
            f"{add}-m9-n769-bf16-e4m3fnuz-shape_walk-s0",
            _kernel("L2-residual", add, gfx950, stages={"write": _residual_of_next_row}),
            fused_ok,
            "column 0",
        ),
        Suspicion(
            "L3",
            "the unfused quantizer stores scale 0 and codes of -MAX for a row of zeros",
            f"{quant}-m64-n1024-bf16-e4m3fnuz-zero_rows-s0",
            _kernel("L3-unfused", quant, unfused),
            quant_ok,
            "codes",
            contract=gfx950,
        ),
        Suspicion(
            "L3",
            "the fused kernel does not give the floor's scale for a row of zeros",
            f"{add}-m64-n1024-bf16-e4m3fnuz-zero_rows-s0",
            zoo.find_defect("Q09").kernel,
            fused_ok,
            "scale",
        ),
        Suspicion(
            "L4",
            "a row with NaN comes out with a finite scale and finite codes",
            f"{add}-m64-n1024-bf16-e4m3fnuz-nonfinite-nores-s0",
            _kernel("L4-laundered", add, gfx950),
            _kernel("L4-visible", add, "torch-compile"),
            "scale",
            contract="torch-compile",
        ),
        Suspicion(
            "L5",
            "the row offset of the quantizer wraps at 2^32 elements",
            f"{quant}-m64-n1024-bf16-e4m3fnuz-crest_ladder-s0",
            _kernel("L5-wraps", quant, gfx950, stages={"amax": _amax_of_wrapped_rows, "write": _codes_wrap}),
            quant_ok,
            "poison",
            hardware_case=f"{quant}-m524296-n8192-bf16-e4m3fnuz-crest_ladder-s0",
        ),
        Suspicion(
            "L6",
            "rmsnorm2d_fwd_with_add takes its mode, passed by position, for gemma_norm",
            f"{add}-m64-n1024-bf16-e4m3fnuz-gaussian-s0",
            _kernel("L6-gemma", add, unfused, stages={"gamma": _gamma_plus_one}),
            _kernel("unfused", add, unfused),
            "gamma-plus-one",
        ),
        Suspicion(
            "L7",
            "SGLang's tuple branch gives an fp16 model the precision of bf16",
            # Small integers: the one case of which the sets are sharp under the contract of an unknown matrix unit.
            "ptpc_gemm-m64-n128-k512-fp16-e4m3fnuz-small_integers-s0",
            zoo.find_defect("G13").kernel,
            zoo.clean_kernel("ptpc_gemm"),
            "fp16-through-bf16",
            contract="unknown",
        ),
        Suspicion(
            "L8",
            "per-token quantization as one group of n columns, n no power of two",
            f"{quant}-m64-n5120-bf16-e4m3fn-spike_walk-s0",
            _kernel("L8-groups", quant, gfx950, stages={"divide": _group_of_power_of_two}),
            quant_ok,
            "scale",
        ),
        Suspicion(
            "L9",
            "rows wider than the register cache are normalised from two different residuals",
            f"{add}-m16-n16384-bf16-e4m3fnuz-gaussian-s0",
            _kernel("L9-mixed", add, gfx950, stages={"norm_input": _rounded_past_the_cache}),
            fused_ok,
            "columns",
        ),
        Suspicion(
            "L10",
            "the columns past the last whole vector belong to nobody",
            f"{add}-m16-n8196-bf16-e4m3fnuz-gaussian-s0",
            _kernel(
                "L10-tail",
                add,
                gfx950,
                stages={"square_sum": _sum_of_whole_vectors, "write": _write_whole_vectors},
            ),
            fused_ok,
            "poison",
        ),
    ]


# ---- the real libraries, for shapes and call forms that the suite's own adapters do not offer


def any_width(out, input, residual_in, residual_out, scale, weight, epsilon):  # type: ignore[no-untyped-def]
    """aiter's fused kernel without the adapter's limits: odd rows (L2)."""
    import aiter

    aiter.add_rmsnorm_quant(out, input, residual_in, residual_out, scale, weight, epsilon, group_size=0)


def wide_rows(out, input, residual_in, residual_out, scale, weight, epsilon):  # type: ignore[no-untyped-def]
    """aiter's dispatching form, which takes its fallback for rows wider than 8192 (L9, L10)."""
    import aiter

    aiter.rmsnorm2d_fwd_with_add_dynamicquant(out, input, residual_in, residual_out, scale, weight, epsilon)


def mode_by_position(x, residual, weight, eps, fp8_dtype):  # type: ignore[no-untyped-def]
    """The norm called as before gemma_norm existed: its seventh argument was use_model_sensitive_rmsnorm (L6)."""
    import aiter

    normed, residual_out = torch.empty_like(x), torch.empty_like(x)
    aiter.rmsnorm2d_fwd_with_add(normed, x, residual, residual_out, weight, eps, 1)
    codes, scale = aiter.per_token_quant_hip(normed, quant_dtype=fp8_dtype)
    return codes, scale, residual_out


def sglang_tuple(a, a_scale, b, b_scale, bias, out_dtype):  # type: ignore[no-untyped-def]
    """SGLang's linear layer on codes that are quantized already (L7), cast to the type that the model asks for."""
    from aiter.ops.shuffle import shuffle_weight
    from sglang.srt.layers.quantization.fp8_utils import apply_fp8_ptpc_linear

    out = apply_fp8_ptpc_linear((a, a_scale), shuffle_weight(b, layout=(16, 16)), b_scale, bias=bias)
    return out.to(out_dtype)


for _function, _contract in (
    (any_width, "aiter-hip-gfx950"),
    (wide_rows, "aiter-hip-gfx950"),
    (mode_by_position, "unfused"),
    (sglang_tuple, "unknown"),
):
    vars(_function).update(contract=_contract, devices=("cuda",))
