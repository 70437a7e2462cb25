"""Operators on arithmetic: constants a little off, operators swapped, eps elsewhere, divisions as products."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.mutants.operator import PLACES, Operator, Stage, in_float, on_place, replacing, stages_of

STEPS = range(4, 23)
"""k of the factors 1 + 2**-k and 1 - 2**-k. An fp32 number has 2**-23 between neighbours."""


def _factors() -> Iterator[tuple[str, float]]:
    for k in STEPS:
        yield f"x(1+2^-{k})", 1.0 + 2.0**-k
        yield f"x(1-2^-{k})", 1.0 - 2.0**-k


def _times(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda value: value * factor


def operators(op: str) -> Iterator[Operator]:
    """Every operator of the kind."""
    for place in PLACES[op]:
        if place.sort == "codes":
            continue
        for slug, factor in _factors():
            # A number of T has 8 or 11 significant bits: a smaller factor changes none of them.
            if place.sort == "stored" and abs(factor - 1.0) < 2.0**-12:
                continue
            yield on_place(op, place, slug, "arithmetic", f"is multiplied by {slug[1:]}", in_float(_times(factor)))
        # Of a number of T the neighbour in fp32 is the number itself.
        for slug, words, change in _UNARY[: -3 if place.sort == "stored" else None]:
            yield on_place(op, place, slug, "arithmetic", words, in_float(change))
    for name, words, stages in _SWAPPED[op](stages_of(op)):
        yield replacing(op, name, "arithmetic", words, stages)
    yield from _constants(op)


_UNARY: tuple[tuple[str, str, Callable[[Tensor], Tensor]], ...] = (
    ("negated", "changes its sign", lambda v: -v),
    ("abs", "loses its sign", lambda v: v.abs()),
    ("squared", "is squared", lambda v: v * v),
    ("doubled", "is doubled", lambda v: v * 2),
    ("plus2^-10", "has 2**-10 added", lambda v: v + 2.0**-10),
    ("plus2^-24", "has 2**-24 added", lambda v: v + 2.0**-24),
    ("next-up", "is the next number above", lambda v: torch.nextafter(v, torch.tensor(float("inf")))),
    ("next-down", "is the next number below", lambda v: torch.nextafter(v, torch.tensor(-float("inf")))),
)


def _with(w: Any, stage: Stage, **fields: object) -> None:
    """Runs the stage with other values of fields that are no tensors."""
    kept = {name: getattr(w, name) for name in fields}
    for name, value in fields.items():
        setattr(w, name, value)
    stage(w)
    for name, value in kept.items():
        setattr(w, name, value)


def _constants(op: str) -> Iterator[Operator]:
    """qmax, the clamp, the floor of amax, eps, and the divisor of the mean, each a little off."""
    if op == "ptpc_gemm":
        return
    clean = stages_of(op)
    for slug, factor in (*_factors(), ("x2", 2.0), ("x0.5", 0.5), ("x0", 0.0)):

        def scale(w: Any, factor: float = factor) -> None:
            _with(w, clean["scale"], qmax=w.qmax * factor if factor else 1.0)

        def encode(w: Any, factor: float = factor) -> None:
            _with(w, clean["encode"], clamp=None if w.clamp is None else w.clamp * factor)

        def amax(w: Any, factor: float = factor) -> None:
            floor = w.contract.amax_floor * factor
            _with(w, clean["amax"], contract=w.contract.replace(amax_floor=floor))

        def variance(w: Any, factor: float = factor) -> None:
            _with(w, clean["variance"], eps=w.eps * factor)

        def mean(w: Any, factor: float = factor) -> None:
            w.mean = w.square_sum / (w.z.shape[-1] * (factor or 1e9))

        yield replacing(op, f"qmax:{slug}", "arithmetic", f"qmax of the scale is {slug}.", {"scale": scale})
        yield replacing(op, f"clamp:{slug}", "arithmetic", f"The clamp is {slug}.", {"encode": encode})
        yield replacing(op, f"floor:{slug}", "arithmetic", f"The floor of amax is {slug}.", {"amax": amax})
        if op == "add_rmsnorm_quant":
            yield replacing(op, f"eps:{slug}", "arithmetic", f"eps is {slug}.", {"variance": variance})
            yield replacing(op, f"mean-divisor:{slug}", "arithmetic", f"The mean's divisor is {slug}.", {"mean": mean})
    for floor in (1e-12, 1e-8, 1e-5, 2.0**-126, 2.0**-9, 1.0):

        def other_floor(w: Any, floor: float = floor) -> None:
            _with(w, clean["amax"], contract=w.contract.replace(amax_floor=floor))

        yield replacing(op, f"floor:{floor:g}", "arithmetic", f"The floor of amax is {floor:g}.", {"amax": other_floor})
    for qmax in (127.0, 224.0, 240.0, 256.0, 447.0, 448.0, 464.0):

        def other_scale(w: Any, qmax: float = qmax) -> None:
            _with(w, clean["scale"], qmax=qmax)

        def other_clamp(w: Any, qmax: float = qmax) -> None:
            _with(w, clean["encode"], clamp=qmax)

        yield replacing(op, f"qmax:{qmax:g}", "arithmetic", f"qmax of the scale is {qmax:g}.", {"scale": other_scale})
        yield replacing(op, f"clamp:{qmax:g}", "arithmetic", f"The clamp is {qmax:g}.", {"encode": other_clamp})


Swapped = Iterator[tuple[str, str, Mapping[str, Stage]]]


def _set(field: str, value: Callable[[Any], Tensor]) -> Stage:
    return lambda w: setattr(w, field, value(w))


def _of_z(value: Callable[[Tensor], Tensor], w: Any) -> Tensor:
    return value(w.z)


def _of_sum(mean: Callable[[Tensor, int], Tensor], w: Any) -> Tensor:
    return mean(w.square_sum, w.z.shape[-1])


def _quant(clean: Mapping[str, Stage]) -> Swapped:
    def divided(value: Callable[[Any], Tensor]) -> Mapping[str, Stage]:
        return {"divide": _set("scaled", value)}

    def row_max(value: Callable[[Any], Tensor]) -> Mapping[str, Stage]:
        def amax(w: Any) -> None:
            clean["amax"](w)
            w.amax = value(w).clamp_min(w.contract.amax_floor)

        return {"amax": amax}

    yield "divide:quotient", "Values are divided by the scale.", divided(lambda w: w.y / w.scale)
    yield "divide:product", "Values are multiplied by the scale.", divided(lambda w: w.y * w.scale)
    yield "divide:q-over-amax", "Values are multiplied by Q/amax.", divided(lambda w: w.y * (w.qmax / w.amax))
    yield (
        "divide:times-q-over",
        "Values are multiplied by Q, then divided by amax.",
        divided(lambda w: w.y * w.qmax / w.amax),
    )
    yield (
        "divide:reciprocal-bf16",
        "The reciprocal is a bf16.",
        divided(lambda w: w.y * (1.0 / w.scale).bfloat16().float()),
    )
    yield (
        "divide:reciprocal-12bit",
        "The reciprocal has 12 bits.",
        divided(lambda w: w.y * (((1.0 / w.scale).view(torch.int32) & ~0xFFF).view(torch.float32))),
    )
    yield "scale:reciprocal", "The scale is 1/(Q/amax).", {"scale": _set("scale", lambda w: 1.0 / (w.qmax / w.amax))}
    yield "scale:quotient", "The scale is amax/Q by a division.", {"scale": _set("scale", lambda w: w.amax / w.qmax)}
    yield "scale:inverse", "The scale is Q/amax.", {"scale": _set("scale", lambda w: w.qmax / w.amax)}
    yield (
        "scale:power-of-two",
        "The scale is a power of two.",
        {"scale": _set("scale", lambda w: torch.exp2(torch.ceil(torch.log2(w.amax / w.qmax))))},
    )
    yield (
        "scale:in-double",
        "The scale is formed in float64.",
        {"scale": _set("scale", lambda w: (w.amax.double() / w.qmax).float())},
    )
    signed = {"nan": 0.0, "posinf": float("inf")}
    yield (
        "amax:signed-max",
        "amax is the largest value, not magnitude.",
        row_max(lambda w: w.y.nan_to_num(**signed).amax(-1, keepdim=True)),
    )
    yield (
        "amax:minus-min",
        "amax is minus the smallest value.",
        row_max(lambda w: -w.y.nan_to_num(**signed).amin(-1, keepdim=True)),
    )
    yield "amax:mean", "amax is the mean magnitude.", row_max(lambda w: w.y.abs().mean(-1, keepdim=True))
    yield (
        "amax:second",
        "amax is the second largest magnitude.",
        row_max(lambda w: w.y.abs().nan_to_num(0.0).topk(min(2, w.y.shape[-1]), -1)[0][:, -1:]),
    )
    yield "amax:sum", "amax is the sum of magnitudes.", row_max(lambda w: w.y.abs().sum(-1, keepdim=True))
    yield (
        "amax:first-column-larger",
        "amax weighs the first column by 1 + 2**-10.",
        row_max(lambda w: torch.maximum(w.y.abs().amax(-1, keepdim=True), w.y[:, :1].abs() * 1.0009765625)),
    )


def _norm(clean: Mapping[str, Stage]) -> Swapped:
    def added(value: Callable[[Tensor, Tensor], Tensor]) -> Mapping[str, Stage]:
        def add(w: Any) -> None:
            if w.residual is not None:
                w.total = value(w.total, w.residual.float())

        return {"add": add}

    def product(value: Callable[[Any], Tensor]) -> Mapping[str, Stage]:
        return {"normalise": _set("y", value)}

    yield "add:subtract", "The residual is subtracted.", added(lambda x, r: x - r)
    yield "add:left-out", "The residual is not added.", added(lambda x, r: x)
    yield "add:residual-alone", "The input is not added.", added(lambda x, r: r)
    yield "add:larger", "The larger of input and residual is taken.", added(torch.maximum)
    yield "add:twice", "The residual is added twice.", added(lambda x, r: x + r + r)
    yield "add:half", "Half of the residual is added.", added(lambda x, r: x + 0.5 * r)
    yield "norm_input:stored", "The norm reads the stored sum.", {"norm_input": _set("z", lambda w: w.stored.float())}
    yield (
        "norm_input:without-residual",
        "The norm reads the input alone.",
        {"norm_input": _set("z", lambda w: w.x.float())},
    )
    yield (
        "store_residual:normed-input",
        "The residual that is stored is the input.",
        {"store_residual": _set("stored", lambda w: w.x)},
    )
    sums: tuple[tuple[str, str, Callable[[Tensor], Tensor]], ...] = (
        ("abs", "Magnitudes are added, not squares.", lambda z: z.abs().sum(-1, keepdim=True)),
        ("centred", "The mean is taken away first.", lambda z: (z - z.mean(-1, keepdim=True)).square().sum(-1, True)),
        ("largest", "The largest square stands for the sum.", lambda z: z.square().amax(-1, keepdim=True)),
        ("serial", "Squares are added one by one.", lambda z: z.square().cumsum(-1)[:, -1:]),
        ("square-of-sum", "The sum is squared.", lambda z: z.sum(-1, keepdim=True).square()),
        ("in-double", "The sum is formed in float64.", lambda z: z.double().square().sum(-1, True).float()),
    )
    for name, words, value in sums:
        stage = _set("square_sum", partial(_of_z, value))
        yield f"square_sum:{name}", words, {"square_sum": stage}
    means: tuple[tuple[str, str, Callable[[Tensor, int], Tensor]], ...] = (
        ("left-out", "The mean is the sum.", lambda s, n: s),
        ("n-minus-1", "The mean divides by n - 1.", lambda s, n: s / max(1, n - 1)),
        ("n-plus-1", "The mean divides by n + 1.", lambda s, n: s / (n + 1)),
        ("reciprocal", "The mean multiplies by 1/n.", lambda s, n: s * torch.tensor(1.0 / n)),
        ("reciprocal-bf16", "1/n is a bf16.", lambda s, n: s * torch.tensor(1.0 / n).bfloat16().float()),
        ("padded-8", "n is rounded up to a multiple of 8.", lambda s, n: s / (-(-n // 8) * 8)),
        ("padded-256", "n is rounded up to a multiple of 256.", lambda s, n: s / (-(-n // 256) * 256)),
        ("padded-1024", "n is rounded up to a multiple of 1024.", lambda s, n: s / (-(-n // 1024) * 1024)),
        ("power-of-two", "n is rounded up to a power of two.", lambda s, n: s / (1 << (n - 1).bit_length())),
        ("hidden", "The mean divides by 5120 whatever n is.", lambda s, n: s / 5120),
    )
    for name, words, mean in means:
        stage = _set("mean", partial(_of_sum, mean))
        yield f"mean:{name}", words, {"mean": stage}
    eps: tuple[tuple[str, str, Callable[[Any], Tensor]], ...] = (
        ("left-out", "eps is left out.", lambda w: w.mean),
        ("subtracted", "eps is subtracted.", lambda w: w.mean - w.eps),
        ("larger", "The larger of mean and eps is taken.", lambda w: w.mean.clamp_min(w.eps)),
        ("squared", "eps is squared.", lambda w: w.mean + w.eps * w.eps),
        ("before-mean", "eps is added to the sum.", lambda w: (w.square_sum + w.eps) / w.z.shape[-1]),
        ("in-T", "eps is rounded to T.", lambda w: w.mean + torch.tensor(w.eps).to(w.x.dtype).float()),
        *(
            (f"fixed-{e:g}", f"eps is {e:g} whatever it should be.", lambda w, e=e: w.mean + e)
            for e in (1e-12, 1e-8, 1e-6, 1e-5, 1e-3)
        ),
    )
    for name, words, variance in eps:
        yield f"variance:eps-{name}", words, {"variance": _set("variance", variance)}

    def newton(v: Tensor, steps: int) -> Tensor:
        r = (0x5F3759DF - (v.view(torch.int32) >> 1)).view(torch.float32)
        for _ in range(steps):
            r = r * (1.5 - 0.5 * v * r * r)
        return r

    roots: tuple[tuple[str, str, Callable[[Any], Tensor]], ...] = (
        ("root", "The root is not inverted.", lambda w: w.variance.sqrt()),
        ("inverse", "There is no root.", lambda w: 1.0 / w.variance),
        ("eps-outside", "eps is added to the root.", lambda w: 1.0 / (w.mean.sqrt() + w.eps)),
        ("fp16", "The root is formed in fp16.", lambda w: w.variance.half().rsqrt().float()),
        *(
            (f"newton{k}", f"The root is an estimate with {k} Newton steps.", lambda w, k=k: newton(w.variance, k))
            for k in range(4)
        ),
    )
    for name, words, root in roots:
        yield f"rsqrt:{name}", words, {"rsqrt": _set("rms", root)}
    yield "gamma:plus-1", "1 is added to the weight always.", {"gamma": _set("gamma", lambda w: w.weight.float() + 1)}
    yield "gamma:never-plus-1", "1 is never added.", {"gamma": _set("gamma", lambda w: w.weight.float())}
    yield (
        "gamma:plus-1-in-T",
        "1 is added in T.",
        {"gamma": _set("gamma", lambda w: (w.weight + 1).float() if w.gemma else w.weight.float())},
    )
    yield (
        "gamma:in-bf16",
        "The weight passes through bf16.",
        {"gamma": _set("gamma", lambda w: w.weight.bfloat16().float() + (1.0 if w.gemma else 0.0))},
    )
    yield "normalise:no-weight", "The weight is left out.", product(lambda w: w.z * w.rms)
    yield "normalise:no-root", "The root is left out.", product(lambda w: w.z * w.gamma)
    yield "normalise:sum", "The weight is added.", product(lambda w: w.z * w.rms + w.gamma)
    yield "normalise:weight-first", "Root and weight are multiplied first.", product(lambda w: w.rms * w.gamma * w.z)
    yield "normalise:divided", "Values are divided by the root.", product(lambda w: w.z / (1.0 / w.rms) * w.gamma)
    yield (
        "normalise:T-then-weight",
        "Normalised values are rounded to T.",
        product(lambda w: (w.z * w.rms).to(w.x.dtype).float() * w.gamma),
    )
    yield (
        "normalise:clipped-gain",
        "Weights above 2 are held to 2.",
        product(lambda w: w.z * w.rms * w.gamma.clamp(-2, 2)),
    )
    yield from _quant(clean)


def _gemm(clean: Mapping[str, Stage]) -> Swapped:
    def scaled(value: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Mapping[str, Stage]:
        return {"scale": _set("value", lambda w: value(w.accumulator, w.a_scale.view(-1, 1), w.b_scale.view(1, -1)))}

    def biased(value: Callable[[Any, Tensor], Tensor]) -> Mapping[str, Stage]:
        def bias(w: Any) -> None:
            if w.bias is not None:
                w.value = value(w, w.bias.float())

        return {"bias": bias}

    yield "scale:no-token", "The scale of the token is left out.", scaled(lambda v, r, c: v * c)
    yield "scale:no-channel", "The scale of the channel is left out.", scaled(lambda v, r, c: v * r)
    yield "scale:divided", "The sum is divided by the token's scale.", scaled(lambda v, r, c: v / r * c)
    yield "scale:first-token", "The first token's scale serves all.", scaled(lambda v, r, c: v * r[:1] * c)
    yield "scale:first-channel", "The first channel's scale serves all.", scaled(lambda v, r, c: v * r * c[:, :1])
    yield "scale:product-first", "The scales are multiplied first.", scaled(lambda v, r, c: v * (r * c))
    yield (
        "scale:product-bf16",
        "The product of the scales is a bf16.",
        scaled(lambda v, r, c: v * (r * c).bfloat16().float()),
    )
    yield (
        "scale:product-fp16",
        "The product of the scales is an fp16.",
        scaled(lambda v, r, c: v * (r * c).half().float()),
    )
    yield (
        "scale:powers",
        "Scales are rounded to powers of two.",
        scaled(lambda v, r, c: v * torch.exp2(torch.log2(r).round()) * c),
    )
    yield "bias:left-out", "The bias is left out.", biased(lambda w, b: w.value)
    yield "bias:subtracted", "The bias is subtracted.", biased(lambda w, b: w.value - b)
    yield "bias:twice", "The bias is added twice.", biased(lambda w, b: w.value + b + b)
    yield (
        "bias:before-scales",
        "The bias is added before the scales.",
        biased(lambda w, b: (w.accumulator + b) * w.a_scale.view(-1, 1) * w.b_scale.view(1, -1)),
    )
    yield (
        "bias:after-store",
        "The bias is added after the store.",
        biased(lambda w, b: w.value.to(w.out.dtype).float() + b),
    )
    yield "bias:first-channel", "The first channel's bias serves all.", biased(lambda w, b: w.value + b[:1])
    yield (
        "accumulate:no-last-32",
        "The last 32 products are lost.",
        {"accumulate": _set("accumulator", lambda w: w.a_value[:, :-32] @ w.b_value[:, :-32].t())},
    )
    yield (
        "accumulate:whole",
        "One matrix multiplication adds everything.",
        {"accumulate": _set("accumulator", lambda w: w.a_value @ w.b_value.t())},
    )
    yield (
        "accumulate:in-double",
        "Products are added in float64.",
        {"accumulate": _set("accumulator", lambda w: (w.a_value.double() @ w.b_value.double().t()).float())},
    )
    yield (
        "accumulate:magnitudes",
        "Magnitudes are multiplied.",
        {"accumulate": _set("accumulator", lambda w: w.a_value.abs() @ w.b_value.abs().t())},
    )
    yield (
        "store:relu",
        "Negative outputs are zeros.",
        {"store": _set("stored", lambda w: w.value.clamp_min(0).to(w.out.dtype))},
    )


_SWAPPED: Mapping[str, Callable[[Mapping[str, Stage]], Swapped]] = {
    "add_rmsnorm_quant": _norm,
    "per_token_quant": _quant,
    "ptpc_gemm": _gemm,
}
