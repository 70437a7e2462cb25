"""A sample of a kernel's rows, and what a hypothesis about the kernel predicts for them; for the two quantizing ops.

A hypothesis replaces one stage of a small float64 evaluation; it explains the violations if its
predictions meet what the kernel gave, in the violating elements and in the others. This is diagnosis, not judgement: the
verdict is final before, and nothing here can change it. The hypotheses are in ``norm``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from reference import budgets
from reference.contract import NormQuantContract
from reference.formats import (
    FloatFormat,
    Overflow,
    bytes_of,
    code_preimages,
    decode,
    format_of,
    overflow_threshold,
    round_fp32,
    round_to,
)
from reference.quantize import in_storage, is_power_of_two, scale_of
from reference.setting import Setting
from validators.cases.op import op_named
from validators.cases.tensors import NormQuantInputs, NormQuantOutputs, QuantInputs, QuantOutputs

Stage = Callable[["Scene", Tensor], Tensor]


@dataclass(frozen=True)
class Scene:
    """A sample of rows with what the kernel gave; float64 unless noted.

    rows: global row numbers [m]. x, residual: [m, n] (residual None without). weight: the tensor as passed. w: effective
    gamma [n]. codes: uint8 [m, n]. scale [m], stored [m, n] or None: the kernel's. previous: scene of rows - 1, or None.
    """

    rows: Tensor
    x: Tensor
    residual: Tensor | None
    weight: Tensor | None
    w: Tensor
    eps: float
    fp8: FloatFormat
    storage: FloatFormat
    codes: Tensor
    scale: Tensor
    stored: Tensor | None
    quant_only: bool
    inputs: Any = field(repr=False)
    scales_of_all: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)

    @property
    def n(self) -> int:
        """Columns."""
        return self.x.shape[1]


@dataclass(frozen=True)
class Prediction:
    """What a hypothesis says that the kernel gave."""

    residual: Tensor | None
    scale: Tensor
    t: Tensor
    overflow: Overflow
    most: float
    """Magnitude to which t is clamped before it is rounded."""
    encoder: Callable[[Tensor], Tensor] | None = None
    """What makes codes of t, where the hypothesis has something else there than rounding to nearest even."""


@dataclass(frozen=True)
class Hypothesis:
    """slug: the defect's name. sentence: completes "every violation vanishes if ...". stages: replaced stages."""

    slug: str
    sentence: str
    stages: dict[str, Stage] = field(default_factory=dict)
    contract: dict[str, object] = field(default_factory=dict)
    needs: Callable[[Scene], bool] = lambda scene: True


def predict(scene: Scene, contract: NormQuantContract, stages: dict[str, Stage]) -> Prediction:
    """Nominal float64 evaluation with some stages replaced. Stage names are the local names below."""

    def stage(name: str, value: Tensor) -> Tensor:
        return stages[name](scene, value) if name in stages else value

    setting = Setting(contract, scene.fp8, scene.storage, scene.n, scene.eps)
    residual = None
    if scene.quant_only:
        y = stage("y", scene.x)
        z = rms = y
    else:
        total = scene.x if scene.residual is None else round_fp32(scene.x + scene.residual)
        total = stage("total", total)
        residual = None
        if scene.residual is not None:
            residual = round_to(total, scene.storage, contract.store(scene.storage.name))
        z = residual if contract.norm_input == "stored" and residual is not None else total
        z = stage("z", z)
        mean = stage("mean", (z * z).mean(dim=1))
        eps = stage("eps", torch.full_like(mean, scene.eps))
        rms = stage("rms", 1.0 / torch.sqrt(mean + eps))
        h = z * rms[:, None]
        if contract.round_after_normalize:
            h = round_to(round_fp32(h), scene.storage)
        y = round_fp32(h * stage("w", scene.w))
        if contract.round_after_weight:
            y = round_to(y, scene.storage)
        if residual is not None:
            residual = stages["residual"](scene, residual) if "residual" in stages else residual
            if "residual_from_norm" in stages:
                residual = residual.clone()
                residual[:, 16:24] = round_to((z * rms[:, None])[:, 16:24], scene.storage)
    # Where NaN is unspecified, hardware maxima ignore it and a clamp turns it into -Q.
    drops_nan = contract.nonfinite == "unspecified"
    amax = (y.nan_to_num(nan=0.0, posinf=float("inf"), neginf=-float("inf")) if drops_nan else y).abs().amax(dim=1)
    if "amax" in stages:
        amax = stages["amax"](scene, y)
    if "amax_before_gamma" in stages:
        amax = (z * rms[:, None]).abs().amax(dim=1)
    used = stages["used_scale"](scene, amax) if "used_scale" in stages else scale_of(amax, setting)
    stored = stage("scale", used)
    divisor = used if "codes_keep_scale" in stages or "scale" not in stages else stored
    if contract.division == "reciprocal":
        t = round_fp32(y * round_fp32(1.0 / divisor)[:, None])
    else:
        t = round_fp32(y / divisor[:, None])
    t = in_storage(t, setting)
    if "t" in stages:
        t = stages["t"](scene, y if "t_from_y" in stages else t)
    if drops_nan and contract.overflow == "saturate":
        t = torch.where(t.isnan(), torch.full_like(t, -setting.qmax), t)
    most = setting.qmax if contract.overflow == "saturate" else float("inf")
    encoder = partial(stages["encode"], scene) if "encode" in stages else None
    return Prediction(residual, stored, t, contract.overflow, most, encoder)


