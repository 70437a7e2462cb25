"""The known defects of how rows are scaled and encoded, for both ops that quantize; see ``norm``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from reference.formats import BF16, FP16, FloatFormat, decode, encode, round_to
from validators.explain.scene import Hypothesis, Scene, Stage

_FRACTION = (1 << 52) - 1  # bits of a float64's fraction


def lower_lanes(width: int) -> Callable[[Scene], Tensor]:
    """Columns of lanes 0 to 31 of every wave that loads ``width`` neighbours per lane, bool [n]."""

    def keep(scene: Scene) -> Tensor:
        column = torch.arange(scene.n, device=scene.x.device)
        return (column // width) % 64 < 32

    return keep


def whole_vectors(scene: Scene) -> Tensor:
    """Columns of whole vectors of 8, bool [n]."""
    return torch.arange(scene.n, device=scene.x.device) < scene.n // 8 * 8


def _amax_over(keep: Callable[[Scene], Tensor]) -> Stage:
    return lambda scene, y: (y.abs() * keep(scene)).amax(dim=1)


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


def keep(scene: Scene, value: Tensor) -> Tensor:
    """The value as it is: a stage whose name alone says what changes."""
    return value


def _ulp_up(scene: Scene, scale: Tensor) -> Tensor:
    s = scale.float()
    return torch.nextafter(s, torch.full_like(s, float("inf"))).double()


def _ulp_down(scene: Scene, scale: Tensor) -> Tensor:
    s = scale.float()
    return torch.nextafter(s, torch.zeros_like(s)).double()


QUANTIZER: tuple[Hypothesis, ...] = (
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
        {"scale": _power_of_two, "codes_keep_scale": keep},
    ),
    Hypothesis(
        "scale-stored-in-bf16",
        "the stored scale is rounded to bf16",
        {"scale": lambda s, v: round_to(v, BF16), "codes_keep_scale": keep},
    ),
    Hypothesis(
        "scale-one-ulp-up", "the stored scale is one fp32 ulp too large", {"scale": _ulp_up, "codes_keep_scale": keep}
    ),
    Hypothesis(
        "scale-one-ulp-down",
        "the stored scale is one fp32 ulp too small",
        {"scale": _ulp_down, "codes_keep_scale": keep},
    ),
    Hypothesis(
        "scale-is-reciprocal", "the stored scale is 1/s", {"scale": lambda s, v: 1.0 / v, "codes_keep_scale": keep}
    ),
    Hypothesis(
        "scales-one-row-late",
        "each row stores the scale of the row before it",
        {"scale": _neighbour_scale(1), "codes_keep_scale": keep},
    ),
    Hypothesis(
        "scales-one-row-early",
        "each row stores the scale of the row after it",
        {"scale": _neighbour_scale(-1), "codes_keep_scale": keep},
    ),
    Hypothesis(
        "stale-last-scale",
        "the last row stores the scale of the row before it",
        {"scale": _stale_last, "codes_keep_scale": keep},
    ),
    Hypothesis(
        "one-scale-for-the-tensor", "one scale, the largest, is used for all rows", {"used_scale": _tensor_scale}
    ),
    Hypothesis(
        "amax-of-signed-values", "amax is the maximum of y instead of |y|", {"amax": lambda s, y: y.amax(dim=1)}
    ),
    Hypothesis("tail-not-in-amax", "the last n % 8 columns are missing from amax", {"amax": _amax_over(whole_vectors)}),
    Hypothesis(
        "half-wave-not-in-amax",
        "lanes 32 to 63 of every wave are missing from amax",
        {"amax": _amax_over(lower_lanes(8))},
    ),
    Hypothesis(
        "amax-before-gamma",
        "amax is taken before the weight is applied",
        {"amax_before_gamma": keep},
        needs=lambda s: not s.quant_only,
    ),
    Hypothesis(
        "group-scales",
        "codes use a scale for each 128 columns and the first group's scale is stored",
        {"amax": _first_group_scale, "t": _group_t, "t_from_y": keep},
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
)
