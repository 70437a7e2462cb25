"""Which known defect, or which other contract, would have produced these outputs? For the two quantizing ops.

A hypothesis replaces one stage of a small float64 evaluation; it explains the violations if its
predictions meet what the kernel gave, in the violating elements and in the others. This is diagnosis, not judgement: the
verdict has fallen before, and nothing here can change it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reference import budgets
from reference.contract import NORM_QUANT_CONTRACTS, NormQuantContract
from reference.formats import BF16, FP16, FloatFormat, bytes_of, decode, encode, format_of, round_fp32, round_to
from reference.quantize import scale_of
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
    inputs: NormQuantInputs | QuantInputs = field(repr=False)
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
    codes: Callable[[Tensor], Tensor]
    overwritten: Tensor | None = None


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

    qmax = contract.qmax(scene.fp8.name)
    residual = None
    if scene.quant_only:
        y = stage("y", scene.x)
        z = rms = y
    else:
        total = scene.x if scene.residual is None else round_fp32(scene.x + scene.residual)
        total = stage("total", total)
        residual = None
        if scene.residual is not None:
            residual = round_to(total, scene.storage, contract.residual_store)
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
    # Where NaN is unspecified, hardware maxima ignore it and a clamp turns it into -Q (numerics.md 1).
    drops_nan = contract.nonfinite == "unspecified"
    amax = (y.nan_to_num(nan=0.0, posinf=float("inf"), neginf=-float("inf")) if drops_nan else y).abs().amax(dim=1)
    if "amax" in stages:
        amax = stages["amax"](scene, y)
    if "amax_before_gamma" in stages:
        amax = (z * rms[:, None]).abs().amax(dim=1)
    used = stages["used_scale"](scene, amax) if "used_scale" in stages else scale_of(amax, contract, qmax)
    stored = stage("scale", used)
    divisor = used if "codes_keep_scale" in stages or "scale" not in stages else stored
    t = round_fp32(y / divisor[:, None])
    if "t" in stages:
        t = stages["t"](scene, y if "t_from_y" in stages else t)
    if drops_nan and contract.overflow == "saturate":
        t = torch.where(t.isnan(), torch.full_like(t, -qmax), t)
    maximum = qmax if contract.overflow == "saturate" else float("inf")

    def codes(values: Tensor) -> Tensor:
        if "encode" in stages:
            return stages["encode"](scene, values)
        return encode(values.clamp(-maximum, maximum), scene.fp8, contract.overflow)

    return Prediction(residual, stored, t, codes)


# ---- stages


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
    assert isinstance(scene.inputs, NormQuantInputs)
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
    assert isinstance(scene.inputs, NormQuantInputs)
    view = scene.weight.view(scene.inputs.x.dtype)[: scene.n].double()
    return view + 1.0 if scene.inputs.gemma else view


def _interleaved(scene: Scene, w: Tensor) -> Tensor:
    return w.view(2, scene.n // 16, 8).transpose(0, 1).reshape(-1)


def _power_of_two(scene: Scene, scale: Tensor) -> Tensor:
    return torch.exp2(torch.log2(scale).ceil())


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
        assert isinstance(scene.inputs, NormQuantInputs)
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
    assert isinstance(scene.inputs, NormQuantInputs)
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
    Hypothesis("residual-truncated", "the residual is stored by truncation toward zero", contract={"residual_store": "truncate"}, needs=_with_residual),
    Hypothesis("residual-rounded", "the residual is stored by rounding to nearest even", contract={"residual_store": "rne"}, needs=_with_residual),
    Hypothesis("norm-of-stored-residual", "the residual is rounded before the norm", contract={"norm_input": "stored"}, needs=_with_residual),
    Hypothesis("norm-of-unrounded-sum", "the norm uses the unrounded fp32 sum", contract={"norm_input": "unrounded"}, needs=_with_residual),
    Hypothesis("norm-rounded-to-storage", "the products of the norm are rounded to the storage type", contract={"round_after_normalize": True, "round_after_weight": True}, needs=_norm),
    Hypothesis("y-rounded-to-storage", "y is rounded to the storage type before the quantizer", contract={"round_after_weight": True, "round_after_normalize": False}, needs=_norm),
    Hypothesis("y-not-rounded", "y stays fp32 between norm and quantizer", contract={"round_after_weight": False, "round_after_normalize": False}, needs=_norm),
    Hypothesis("scale-multiplied", "the scale is amax * fl32(1/Q)", contract={"scale_rule": "multiply"}),
    Hypothesis("scale-divided", "the scale is amax / Q", contract={"scale_rule": "divide"}),
    Hypothesis("no-amax-floor", "amax has no floor", contract={"amax_floor": 0.0, "scale_floor_divisor": None}),
    Hypothesis("amax-floor-1e-10", "amax has the floor 1e-10", contract={"amax_floor": 1e-10}),
    Hypothesis("amax-floor-1e-12", "amax has the floor 1e-12", contract={"amax_floor": 1e-12}),
    Hypothesis("scale-floor", "the scale has the floor 1/(512 Q)", contract={"scale_floor_divisor": 512.0}),
    Hypothesis("zero-scale-one", "an all-zero row stores scale 1", contract={"zero_scale": 1.0, "amax_floor": 0.0}),
    Hypothesis("residual-not-added", "residual_out holds the incoming residual", {"residual": lambda s, v: s.residual if s.residual is not None else v}, needs=_with_residual),
    Hypothesis("residual-is-x", "residual_out holds x", {"residual": lambda s, v: s.x}, needs=_with_residual),
    Hypothesis("residual-ignored-by-norm", "the norm is taken of x alone", {"z": lambda s, z: s.x}, needs=_with_residual),
    Hypothesis("norm-of-residual-alone", "the norm is taken of the residual alone", {"z": lambda s, z: s.residual if s.residual is not None else z}, needs=_with_residual),
    Hypothesis("residual-added-twice", "the residual is added twice", {"total": lambda s, v: v + s.residual if s.residual is not None else v}, needs=_with_residual),
    Hypothesis("residual-missing", "the residual is not added at all", {"total": lambda s, v: s.x}, needs=_with_residual),
    Hypothesis("residual-overwritten", "columns 16 to 23 of residual_out hold normalised values", {"residual_from_norm": _keep}, needs=_with_residual),
    Hypothesis("mean-of-padded-row", "the mean divides by n rounded up to a multiple of 1024", {"mean": lambda s, v: v * s.n / (-(-s.n // 1024) * 1024)}, needs=_norm),
    Hypothesis("tail-not-in-sum", "the last n % 8 columns are missing from the sum of squares", {"mean": _mean_over(_whole_vectors)}, needs=_norm),
    Hypothesis("half-wave-not-in-sum", "lanes 32 to 63 of every wave are missing from the sum of squares", {"mean": _mean_over(_lane(8))}, needs=_norm),
    Hypothesis("next-row-in-sum", "the first element of the next row enters the sum of squares", {"mean": _next_first}, needs=_with_residual),
    Hypothesis("no-eps", "eps is left out", {"eps": _eps(0.0)}, needs=_norm),
    Hypothesis("eps-after-root", "eps is added after the square root", {"rms": _rms_outside}, needs=_norm),
    *(Hypothesis("fixed-eps", f"eps is fixed at {e:g}", {"eps": _eps(e)}, needs=_norm) for e in (1e-6, 1e-5, 1e-4, 1e-8, 1e-12)),
    Hypothesis("relative-eps", "eps is multiplied by the squared row maximum", {"eps": _relative_eps}, needs=_norm),
    Hypothesis("rms-in-bf16", "the reciprocal rms is rounded to bf16", {"rms": _bf16_rms}, needs=_norm),
    Hypothesis("gamma-plus-one", "the weight is taken as 1 + weight", {"w": lambda s, w: w + 1.0}, needs=_norm),
    Hypothesis("gamma-not-plus-one", "the weight is taken without adding 1", {"w": lambda s, w: w - 1.0}, needs=lambda s: isinstance(s.inputs, NormQuantInputs) and s.inputs.gemma),
    Hypothesis("gamma-dropped", "the weight is not applied", {"w": lambda s, w: torch.ones_like(w)}, needs=_norm),
    Hypothesis("gamma-rounded", "the fp32 weight is rounded to the storage type", {"w": lambda s, w: round_to(w, s.storage)}, needs=lambda s: s.weight is not None and s.weight.dtype == torch.float32),
    Hypothesis("gamma-bytes-misread", "the fp32 weight's bytes are read as the storage type", {"w": _bytes_misread}, needs=lambda s: s.weight is not None and s.weight.dtype == torch.float32),
    Hypothesis("gamma-not-interleaved", "the weight is read in order while x is interleaved over the lanes", {"w": _interleaved}, needs=lambda s: _norm(s) and s.n % 16 == 0),
    Hypothesis("x-stride-ignored", "x is read with row stride n", {"total": _x_stride_ignored}, needs=_strided),
    Hypothesis("residual-read-with-x-stride", "the residual is read with the row stride of x", {"total": _residual_with_x_stride}, needs=lambda s: _strided(s) and _with_residual(s)),
    Hypothesis("qmax-of-fnuz-on-fn", "rows are scaled to 240, the largest e4m3fnuz value", {"used_scale": lambda s, a: a / 240.0}, needs=lambda s: s.fp8.name == "e4m3fn"),
    Hypothesis("qmax-224", "rows are scaled to 224", {"used_scale": lambda s, a: a / 224.0}),
    Hypothesis("qmax-of-fn-on-fnuz", "rows are scaled to 448, the largest e4m3fn value, and clamped", {"used_scale": lambda s, a: a / 448.0}, needs=lambda s: s.fp8.name == "e4m3fnuz"),
    Hypothesis("qmax-of-fn-unclamped", "rows are scaled to 448 without a clamp", {"used_scale": lambda s, a: a / 448.0, "encode": _unclamped}, needs=lambda s: s.fp8.name == "e4m3fnuz"),
    Hypothesis("scale-stored-as-power-of-two", "the stored scale is rounded up to a power of two after the codes were made", {"scale": _power_of_two, "codes_keep_scale": _keep}),
    Hypothesis("scale-stored-in-bf16", "the stored scale is rounded to bf16", {"scale": lambda s, v: round_to(v, BF16), "codes_keep_scale": _keep}),
    Hypothesis("scale-one-ulp-up", "the stored scale is one fp32 ulp too large", {"scale": _ulp_up, "codes_keep_scale": _keep}),
    Hypothesis("scale-one-ulp-down", "the stored scale is one fp32 ulp too small", {"scale": _ulp_down, "codes_keep_scale": _keep}),
    Hypothesis("scale-is-reciprocal", "the stored scale is 1/s", {"scale": lambda s, v: 1.0 / v, "codes_keep_scale": _keep}),
    Hypothesis("scales-one-row-late", "each row stores the scale of the row before it", {"scale": _neighbour_scale(1), "codes_keep_scale": _keep}),
    Hypothesis("scales-one-row-early", "each row stores the scale of the row after it", {"scale": _neighbour_scale(-1), "codes_keep_scale": _keep}),
    Hypothesis("stale-last-scale", "the last row stores the scale of the row before it", {"scale": _stale_last, "codes_keep_scale": _keep}),
    Hypothesis("one-scale-for-the-tensor", "one scale, the largest, is used for all rows", {"used_scale": _tensor_scale}),
    Hypothesis("amax-of-signed-values", "amax is the maximum of y instead of |y|", {"amax": lambda s, y: y.amax(dim=1)}),
    Hypothesis("tail-not-in-amax", "the last n % 8 columns are missing from amax", {"amax": _amax_over(_whole_vectors)}),
    Hypothesis("half-wave-not-in-amax", "lanes 32 to 63 of every wave are missing from amax", {"amax": _amax_over(_lane(8))}),
    Hypothesis("amax-before-gamma", "amax is taken before the weight is applied", {"amax_before_gamma": _keep}, needs=_norm),
    Hypothesis("group-scales", "codes use a scale for each 128 columns and the first group's scale is stored", {"amax": _first_group_scale, "t": _group_t, "t_from_y": _keep}),
    Hypothesis("codes-truncated", "codes are truncated toward zero", {"encode": _truncate}),
    Hypothesis("ties-away-from-zero", "ties round away from zero", {"encode": _ties_away}),
    Hypothesis("codes-through-fp16", "y/s is rounded to fp16 before FP8", {"t": _via(FP16)}),
    Hypothesis("codes-through-bf16", "y/s is rounded to bf16 before FP8", {"t": _via(BF16)}),
    Hypothesis("subnormal-codes-flushed", "subnormal codes are flushed to zero", {"t": _flush_codes}),
    Hypothesis("minus-zero-is-nan", "negative values that round to zero are stored as 0x80, which is NaN", {"encode": _minus_zero}, needs=lambda s: s.fp8.name == "e4m3fnuz"),
    *(Hypothesis("row-offset-wraps", f"row offsets wrap at {2**e:,} elements", {"total": _wrap(2**e)}, needs=_norm) for e in (31, 32, 15)),
    *(Hypothesis(f"contract {name}", f"it is judged under the contract {name!r}", contract={f: getattr(c, f) for f in ("norm_input", "residual_store", "round_after_normalize", "round_after_weight", "amax_floor", "scale_rule", "scale_floor_divisor", "zero_scale", "division", "fnuz_max", "overflow")}) for name, c in NORM_QUANT_CONTRACTS.items()),
)  # fmt: skip


def make_scene(
    inputs: NormQuantInputs | QuantInputs, outputs: NormQuantOutputs | QuantOutputs, rows: Tensor,
    contract: NormQuantContract,
) -> Scene:  # fmt: skip
    """A scene of the given global rows (int64 [m])."""
    n = inputs.x.shape[-1]
    device = inputs.x.device
    x = inputs.x.reshape(-1, n)
    norm = inputs if isinstance(inputs, NormQuantInputs) else None
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
            rows=which, x=x[which].double(),
            residual=norm.residual.reshape(-1, n)[which].double() if norm and norm.residual is not None else None,
            weight=norm.weight if norm else None, w=w, eps=norm.eps if norm else 0.0,
            fp8=format_of(inputs.fp8_dtype), storage=format_of(inputs.x.dtype),
            codes=bytes_of(outputs.codes).reshape(-1, n)[which], scale=outputs.scale.reshape(-1)[which].double(),
            stored=None if stored is None else stored.reshape(-1, n)[which].double(), quant_only=norm is None,
            inputs=inputs, scales_of_all=scales,
        )  # fmt: skip

    return scene_of(rows)


def tolerances(scene: Scene, contract: NormQuantContract) -> tuple[float, float]:
    """(relative width of a scale, of t) within which a prediction counts as met: the contract's own budgets."""
    qmax = contract.qmax(scene.fp8.name)
    step = budgets.scale_step_budget(contract, qmax).bound
    if scene.quant_only:
        return 0.25 * budgets.U, 0.0
    rms = budgets.rms_budget(contract, scene.n) + budgets.multiply_budget(contract, gemma=False)
    return rms.bound + step, budgets.code_budget(contract, qmax, gemma=False).bound