def make_scene(
    inputs: NormQuantInputs | QuantInputs,
    outputs: NormQuantOutputs | QuantOutputs,
    rows: Tensor,
    contract: NormQuantContract,
) -> Scene:
    """A scene of the given global rows (int64 [m])."""
    n = inputs.x.shape[-1]
    device = inputs.x.device
    x = inputs.x.reshape(-1, n)
    norm: Any = inputs if op_named(inputs.op).norm else None
    w = torch.ones(n, dtype=torch.float64, device=device)
    if norm:
        w = (norm.weight.float() + 1.0).double() if norm.gemma else norm.weight.double()
    stored = getattr(outputs, "residual_out", None)

    def scales(which: Tensor) -> Tensor:
        which = which % x.shape[0]
        part = scene_of(which)
        return predict(part, contract, {}).scale

    def scene_of(which: Tensor) -> Scene:
        return Scene(
            rows=which,
            x=x[which].double(),
            residual=norm.residual.reshape(-1, n)[which].double() if norm and norm.residual is not None else None,
            weight=norm.weight if norm else None,
            w=w,
            eps=norm.eps if norm else 0.0,
            fp8=format_of(inputs.fp8_dtype),
            storage=format_of(inputs.x.dtype),
            codes=bytes_of(outputs.codes).reshape(-1, n)[which],
            scale=outputs.scale.reshape(-1)[which].double(),
            stored=None if stored is None else stored.reshape(-1, n)[which].double(),
            quant_only=norm is None,
            inputs=inputs,
            scales_of_all=scales,
        )

    return scene_of(rows)


Widths = tuple[float, float | Tensor]
"""Relative widths of a scale and of t (one number, or [m, 1]) within which a prediction counts as met."""


def tolerances(scene: Scene, contract: NormQuantContract) -> Widths:
    """The contract's own budgets; for a quantizer, whose y is known, no more than the rounding of the prediction."""
    qmax = contract.qmax(scene.fp8.name)
    step = budgets.scale_step_budget(contract, qmax).bound
    if scene.quant_only:
        return 0.25 * budgets.U, 0.0
    rms = budgets.rms_budget(contract, scene.n) + budgets.multiply_budget(contract, gemma=False)
    return rms.bound + step, budgets.code_budget(contract, qmax, gemma=False).bound


_BIT_FOR_BIT = frozenset(("encode", "t"))


def wide_tolerances(scene: Scene, contract: NormQuantContract, stages: dict[str, Stage]) -> Widths:
    """What a right element must miss a prediction by to contradict it: more than any order of operations can explain.

    Only a quantizer's quotient is known bit for bit: where the contract's division is correctly rounded, or the scale a
    power of two, and the hypothesis changes nothing before the code is formed.
    """
    scale_width, t_width = tolerances(scene, contract)
    if not scene.quant_only:
        return scale_width, t_width
    width = budgets.code_budget(contract, contract.qmax(scene.fp8.name), gemma=False).bound
    exact = torch.zeros_like(scene.scale, dtype=torch.bool)
    if stages and _BIT_FOR_BIT.issuperset(stages):
        exact = is_power_of_two(scene.scale) if contract.reciprocal_u > 1.0 else torch.ones_like(exact)
    return max(scale_width, budgets.U), torch.where(exact, 0.0, width)[:, None]


def met(scene: Scene, prediction: Prediction, widths: Widths) -> dict[str, Tensor]:
    """Which elements of each output the prediction meets: bool tensors."""
    scale_width, t_width = widths
    found = {
        "scale": ((scene.scale - prediction.scale).abs() <= scale_width * prediction.scale.abs())
        | (scene.scale.isnan() & prediction.scale.isnan())
    }
    ends = prediction.t * (1 - t_width), prediction.t * (1 + t_width)
    if prediction.encoder is None:
        first, second = (end.clamp(-prediction.most, prediction.most) for end in ends)
        found["codes"] = codes_between(scene.codes, first, second, scene.fp8, prediction.overflow)
    else:
        got = decode(scene.codes, scene.fp8)
        first, second = (decode(prediction.encoder(end), scene.fp8) for end in ends)
        inside = (got >= torch.minimum(first, second)) & (got <= torch.maximum(first, second))
        found["codes"] = inside | (got.isnan() & (first.isnan() | second.isnan()))
    if scene.stored is not None and prediction.residual is not None:
        found["residual_out"] = (scene.stored == prediction.residual) | (
            scene.stored.isnan() & prediction.residual.isnan()
        )
    return found


def codes_between(codes: Tensor, first: Tensor, second: Tensor, fmt: FloatFormat, overflow: Overflow) -> Tensor:
    """Which codes (uint8) have a value between those that two t (float64, in either order) round to, bool; a NaN code
    where one of them gives NaN.

    Rounding is monotone, so this holds where the preimage of the code meets the interval of the two. To look preimages
    up takes a tenth of what rounding both ends by a search among midpoints took, which was a third of a diagnosis.
    """
    no_number = first.isnan() | second.isnan()
    if overflow == "nan":
        no_number |= torch.maximum(first.abs(), second.abs()) > overflow_threshold(fmt)
    least, greatest = (
        end.index_select(0, codes.int().flatten()).view(codes.shape)
        for end in code_preimages(fmt, overflow, str(codes.device))
    )
    meets = (torch.maximum(first, second) >= least) & (torch.minimum(first, second) <= greatest)
    # The preimage of a NaN code is empty: its ends are in the wrong order.
    return torch.where(no_number, least > greatest, meets)


def scale_distance(scene: Scene, prediction: Prediction) -> float:
    """Median relative distance of the kernel's scales from the predicted ones, in whole units of u."""
    distance = ((scene.scale - prediction.scale).abs() / prediction.scale.abs()).nan_to_num(nan=1.0, posinf=1.0)
    return float((distance.median() / budgets.U).floor())
