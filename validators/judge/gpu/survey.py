"""Where the one-pass survey of a GPU may replace the elementwise judgement, and whether it can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from reference.add_rmsnorm_quant import end_factors
from reference.contract import NormQuantContract
from reference.setting import Setting
from validators import arch
from validators.errors import RunFault
from validators.judge.gpu import survey_triton
from validators.judge.gpu.survey_triton import Rules, Survey
from validators.records.record import Comparison

Surveyor = Callable[..., Survey | None]
"""``validators.judge.gpu.survey_triton.survey``, handed in so that the judgement imports no kernel library."""

LEAST = 2**22
"""Fewer elements than this are judged without the pass: compiling it would cost more time than it saves."""
AGAIN = 64
"""Every so many surveys of a kind, one is held against the judgement without it again. A policy: it costs a tenth."""

_TRUSTED: dict[tuple[Any, ...], int] = {}
"""Kind of survey -> how often it was asked since it was held against the judgement without it. A kind is the device,
the contract and the types: what the survey's own code depends on, and nothing of a kernel's."""


class SurveyMismatch(RunFault):
    """The survey and the judgement without it disagree; one sentence."""


def survey_on(device: str) -> Surveyor | None:
    """The survey on a GPU with triton; None elsewhere."""
    if not device.startswith("cuda"):
        return None
    return None if arch.no_gpu(device) or arch.no_triton(interpreted=False) else survey_triton.survey


def knows(contract: NormQuantContract, dtype: torch.dtype) -> bool:
    """Whether the survey carries out this arithmetic on x of dtype: not a scale or a quotient that is rounded to T, nor
    an fp16 residual stored by truncation. What it does not know is judged without it."""
    return not (contract.round_scale or contract.round_quotient) and (
        dtype == torch.bfloat16 or contract.store("fp16") == "rne"
    )


def fits(x: torch.Tensor, residual: torch.Tensor | None, contract: NormQuantContract) -> bool:
    """Whether the survey knows this arithmetic and pays."""
    return (
        x.is_cuda
        and x.dtype in (torch.bfloat16, torch.float16)
        and x.stride(-1) == 1
        and (residual is None or residual.stride(-1) == 1)
        and knows(contract, x.dtype)
        and x.numel() >= LEAST
    )


def rules_of(setting: Setting) -> Rules:
    """The setting's arithmetic as the survey takes it."""
    contract = setting.contract
    low, high = (end_factors(setting, direction) for direction in (-1.0, 1.0))
    exact = contract.division if contract.reciprocal_u <= 1.0 else ""
    return Rules(
        setting.qmax,
        setting.eps,
        unrounded=contract.norm_input == "unrounded",
        truncated=contract.store(setting.storage.name) == "truncate",
        round_h=contract.round_after_normalize,
        round_y=contract.round_after_weight,
        gemma=setting.gemma,
        rms_bound=setting.rms_budget.bound,
        factors=(low[0], high[0]),
        weights=(low[1], high[1]),
        exact=exact,
    )


def trusted(key: tuple[Any, ...]) -> bool:
    """Whether this kind of survey was held against the judgement without it in this process, and need not be again."""
    if key not in _TRUSTED:
        return False
    _TRUSTED[key] += 1
    return _TRUSTED[key] % AGAIN != 0


def trust(key: tuple[Any, ...], plain: Sequence[Comparison], fast: Sequence[Comparison]) -> None:
    """Raises SurveyMismatch unless both count the same; then surveys of this kind are not checked again for a while."""
    for one, other in zip(plain, fast, strict=True):
        counts = [(c.output, c.elements, c.judged, c.unspecified, c.violations, c.single) for c in (one, other)]
        if counts[0] != counts[1]:
            _TRUSTED.pop(key, None)
            raise SurveyMismatch(
                f"the one-pass survey counts {counts[1]} where the judgement without it counts {counts[0]}; "
                "nothing was judged"
            )
    _TRUSTED.setdefault(key, 0)
