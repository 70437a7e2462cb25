"""Emulated kernels: any declared arithmetic, executed in fp32 PyTorch with explicit rounding points.

They replace hardware on a machine that has none, and they are the clean kernels from which the
zoo of defects is made. Their bits depend on no machine: every operation is a comparison, an integer operation, or one
that IEEE 754 rounds in one way only, and sums run in an order of their own
(``tests/suite/reference/test_primitives.py``).
Nothing here is shared with the float64 reference but the contract itself: the roundings, the FP8 encoder and the order
of every operation are written a second time, so that one mistake cannot hide in both paths.

A kernel is a list of named stages, each of which reads and sets fields of a ``Work`` (one chunk of
rows). Replacing a stage gives another kernel; a ``Variant`` only picks among freedoms that the
contract leaves open.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from reference.contract import NORM_QUANT_CONTRACTS, NormQuantContract
from validators.cases.op import op_named
from validators.cases.tensors import Inputs, NormQuantOutputs, Outputs, QuantOutputs
from validators.kernels.emulated_rounding import (
    MIN_NORMAL,
    constant,
    directed,
    encode,
    reciprocal_root,
    round_to,
    square_root,
    truncate_to,
)
from validators.kernels.emulated_variant import DEFAULT, FP8_NAMES, STAND_IN, EmulatedError, Variant, illegal, versions
from validators.kernels.kernel import Kernel

# A chunk's fp32 temporaries stay in the second-level cache of a core. A GPU wants few and large launches: a 135M model
# over 12,000 tokens took 5.6 s per pass there with a CPU's chunks, nearly all of it launches of a norm's forty stages.
_CHUNK_ELEMENTS = 1 << 17
_GPU_CHUNK_ELEMENTS = 1 << 25


@dataclass
class Work:
    """One chunk of rows on its way through the stages. x, residual: [m, n] T; weight: [n]; the rest is fp32.

    total = fl32(x + r); stored: T; z, y: [m, n]; square_sum, mean, variance, rms, amax, scale: [m, 1].
    qmax: value that the scale maps a row's amax to. clamp: magnitude that scaled values are held to,
    None for no clamp. codes: uint8. out_*: where ``write`` puts results; out_residual is None without a residual.
    """

    contract: NormQuantContract
    variant: Variant
    fp8: str
    x: Tensor
    out_codes: Tensor
    out_scale: Tensor
    qmax: float
    clamp: float | None
    residual: Tensor | None = None
    weight: Tensor | None = None
    eps: float = 0.0
    gemma: bool = False
    out_residual: Tensor | None = None
    total: Tensor = field(init=False)
    stored: Tensor = field(init=False)
    z: Tensor = field(init=False)
    square_sum: Tensor = field(init=False)
    mean: Tensor = field(init=False)
    variance: Tensor = field(init=False)
    rms: Tensor = field(init=False)
    gamma: Tensor = field(init=False)
    y: Tensor = field(init=False)
    amax: Tensor = field(init=False)
    bad: Tensor = field(init=False)
    scale: Tensor = field(init=False)
    scaled: Tensor = field(init=False)
    codes: Tensor = field(init=False)


Stage = Callable[[Work], None]


def _flushed(w: Work, value: Tensor) -> Tensor:
    """The value as an operation of the variant reads or writes it; a flushed number keeps its sign."""
    return torch.where(value.abs() < MIN_NORMAL, value * 0.0, value) if w.variant.flush else value


def _load(w: Work) -> None:
    w.total = w.x.float()


def _add(w: Work) -> None:
    if w.residual is not None:
        w.total = _flushed(w, _flushed(w, w.total) + _flushed(w, w.residual.float()))


def _store_residual(w: Work) -> None:
    rule = w.contract.residual_store
    truncates = rule == "truncate" or (rule == "truncate_bf16" and w.x.dtype == torch.bfloat16)
    store = truncate_to if truncates else round_to
    w.stored = w.x if w.residual is None else store(w.total, w.x.dtype)


def _norm_input(w: Work) -> None:
    w.z = _flushed(w, w.stored.float() if w.contract.norm_input == "stored" else w.total)


def chain_length(contract: NormQuantContract, variant: Variant, n: int) -> int:
    """Terms that ``variant`` adds in sequence in a row of ``n``, held to what the contract allows."""
    reduction = contract.reduction
    limit = {"any": n, "serial": reduction.count, "lanes": n // max(1, reduction.count)}[reduction.kind]
    wish = {"tree": 1, "torch_sum": 1, "chunks": variant.chain or limit, "lanes": -(-n // variant.lanes)}[variant.order]
    return max(1, min(wish, limit, n))


def _tree(partials: Tensor, adjacent: bool) -> Tensor:
    width = partials.shape[-1]
    half = 1 << max(0, (width - 1).bit_length() - 1)
    if adjacent:
        partials = torch.nn.functional.pad(partials, (0, 2 * half - width)) if width > 1 else partials
        while partials.shape[-1] > 1:
            partials = partials[:, 0::2] + partials[:, 1::2]
        return partials
    # Folding the part beyond the largest power of two first equals padding with zeros.
    while width > 1:
        partials = torch.cat([partials[:, : width - half] + partials[:, half:], partials[:, width - half : half]], 1)
        width, half = half, half // 2
    return partials


def _square_sum(w: Work) -> None:
    z, v = w.z, w.variant
    n = z.shape[-1]
    if v.arrangement == "reversed":
        z = z.flip(-1)
    elif v.arrangement == "permuted":
        # 2654435761 is prime, so its multiples visit every index modulo any n in use once.
        z = z[:, torch.arange(n, device=z.device) * 2654435761 % n]
    if v.order == "torch_sum":
        w.square_sum = (z * z).sum(-1, keepdim=True)
        return
    chain = chain_length(w.contract, v, n)
    if chain == 1:
        w.square_sum = _flushed(w, _tree(_flushed(w, z * z), v.adjacent))
        return
    partials = -(-n // chain)
    padded = torch.nn.functional.pad(z, (0, partials * chain - n))
    steps = padded.view(-1, partials, chain).unbind(-1) if v.order == "chunks" else padded.split(partials, -1)
    total = steps[0] * steps[0]
    for term in steps[1:]:
        # float64 holds the square exactly, so only the sum is rounded, as an FMA does.
        total = (total.double() + term.double() * term.double()).float() if v.fma else total + term * term
    w.square_sum = _tree(total, v.adjacent)


def _mean(w: Work) -> None:
    n = constant(w.z.shape[-1], w.square_sum)
    w.mean = w.square_sum / n if w.variant.mean == "divide" else w.square_sum * (1.0 / n)


def _variance(w: Work) -> None:
    w.variance = w.mean + constant(w.eps, w.mean)


def _rsqrt(w: Work) -> None:
    kind = w.variant.rsqrt
    if kind == "sqrt_divide":
        w.rms = constant(1.0, w.variance) / square_root(w.variance)
    elif kind == "native":
        w.rms = w.variance.rsqrt()
    else:
        w.rms = reciprocal_root(w.variance, kind)


def _gamma(w: Work) -> None:
    assert w.weight is not None
    w.gamma = w.weight.float() + 1.0 if w.gemma else w.weight.float()


def _normalise(w: Work) -> None:
    gamma = _flushed(w, w.gamma)
    if w.variant.product == "weight_first":
        w.y = _flushed(w, w.rms * gamma).mul_(w.z)
    else:
        w.y = _flushed(w, w.z * w.rms)
        if w.contract.round_after_normalize:
            w.y = _flushed(w, round_to(w.y, w.x.dtype).float())
        w.y *= gamma
    w.y = _flushed(w, w.y)
    if w.contract.round_after_weight:
        w.y = round_to(w.y, w.x.dtype).float()


def _take_input(w: Work) -> None:
    w.y = _flushed(w, w.x.float())


def _amax(w: Work) -> None:
    w.amax = w.y.abs().amax(-1, keepdim=True)
    w.bad = ~w.amax.isfinite()
    if bool(w.bad.any()):
        # fmax and v_max3 return the operand that is a number.
        w.amax = w.y.abs().nan_to_num(nan=0.0, posinf=float("inf")).amax(-1, keepdim=True)
    w.amax.clamp_min_(w.contract.amax_floor)


def _scale(w: Work) -> None:
    c, q = w.contract, constant(w.qmax, w.amax)
    factor = 1.0 / q
    if w.variant.scale != "nearest":
        exact = w.amax.double() * factor.double() if c.scale_rule == "multiply" else w.amax.double() / q.double()
        w.scale = directed(exact, w.variant.scale, w.amax > 0)
    else:
        w.scale = w.amax * factor if c.scale_rule == "multiply" else w.amax / q
    w.scale = _flushed(w, w.scale)
    if c.scale_floor_divisor is not None:
        w.scale = torch.maximum(w.scale, 1.0 / constant(w.qmax * c.scale_floor_divisor, w.amax))
    if c.round_scale:
        w.scale = round_to(w.scale, w.x.dtype).float()
    if c.zero_scale is not None:
        # The step from 1 to the next number: 8 significant bits in bf16, 11 in fp16.
        value = (2.0**-7 if w.x.dtype == torch.bfloat16 else 2.0**-10) if c.zero_scale == "eps" else c.zero_scale
        w.scale = torch.where(w.scale == 0, value, w.scale)


def _divide(w: Work) -> None:
    if w.contract.division == "divide":
        w.scaled = w.y / w.scale
    elif w.variant.reciprocal == "nearest":
        w.scaled = w.y * (constant(1.0, w.scale) / w.scale)
    else:
        w.scaled = w.y * directed(1.0 / w.scale.double(), w.variant.reciprocal, w.scale >= MIN_NORMAL)
    if w.contract.zero_scale == 0.0:
        # A zero divided by a scale of 0 is a zero: an all-zero row has zero codes, whatever its scale.
        w.scaled = torch.where(w.y == 0, 0.0, w.scaled)
    if w.contract.round_quotient:
        w.scaled = round_to(w.scaled, w.x.dtype).float()


def _encode(w: Work) -> None:
    if w.clamp is not None:
        w.scaled = w.scaled.clamp(-w.clamp, w.clamp)
        if w.contract.nonfinite == "unspecified":
            # v_med3_f32 returns the smallest operand when one is NaN.
            w.scaled = w.scaled.nan_to_num_(nan=-w.clamp)
    w.codes = encode(w.scaled, w.fp8, "nan" if w.clamp is None else "saturate")


def _special_rows(w: Work) -> None:
    if w.contract.nonfinite == "propagate" and bool(w.bad.any()):
        w.scale = w.scale.masked_fill(w.bad, float("nan"))
        w.codes = w.codes.masked_fill(w.bad, 0x7F if w.fp8 == "e4m3fn" else 0x80)


def _write(w: Work) -> None:
    w.out_codes.copy_(w.codes)
    w.out_scale.copy_(w.scale)
    if w.out_residual is not None:
        w.out_residual.copy_(w.stored)


_QUANT_STAGES: dict[str, Stage] = {
    "amax": _amax,
    "scale": _scale,
    "divide": _divide,
    "encode": _encode,
    "special_rows": _special_rows,
    "write": _write,
}
STAGES: dict[str, dict[str, Stage]] = {
    "add_rmsnorm_quant": {
        "load": _load,
        "add": _add,
        "store_residual": _store_residual,
        "norm_input": _norm_input,
        "square_sum": _square_sum,
        "mean": _mean,
        "variance": _variance,
        "rsqrt": _rsqrt,
        "gamma": _gamma,
        "normalise": _normalise,
        **_QUANT_STAGES,
    },
    "per_token_quant": {"load": _take_input, **_QUANT_STAGES},
}
"""The stages of each op, by name, in the order in which they run."""


def _rows(buffer: Tensor, what: str) -> Tensor:
    try:
        return buffer.view(-1, buffer.shape[-1])
    except RuntimeError:
        raise EmulatedError(f"buffer {what} with strides {buffer.stride()} has no uniform row stride") from None


def execute(
    inputs: Any,
    buffers: Any,
    contract: NormQuantContract,
    variant: Variant = DEFAULT,
    *,
    stages: Mapping[str, Stage] | None = None,
) -> NormQuantOutputs | QuantOutputs:
    """Runs ``contract`` on norm or quant ``inputs``, writes into ``buffers`` (None: new tensors) and returns them.

    stages: replacements by stage name; all rows are then one chunk, so that a stage sees the whole tensor.
    Raises EmulatedError for inputs of another op, an unknown stage, dtype or buffer layout.
    """
    op = inputs.op
    if op not in STAGES:
        raise EmulatedError(f"expected inputs of a norm or quant op, got {type(inputs).__name__}")
    if inputs.fp8_dtype not in FP8_NAMES or inputs.x.dtype not in (torch.bfloat16, torch.float16):
        raise EmulatedError(f"cannot quantize {inputs.x.dtype} to {inputs.fp8_dtype}")
    unknown = set(stages or ()) - set(STAGES[op])
    if unknown:
        raise EmulatedError(f"op {op} has no stage {sorted(unknown)[0]!r}; known: {', '.join(STAGES[op])}")
    pipeline = [(stages or {}).get(name, stage) for name, stage in STAGES[op].items()]
    out: Any = inputs.empty() if buffers is None else buffers

    n, fp8 = inputs.x.shape[-1], FP8_NAMES[inputs.fp8_dtype]
    x = inputs.x.reshape(-1, n)
    codes, scale = _rows(out.codes.view(torch.uint8), "codes"), _rows(out.scale, "scale")
    residual = weight = out_residual = None
    eps, gemma = 0.0, False
    if op_named(op).norm:
        weight, eps, gemma = inputs.weight, inputs.eps, inputs.gemma
        if inputs.residual is not None:
            residual = inputs.residual.reshape(-1, n)
            out_residual = _rows(out.residual_out, "residual_out")
    qmax = contract.qmax(fp8)
    step = (
        max(1, len(x)) if stages else max(1, (_CHUNK_ELEMENTS if x.device.type == "cpu" else _GPU_CHUNK_ELEMENTS) // n)
    )
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        work = Work(
            contract,
            variant,
            fp8,
            x[part],
            codes[part],
            scale[part],
            qmax,
            qmax if contract.overflow == "saturate" else None,
            residual if residual is None else residual[part],
            weight,
            eps,
            gemma,
            out_residual if out_residual is None else out_residual[part],
        )
        for stage in pipeline:
            stage(work)
    written: NormQuantOutputs | QuantOutputs = out
    return written


def make(contract: NormQuantContract, variant: Variant = DEFAULT) -> Callable[..., NormQuantOutputs | QuantOutputs]:
    """A callable ``(inputs, buffers=None) -> outputs`` for both ops; raises EmulatedError for an illegal variant."""
    reason = illegal(contract, variant)
    if reason:
        raise EmulatedError(reason)

    def call(inputs: Inputs, buffers: Outputs | None = None) -> NormQuantOutputs | QuantOutputs:
        return execute(inputs, buffers, contract, variant)

    return call


def kernels() -> list[Kernel]:
    """``emulated/<contract>`` for every preset and both ops."""
    return [
        Kernel(
            f"emulated/{name}",
            op,
            name,
            make(contract),
            in_place=True,
            versions=versions,
            emulated=True,
            notes=STAND_IN,
        )
        for op in STAGES
        for name, contract in NORM_QUANT_CONTRACTS.items()
    ]
