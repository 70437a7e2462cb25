"""The known defects of the fused norm and of its quantizer, each as a replaced stage of ``scene.predict``.

Which of them, or which other contract, would have produced these outputs? Diagnosis only; see ``scene``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from reference.formats import BF16, format_of, round_fp32, round_to
from validators.explain.quantizer import QUANTIZER, keep, lower_lanes, whole_vectors
from validators.explain.scene import Hypothesis, Scene, Stage


def _mean_over(keep: Callable[[Scene], Tensor]) -> Stage:
    def mean(scene: Scene, value: Tensor) -> Tensor:
        z = scene.x if scene.residual is None else scene.x + scene.residual
        return value - (z * z * ~keep(scene)).mean(dim=1)

    return mean


def _next_first(scene: Scene, mean: Tensor) -> Tensor:
    assert scene.inputs.residual is not None
    n = scene.n
    x, r = (v.reshape(-1, n)[:, 0].double() for v in (scene.inputs.x, scene.inputs.residual))
    following = torch.cat((x[1:] + r[1:], torch.zeros_like(x[:1])))
    return mean + following[scene.rows] ** 2 / n


def _eps(value: float) -> Stage:
    return lambda scene, eps: torch.full_like(eps, value)


def _relative_eps(scene: Scene, eps: Tensor) -> Tensor:
    z = scene.x if scene.residual is None else scene.x + scene.residual
    return eps * z.abs().amax(dim=1) ** 2


def _rms_outside(scene: Scene, rms: Tensor) -> Tensor:
    mean = 1.0 / (rms * rms) - scene.eps
    return 1.0 / (mean.clamp(min=0.0).sqrt() + scene.eps)


def _bytes_misread(scene: Scene, w: Tensor) -> Tensor:
    assert scene.weight is not None
    view = scene.weight.view(scene.inputs.x.dtype)[: scene.n].double()
    return view + 1.0 if scene.inputs.gemma else view


def _interleaved(scene: Scene, w: Tensor) -> Tensor:
    return w.view(2, scene.n // 16, 8).transpose(0, 1).reshape(-1)


def _wrap(limit: int) -> Stage:
    def total(scene: Scene, value: Tensor) -> Tensor:
        n = scene.n
        rows = scene.rows % max(1, limit // n)
        x = scene.inputs.x.reshape(-1, n)[rows].double()
        r = scene.inputs.residual
        return x if r is None else round_fp32(x + r.reshape(-1, n)[rows].double())

    return total


def _as_stride(scene: Scene, tensor: Tensor, stride: int) -> Tensor:
    """Rows of the tensor's storage read with another row stride, zero beyond the end; float64 [m, n]."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size()
    flat = tensor.as_strided((size,), (1,), 0)
    index = scene.rows[:, None] * stride + torch.arange(scene.n, device=tensor.device) + int(tensor.storage_offset())
    return torch.where(index < size, flat[index.clamp(max=size - 1)].double(), 0.0)


def _x_stride_ignored(scene: Scene, total: Tensor) -> Tensor:
    x = _as_stride(scene, scene.inputs.x, scene.n)
    return x if scene.residual is None else round_fp32(x + scene.residual)


def _residual_with_x_stride(scene: Scene, total: Tensor) -> Tensor:
    assert scene.inputs.residual is not None
    return round_fp32(scene.x + _as_stride(scene, scene.inputs.residual, scene.inputs.x.stride(0)))


def _norm(scene: Scene) -> bool:
    return not scene.quant_only


def _with_residual(scene: Scene) -> bool:
    return scene.residual is not None


def _strided(scene: Scene) -> bool:
    return _norm(scene) and scene.inputs.x.dim() == 2 and not scene.inputs.x.is_contiguous()


def _bf16_rms(scene: Scene, rms: Tensor) -> Tensor:
    return round_to(rms, BF16)


