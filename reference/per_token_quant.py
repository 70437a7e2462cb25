"""Truth of per-token FP8 quantization and its admissible sets; every function takes a chunk of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from reference import budgets
from reference.quantize import HUGE, Codes, Scales, scales, t_bounds
from reference.setting import Setting


@dataclass(frozen=True)
class QuantTruth:
    """Truth of a chunk of ``per_token_quant``: x fp32 [m, n] (values of T), on its own device; scale on the CPU."""

    setting: Setting
    x: torch.Tensor
    scale: Scales
    cancels: ClassVar[bool] = False
    """There is no rms."""

    @property
    def y(self) -> torch.Tensor:
        """What is quantized, float64 [m, n]."""
        return self.x.double()

    @property
    def scale_budget(self) -> budgets.Budget:
        """Of the scale; amax is exact."""
        return self.setting.step_budget

    def codes(self, row: torch.Tensor, col: torch.Tensor, scale: torch.Tensor) -> Codes:
        """Admissible codes of gathered elements, as ``NormTruth.codes``."""
        y = self.x[row, col].double().to(scale.device)
        size = y.abs()
        low, high = t_bounds(size, size, scale, self.setting)
        nominal = torch.minimum(torch.maximum(size / scale, low), high)
        return Codes.signed(self.setting, nominal, low, high, negative=torch.signbit(y))


def quant_truth(x: torch.Tensor, setting: Setting) -> QuantTruth:
    """Truth of a chunk x [m, n] of ``per_token_quant``: amax is exact, so the scale is one value (or scale_u wide)."""
    x = x.float()
    amax = x.abs().amax(dim=-1).double().cpu()
    # amax propagates NaN. A row with Inf and no NaN has scale Inf, and Inf/Inf in the cast: no source settles it.
    found = scales(amax, amax, amax, setting, grid=setting.storage, unspecified=amax > HUGE, nonfinite=amax.isnan())
    return QuantTruth(setting, x, found)
