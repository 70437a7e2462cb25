"""The known defects of the two quantizing ops, each as a stage of ``scene.predict`` that is replaced.

Which of them, or which other contract, would have produced these outputs? Diagnosis only; see ``scene``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from reference.formats import BF16, FP16, FloatFormat, decode, encode, format_of, round_fp32, round_to
from validators.explain.scene import Hypothesis, Scene, Stage

_FRACTION = (1 << 52) - 1  # bits of a float64's fraction


def _lane(width: int) -> Callable[[Scene], Tensor]:
    def keep(scene: Scene) -> Tensor:
        column = torch.arange(scene.n, device=scene.x.device)
        return (column // width) % 64 < 32

    return keep


def _whole_vectors(scene: Scene) -> Tensor:
    return torch.arange(scene.n, device=scene.x.device) < scene.n // 8 * 8


def _mean_over(keep: Callable[[Scene], Tensor]) -> Stage:
    def mean(scene: Scene, value: Tensor) -> Tensor:
        z = scene.x if scene.residual is None else scene.x + scene.residual
        return value - (z * z * ~keep(scene)).mean(dim=1)

    return mean


def _amax_over(keep: Callable[[Scene], Tensor]) -> Stage:
    return lambda scene, y: (y.abs() * keep(scene)).amax(dim=1)


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


def _power_of_two(scene: Scene, scale: Tensor) -> Tensor:
    # Any fraction carries into the exponent; a power of two has none and stays.
    return ((scale.view(torch.int64) + _FRACTION) & ~_FRACTION).view(torch.float64)


def _neighbour_scale(step: int) -> Stage:
    def roll(scene: Scene, scale: Tensor) -> Tensor:
        assert scene.scales_of_all is not None
        return scene.scales_of_all(scene.rows - step)

    return roll


def _stale_last(scene: Scene, scale: Tensor) -> Tensor:
    assert scene.scales_of_all is not None
    last = scene.inputs.x.numel() // scene.n - 1
    return torch.where(scene.rows == last, scene.scales_of_all(scene.rows - 1), scale)


def _tensor_scale(scene: Scene, amax: Tensor) -> Tensor:
    assert scene.scales_of_all is not None
    count = (scene.inputs.x.numel()) // scene.n
    return scene.scales_of_all(torch.arange(count, device=amax.device)).amax().expand_as(amax)


def _group_t(scene: Scene, y: Tensor) -> Tensor:
    n = scene.n
    padded = torch.nn.functional.pad(y, (0, -n % 128)).view(len(y), -1, 128)
    scales = padded.abs().amax(-1).clamp(min=1e-10) / scene.fp8.max
    return (padded / scales[..., None]).view(len(y), -1)[:, :n]


def _first_group_scale(scene: Scene, y: Tensor) -> Tensor:
    return y[:, :128].abs().amax(dim=1)


def _truncate(scene: Scene, t: Tensor) -> Tensor:
    codes = encode(t, scene.fp8)
    beyond = decode(codes, scene.fp8).abs() > t.abs()
    return (codes.to(torch.int16) - beyond.to(torch.int16)).to(torch.uint8)


def _ties_away(scene: Scene, t: Tensor) -> Tensor:
    # Just outside the midpoint rounds away; values between are unaffected.
    return encode(t * (1 + 2.0**-45), scene.fp8)


def _via(fmt: FloatFormat) -> Stage:
    return lambda scene, t: round_to(t, fmt)


def _flush_codes(scene: Scene, t: Tensor) -> Tensor:
    return torch.where(t.abs() < 2.0 ** (1 - scene.fp8.bias), torch.zeros_like(t), t)


def _minus_zero(scene: Scene, t: Tensor) -> Tensor:
    codes = encode(t, scene.fp8)
    return torch.where((codes == 0) & torch.signbit(t), torch.full_like(codes, 0x80), codes)


def _unclamped(scene: Scene, t: Tensor) -> Tensor:
    return encode(t, scene.fp8, "nan")


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


def _keep(scene: Scene, value: Tensor) -> Tensor:
    return value


def _norm(scene: Scene) -> bool:
    return not scene.quant_only


def _with_residual(scene: Scene) -> bool:
    return scene.residual is not None


def _strided(scene: Scene) -> bool:
    return _norm(scene) and scene.inputs.x.dim() == 2 and not scene.inputs.x.is_contiguous()


def _ulp_up(scene: Scene, scale: Tensor) -> Tensor:
    s = scale.float()
    return torch.nextafter(s, torch.full_like(s, float("inf"))).double()


def _ulp_down(scene: Scene, scale: Tensor) -> Tensor:
    s = scale.float()
    return torch.nextafter(s, torch.zeros_like(s)).double()


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
        {"residual_from_norm": _keep},
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
        {"mean": _mean_over(_whole_vectors)},
        needs=_norm,
    ),
    Hypothesis(
        "half-wave-not-in-sum",
        "lanes 32 to 63 of every wave are missing from the sum of squares",
        {"mean": _mean_over(_lane(8))},
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
    Hypothesis(
        "qmax-of-fnuz-on-fn",
        "rows are scaled to 240, the largest e4m3fnuz value",
        {"used_scale": lambda s, a: a / 240.0},
        needs=lambda s: s.fp8.name == "e4m3fn",
    ),
    Hypothesis("qmax-224", "rows are scaled to 224", {"used_scale": lambda s, a: a / 224.0}),
    Hypothesis(
        "qmax-of-fn-on-fnuz",
        "rows are scaled to 448, the largest e4m3fn value, and clamped",
        {"used_scale": lambda s, a: a / 448.0},
        needs=lambda s: s.fp8.name == "e4m3fnuz",
    ),
    Hypothesis(
        "qmax-of-fn-unclamped",
        "rows are scaled to 448 without a clamp",
        {"used_scale": lambda s, a: a / 448.0, "encode": _unclamped},
        needs=lambda s: s.fp8.name == "e4m3fnuz",
    ),
    Hypothesis(
        "scale-stored-as-power-of-two",
        "the stored scale is rounded up to a power of two after the codes were made",
        {"scale": _power_of_two, "codes_keep_scale": _keep},
    ),
    Hypothesis(
        "scale-stored-in-bf16",
        "the stored scale is rounded to bf16",
        {"scale": lambda s, v: round_to(v, BF16), "codes_keep_scale": _keep},
    ),
    Hypothesis(
        "scale-one-ulp-up", "the stored scale is one fp32 ulp too large", {"scale": _ulp_up, "codes_keep_scale": _keep}
    ),
    Hypothesis(
        "scale-one-ulp-down",
        "the stored scale is one fp32 ulp too small",
        {"scale": _ulp_down, "codes_keep_scale": _keep},
    ),
    Hypothesis(
        "scale-is-reciprocal", "the stored scale is 1/s", {"scale": lambda s, v: 1.0 / v, "codes_keep_scale": _keep}
    ),
    Hypothesis(
        "scales-one-row-late",
        "each row stores the scale of the row before it",
        {"scale": _neighbour_scale(1), "codes_keep_scale": _keep},
    ),
    Hypothesis(
        "scales-one-row-early",
        "each row stores the scale of the row after it",
        {"scale": _neighbour_scale(-1), "codes_keep_scale": _keep},
    ),
    Hypothesis(
        "stale-last-scale",
        "the last row stores the scale of the row before it",
        {"scale": _stale_last, "codes_keep_scale": _keep},
    ),
    Hypothesis(
        "one-scale-for-the-tensor", "one scale, the largest, is used for all rows", {"used_scale": _tensor_scale}
    ),
    Hypothesis(
        "amax-of-signed-values", "amax is the maximum of y instead of |y|", {"amax": lambda s, y: y.amax(dim=1)}
    ),
    Hypothesis(
        "tail-not-in-amax", "the last n % 8 columns are missing from amax", {"amax": _amax_over(_whole_vectors)}
    ),
    Hypothesis(
        "half-wave-not-in-amax", "lanes 32 to 63 of every wave are missing from amax", {"amax": _amax_over(_lane(8))}
    ),
    Hypothesis(
        "amax-before-gamma", "amax is taken before the weight is applied", {"amax_before_gamma": _keep}, needs=_norm
    ),
    Hypothesis(
        "group-scales",
        "codes use a scale for each 128 columns and the first group's scale is stored",
        {"amax": _first_group_scale, "t": _group_t, "t_from_y": _keep},
    ),
    Hypothesis("codes-truncated", "codes are truncated toward zero", {"encode": _truncate}),
    Hypothesis("ties-away-from-zero", "ties round away from zero", {"encode": _ties_away}),
    Hypothesis("codes-through-fp16", "y/s is rounded to fp16 before FP8", {"t": _via(FP16)}),
    Hypothesis("codes-through-bf16", "y/s is rounded to bf16 before FP8", {"t": _via(BF16)}),
    Hypothesis("subnormal-codes-flushed", "subnormal codes are flushed to zero", {"t": _flush_codes}),
    Hypothesis(
        "minus-zero-is-nan",
        "negative values that round to zero are stored as 0x80, which is NaN",
        {"encode": _minus_zero},
        needs=lambda s: s.fp8.name == "e4m3fnuz",
    ),
    *(
        Hypothesis("row-offset-wraps", f"row offsets wrap at {2**e:,} elements", {"total": _wrap(2**e)}, needs=_norm)
        for e in (31, 32, 15)
    ),
)
