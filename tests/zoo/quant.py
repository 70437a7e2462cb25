"""Defects of the per-token scale and of the FP8 codes."""

from __future__ import annotations

import torch

from tests.zoo import Defect, first, lanes_lost, norm_case, norm_quant_defect, quant_case
from validators.kernels.emulated import STAGES, Stage, Work
from validators.kernels.emulated_gemm import decode
from validators.kernels.emulated_rounding import round_to

CLEAN = STAGES["per_token_quant"]


def _qmax(value: float) -> Stage:
    def scale(w: Work) -> None:
        w.qmax = value
        CLEAN["scale"](w)

    return scale


def _encode_unclamped(w: Work) -> None:
    w.clamp = None
    CLEAN["encode"](w)


def _store_power_of_two(w: Work) -> None:
    # Any fraction carries into the exponent; a power of two has none and stays.
    up = ((w.scale.view(torch.int32) + 0x7FFFFF) & 0x7F800000).view(torch.float32)
    w.scale = torch.where(w.scale.isfinite(), up, w.scale)


def _store_bf16_scale(w: Work) -> None:
    w.scale = round_to(w.scale, torch.bfloat16).float()


def _floored(w: Work) -> None:
    w.amax = w.amax.clamp_min(w.contract.amax_floor)


def _signed_amax(w: Work) -> None:
    w.amax = w.y.amax(-1, keepdim=True)