HYPOTHESES: tuple[Hypothesis, ...] = (
    Hypothesis(
        "residual-truncated",
        "the residual is stored by truncation toward zero",
        contract={"residual_store": "truncate"},
        needs=_with_residual,
    ),
    Hypothesis(
        "residual-rounded",
        "the residual is stored by rounding to nearest even",
        contract={"residual_store": "rne"},
        needs=_with_residual,
    ),
    Hypothesis(
        "norm-of-stored-residual",
        "the residual is rounded before the norm",
        contract={"norm_input": "stored"},
        needs=_with_residual,
    ),
    Hypothesis(
        "norm-of-unrounded-sum",
        "the norm uses the unrounded fp32 sum",
        contract={"norm_input": "unrounded"},
        needs=_with_residual,
    ),
    Hypothesis(
        "norm-rounded-to-storage",
        "the products of the norm are rounded to the storage type",
        contract={"round_after_normalize": True, "round_after_weight": True},
        needs=_norm,
    ),
    Hypothesis(
        "y-rounded-to-storage",
        "y is rounded to the storage type before the quantizer",
        contract={"round_after_weight": True, "round_after_normalize": False},
        needs=_norm,
    ),
    Hypothesis(
        "y-not-rounded",
        "y stays fp32 between norm and quantizer",
        contract={"round_after_weight": False, "round_after_normalize": False},
        needs=_norm,
    ),
    Hypothesis("scale-multiplied", "the scale is amax * fl32(1/Q)", contract={"scale_rule": "multiply"}),
    Hypothesis("scale-divided", "the scale is amax / Q", contract={"scale_rule": "divide"}),
    Hypothesis(
        "quotient-by-reciprocal", "codes are y times the reciprocal of the scale", contract={"division": "reciprocal"}
    ),
    Hypothesis("quotient-divided", "codes are y divided by the scale", contract={"division": "divide"}),
    Hypothesis("no-amax-floor", "amax has no floor", contract={"amax_floor": 0.0, "scale_floor_divisor": None}),
    Hypothesis("amax-floor-1e-10", "amax has the floor 1e-10", contract={"amax_floor": 1e-10}),
    Hypothesis("amax-floor-1e-12", "amax has the floor 1e-12", contract={"amax_floor": 1e-12}),
    Hypothesis("scale-floor", "the scale has the floor 1/(512 Q)", contract={"scale_floor_divisor": 512.0}),
    Hypothesis("zero-scale-one", "an all-zero row stores scale 1", contract={"zero_scale": 1.0, "amax_floor": 0.0}),
    Hypothesis(
        "residual-not-added",
        "residual_out holds the incoming residual",
        {"residual": lambda s, v: s.residual if s.residual is not None else v},
        needs=_with_residual,
    ),
    Hypothesis("residual-is-x", "residual_out holds x", {"residual": lambda s, v: s.x}, needs=_with_residual),
    Hypothesis(
        "residual-ignored-by-norm", "the norm is taken of x alone", {"z": lambda s, z: s.x}, needs=_with_residual
    ),
    Hypothesis(
        "norm-of-residual-alone",
        "the norm is taken of the residual alone",
        {"z": lambda s, z: s.residual if s.residual is not None else z},
        needs=_with_residual,
    ),
    Hypothesis(
        "residual-added-twice",
        "the residual is added twice",
        {"total": lambda s, v: v + s.residual if s.residual is not None else v},
        needs=_with_residual,
    ),
    Hypothesis(
        "residual-missing", "the residual is not added at all", {"total": lambda s, v: s.x}, needs=_with_residual
    ),
    Hypothesis(
        "residual-overwritten",
        "columns 16 to 23 of residual_out hold normalised values",
        {"residual_from_norm": keep},
        needs=_with_residual,
    ),
    Hypothesis(
        "mean-of-padded-row",
        "the mean divides by n rounded up to a multiple of 1024",
        {"mean": lambda s, v: v * s.n / (-(-s.n // 1024) * 1024)},
        needs=_norm,
    ),
    Hypothesis(
        "tail-not-in-sum",
        "the last n % 8 columns are missing from the sum of squares",
        {"mean": _mean_over(whole_vectors)},
        needs=_norm,
    ),
    Hypothesis(
        "half-wave-not-in-sum",
        "lanes 32 to 63 of every wave are missing from the sum of squares",
        {"mean": _mean_over(lower_lanes(8))},
        needs=_norm,
    ),
    Hypothesis(
        "next-row-in-sum",
        "the first element of the next row enters the sum of squares",
        {"mean": _next_first},
        needs=_with_residual,
    ),
    Hypothesis("no-eps", "eps is left out", {"eps": _eps(0.0)}, needs=_norm),
    Hypothesis("eps-after-root", "eps is added after the square root", {"rms": _rms_outside}, needs=_norm),
    *(
        Hypothesis("fixed-eps", f"eps is fixed at {e:g}", {"eps": _eps(e)}, needs=_norm)
        for e in (1e-6, 1e-5, 1e-4, 1e-8, 1e-12)
    ),
    Hypothesis("relative-eps", "eps is multiplied by the squared row maximum", {"eps": _relative_eps}, needs=_norm),
    Hypothesis("rms-in-bf16", "the reciprocal rms is rounded to bf16", {"rms": _bf16_rms}, needs=_norm),
    Hypothesis("gamma-plus-one", "the weight is taken as 1 + weight", {"w": lambda s, w: w + 1.0}, needs=_norm),
    Hypothesis(
        "gamma-not-plus-one",
        "the weight is taken without adding 1",
        {"w": lambda s, w: w - 1.0},
        needs=lambda s: _norm(s) and s.inputs.gemma,
    ),
    Hypothesis(
        "gamma-offset-rounded",
        "1 + weight is rounded to the type of the weight",
        {"w": lambda s, w: w if s.weight is None else round_to(w, format_of(s.weight.dtype))},
        needs=lambda s: _norm(s) and s.inputs.gemma and s.inputs.weight.dtype != torch.float32,
    ),
    Hypothesis("gamma-dropped", "the weight is not applied", {"w": lambda s, w: torch.ones_like(w)}, needs=_norm),
    Hypothesis(
        "gamma-rounded",
        "the fp32 weight is rounded to the storage type",
        {"w": lambda s, w: round_to(w, s.storage)},
        needs=lambda s: s.weight is not None and s.weight.dtype == torch.float32,
    ),
    Hypothesis(
        "gamma-bytes-misread",
        "the fp32 weight's bytes are read as the storage type",
        {"w": _bytes_misread},
        needs=lambda s: s.weight is not None and s.weight.dtype == torch.float32,
    ),
    Hypothesis(
        "gamma-not-interleaved",
        "the weight is read in order while x is interleaved over the lanes",
        {"w": _interleaved},
        needs=lambda s: _norm(s) and s.n % 16 == 0,
    ),
    Hypothesis("x-stride-ignored", "x is read with row stride n", {"total": _x_stride_ignored}, needs=_strided),
    Hypothesis(
        "residual-read-with-x-stride",
        "the residual is read with the row stride of x",
        {"total": _residual_with_x_stride},
        needs=lambda s: _strided(s) and _with_residual(s),
    ),
    *QUANTIZER,
    *(
        Hypothesis("row-offset-wraps", f"row offsets wrap at {2**e:,} elements", {"total": _wrap(2**e)}, needs=_norm)
        for e in (31, 32, 15)
    ),
)
