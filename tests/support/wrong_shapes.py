"""Kernels that are wrong at some shapes, and the cases of a depth on which they fail."""

from __future__ import annotations

from collections.abc import Callable

import torch

from reference.contract import get_contract
from tests.support.case_inputs import ADD, GEMM, QUANT
from validators.calls.call import run_kernel
from validators.cases import tensors
from validators.cases.case import Case
from validators.cases.suite import cases_for
from validators.kernels.kernel import Kernel
from validators.records.record import Comparison, Status
from validators.records.verdict import decide
from validators.run import judge

CONTRACT = "aiter-hip-gfx950"
Amax = Callable[[torch.Tensor], torch.Tensor]


def whole(y: torch.Tensor) -> torch.Tensor:
    return y.abs().amax(dim=-1, keepdim=True)


def encode(y: torch.Tensor, amax: torch.Tensor, fp8: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    scale = amax.clamp(min=1e-10) * (1.0 / torch.finfo(fp8).max)
    q = torch.finfo(fp8).max
    return (y * (1.0 / scale)).clamp(-q, q).to(fp8), scale


def quantizer(amax: Amax, dense: Callable[[torch.Tensor], torch.Tensor] = lambda x: x) -> Kernel:
    def call(inputs: tensors.Inputs, buffers: tensors.Outputs) -> tensors.Outputs:
        assert isinstance(inputs, tensors.QuantInputs)
        y = dense(inputs.x).float()
        return tensors.QuantOutputs(*encode(y, amax(y), inputs.fp8_dtype))

    return Kernel("test/quantizer", QUANT, CONTRACT, call)


def norm(amax: Amax, gain: Callable[[tensors.NormQuantInputs], torch.Tensor] | None = None) -> Kernel:
    def call(inputs: tensors.Inputs, buffers: tensors.Outputs) -> tensors.Outputs:
        assert isinstance(inputs, tensors.NormQuantInputs)
        z = inputs.x.float() if inputs.residual is None else inputs.x.float() + inputs.residual.float()
        weight = gain(inputs) if gain else inputs.weight.float() + float(inputs.gemma)
        # One over the root in float64: the root of fp32 is not correctly rounded on every CPU.
        rstd = ((z * z).mean(dim=-1, keepdim=True).double() + inputs.eps).rsqrt().float()
        y = z * rstd * weight
        stored = None if inputs.residual is None else z.to(inputs.x.dtype)
        return tensors.NormQuantOutputs(*encode(y, amax(y), inputs.fp8_dtype), stored)

    return Kernel("test/norm", ADD, CONTRACT, call)


def gemm(product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Kernel:
    def call(inputs: tensors.Inputs, buffers: tensors.Outputs) -> tensors.Outputs:
        assert isinstance(inputs, tensors.GemmInputs)
        out = product(inputs.a.float(), inputs.b.float()) * inputs.a_scale * inputs.b_scale.reshape(1, -1)
        out = out if inputs.bias is None else out + inputs.bias.float()
        return tensors.GemmOutputs(out.to(inputs.out_dtype))

    return Kernel("test/gemm", GEMM, "fp32", call)


def default(op: str, wanted: Callable[[Case], bool], depth: str = "default") -> list[Case]:
    """Cases of the suite with a property; at least one."""
    found = [case for case in cases_for(op, depth=depth) if wanted(case)]
    assert found
    return found


def judged(kernel: Kernel, case: Case, contract: str | None = None) -> tuple[Status, dict[str, Comparison]]:
    """As ``validate`` decides, without invariances and the search for an explanation."""
    claim = run_kernel(kernel, case, "cpu")
    comparisons, checks = judge(claim, get_contract(kernel.op, contract or str(kernel.contract)))
    return decide(comparisons, [*claim.checks, *checks])[0], {c.output: c for c in comparisons}


def failing(kernel: Kernel, cases: list[Case], contract: str | None = None) -> list[dict[str, Comparison]]:
    found = [judged(kernel, case, contract) for case in cases]
    return [comparisons for status, comparisons in found if status is Status.FAILED]