def _amax_without_tail(w: Work) -> None:
    w.amax = w.y[:, : w.y.shape[-1] // 8 * 8].abs().amax(-1, keepdim=True)


def _amax_without_half_wave(w: Work) -> None:
    w.amax = lanes_lost(8)(w.y).abs().amax(-1, keepdim=True)


def _amax_before_gamma(w: Work) -> None:
    w.amax = (w.z * w.rms).abs().amax(-1, keepdim=True)


def _tensor_amax(w: Work) -> None:
    w.amax = w.amax.amax().expand_as(w.amax).clone()


def _roll_scales(w: Work) -> None:
    w.scale = w.scale.roll(1, 0)


def _group_scales(w: Work) -> None:
    n = w.y.shape[-1]
    padded = torch.nn.functional.pad(w.y, (0, -n % 128)).view(len(w.y), -1, 128)
    scales = padded.abs().amax(-1).clamp_min(w.contract.amax_floor) / w.qmax
    w.scaled = (padded / scales[..., None]).view(len(w.y), -1)[:, :n]
    w.scale = scales[:, :1]


def _encode_truncated(w: Work) -> None:
    CLEAN["encode"](w)
    # One code less is one step toward zero in sign-magnitude.
    w.codes -= (decode(w.codes, w.fp8).abs() > w.scaled.abs()).to(torch.uint8)


def _encode_ties_away(w: Work) -> None:
    CLEAN["encode"](w)
    above = (w.codes & 0x7F) < (0x7E if w.fp8 == "e4m3fn" else 0x7F)
    here, beyond = decode(w.codes, w.fp8).abs(), decode(w.codes + above, w.fp8).abs()
    w.codes += (above & (w.scaled.abs() == (here + beyond) / 2)).to(torch.uint8)


def _through(dtype: torch.dtype) -> Stage:
    def encode_through(w: Work) -> None:
        w.scaled = round_to(w.scaled, dtype).float()
        CLEAN["encode"](w)

    return encode_through


def _flush_subnormal(w: Work) -> None:
    smallest = 2.0**-6 if w.fp8 == "e4m3fn" else 2.0**-7
    w.scaled = torch.where(w.scaled.abs() < smallest, 0.0, w.scaled)


def _minus_zero(w: Work) -> None:
    if w.fp8 == "e4m3fnuz":
        w.codes = torch.where((w.codes == 0) & torch.signbit(w.scaled), 0x80, w.codes)


def _codes_without_tail(w: Work) -> None:
    w.out_codes[:, : w.codes.shape[-1] // 8 * 8] = w.codes[:, : w.codes.shape[-1] // 8 * 8]
    w.out_scale.copy_(w.scale)
    if w.out_residual is not None:
        w.out_residual.copy_(w.stored)


def _overrun(w: Work) -> None:
    """Bytes of zero past the row, up to a multiple of 4: in the guard, and in rows that were written before."""
    out, tail = w.out_codes, -w.out_codes.shape[-1] % 4
    for row in range(len(out)):
        # Neighbouring rows race: the overrun of every other one lands after its victim's own store.
        if row % 2 == 0 or row == len(out) - 1:
            start = out.storage_offset() + row * out.stride(0) + out.shape[-1]
            room = max(0, min(tail, out.untyped_storage().nbytes() - start))
            out.as_strided((room,), (1,), start).zero_()


def _scale_one_ulp_up(w: Work) -> None:
    w.scale = torch.nextafter(w.scale, torch.full_like(w.scale, float("inf")))


def _stale_last_scale(w: Work) -> None:
    w.scale = torch.cat([w.scale[:-1], w.scale[-2:-1] if len(w.scale) > 1 else w.out_scale[-1:]])


def defects() -> list[Defect]:
    """Q01 to Q21, and two defects of the scale alone."""
    gaussian, norm = quant_case("gaussian"), norm_case("gaussian")
    fnuz_norm = norm_case("gaussian", fp8="e4m3fnuz")
    crest, crest_norm = quant_case("crest_ladder"), norm_case("crest_ladder")
    make, encode_stage, write = norm_quant_defect, CLEAN["encode"], CLEAN["write"]
    return [
        make(
            "Q01",
            "qmax-of-fnuz-on-fn",
            "The largest e4m3fn code is scaled to 240 instead of 448.",
            norm,
            report="sgl-project/sglang#30900",
            scale=_qmax(240.0),
        ),
        make(
            "Q02",
            "qmax-of-fn-on-fnuz",
            "e4m3fnuz values are scaled to 448 and clipped at 240.",
            fnuz_norm,
            report="ROCm/TransformerEngine#485",
            scale=_qmax(448.0),
        ),
        make(
            "Q03",
            "qmax-of-fn-unclamped",
            "e4m3fnuz values are scaled to 448 without a clamp: the peaks become NaN.",
            fnuz_norm,
            report="ROCm/TransformerEngine#249",
            scale=_qmax(448.0),
            encode=_encode_unclamped,
        ),
        make(
            "Q04",
            "scale-stored-as-power-of-two",
            "The stored scale is a power of two, the codes use the true one.",
            norm,
            report="sgl-project/sglang#28418",
            write=first(_store_power_of_two, write),
        ),
        make(
            "Q05",
            "scale-stored-in-bf16",
            "The stored scale is rounded to bf16.",
            gaussian,
            report="NVIDIA/TransformerEngine#2355",
            write=first(_store_bf16_scale, write),
        ),
        make(
            "Q06",
            "amax-of-signed-values",
            "The maximum is taken over signed values.",
            quant_case("spike_walk"),
            gaussian,
            amax=first(_signed_amax, _floored),
        ),
        make(
            "Q07",
            "tail-not-in-amax",
            "The maximum leaves out the last n % 8 columns.",
            norm_case("spike_walk", m=516, n=516),
            report="sgl-project/sglang#12883",
            amax=first(_amax_without_tail, _floored),
        ),
        make(
            "Q08",
            "half-wave-not-in-amax",
            "The maximum leaves out half of the lanes of every wave.",
            norm_case("spike_walk", m=512),
            report="vllm-project/vllm#3262",
            amax=first(_amax_without_half_wave, _floored),
        ),
        make(
            "Q09",
            "no-amax-floor",
            "An all-zero row has scale 0 and whatever 0/0 gives.",
            norm_case("zero_rows"),
            report="ROCm/aiter#2763",
            executes={"amax_floor": 0.0},
        ),
        make(
            "Q10",
            "amax-before-gamma",
            "The maximum is taken before the weight is applied.",
            norm_case("gaussian_gain"),
            amax=first(_amax_before_gamma, _floored),
        ),
        make(
            "Q11",
            "one-scale-for-the-tensor",
            "All rows share the largest row's scale.",
            crest_norm,
            norm,
            report="vllm-project/vllm#54683",
            amax=first(CLEAN["amax"], _tensor_amax),
        ),
        make(
            "Q12",
            "scales-one-row-late",
            "Every row is stored with its neighbour's scale; the codes are right.",
            crest_norm,
            report="pytorch/ao#4900",
            write=first(_roll_scales, write),
        ),
        make(
            "Q13",
            "group-scales",
            "Codes use a scale for each 128 columns; the first group's scale is returned.",
            norm,
            report="sgl-project/sglang#21403",
            divide=_group_scales,
        ),
        make(
            "Q14",
            "codes-truncated",
            "Codes are rounded toward zero.",
            gaussian,
            report="NVlabs/cutile-rs#250",
            encode=_encode_truncated,
        ),
        make(
            "Q15",
            "ties-away-from-zero",
            "Codes of exact ties are rounded away from zero.",
            quant_case("midpoints"),
            report="triton-lang/triton#5925",
            encode=_encode_ties_away,
        ),
        make(
            "Q16",
            "codes-through-fp16",
            "Scaled values are rounded to fp16 before they are encoded.",
            gaussian,
            report="triton-lang/triton#10846",
            encode=_through(torch.float16),
        ),
        make(
            "Q17",
            "codes-through-bf16",
            "Scaled values are rounded to bf16 before they are encoded.",
            gaussian,
            report="flashinfer-ai/flashinfer#4160",
            encode=_through(torch.bfloat16),
        ),
        make(
            "Q18",
            "subnormal-codes-flushed",
            "Values below the smallest normal code become zero.",
            quant_case("subnormal_codes"),
            report="triton-lang/triton#3634",
            encode=first(_flush_subnormal, encode_stage),
        ),
        make(
            "Q19",
            "minus-zero-is-nan",
            "On e4m3fnuz a negative value that rounds to zero becomes 0x80, which is NaN.",
            quant_case("subnormal_codes", fp8="e4m3fnuz"),
            report="sgl-project/sglang#28455",
            encode=first(encode_stage, _minus_zero),
        ),
        make(
            "Q20",
            "tail-codes-unwritten",
            "Codes of the last n % 8 columns are not written.",
            norm_case("gaussian", n=516),
            report="ROCm/aiter#1487",
            write=_codes_without_tail,
        ),
        make(
            "Q21",
            "tail-store-overruns",
            "The store of a row's last codes is rounded up to 4 bytes.",
            norm_case("gaussian", m=1, n=769),
            report="ROCm/aiter#4467",
            write=first(write, _overrun),
        ),
        make(
            "Q22",
            "scale-one-ulp-up",
            "The stored scale is one fp32 ulp above the correctly rounded one.",
            gaussian,
            crest,
            write=first(_scale_one_ulp_up, write),
        ),
        make(
            "Q23",
            "stale-last-scale",
            "The last row is stored with the scale of the row before it.",
            crest_norm,
            write=first(_stale_last_scale, write),
        ),
    ]
