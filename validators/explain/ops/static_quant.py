"""How outputs of ``static_quant`` are explained: the code that each known defect would have given."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from reference.formats import BF16, FloatFormat, decode, encode, format_of, round_to
from reference.static_quant import StaticQuantContract, quotients
from validators.explain.op import Asked, ExplainOp
from validators.explain.scoring import Candidate, Evidence, ranked, same
from validators.explain.search import search
from validators.judge.sets import values_of
from validators.records.record import Explanation


class Scene(NamedTuple):
    """Sampled rows. x: float64 [m, n]. scale: of all rows. t: nominal quotient, not clamped. q: the clamp."""

    x: Tensor
    scale: float
    t: Tensor
    q: float
    fmt: FloatFormat
    contract: StaticQuantContract


def _codes(s: Scene, t: Tensor) -> Tensor:
    clamped = t.clamp(-s.q, s.q)
    if s.contract.nan == "largest":
        clamped = torch.where(t.isnan(), torch.full_like(t, s.q), clamped)
    return decode(encode(clamped, s.fmt), s.fmt)


def _bf16_scale(s: Scene) -> Tensor:
    scale = float(round_to(torch.tensor(s.scale, dtype=torch.float64), BF16))
    return _codes(s, quotients(s.x, scale, s.contract)[0])


def _truncated(s: Scene) -> Tensor:
    nearest = encode(s.t.clamp(-s.q, s.q), s.fmt)
    beyond = decode(nearest, s.fmt).abs() > s.t.abs()
    return torch.where(s.t.isnan(), _codes(s, s.t), decode(nearest - beyond.to(torch.uint8), s.fmt))


def _tail_unscaled(s: Scene) -> Tensor:
    tail = torch.arange(s.x.shape[1], device=s.x.device) >= s.x.shape[1] // 8 * 8
    return torch.where(tail, _codes(s, s.x), _codes(s, s.t))


def _flushed(s: Scene) -> Tensor:
    return _codes(s, torch.where(s.t.abs() < 2.0 ** (1 - s.fmt.bias), torch.zeros_like(s.t), s.t))


HYPOTHESES: tuple[tuple[str, str, Callable[[Scene], Tensor]], ...] = (
    ("scale-multiplied", "x is multiplied by the scale", lambda s: _codes(s, s.x * s.scale)),
    ("scale-in-bf16", "the given scale is rounded to bf16", _bf16_scale),
    ("tail-not-scaled", "the last n % 8 columns are converted without the scale", _tail_unscaled),
    ("codes-not-clamped", "values beyond Q are not clamped", lambda s: decode(encode(s.t, s.fmt, "nan"), s.fmt)),
    ("static-codes-truncated", "codes are truncated toward zero", _truncated),
    # Just outside the midpoint rounds away; values between are unaffected.
    ("static-ties-away-from-zero", "ties round away from zero", lambda s: _codes(s, s.t * (1 + 2.0**-45))),
    ("static-codes-through-bf16", "x/s is rounded to bf16 before FP8", lambda s: _codes(s, round_to(s.t, BF16))),
    ("static-subnormal-codes-flushed", "subnormal codes are flushed to zero", _flushed),
)
"""Name, sentence, decoded codes that the defect gives. The zoo has the same names, made apart from these."""


def _defects(asked: Asked, rows: list[int]) -> list[Explanation]:
    inputs, contract, fmt = asked.inputs, asked.contract, format_of(asked.inputs.fp8_dtype)
    x, scale = inputs.x.reshape(-1, inputs.width)[rows].double(), float(inputs.scale)
    scene = Scene(x, scale, quotients(x, scale, contract)[0], contract.qmax(fmt.name), fmt, contract)
    got, _ = values_of(asked.outputs.flat().take_rows(rows).codes)
    evidence = Evidence({"codes": ~same(got, _codes(scene, scene.t))}, asked.failing)
    return ranked(evidence, (Candidate(name, words, {"codes": same(got, of(scene))}) for name, words, of in HYPOTHESES))


EXPLAIN = ExplainOp(
    diagnose=lambda asked: search(asked, lambda rows: _defects(asked, rows)),
    # Values next to midpoints tell a quotient from a product, the special ones what becomes of a NaN.
    cases=(("gaussian", {"n": 512}), ("double_rounding", {"n": 512}), ("nonfinite", {"n": 512})),
    without_effect=lambda contract, inputs: {"fnuz_max"} if inputs.fp8_dtype == torch.float8_e4m3fn else set(),
)
