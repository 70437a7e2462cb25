"""Twenty kernels with one defect each, behind two conditions: what the search has to find.

Each is a kernel of a user, ``tests.benchmarks.search_planted:NAME``, so that a search runs it in a worker process like
any other. Where both conditions hold it is a defect of the zoo, elsewhere the emulated kernel of the contract.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tests import zoo
from validators.cases.case import Case
from validators.cases.codes import FP8_DTYPE
from validators.cases.tensors import GemmInputs, Inputs, NormQuantInputs, Outputs, QuantInputs, as_ints

NORM, QUANT, GEMM = "add_rmsnorm_quant", "per_token_quant", "ptpc_gemm"
_DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16"}
_FP8 = {dtype: name for name, dtype in FP8_DTYPE.items()}
VECTOR = slice(616, 624)
"""Columns of one vector; ``vector`` asks for rows whose largest input is there."""


@dataclass(frozen=True)
class Planted:
    """defect: its id in the zoo. holds(case): the two conditions, which ``words`` says. rows(inputs) -> bool [M] of the
    rows that show it, or None for all."""

    name: str
    op: str
    defect: str
    words: str
    holds: Callable[[Case], bool]
    rows: Callable[[Inputs], torch.Tensor] | None = None

    @property
    def spec(self) -> str:
        """For ``--kernel``."""
        return f"{self.op}={__name__}:{self.name}"


def _in_vector(inputs: Inputs) -> torch.Tensor:
    x = inputs.leading.float()
    peak = x.reshape(-1, x.shape[-1]).abs().nan_to_num(0.0, posinf=0.0).argmax(dim=1)
    return (peak >= VECTOR.start) & (peak < VECTOR.stop)


PLANTED = (
    Planted("wide_fp16", NORM, "Q08", "n > 6144 and fp16", lambda c: c.n > 6144 and c.dtype == "fp16"),
    Planted("small_rows", NORM, "N10", "1 + weight and no residual", lambda c: c.gemma and not c.residual),
    Planted("fp32_ragged", NORM, "Q10", "fp32 weight and n % 8 > 0", lambda c: c.gamma == "fp32" and c.n % 8 > 0),
    Planted("fnuz_ragged", NORM, "Q07", "e4m3fnuz and n % 8 > 0", lambda c: c.fp8 == "e4m3fnuz" and c.n % 8 > 0),
    Planted("batches", NORM, "Q12", "3d and m > 64", lambda c: c.layout == "3d" and c.m > 64),
    Planted("width_eps", NORM, "N04", "n = 5120 and eps 1e-6", lambda c: c.n == 5120 and c.eps == "1e-6"),
    Planted("large", NORM, "N07", "m > 1024 and n > 4096", lambda c: c.m > 1024 and c.n > 4096),
    Planted("one_row", NORM, "N15", "m = 1 and n > 8192", lambda c: c.m == 1 and c.n > 8192),
    Planted("strides", NORM, "N19", "strided and fp16", lambda c: c.layout == "strided" and c.dtype == "fp16"),
    Planted(
        "vector",
        NORM,
        "Q11",
        "n = 5120 and a row that peaks in one vector of columns",
        lambda c: c.n == 5120,
        _in_vector,
    ),
    Planted("ulp", QUANT, "Q22", "n > 10240 and m > 16", lambda c: c.n > 10240 and c.m > 16),
    Planted("batches_fp16", QUANT, "Q14", "3d and fp16", lambda c: c.layout == "3d" and c.dtype == "fp16"),
    Planted("minus_zero", QUANT, "Q19", "e4m3fnuz and n % 4 > 0", lambda c: c.fp8 == "e4m3fnuz" and c.n % 4 > 0),
    Planted("ties", QUANT, "Q15", "m odd and n <= 512", lambda c: c.m % 2 == 1 and c.n <= 512),
    Planted("many_rows", QUANT, "Q06", "m > 65535 and fp16", lambda c: c.m > 65535 and c.dtype == "fp16"),
    Planted("decode", GEMM, "G08", "m = 1 and k > 4096", lambda c: c.m == 1 and c.k > 4096),
    Planted("bias_fp16", GEMM, "G12", "a bias and fp16", lambda c: c.bias and c.dtype == "fp16"),
    Planted("tail", GEMM, "G06", "k % 128 > 0 and m > 64", lambda c: c.k % 128 > 0 and c.m > 64),
    Planted("columns", GEMM, "G04", "strided and n % 16 > 0", lambda c: c.layout == "strided" and c.n % 16 > 0),
    Planted("inner_fnuz", GEMM, "XG7", "k = 5120 and e4m3fnuz", lambda c: c.k == 5120 and c.fp8 == "e4m3fnuz"),
)


def named(name: str) -> Planted:
    """The one of that name."""
    return next(planted for planted in PLANTED if planted.name == name)


def case_of(inputs: Inputs) -> Case:
    """The shape, types and options of a call, as those of a case."""
    given: Any = inputs
    if inputs.op == GEMM:
        (m, n, k), dtype, fp8 = given.shape, _DTYPES[given.out_dtype], _FP8[given.a.dtype]
        layout = "contiguous" if given.a.is_contiguous() else "strided"
        return Case(GEMM, m, n, "gaussian", k, dtype, fp8, layout=layout, bias=given.bias is not None)  # type: ignore[arg-type]
    x = given.x
    flat = {(2, True): "contiguous", (2, False): "strided", (3, True): "3d", (3, False): "3dstrided"}
    case = Case(
        inputs.op,
        inputs.row_count,
        inputs.width,
        "gaussian",
        dtype=_DTYPES[x.dtype],
        fp8=_FP8[given.fp8_dtype],
        layout=flat[x.dim(), x.is_contiguous()],  # type: ignore[arg-type]
    )
    if inputs.op == QUANT:
        return case
    gamma = "fp32" if given.weight.dtype == torch.float32 else "T"
    eps = "1e-6" if given.eps == 1e-6 else "1e-5"
    return dataclasses.replace(case, residual=given.residual is not None, gamma=gamma, gemma=given.gemma, eps=eps)


def _computed(planted: Planted, inputs: Inputs) -> Outputs:
    clean = zoo.clean_kernel(planted.op).call
    if not planted.holds(case_of(inputs)):
        return clean(inputs, inputs.empty())
    wrong: Outputs = zoo.find_defect(planted.defect).kernel.call(inputs, inputs.empty())
    if planted.rows is None or not inputs.leading.numel():
        return wrong
    right, rows = clean(inputs, inputs.empty()), planted.rows(inputs)
    for field in dataclasses.fields(right):
        own, other = getattr(right, field.name), getattr(wrong, field.name)
        if own is not None:
            as_ints(own).view(len(rows), -1)[rows] = as_ints(other).view(len(rows), -1)[rows]
    return right


def _kernel(planted: Planted) -> Callable[..., Any]:
    """The function that a user would have written."""

    def norm(x, residual, weight, eps, fp8_dtype, gemma=False):
        found: Any = _computed(planted, NormQuantInputs(x, residual, weight, eps, fp8_dtype, gemma))
        return found.codes, found.scale, found.residual_out

    def quant(x, fp8_dtype):
        found: Any = _computed(planted, QuantInputs(x, fp8_dtype))
        return found.codes, found.scale

    def gemm(a, a_scale, b, b_scale, bias, out_dtype):
        found: Any = _computed(planted, GemmInputs(a, a_scale, b, b_scale, bias, out_dtype))
        return found.out

    function: Any = {NORM: norm, QUANT: quant, GEMM: gemm}[planted.op]
    function.contract = zoo.GEMM_CONTRACT if planted.op == GEMM else zoo.NORM_CONTRACT
    function.supports = {"3d": True, "strided": True, "gemma": planted.op == NORM}
    return function


def __getattr__(name: str) -> Any:
    """The planted kernels are functions of this module."""
    found = next((planted for planted in PLANTED if planted.name == name), None)
    if found is None:
        raise AttributeError(name)
    return _kernel(found)
