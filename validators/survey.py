"""Where the one-pass survey of a GPU may stand in for the elementwise judgement, and whether it can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from reference.contract import NormQuantContract
from validators.records import Comparison

if TYPE_CHECKING:
    from validators.kernels.survey_triton import Survey

Surveyor = Callable[..., "Survey | None"]
"""``validators.kernels.survey_triton.survey``, handed in so that the judgement imports no kernel library."""

LEAST = 2**22
"""Elements below which compiling a kernel for the row length would cost more than it saves."""
WIDEST = 2**14

_TRUSTED: set[tuple[Any, ...]] = set()


class SurveyMismatch(RuntimeError):
    """The survey and the judgement without it disagree; one sentence."""


def survey_on(device: str) -> Surveyor | None:
    """The survey on a GPU with triton; None elsewhere."""
    if not device.startswith("cuda"):
        return None
    from validators.kernels import arch, survey_triton

    return None if arch.no_gpu(device) or arch.no_triton(interpreted=False) else survey_triton.survey


def fits(x: torch.Tensor, residual: torch.Tensor | None, contract: NormQuantContract) -> bool:
    """Whether the survey knows this arithmetic and pays: bf16, no rounding of y to T, a residual stored by RNE."""
    return (
        x.is_cuda
        and x.dtype == torch.bfloat16
        and x.stride(-1) == 1
        and (residual is None or (residual.stride(-1) == 1 and contract.residual_store == "rne"))
        and x.shape[-1] <= WIDEST
        and x.numel() >= LEAST
        and not (contract.round_after_normalize or contract.round_after_weight)
    )


def trusted(key: tuple[Any, ...]) -> bool:
    """Whether this kind of survey was already held against the judgement without it, in this process."""
    return key in _TRUSTED


def trust(key: tuple[Any, ...], plain: Sequence[Comparison], fast: Sequence[Comparison]) -> None:
    """Raises SurveyMismatch unless both count the same; then surveys of this kind stand alone."""
    for one, other in zip(plain, fast, strict=True):
        counts = [(c.output, c.elements, c.judged, c.unspecified, c.violations, c.single) for c in (one, other)]
        if counts[0] != counts[1]:
            raise SurveyMismatch(
                f"the one-pass survey counts {counts[1]} where the judgement without it counts {counts[0]}; "
                "nothing was judged"
            )
    _TRUSTED.add(key)
