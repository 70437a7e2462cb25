"""Shapes that deployments reach: wrong kernels behind a limit of shape are FAILED by a case that the suite lists."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.support.case_inputs import ADD, GEMM, QUANT
from tests.support.wrong_shapes import CONTRACT, Amax, default, failing, gemm, judged, norm, quantizer, whole
from validators.cases import memory, shapes
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.layout import batch_of
from validators.cases.recipes_shapes import VECTOR
from validators.cases.suite import cases_for
from validators.cases.tensors import (
    Inputs,
    NormQuantInputs,
    Outputs,
    QuantInputs,
    QuantOutputs,
)
from validators.kernels.kernel import Kernel
from validators.kernels.registry import all_kernels
from validators.records.evidence import MACHINE, Limit
from validators.records.record import Status
from validators.run import validate


def ends_of_wide_rows(y: torch.Tensor) -> torch.Tensor:
    """Rows wider than 6,144 take their maximum from the first and the last 64 columns."""
    return whole(y if y.shape[-1] <= 6144 else torch.cat([y[..., :64], y[..., -64:]], dim=-1))


def first_10240(y: torch.Tensor) -> torch.Tensor:
    return whole(y[..., :10240])


def without_vector(number: int, width: int) -> Amax:
    """At ``width`` one vector of 8 columns takes no part in the maximum."""

    def amax(y: torch.Tensor) -> torch.Tensor:
        if y.shape[-1] == width:
            y = y.clone()
            y[..., VECTOR * number : VECTOR * (number + 1)] = 0
        return whole(y)

    return amax


# ---- widths


@pytest.mark.parametrize("amax", [ends_of_wide_rows, first_10240])
def test_a_maximum_of_a_part_of_wide_rows_fails(amax: Amax) -> None:
    """flashinfer-ai/flashinfer#718, ROCm/TransformerEngine#452: rows wider than what a block holds."""
    for op, kernel, right in ((QUANT, quantizer(amax), quantizer(whole)), (ADD, norm(amax), norm(whole))):
        cases = default(op, lambda c: c.n == 12288 and c.recipe == "gaussian")
        assert len(failing(kernel, cases)) == len(cases)
        assert not failing(right, cases)


