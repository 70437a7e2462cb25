"""Integrity and invariance: each check passes on an honest kernel and names what a dishonest one did."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from validators.calls import integrity, invariance
from validators.calls.buffers import POISONS, Guarded, make_buffers
from validators.calls.call import run_kernel
from validators.calls.integrity import OutputError
from validators.cases import tensors
from validators.cases.case import Case
from validators.judge.where import where_words
from validators.kernels.kernel import Kernel

FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz


def _values(*shape: int, start: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return ((torch.arange(start, start + count) * 37 % 101 - 50) / 8).view(shape).to(dtype)


def _norm_inputs(m: int = 12, n: int = 40, fp8: torch.dtype = FN) -> tensors.NormQuantInputs:
    return tensors.NormQuantInputs(_values(m, n), _values(m, n, start=7), _values(n, start=3), 1e-5, fp8)


def _strided(m: int = 12, n: int = 40) -> tensors.NormQuantInputs:
    plain = _norm_inputs(m, n)
    assert plain.residual is not None
    x, residual = torch.full((m, n + 8), float("nan")).bfloat16(), torch.full((m, n + 24), float("nan")).bfloat16()
    x[:, :n], residual[:, :n] = plain.x, plain.residual
    return dataclasses.replace(plain, x=x[:, :n], residual=residual[:, :n])


def _gemm_inputs(m: int = 6, n: int = 10, k: int = 32) -> tensors.GemmInputs:
    codes = (torch.arange((m + n) * k) * 29 % 0x70).to(torch.uint8).view(m + n, k)
    scales = (torch.arange(m + n, dtype=torch.float32) + 3).view(-1, 1)
    a, b = codes[:m].clone().view(FN), codes[m:].clone().view(FN)
    return tensors.GemmInputs(a, scales[:m].clone(), b, scales[m:].clone(), None, torch.bfloat16)


def _fill(inputs: Any, buffers: Any) -> Any:
    """A row-wise op of our own that writes every element of the buffers; right for no contract, but deterministic."""
    if isinstance(inputs, tensors.GemmInputs):
        a, b = inputs.a.float() * inputs.a_scale, inputs.b.float() * inputs.b_scale
        rows = [(row.double() * b.double()).sum(1) for row in a]
        buffers.out.copy_(torch.stack(rows))
        return buffers
    x = inputs.x
    if isinstance(inputs, tensors.NormQuantInputs) and inputs.residual is not None:
        x = x + inputs.residual
        buffers.residual_out.copy_(x)
    buffers.scale.copy_(x.float().abs().amax(-1, keepdim=True) + 1)
    buffers.codes.view(torch.uint8).copy_(((x.float() / buffers.scale).abs() * 100).to(torch.uint8))
    return buffers


def _kernel(call: Callable[[Any, Any], tensors.Outputs], op: str = "add_rmsnorm_quant") -> Kernel:
    return Kernel("test/kernel", op, None, call)


def _two_calls(inputs: tensors.Inputs, call: Callable[[Any, Any], object]) -> list[Guarded]:
    pair = [make_buffers(inputs, poison=poison) for poison in POISONS]
    for guarded in pair:
        call(inputs, guarded.outputs)
    return pair


@pytest.mark.parametrize("fp8", [FN, FNUZ], ids=["fn", "fnuz"])
def test_buffers_have_the_ops_shapes_and_hold_only_poison(fp8: torch.dtype) -> None:
    x3d = _values(2, 6, 40)
    for inputs in (
        _norm_inputs(fp8=fp8),
        dataclasses.replace(_norm_inputs(), residual=None),
        tensors.NormQuantInputs(x3d, x3d.clone(), _values(40), 1e-5, fp8),
        tensors.QuantInputs(x3d, fp8),
        _gemm_inputs(),
    ):
        for poison in POISONS:
            guarded = make_buffers(inputs, poison=poison)
            assert integrity.check_outputs(inputs, guarded.outputs, strict=True).ok
            assert guarded.check().ok
            for tensor in tensors.named_tensors(guarded.outputs).values():
                assert tensor.data_ptr() % 64 == 0
                assert bool((tensor.contiguous().view(torch.uint8) == poison).all())


def test_unwritten_elements_are_named() -> None:
    inputs = _norm_inputs(m=9, n=43)

    def tail_missing(inputs: tensors.NormQuantInputs, buffers: tensors.NormQuantOutputs) -> None:
        kept = {n: tensors.as_ints(t).clone() for n, t in tensors.named_tensors(buffers).items()}
        _fill(inputs, buffers)
        codes = buffers.codes
        codes.view(torch.uint8)[:, 40:] = kept["codes"][:, 40:]
        assert buffers.residual_out is not None
        tensors.as_ints(buffers.residual_out)[-1] = kept["residual_out"][-1]

    first, second = _two_calls(inputs, tail_missing)
    check = integrity.check_unwritten(first.outputs, second.outputs, *POISONS)
    assert check.ok is False
    assert "27 of 387 elements of codes were never written: columns 40 to 42 (the last 3) of every row" in check.detail
    assert "43 of 387 elements of residual_out were never written: all in row 8, every column" in check.detail
    first, second = _two_calls(inputs, _fill)
    assert integrity.check_unwritten(first.outputs, second.outputs, *POISONS).ok is True


def test_a_written_value_equal_to_one_poison_is_not_unwritten() -> None:
    inputs = tensors.QuantInputs(_values(4, 16), FN)

    def constant(inputs: tensors.Inputs, buffers: tensors.Outputs) -> None:
        for tensor in tensors.named_tensors(buffers).values():
            tensor.view(torch.uint8).fill_(POISONS[0])

    first, second = _two_calls(inputs, constant)
    assert integrity.check_unwritten(first.outputs, second.outputs, *POISONS).ok is True


@pytest.mark.parametrize(("offset", "side"), [(0, "after"), (300, "after"), (-1, "before")])
def test_a_store_outside_an_output_is_named(offset: int, side: str) -> None:
    inputs = _norm_inputs(m=1, n=43)
    guarded = make_buffers(inputs, poison=POISONS[0])
    _fill(inputs, guarded.outputs)
    assert guarded.check().ok is True
    size, storage = guarded.guards["codes"], guarded.storages["codes"]
    position = size + (43 + offset if side == "after" else offset)
    storage[position] ^= 0xFF
    check = guarded.check()
    assert check.ok is False
    far = offset + 1 if side == "after" else 1
    assert check.detail == f"1 bytes {side} codes were overwritten, up to {far:,} bytes away"


def test_a_guard_reaches_sixteen_rows() -> None:
    inputs = _gemm_inputs(m=3, n=4096, k=8)
    guarded = make_buffers(inputs, poison=POISONS[1])
    assert guarded.guards["out"] >= 16 * 4096 * 2


def test_changed_inputs_are_named_with_their_gaps() -> None:
    inputs = _strided()
    before = integrity.snapshot(inputs)
    assert integrity.check_unchanged(inputs, before).ok is True
    inputs.x[3, 5] += 1
    assert inputs.residual is not None
    inputs.residual.as_strided((1,), (1,), 41).zero_()
    check = integrity.check_unchanged(inputs, before)
    assert check.ok is False
    assert "1 of 480 elements of x changed, the first at (3, 5) (one element, (3, 5))" in check.detail
    assert "2 bytes between the rows of residual were overwritten" in check.detail


def test_nan_inputs_compare_as_bytes() -> None:
    inputs = _norm_inputs()
    inputs.x[0] = float("nan")
    before = integrity.snapshot(inputs)
    assert integrity.check_unchanged(inputs, before).ok is True
    tensors.as_ints(inputs.x)[0, 0] ^= 1
    assert integrity.check_unchanged(inputs, before).ok is False


def _bad_outputs() -> list[tuple[str, Callable[[tensors.NormQuantInputs, tensors.NormQuantOutputs], object], str]]:
    replace = dataclasses.replace
    return [
        ("none", lambda i, o: None, "the kernel returned NoneType where add_rmsnorm_quant returns NormQuantOutputs"),
        ("tuple", lambda i, o: (o.codes, o.scale), "the kernel returned tuple where"),
        ("other-op", lambda i, o: tensors.QuantOutputs(o.codes, o.scale), "the kernel returned QuantOutputs where"),
        ("shape", lambda i, o: replace(o, scale=o.scale.flatten()), "scale has shape [12], expected [12, 1]"),
        ("dtype", lambda i, o: replace(o, scale=o.scale.double()), "scale has dtype float64, expected float32"),
        ("uint8", lambda i, o: replace(o, codes=o.codes.view(torch.uint8)), "codes has dtype uint8, expected float8"),
        ("meta", lambda i, o: replace(o, scale=o.scale.to("meta")), "scale is on device meta, the inputs are on cpu"),
        ("sparse", lambda i, o: replace(o, scale=o.scale.to_sparse()), "scale has layout torch.sparse_coo"),
        (
            "missing",
            lambda i, o: replace(o, residual_out=None),
            "residual_out is None where a tensor [12, 40]",
        ),
        ("list", lambda i, o: replace(o, scale=o.scale.tolist()), "scale is a list where a tensor [12, 1] float32"),
        (
            "view",
            lambda i, o: replace(o, residual_out=i.residual),
            "residual_out shares memory with the input resid",
        ),
        ("reshaped", lambda i, o: replace(o, residual_out=i.x.view(12, 40)), "shares memory with the input x"),
        ("expanded", lambda i, o: replace(o, scale=o.scale[:1].expand(12, 1)), "scale is a broadcast"),
        ("strides", lambda i, o: replace(o, codes=o.codes.t().contiguous().t()), "codes is not contiguous"),
    ]


@pytest.mark.parametrize(("change", "sentence"), [b[1:] for b in _bad_outputs()], ids=[b[0] for b in _bad_outputs()])
def test_outputs_that_cannot_be_judged_get_one_sentence(change: Callable, sentence: str) -> None:
    inputs = _norm_inputs()
    outputs = _fill(inputs, make_buffers(inputs, poison=POISONS[0]).outputs)
    with pytest.raises(OutputError) as caught:
        integrity.check_outputs(inputs, change(inputs, outputs), strict=True)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_residual_that_nobody_asked_for_is_refused() -> None:
    inputs = _norm_inputs()
    outputs = _fill(inputs, make_buffers(inputs, poison=POISONS[0]).outputs)
    with pytest.raises(OutputError, match="although the case has no residual"):
        integrity.check_outputs(dataclasses.replace(inputs, residual=None), outputs, strict=True)


def test_outputs_from_one_allocation_are_fine_until_they_overlap() -> None:
    inputs = tensors.QuantInputs(_values(4, 16), FN)
    memory = torch.zeros(80, dtype=torch.uint8)
    codes = memory[:64].view(FN).view(4, 16)
    apart = tensors.QuantOutputs(codes, memory[64:].view(torch.float32).view(4, 1))
    assert integrity.check_outputs(inputs, apart, strict=True).ok
    overlapping = tensors.QuantOutputs(codes, memory[48:64].view(torch.float32).view(4, 1))
    with pytest.raises(OutputError, match="codes and scale share memory"):
        integrity.check_outputs(inputs, overlapping, strict=True)


def test_same_bits_sees_the_sign_of_zero_and_nan_payloads() -> None:
    a = tensors.GemmOutputs(torch.tensor([[0.0, float("nan")]], dtype=torch.bfloat16))
    assert integrity.describe_differences(integrity.same_bits(a, a)) == ""
    b = tensors.GemmOutputs(torch.tensor([[-0.0, float("nan")]], dtype=torch.bfloat16))
    assert integrity.same_bits(a, b)["out"].count == 1
    assert integrity.same_bits(a, b)["out"].first == (0, 0)
    other = tensors.GemmOutputs(torch.zeros(2, 2, dtype=torch.bfloat16))
    assert integrity.same_bits(a, other)["out"].count == 2


def _mask(m: int, n: int, *hits: tuple[object, object]) -> torch.Tensor:
    mask = torch.zeros(m, n, dtype=torch.bool)
    for rows, cols in hits:
        mask[rows, cols] = True  # type: ignore[index]
    return mask


ALL = slice(None)
NO_PATTERN = "no pattern (4 elements in 4 of 64 rows and 4 of 64 columns)"


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (_mask(8, 8), "nowhere"),
        (_mask(8, 8, (ALL, ALL)), "everywhere"),
        (_mask(8, 8, (3, 5)), "one element, (3, 5)"),
        (_mask(64, 64, (9, ALL)), "all in row 9, every column"),
        (_mask(64, 64, (9, [2, 31, 40])), "all in row 9"),
        (_mask(64, 64, (9, slice(60, 64))), "all in row 9, columns 60 to 63 (the last 4)"),
        (_mask(64, 64, (ALL, 7)), "column 7 of every row"),
        (_mask(64, 64, ([1, 5, 60], 7)), "all in column 7"),
        (_mask(300, 5120, (ALL, slice(5112, None))), "columns 5112 to 5119 (the last 8) of every row"),
        (_mask(600, 64, (slice(256, 512), ALL)), "rows 256 to 511"),
        (_mask(65, 64, (slice(1, None, 2), ALL)), "odd rows"),
        (_mask(64, 256, (ALL, torch.arange(256) % 64 >= 32)), "columns 32 to 63 of every 64 of every row"),
        (_mask(64, 256, (ALL, slice(5, None, 8))), "columns 5 modulo 8 of every row"),
        (_mask(600, 600, (slice(256, 384), slice(384, 512))), "one 128x128 tile at (256, 384)"),
        (_mask(600, 600, ([256, 300], [384, 450])), "one 128x128 tile at (256, 384)"),
        (_mask(600, 600, ([1, 3], [4, 90]), ([400, 403], [4, 90])), "2 128x128 tiles, at (0, 0), (384, 0)"),
        (_mask(64, 64, (slice(3, 7), slice(8, 12))), "rows 3 to 6, columns 8 to 11"),
        (_mask(64, 64, (9, slice(0, 63, 2)), ([1, 50], [4, 9])), "94.1 % in row 9, the rest spread"),
        (_mask(24, 1, ([1, 5, 6, 20], ALL)), "no pattern (4 of 24 rows)"),
        (
            _mask(64, 64, ([1, 9, 50, 51], [3, 60, 9, 22])),
            NO_PATTERN,
        ),
    ],
)
def test_where_words(mask: torch.Tensor, words: str) -> None:
    assert where_words(mask) == words
    assert where_words(mask.view(1, *mask.shape)) == words


# ---- invariance


def _run(inputs: tensors.Inputs, call: Callable[[Any, Any], tensors.Outputs] = _fill) -> tensors.Outputs:
    return call(inputs, make_buffers(inputs, poison=POISONS[0]).outputs)


@pytest.mark.parametrize(
    ("inputs", "op"),
    [
        (_norm_inputs(), "add_rmsnorm_quant"),
        (_strided(), "add_rmsnorm_quant"),
        (tensors.NormQuantInputs(_values(2, 6, 40), None, _values(40), 1e-5, FN), "add_rmsnorm_quant"),
        (tensors.QuantInputs(_values(3, 5, 40), FNUZ), "per_token_quant"),
        (_gemm_inputs(), "ptpc_gemm"),
    ],
    ids=["norm", "strided", "3d", "quant", "gemm"],
)
def test_an_honest_kernel_is_invariant(inputs: Any, op: str) -> None:
    kernel, outputs = _kernel(_fill, op), _run(inputs)
    assert invariance.batch_invariance(kernel, inputs, outputs).ok is True
    layout = invariance.layout_equals_contiguous(kernel, inputs, outputs)
    x = inputs.a if isinstance(inputs, tensors.GemmInputs) else inputs.x
    assert layout.ok is (None if x.is_contiguous() and x.dim() == 2 else True)


def test_a_race_is_seen_run_to_run() -> None:
    """By the two calls that every validation makes."""
    calls = []

    def coin(inputs: tensors.NormQuantInputs, buffers: tensors.NormQuantOutputs) -> tensors.NormQuantOutputs:
        outputs: tensors.NormQuantOutputs = _fill(inputs, buffers)
        calls.append(1)
        if len(calls) == 2:
            outputs.scale[4] *= 2
        return outputs

    case = Case("add_rmsnorm_quant", 12, 40, "gaussian")
    claim = run_kernel(_kernel(coin), case, "cpu")
    (check,) = (c for c in claim.checks if c.name == "run to run")
    assert (check.ok, claim.again) == (False, None)
    assert (
        check.detail == "two runs differ: 1 of 12 elements of scale differ, the first at (4, 0) (one element, (4, 0))"
    )
    assert next(c for c in run_kernel(_kernel(coin), case, "cpu").checks if c.name == "run to run").ok is True
    calls.clear()
    claim = run_kernel(_kernel(coin), case, "cpu", deterministic=False)
    assert next(c for c in claim.checks if c.name == "run to run").ok is None
    assert isinstance(claim.outputs, tensors.NormQuantOutputs)
    assert isinstance(claim.again, tensors.NormQuantOutputs)
    assert claim.again.scale[4] == 2 * claim.outputs.scale[4]


def test_a_result_that_depends_on_the_batch_is_seen() -> None:
    def by_size(inputs: tensors.NormQuantInputs, buffers: tensors.NormQuantOutputs) -> tensors.NormQuantOutputs:
        outputs: tensors.NormQuantOutputs = _fill(inputs, buffers)
        if inputs.x.shape[0] > 8:
            outputs.scale.mul_(1 + 2**-20)
        return outputs

    inputs = _norm_inputs()
    check = invariance.batch_invariance(_kernel(by_size), inputs, _run(inputs, by_size))
    assert check.ok is False
    assert check.detail.startswith("row 0 alone of 12 rows: 1 of 1 elements of scale differ")


def test_a_neighbour_that_leaks_into_a_row_is_seen() -> None:
    def leak(inputs: tensors.GemmInputs, buffers: tensors.GemmOutputs) -> tensors.GemmOutputs:
        outputs: tensors.GemmOutputs = _fill(inputs, buffers)
        if inputs.a.shape[0] > 1:
            outputs.out[0] = outputs.out[1]
        return outputs

    inputs = _gemm_inputs()
    assert invariance.batch_invariance(_kernel(leak, "ptpc_gemm"), inputs, _run(inputs, leak)).ok is False


def test_a_kernel_that_ignores_strides_is_seen() -> None:
    def packed(inputs: tensors.Inputs, buffers: tensors.Outputs) -> tensors.Outputs:
        assert isinstance(inputs, tensors.NormQuantInputs)
        x = inputs.x.as_strided(inputs.x.shape, (inputs.x.shape[1], 1))
        return _fill(dataclasses.replace(inputs, x=x), buffers)

    inputs = _strided()
    check = invariance.layout_equals_contiguous(_kernel(packed), inputs, _run(inputs, packed))
    assert check.ok is False
    assert "elements of residual_out differ" in check.detail


def test_a_shape_that_the_kernel_refuses_is_reported_and_not_judged() -> None:
    def picky(inputs: tensors.NormQuantInputs, buffers: tensors.NormQuantOutputs) -> tensors.NormQuantOutputs:
        if inputs.x.shape[0] == 1:
            raise ValueError("needs two rows")
        out: tensors.NormQuantOutputs = _fill(inputs, buffers)
        return out

    inputs = _norm_inputs()
    check = invariance.batch_invariance(_kernel(picky), inputs, _run(inputs, picky))
    assert check.ok is None
    assert check.detail == "not judged, for row 0 alone: the kernel raised ValueError: needs two rows"