def met(scene: Scene, prediction: Prediction, widths: tuple[float, float]) -> dict[str, Tensor]:
    """Which elements of each output the prediction meets: bool tensors."""
    scale_width, t_width = widths
    found = {
        "scale": ((scene.scale - prediction.scale).abs() <= scale_width * prediction.scale.abs())
        | (scene.scale.isnan() & prediction.scale.isnan())
    }
    got = decode(scene.codes, scene.fp8)
    ends = [decode(prediction.codes(prediction.t * (1 + d * t_width)), scene.fp8) for d in (-1.0, 1.0)]
    inside = (got >= torch.minimum(*ends)) & (got <= torch.maximum(*ends))
    found["codes"] = inside | (got.isnan() & (ends[0].isnan() | ends[1].isnan()))
    if scene.stored is not None and prediction.residual is not None:
        found["residual_out"] = (scene.stored == prediction.residual) | (
            scene.stored.isnan() & prediction.residual.isnan()
        )
    return found


def scale_distance(scene: Scene, prediction: Prediction) -> float:
    """Median relative distance of the kernel's scales from the predicted ones, in whole units of u."""
    distance = ((scene.scale - prediction.scale).abs() / prediction.scale.abs()).nan_to_num(nan=1.0, posinf=1.0)
    return float((distance.median() / budgets.U).floor())