@pytest.mark.parametrize("n", [n for n in shapes.model_widths(QUANT) if n <= 5120])
def test_any_vector_of_a_width_of_the_model_that_is_left_out_of_the_maximum_fails(n: int) -> None:
    """Of every such width the suite has a case with a peak in each vector of 8 columns: the first, last, and others."""
    (case,) = default(QUANT, lambda c: c.recipe == "vector_peaks" and c.n == n)
    assert case.m == n // VECTOR
    for number in (n // VECTOR // 3, n // VECTOR - 1):
        status, comparisons = judged(quantizer(without_vector(number, n)), case)
        assert status is Status.FAILED
        assert comparisons["scale"].violations == 1


def test_the_widest_rows_peak_in_every_vector_too() -> None:
    listed = {case.n: case.m for case in cases_for(QUANT) if case.recipe == "vector_peaks"}
    for n in shapes.model_widths(QUANT):
        assert listed[n] == n // VECTOR, n
    assert {8192, 16384} <= set(listed)
    assert [c.m for c in cases_for(ADD) if c.recipe == "vector_peaks" and c.n == shapes.HIDDEN] == [640]


# ---- rows


def test_rows_past_the_limit_of_a_grid_are_judged() -> None:
    def rows_of_a_grid(y: torch.Tensor) -> torch.Tensor:
        amax = whole(y)
        rows = amax.view(-1, 1)
        rows[65535:] = rows[65534].clone()
        return amax

    cases = default(QUANT, lambda c: c.m > 65535)
    assert len(failing(quantizer(rows_of_a_grid), cases)) == len(cases)
    assert not failing(quantizer(whole), cases)


@pytest.mark.parametrize("op", [ADD, QUANT, GEMM])
def test_one_row_is_a_case_of_every_depth(op: str) -> None:
    """flashinfer-ai/flashinfer#4409: a kernel that wants four rows passed at smoke depth."""
    for depth in ("smoke", "default"):
        assert default(op, lambda c: c.m == 1, depth)

    def call(inputs: Inputs, buffers: Outputs) -> Outputs:
        raise ValueError("num_tokens must be a multiple of 4, got 1")

    case = default(op, lambda c: c.m == 1 and c.recipe == "model", "smoke")[0]
    record = validate(Kernel("mine.py:f", op, "fp32" if op == GEMM else CONTRACT, call), case)
    assert record.status is Status.ERROR
    assert "if that is a limit, declare it: f.unsupported" in record.reasons[1]


@pytest.mark.parametrize("layout", ["contiguous", "strided", "3d", "3dstrided"])
def test_no_rows_give_empty_outputs(layout: str) -> None:
    for op, kernel in ((ADD, norm(whole)), (QUANT, quantizer(lambda y: y.abs().sum(dim=-1, keepdim=True)))):
        (listed,) = default(op, lambda c: c.m == 0)
        case = Case(op, 0, listed.n, listed.recipe, layout=layout)  # type: ignore[arg-type]
        record = validate(kernel, case)
        assert (record.status, record.reasons) == (Status.PASSED, ())
        assert next(c for c in record.checks if c.name == "batch invariance").detail.startswith("the case has no row")


def test_no_rows_of_a_gemm_give_an_empty_output() -> None:
    (case,) = default(GEMM, lambda c: c.m == 0)
    assert validate(gemm(lambda a, b: a @ b.T), case).status is Status.PASSED


def test_outputs_of_the_wrong_shape_are_an_error_where_there_are_no_rows() -> None:
    """Nothing is compared, so shapes and types are all that a pass says."""

    def call(inputs: Inputs, buffers: Outputs) -> Outputs:
        assert isinstance(inputs, QuantInputs)
        return QuantOutputs(inputs.x.to(inputs.fp8_dtype), torch.empty(0))

    record = validate(Kernel("test/flat", QUANT, CONTRACT, call), default(QUANT, lambda c: c.m == 0)[0])
    assert record.status is Status.ERROR
    assert record.reasons[0] == "scale has shape [0], expected [0, 1]"


# ---- layouts


@pytest.mark.parametrize("m", [6, 34, 11, 1])
def test_a_slice_of_three_dimensions_has_gaps_between_rows_and_batches(m: int) -> None:
    case = Case(ADD, m, 520, "gaussian", layout="3dstrided")
    built, flat = build(case), build(Case(ADD, m, 520, "gaussian"))
    assert isinstance(built, NormQuantInputs)
    assert isinstance(flat, NormQuantInputs)
    assert built.residual is not None
    for x in (built.x, built.residual):
        batch, rows, n = x.shape
        assert (batch, batch * rows, n) == (batch_of(m), m, 520)
        assert x.stride(2) == 1
        assert x.stride(1) > n
        assert x.stride(0) == (rows + 1) * x.stride(1)
        everything = x.as_strided((batch, rows + 1, x.stride(1)), (x.stride(0), x.stride(1), 1))
        assert bool(everything[..., n:].isnan().all())
        assert bool(everything[:, rows].isnan().all())
        assert bool(x.isfinite().all())
    assert built.x.stride(1) != built.residual.stride(1)


def test_a_batch_stride_that_is_assumed_fails() -> None:
    """flashinfer-ai/flashinfer#3005: the batch stride of a view taken as rows times columns."""

    def packed(x: torch.Tensor) -> torch.Tensor:
        return x if x.dim() == 2 else x.as_strided(x.shape, (x.shape[1] * x.shape[2], x.shape[2], 1))

    slices = default(QUANT, lambda c: c.layout == "3dstrided" and 1 < batch_of(c.m) < c.m)
    assert len(failing(quantizer(whole, packed), slices)) == len(slices)
    assert not failing(quantizer(whole, packed), default(QUANT, lambda c: c.layout == "3d" and c.n <= 1024))
    assert not failing(quantizer(whole), slices)


# ---- gains


def test_a_bound_on_the_scale_that_nobody_asked_for_fails_at_smoke_depth() -> None:
    """sgl-project/sglang#9880: scale_ub 1200 applied to every row."""
    cases = default(ADD, lambda c: c.recipe == "checkpoint_gain", "smoke")
    assert failing(norm(lambda y: whole(y).clamp(max=1200.0)), cases)
    assert not failing(norm(whole), cases)


def test_an_offset_added_in_the_type_of_the_weight_fails_at_smoke_depth() -> None:
    """linkedin/Liger-Kernel#1462: 1 + weight rounded to bf16."""
    cases = default(ADD, lambda c: c.gemma, "smoke")
    assert failing(norm(whole, lambda inputs: (inputs.weight + float(inputs.gemma)).float()), cases)
    assert not failing(norm(whole), cases)


# ---- GEMMs of the model


def test_products_lost_at_the_models_own_shapes_fail() -> None:
    """The last 32 products of decode (one row) and of prefill (more than 16 rows)."""

    def losing(rows: Callable[[int], bool]) -> Kernel:
        def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            lost = rows(len(a)) and a.shape[1] >= 1536 and len(b) >= 1792
            return a[:, :-32] @ b[:, :-32].T if lost else a @ b.T

        return gemm(product)

    shape = (shapes.HIDDEN, 1536)
    cases = default(GEMM, lambda c: (c.n, c.k) == shape)
    assert {c.m for c in cases} >= {1, 129}
    assert failing(losing(lambda m: m == 1), [c for c in cases if c.m == 1])
    assert failing(losing(lambda m: m > 16), [c for c in cases if c.m > 16])
    pairs = {(c.n, c.k) for c in cases_for(GEMM) if c.m == 1} & {(c.n, c.k) for c in cases_for(GEMM) if c.m > 16}
    assert set(shapes.MODEL_GEMMS) <= pairs


def test_sums_of_split_k_in_sixteen_bits_fail_under_a_unit_of_unknown_width() -> None:
    """ROCm/aiter#2567. Integers whose sums stay below 2^20 have one admissible value under every contract."""

    def split(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if a.shape[1] < 2048:
            return a @ b.T
        parts = zip(a.chunk(4, dim=1), b.chunk(4, dim=1), strict=True)
        return torch.stack([(x @ y.T).bfloat16().float() for x, y in parts]).sum(dim=0)

    cases = default(GEMM, lambda c: c.recipe == "cancelling_integers" and c.k == 5120 and c.n == 64)
    ((out,),) = (found.values() for found in failing(gemm(split), cases, "unknown"))
    assert out.single == out.judged
    # Half of the columns do not cancel, and most of them still round to the right value.
    assert out.violations > 0.4 * out.judged
    assert not failing(gemm(lambda a, b: a @ b.T), cases, "unknown")


def test_every_inner_size_of_the_model_has_a_case_with_one_admissible_value() -> None:
    listed = {case.k for case in cases_for(GEMM) if case.recipe == "cancelling_integers"}
    assert set(shapes.model_inner()) <= listed
    assert shapes.model_inner() == (12288, 6144, 5120, 3072, 1536, 768, 384, 192)


@pytest.mark.parametrize("fp8", ["e4m3fn", "e4m3fnuz"])
def test_what_is_on_by_default_is_judged_at_a_width_of_the_model(fp8: str) -> None:
    for op in (ADD, QUANT, GEMM):
        model = [c for c in cases_for(op, fp8=fp8) if shapes.HIDDEN in (c.n, c.k) or 12288 in (c.n, c.k)]
        assert {c.dtype for c in model} == {"bf16", "fp16"}
        assert {c.fp8 for c in model} == {"e4m3fn", "e4m3fnuz"}
    assert {(c.dtype, c.bias) for c in cases_for(GEMM, fp8=fp8) if c.k == shapes.HIDDEN} == {
        ("bf16", False),
        ("bf16", True),
        ("fp16", False),
        ("fp16", True),
    }


# ---- more than 2^31 elements


@pytest.mark.parametrize("op", [ADD, QUANT, GEMM])
def test_more_elements_than_an_int32_counts_are_for_a_gpu(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU never builds such a case: it is UNSUPPORTED by the machine, which is not a limit of the kernel."""
    large = [c for c in cases_for(op, depth="deep") if memory.elements(c) > 2**31]
    assert large
    assert not [c for c in cases_for(op) if memory.elements(c) > 2**28]

    def never(inputs: Inputs, buffers: Outputs) -> Outputs:
        raise AssertionError("called")

    kernel = Kernel("test/never", op, "fp32" if op == GEMM else CONTRACT, never)
    record = validate(kernel, large[0])
    assert record.status is Status.UNSUPPORTED
    assert "cases of more than 2^31 elements run on a GPU only" in record.reasons[0]
    assert record.limit == Limit(MACHINE)

    class Properties:
        total_memory = 16 * 2**30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    reason = memory.beyond_memory(large[0], "cuda")
    # A GEMM's operands are small; its output is not.
    assert reason is not None
    assert "this GPU has 17 GB" in reason
    Properties.total_memory = 10**12
    assert memory.beyond_memory(large[0], "cuda") is None
    assert memory.beyond_memory(Case(QUANT, 4096, 5120, "model"), "cpu") is None


@pytest.mark.parametrize("kernel", [k for k in all_kernels() if k.op == ADD], ids=lambda k: k.name)
def test_adapters_of_one_row_stride_say_so(kernel: Kernel) -> None:
    """Every adapter whose kernel takes one row stride declares slices of three dimensions away; none raises on them."""
    case = Case(ADD, 6, 64, "gaussian", layout="3dstrided", fp8="e4m3fn")
    reason = kernel.unsupported(case)
    if reason and "Inductor of torch 2.9" in reason:
        pytest.skip(reason)
    one_stride = kernel.name.split("/")[0] in ("aiter_hip", "amdgcn", "aiter_triton", "triton", "vllm", "sgl_kernel")
    assert (reason is not None) == one_stride, reason
