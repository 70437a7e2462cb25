"""Defects of a kernel on a known matrix unit: each is caught with zero tolerance, and named.

The kernel is the emulated Hopper unit with promotion every 128 products, which is what ``torch._scaled_mm`` runs there.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from reference.accumulators import emulate, slices
from reference.formats import E4M3FN
from tests.support.made import texts
from validators.cases.case import Case
from validators.cases.tensors import GemmInputs, GemmOutputs, Inputs, Outputs
from validators.kernels.kernel import Kernel
from validators.records.record import Status
from validators.run import validate

M, N, K = 48, 64, 1056
GEMM = "ptpc_gemm"


def gemm(inputs: GemmInputs, accumulator: Tensor, sa: Tensor | None = None, sb: Tensor | None = None) -> GemmOutputs:
    """(acc * sa) * sb, stored to nearest even."""
    sa, sb = inputs.a_scale if sa is None else sa, inputs.b_scale if sb is None else sb
    return GemmOutputs(((accumulator * sa) * sb.reshape(1, -1)).to(inputs.out_dtype))


def unit(
    inputs: GemmInputs, a: Tensor | None = None, b: Tensor | None = None, name: str = "hopper-promote128"
) -> Tensor:
    """The accumulator of the named unit; a, b: other codes than the inputs'."""
    left, right = inputs.a.view(torch.uint8), inputs.b.view(torch.uint8)
    return emulate(left if a is None else a, right if b is None else b, E4M3FN, name)


def clean(inputs: GemmInputs) -> GemmOutputs:
    return gemm(inputs, unit(inputs))


def promotion_every_256(inputs: GemmInputs) -> GemmOutputs:
    return gemm(inputs, unit(inputs, name="hopper-promote256"))


def one_chain(inputs: GemmInputs) -> GemmOutputs:
    return gemm(inputs, unit(inputs, name="hopper-fast"))


def last_k_dropped(inputs: GemmInputs) -> GemmOutputs:
    a = inputs.a.view(torch.uint8).clone()
    a[:, -1] = 0
    return gemm(inputs, unit(inputs, a=a))


def scales_in_bf16(inputs: GemmInputs) -> GemmOutputs:
    return gemm(inputs, unit(inputs), inputs.a_scale.bfloat16().float(), inputs.b_scale.bfloat16().float())


def scale_rows_exchanged(inputs: GemmInputs) -> GemmOutputs:
    return gemm(inputs, unit(inputs), inputs.a_scale[torch.arange(len(inputs.a_scale)) ^ 1])


def one_tile_shuffled(inputs: GemmInputs) -> GemmOutputs:
    b = inputs.b.view(torch.uint8).clone()
    b[16:32, 64:96] = b[16:32, 64:96].reshape(2, 16, 16).permute(1, 0, 2).reshape(16, 32)
    return gemm(inputs, unit(inputs, b=b))


def output_truncated(inputs: GemmInputs) -> GemmOutputs:
    value = (unit(inputs) * inputs.a_scale) * inputs.b_scale.reshape(1, -1)
    return GemmOutputs((value.view(torch.int32) & -65536).view(torch.float32).to(inputs.out_dtype))


def partials_in_bf16(inputs: GemmInputs) -> GemmOutputs:
    half = slices(K, 2)[0][1]
    a, b = inputs.a.view(torch.uint8), inputs.b.view(torch.uint8)
    parts = [
        emulate(x.contiguous(), y.contiguous(), E4M3FN, "hopper-promote128")
        for x, y in ((a[:, :half], b[:, :half]), (a[:, half:], b[:, half:]))
    ]
    return gemm(inputs, parts[0].bfloat16().float() + parts[1].bfloat16().float())


def kernel(function: Callable[[GemmInputs], GemmOutputs]) -> Kernel:
    def call(inputs: Inputs, buffers: Outputs) -> Outputs:
        assert isinstance(inputs, GemmInputs)
        return function(inputs)

    return Kernel(f"demo/{function.__name__}", GEMM, "hopper-promote128", call, emulated=True)


@pytest.mark.parametrize(
    "recipe", ["gaussian", "positive_mean", "random_bytes", "scale_ladder", "one_hot_k", "cancellation"]
)
def test_the_clean_kernel_passes_with_one_admissible_value_an_output(recipe: str) -> None:
    record = validate(kernel(clean), Case(GEMM, M, N, recipe, k=K))
    assert record.status is Status.PASSED
    # The contract leaves the order of the two scale products open, which rarely shows in bf16.
    assert record.comparisons[0].single / record.comparisons[0].judged > 0.99


