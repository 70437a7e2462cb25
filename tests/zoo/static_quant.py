"""Defects of the static quantizer."""

from __future__ import annotations

import torch

from reference.static_quant import CONTRACTS
from tests.zoo import Defect, first
from validators.cases.case import Case
from validators.kernels.emulated_gemm import decode
from validators.kernels.emulated_rounding import encode, round_to
from validators.kernels.emulated_static_quant import STAGES, StaticStage, StaticWork, make
from validators.kernels.kernel import Kernel

OP = "static_quant"
CONTRACT = "vllm-native"


def clean_kernel() -> Kernel:
    """The emulated kernel that the defects depart from."""
    return Kernel(f"clean/{OP}", OP, CONTRACT, make(CONTRACTS[CONTRACT]), in_place=True, emulated=True)


def _defect(identity: str, name: str, summary: str, *recipes: str, report: str = "", **stages: StaticStage) -> Defect:
    kernel = Kernel(
        f"defect/{identity}-{name}",
        OP,
        CONTRACT,
        make(CONTRACTS[CONTRACT], stages=stages),
        in_place=True,
        emulated=True,
        notes=summary,
    )
    reveals = tuple(Case(OP, 64, 516, recipe).id for recipe in recipes)
    return Defect(identity, name, OP, kernel, reveals, report, summary)


def _multiply(w: StaticWork) -> None:
    w.t = w.x.float() * w.scale


def _round_scale(w: StaticWork) -> None:
    w.scale = round_to(w.scale, torch.bfloat16).float()


def _tail_as_it_is(w: StaticWork) -> None:
    whole = w.x.shape[-1] // 8 * 8
    w.t[:, whole:] = w.x[:, whole:].float()


def _no_clamp(w: StaticWork) -> None:
    pass


def _encode_unclamped(w: StaticWork) -> None:
    w.codes = encode(w.t, w.fp8, "nan")


def _truncate(w: StaticWork) -> None:
    STAGES["encode"](w)
    beyond = decode(w.codes, w.fp8).abs() > w.t.abs()
    w.codes = w.codes - beyond.to(torch.uint8)


def _ties_away(w: StaticWork) -> None:
    # The next fp32 number away from zero rounds a tie away, and nothing else in another way.
    w.t = torch.where(w.t.isfinite(), torch.nextafter(w.t, torch.copysign(torch.full_like(w.t, 3e38), w.t)), w.t)
    STAGES["clamp"](w)
    STAGES["encode"](w)


def _through_bf16(w: StaticWork) -> None:
    w.t = round_to(w.t, torch.bfloat16).float()


def _flush(w: StaticWork) -> None:
    smallest = 2.0**-6 if w.fp8 == "e4m3fn" else 2.0**-7
    w.t = torch.where(w.t.abs() < smallest, 0.0, w.t)


def defects() -> list[Defect]:
    """The defects of ``static_quant``."""
    quotient, encode_ = STAGES["quotient"], STAGES["encode"]
    return [
        _defect("S01", "scale-multiplied", "x is multiplied by the scale.", "gaussian", quotient=_multiply),
        _defect(
            "S02", "scale-in-bf16", "The scale is rounded to bf16.", "gaussian", quotient=first(_round_scale, quotient)
        ),
        _defect(
            "S03",
            "tail-not-scaled",
            "The last n % 8 columns are converted without the scale.",
            "gaussian",
            quotient=first(quotient, _tail_as_it_is),
        ),
        _defect(
            "S04",
            "codes-not-clamped",
            "Values beyond Q become NaN.",
            "gaussian",
            clamp=_no_clamp,
            encode=_encode_unclamped,
        ),
        _defect("S05", "static-codes-truncated", "Codes are truncated toward zero.", "gaussian", encode=_truncate),
        _defect("S06", "static-ties-away-from-zero", "Ties round away from zero.", "midpoints", encode=_ties_away),
        _defect(
            "S07",
            "static-codes-through-bf16",
            "x/s is rounded to bf16 first.",
            "double_rounding",
            encode=first(_through_bf16, encode_),
        ),
        _defect(
            "S08",
            "static-subnormal-codes-flushed",
            "Subnormal codes become zero.",
            "subnormal_codes",
            encode=first(_flush, encode_),
        ),
    ]
