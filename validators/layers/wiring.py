"""Which wiring mistake explains a failed op of a walk: the walk's own memory of what came before, tried in its place.

A hypothesis replaces one operand (the weights of the layer before, the scale of another rank, an earlier residual) and
the output is judged again. It is named where at least half of the violations vanish, the best first. Asked for the
first few failures only; nothing here changes a verdict.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from reference.contract import Contract, NormQuantContract
from reference.glm4_moe import Linear
from validators.calls.call import Claim
from validators.cases.tensors import (
    GemmInputs,
    Inputs,
    NormQuantInputs,
    NormQuantOutputs,
    Outputs,
    QuantInputs,
    QuantOutputs,
)
from validators.layers.path import KernelPath, twin_contract
from validators.records.record import Explanation
from validators.run import judge

NAMED_FROM = 0.5
"""Share of the violations that a named hypothesis explains: a policy that words an explanation and decides nothing."""
KEPT_RESIDUALS = 2


@dataclass
class Memory:
    """What an arm did before. scales: of earlier norms, with their place.

    residuals: before the last norms, newest last. norm: inputs of the last norm. partial: the unrounded sum of the
    ranks' last partial results. weight_scale and token_scale: of the call before, for a rank's neighbour. lengths:
    every K that the GEMM was called with.
    """

    scales: list[tuple[str, Tensor]] = field(default_factory=list)
    residuals: list[Tensor] = field(default_factory=list)
    norm: NormQuantInputs | None = None
    partial: Tensor | None = None
    weight_scale: Tensor | None = None
    token_scale: Tensor | None = None
    lengths: set[int] = field(default_factory=set)

    def remember_norm(self, place: str, inputs: NormQuantInputs, scale: Tensor) -> None:
        """After a norm was judged."""
        self.scales.append((place, scale.clone()))
        self.norm = inputs
        if inputs.residual is not None:
            self.residuals = [*self.residuals, inputs.residual][-KEPT_RESIDUALS:]


@dataclass(frozen=True)
class Suspects:
    """Operands of the layer before, where it has such a step; ``clean`` is the right wiring with the same kernels."""

    clean: KernelPath
    quant: NormQuantContract
    linear: Linear | None = None
    norm: Tensor | None = None


Named = tuple[str, str]
"""(name, sentence) of a hypothesis."""


def explain(claim: Claim, contract: Contract, memory: Memory, suspects: Suspects) -> tuple[Explanation, ...]:
    """The hypotheses that explain the failure, the best first. Raises KernelFault where a kernel refuses what the
    quantizer of a hypothesis would give it."""
    inputs, outputs = claim.inputs, claim.outputs
    before = _violations(inputs, outputs, contract)
    same_bits, hypotheses = _SAME_BITS.get(inputs.op), _HYPOTHESES.get(inputs.op)
    found = [
        Explanation(name, words, 1.0, "wiring")
        for name, words in (same_bits(inputs, outputs, memory) if same_bits else ())
    ]
    for (name, words), other, rule in hypotheses(inputs, contract, memory, suspects) if hypotheses else ():
        share = 1.0 - _violations(other, outputs, rule) / before if before else 0.0
        if share >= NAMED_FROM:
            words = f"{words}; {share:.0%} of the violations vanish then"
            found.append(Explanation(name, words, share, "wiring"))
    return tuple(sorted(found, key=lambda e: -(e.share or 0.0)))


def _violations(inputs: Inputs, outputs: Outputs, contract: Contract) -> int:
    return sum(c.violations for c in judge(Claim(inputs, outputs), contract)[0])


def _products(
    inputs: GemmInputs, contract: Contract, memory: Memory, suspects: Suspects
) -> Iterator[tuple[Named, GemmInputs, Contract]]:
    for named, other in _operands(inputs, memory, suspects):
        yield named, other, contract


def _operands(inputs: GemmInputs, memory: Memory, suspects: Suspects) -> Iterator[tuple[Named, GemmInputs]]:
    change = dataclasses.replace
    before = suspects.linear
    if before is not None and before.scale is not None and before.weight.shape == inputs.b.shape:
        yield (
            ("layer-before", "the weights are those of the layer before"),
            change(inputs, b=before.weight, b_scale=before.scale, bias=before.bias),
        )
    if memory.weight_scale is not None and memory.weight_scale.shape == inputs.b_scale.shape:
        yield (
            ("other-ranks-weight-scale", "the weight scales are the rank before's"),
            change(inputs, b_scale=memory.weight_scale),
        )
    codes, scale = suspects.clean.quantize(inputs.a.float().bfloat16())
    yield ("quantized-twice", "the codes were quantized as if they were values"), change(inputs, a=codes, a_scale=scale)
    one = torch.ones_like(inputs.a_scale)
    yield ("token-scale-dropped", "the token scale is not applied"), change(inputs, a_scale=one)
    yield (
        ("weight-scale-doubled", "the weight scale is applied twice as large"),
        change(inputs, b_scale=inputs.b_scale * 2),
    )
    if inputs.bias is not None:
        yield ("bias-lost", "the bias is not added"), change(inputs, bias=None)
        yield ("bias-twice", "the bias is added twice"), change(inputs, bias=inputs.bias * 2)
    if len(inputs.a) == len(inputs.b):
        yield (
            ("token-scale-along-columns", "the token scale multiplies columns"),
            change(inputs, a_scale=one, b_scale=inputs.b_scale * inputs.a_scale),
        )
    k = inputs.a.shape[1]
    for kept in sorted({k - 64, *memory.lengths}):
        if 0 < kept < k:
            short = inputs.a.clone()
            short.view(torch.uint8)[:, kept:] = 0
            yield ("products-lost", f"only the first {kept} of {k} products are added"), change(inputs, a=short)
    n = memory.norm
    if n is not None and n.x.shape == inputs.a.shape:
        suspects.clean.residual = n.residual
        codes, scale = suspects.clean.quantize(suspects.clean.add_rmsnorm(n.weight, n.x))
        yield ("normed-again", "the bf16 norm was quantized again"), change(inputs, a=codes, a_scale=scale)


def _norms(
    inputs: NormQuantInputs, contract: Contract, memory: Memory, suspects: Suspects
) -> Iterator[tuple[Named, NormQuantInputs, Contract]]:
    yield ("unfused-path", "this is a bf16 norm and then the quantizer"), inputs, twin_contract(suspects.quant)
    change = dataclasses.replace
    if suspects.norm is not None:
        yield (
            ("layer-before", "the norm's weight is the layer before's"),
            change(inputs, weight=suspects.norm),
            contract,
        )
    plus = (inputs.weight.float() + 1.0).to(inputs.weight.dtype)
    yield ("weight-plus-one", "the norm multiplies with 1 + weight"), change(inputs, weight=plus), contract
    for back, residual in enumerate(reversed(memory.residuals), 1):
        text = ("stale-residual", f"the residual is that of {back} norm{'s' if back > 1 else ''} before")
        yield text, change(inputs, residual=residual), contract


_HYPOTHESES: dict[str, Callable[[Any, Contract, Memory, Suspects], Iterator[tuple[Named, Inputs, Contract]]]] = {
    NormQuantInputs.op: _norms,
    GemmInputs.op: _products,
}


def _bits_of_scales(inputs: QuantInputs, outputs: QuantOutputs, memory: Memory) -> Iterator[Named]:
    if memory.token_scale is not None and _equal(outputs.scale, memory.token_scale):
        yield ("other-ranks-token-scale", "the token scales are the rank before's, bit for bit")


def _bits_of_norm(inputs: NormQuantInputs, outputs: NormQuantOutputs, memory: Memory) -> Iterator[Named]:
    for place, scale in memory.scales:
        if _equal(outputs.scale, scale):
            yield ("scale-of-an-earlier-call", f"the token scales are those of {place}, bit for bit")
            break
    kept = outputs.residual_out
    if kept is None or inputs.residual is None:
        return
    if _equal(kept, inputs.residual):
        yield ("residual-kept", "the residual was not updated, bit for bit")
    if memory.partial is not None and _equal(kept, (memory.partial + inputs.residual.float()).to(kept.dtype)):
        yield ("sum-not-rounded", "the ranks' fp32 sum was added without its store, bit for bit")
    total = (inputs.x.float() + inputs.residual.float()).double()
    rms = (total.square().mean(-1, keepdim=True) + inputs.eps).rsqrt().float()
    if _equal(kept, (total.float() * rms * inputs.weight.float()).to(kept.dtype)):
        yield ("outputs-exchanged", "the residual is the normed output, bit for bit")


_SAME_BITS: dict[str, Callable[[Any, Any, Memory], Iterator[Named]]] = {
    NormQuantInputs.op: _bits_of_norm,
    QuantInputs.op: _bits_of_scales,
}


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