@pytest.mark.parametrize(
    ("defect", "recipe", "named"),
    [
        (promotion_every_256, "positive_mean", "follows hopper-promote256"),
        (one_chain, "positive_mean", "follows hopper-fast"),
        (last_k_dropped, "gaussian", "last-k-dropped"),
        (scales_in_bf16, "gaussian", "scales-in-bf16"),
        (scale_rows_exchanged, "scale_ladder", "token-scales-exchanged"),
        (one_tile_shuffled, "gaussian", "weight-tile-misread"),
        (output_truncated, "gaussian", "output-truncated"),
        (partials_in_bf16, "gaussian", "split-k-in-bf16"),
    ],
)
def test_each_defect_is_caught_and_named(defect: Callable[[GemmInputs], GemmOutputs], recipe: str, named: str) -> None:
    record = validate(kernel(defect), Case(GEMM, M, N, recipe, k=K))
    assert record.status is Status.FAILED
    assert record.explanations
    assert record.explanations[0].text.startswith(named), record.explanations


def packed_rows(operands: str) -> Kernel:
    """A kernel that takes the rows of the named operands to be side by side, whatever their stride."""

    def read(codes: Tensor, packed: bool) -> Tensor:
        raw = codes.view(torch.uint8)
        return raw.as_strided(raw.shape, (raw.shape[1], 1)).clone() if packed else raw.contiguous()

    def call(inputs: GemmInputs) -> GemmOutputs:
        a, b = read(inputs.a, "a" in operands), read(inputs.b, "b" in operands)
        return gemm(inputs, unit(inputs, a=a, b=b))

    return kernel(call)


@pytest.mark.parametrize(
    ("operands", "named", "words", "violations", "nans"),
    [
        ("a", "activation-stride-ignored", "rows of a are read as packed", 5120, 4800),
        ("b", "weight-stride-ignored", "rows of b are read as packed", 5247, 5148),
        # The figures of the H200, where vLLM's GEMM read both so.
        ("ab", "strides-ignored", "rows of a and of b are read as packed", 5279, 5268),
    ],
)
def test_a_row_stride_that_is_ignored_is_named_by_operand(
    operands: str, named: str, words: str, violations: int, nans: int
) -> None:
    """Three rows of a and four of b hold no byte of a gap when they are read as packed: 12 outputs are numbers."""
    record = validate(packed_rows(operands), Case(GEMM, 33, 160, "gaussian", k=528, layout="strided"))
    assert record.status is Status.FAILED
    assert record.comparisons[0].violations == violations
    assert record.comparisons[0].nonfinite["got_nan"] == nans
    assert record.explanations[0].text.startswith(f"{named}: every violation vanishes if {words}"), record.explanations
    assert not any("stride" in sentence for sentence in texts(record)[1:]), record.explanations


def test_packed_rows_are_no_defect_where_they_are_packed() -> None:
    record = validate(packed_rows("ab"), Case(GEMM, 33, 160, "gaussian", k=528))
    assert record.status is Status.PASSED


@pytest.mark.parametrize("fp8", ["e4m3fn", "e4m3fnuz"])
def test_all_pairs_of_codes_are_judged_exactly(fp8: str) -> None:
    from validators.kernels.registry import find_kernel

    record = validate(find_kernel("emulated/fp32", GEMM), Case(GEMM, 256, 256, "code_pairs", k=16, fp8=fp8))
    assert record.status is Status.PASSED
    (out,) = record.comparisons
    assert out.judged == out.single == 256 * 256


@pytest.mark.parametrize("kernel_name", ["emulated/fp32", "emulated/unknown"])
@pytest.mark.parametrize("k", [5120, 520])
def test_scales_that_are_no_powers_of_two_are_judged_exactly(kernel_name: str, k: int) -> None:
    from validators.kernels.registry import find_kernel

    record = validate(find_kernel(kernel_name, GEMM), Case(GEMM, 48, 160, "odd_scales", k=k))
    assert record.status is Status.PASSED
    (out,) = record.comparisons
    assert out.judged == out.single == 48 * 160
