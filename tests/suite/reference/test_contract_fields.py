"""Fields of contracts that real code needs: scales and quotients in T, flushed operands, the store of fp16."""

from __future__ import annotations

import functools

import pytest
import torch

from reference.add_rmsnorm_quant import flushed_residual
from reference.contract import NORM_QUANT_CONTRACTS, NormQuantContract
from reference.formats import FORMATS
from reference.per_token_quant import quant_truth
from reference.quantize import Scales, scale_of
from reference.setting import Setting
from validators.calls.buffers import POISONS, make_buffers
from validators.calls.invariance import batch_invariance
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.recipe import ADD, QUANT
from validators.cases.tensors import Inputs, NormQuantInputs, NormQuantOutputs, Outputs, QuantInputs
from validators.judge.compare import compare, open_rows, settled
from validators.kernels import emulated
from validators.kernels.emulated_variant import EmulatedError, Variant
from validators.kernels.kernel import Kernel
from validators.records.record import Check

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
LIBRARIES = ("torchao", "compressed-tensors")


def violations(inputs: NormQuantInputs | QuantInputs, outputs: Outputs, contract: NormQuantContract) -> dict[str, int]:
    return {c.output: c.violations for c in compare(inputs, outputs, contract)}


def made(op: str, recipe: str, contract: NormQuantContract, *, n: int = 520, **options: object):  # type: ignore[no-untyped-def]
    inputs = build(Case(op, 32, n, recipe, **options))  # type: ignore[arg-type]
    assert isinstance(inputs, NormQuantInputs | QuantInputs)
    return inputs, emulated.make(contract)(inputs)


def all_positive(storage: str) -> torch.Tensor:
    """Every positive finite value of T, T [count]."""
    values = torch.arange(1, 1 << 15, dtype=torch.int16).view(TYPES[storage])
    return values[values.isfinite()]


@pytest.mark.parametrize("fp8", ["e4m3fn", "e4m3fnuz"])
@pytest.mark.parametrize("storage", ["bf16", "fp16"])
def test_every_scale_of_t_is_the_frameworks_division_in_t_and_its_neighbours_are_none(storage: str, fp8: str) -> None:
    """All 2**15 row maxima. The admissible scale is amax / Q as the type itself divides, and no other value of T."""
    contract, fmt = NORM_QUANT_CONTRACTS["torchao"], FORMATS[storage]
    amax, setting = all_positive(storage), Setting(contract, FORMATS[fp8], fmt, 1)
    truth = quant_truth(amax[:, None], setting).scale
    scale = (amax.float() / torch.tensor(setting.qmax)).to(TYPES[storage])
    judged = truth.kind == 0
    assert int(judged.sum()) > len(amax) // 2
    for steps in (-1, 0, 1):
        near = (scale.view(torch.int16) + steps).view(TYPES[storage]).double()
        found = truth.admits(near)
        assert bool((found == (steps == 0))[judged].all()), steps


@pytest.mark.parametrize(("fp8", "most"), [("e4m3fn", 240.0), ("e4m3fnuz", 240.0), ("e4m3fnuz", 224.0)])
@pytest.mark.parametrize("storage", ["bf16", "fp16"])
def test_scales_of_an_interval_of_row_maxima_are_its_image(storage: str, fp8: str, most: float) -> None:
    """Where amax is only known to an interval (the norm), the set is what the interval's values of T give, no more."""
    contract, fmt = NORM_QUANT_CONTRACTS["torchao"].replace(fnuz_max=most), FORMATS[storage]
    setting = Setting(contract, FORMATS[fp8], fmt, 1)
    values = all_positive(storage).double()
    image = scale_of(values, setting)
    draw = torch.Generator().manual_seed(4)
    for width in (0, 1, 2, 5):
        low = torch.randint(len(values) - width, (4000,), generator=draw)
        ends = [values[low], values[low + width]]
        none = torch.zeros(len(low), dtype=torch.int8)
        bounds = [scale_of(end, setting) for end in ends]
        truth = Scales(
            setting=setting,
            grid=fmt,
            kind=none,
            nominal=bounds[0],
            low=bounds[0],
            high=bounds[1],
            amax_low=ends[0],
            amax_high=ends[1],
        )
        near = torch.randint(-2, 3, (len(low),), generator=draw)
        at = (image[low].to(TYPES[storage]).view(torch.int16) + near).clamp(min=0).to(torch.int16)
        asked = at.view(TYPES[storage]).double()
        expected = torch.stack([image[low + i] == asked for i in range(width + 1)]).any(dim=0)
        assert torch.equal(truth.admits(asked), expected)
        assert 0 < int(expected.sum()) < len(low)


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("op", [ADD, QUANT])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("recipe", ["gaussian", "midpoints", "magnitude_ladder", "crest_ladder", "zero_rows"])
def test_a_library_is_admitted_and_one_changed_field_is_not(name: str, op: str, dtype: str, recipe: str) -> None:
    contract = NORM_QUANT_CONTRACTS[name]
    inputs, outputs = made(op, recipe, contract, dtype=dtype)
    comparisons = compare(inputs, outputs, contract)
    assert not any(c.violations for c in comparisons)
    if recipe != "gaussian":
        return
    # Nothing is left open beyond what the norm's rms leaves: the sets are exact.
    assert all(c.single >= 0.99 * c.judged for c in comparisons)
    for change in ({"round_scale": False}, {"round_quotient": not contract.round_quotient}, {"division": "reciprocal"}):
        neighbour = contract.replace(**change)
        # 1/s of a scale of few bits and a quotient that is rounded to T hide the reciprocal's last bit.
        if change != {"division": "reciprocal"}:
            assert sum(violations(inputs, outputs, neighbour).values()) > 0, change
        theirs = emulated.make(neighbour)(inputs)
        assert sum(violations(inputs, theirs, neighbour).values()) == 0, change


@pytest.mark.parametrize("op", [ADD, QUANT])
def test_zero_rows_of_the_libraries(op: str) -> None:
    """compressed-tensors stores the epsilon of T. torchao stores 0, and 0/0 is no zero: NaN codes are violations."""
    for dtype, eps in (("bf16", 2.0**-7), ("fp16", 2.0**-10)):
        inputs, outputs = made(op, "zero_rows", NORM_QUANT_CONTRACTS["compressed-tensors"], dtype=dtype)
        zero = (outputs.codes.view(torch.uint8) & 0x7F == 0).all(dim=1)
        assert bool(zero.any())
        assert set(outputs.scale[zero].flatten().tolist()) == {eps}
        torchao = NORM_QUANT_CONTRACTS["torchao"]
        inputs, outputs = made(op, "zero_rows", torchao, dtype=dtype)
        assert set(outputs.scale[zero].flatten().tolist()) == {0.0}
        outputs.codes.view(torch.uint8)[zero] = 0xFF
        found = violations(inputs, outputs, torchao)
        assert found["codes"] == int(zero.sum()) * inputs.x.shape[1]
        assert found["scale"] == 0


def test_a_scale_that_underflows_in_fp16_follows_the_rule_for_zero() -> None:
    """amax/448 of these rows is below half of fp16's smallest number: compressed-tensors divides by its epsilon."""
    contract = NORM_QUANT_CONTRACTS["compressed-tensors"]
    x = (torch.arange(64, dtype=torch.float32).reshape(1, 64) * 2.0**-24).half()
    inputs = QuantInputs(x, torch.float8_e4m3fn)
    outputs = emulated.make(contract)(inputs)
    assert outputs.scale.item() == 2.0**-10
    assert violations(inputs, outputs, contract) == {"scale": 0, "codes": 0}
    outputs.codes.view(torch.uint8)[0, 63] += 1
    assert violations(inputs, outputs, contract)["codes"] == 1


def test_a_setting_without_a_storage_type_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'torchao' .* is bf16 or fp16 and not fp32"):
        Setting.of(QuantInputs(torch.ones(1, 8), torch.float8_e4m3fn), NORM_QUANT_CONTRACTS["torchao"])


# --- stores of the residual


def test_gfx942_truncates_bf16_and_rounds_fp16() -> None:
    contract = NORM_QUANT_CONTRACTS["aiter-hip-gfx942"]
    assert (contract.store("bf16"), contract.store("fp16")) == ("truncate", "rne")
    for dtype in ("bf16", "fp16"):
        inputs, outputs = made(ADD, "residual_ties", contract, dtype=dtype)
        assert sum(violations(inputs, outputs, contract).values()) == 0
        wrong = contract.replace(residual_store="rne" if dtype == "bf16" else "truncate")
        assert violations(inputs, outputs, wrong)["residual_out"] > 0


# --- flushed operands


FLUSHING = [name for name, c in NORM_QUANT_CONTRACTS.items() if c.denormals == "either"]


@pytest.mark.parametrize("name", FLUSHING)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("op", [ADD, QUANT])
@pytest.mark.parametrize("recipe", ["subnormal_rows", "magnitude_ladder", "zero_rows", "gaussian"])
def test_a_build_that_flushes_is_admitted_where_the_contract_says_either(
    name: str, dtype: str, op: str, recipe: str
) -> None:
    contract = NORM_QUANT_CONTRACTS[name]
    inputs = build(Case(op, 48, 512, recipe, dtype=dtype))
    assert isinstance(inputs, NormQuantInputs | QuantInputs)
    for flush in (False, True):
        outputs = emulated.make(contract, Variant(flush=flush))(inputs)
        assert sum(violations(inputs, outputs, contract).values()) == 0, flush
    if (op, dtype, recipe) == (ADD, "bf16", "subnormal_rows"):
        assert violations(inputs, outputs, contract.replace(denormals="preserve"))["residual_out"] > 0
        with pytest.raises(EmulatedError, match="preserves numbers below"):
            emulated.make(contract.replace(denormals="preserve"), Variant(flush=True))


def test_a_flush_is_of_both_operands_or_of_the_result_and_of_nothing_else() -> None:
    """The sums that a flush may give, and some that it may not: a lost operand that is no subnormal, a half flush."""
    contract, tiny = NORM_QUANT_CONTRACTS["aiter-hip-gfx950"], 2.0**-126
    rows = [  # x, r, what was stored, admissible
        (0.5 * tiny, 1.5 * tiny, 2.0 * tiny, True),  # the sum
        (0.5 * tiny, 1.5 * tiny, 1.5 * tiny, True),  # x flushed
        (0.5 * tiny, 1.5 * tiny, 0.5 * tiny, False),  # r lost
        (0.5 * tiny, 0.25 * tiny, 0.75 * tiny, True),
        (0.5 * tiny, 0.25 * tiny, 0.0, True),
        (0.5 * tiny, 0.25 * tiny, -0.0, True),
        (0.5 * tiny, 0.25 * tiny, 0.5 * tiny, False),  # one of two subnormal operands
        (1.5 * tiny, -1.25 * tiny, 0.0, True),  # the result
        (1.5 * tiny, -1.25 * tiny, 1.5 * tiny, False),
        (tiny, tiny, tiny, False),
        (tiny, tiny, 0.0, False),
    ]
    x, r, stored = (torch.tensor([row[i] for row in rows]).bfloat16().reshape(1, -1) for i in range(3))
    flushed = flushed_residual(x, r, Setting(contract, FORMATS["e4m3fn"], FORMATS["bf16"], len(rows)))[0, :2].float()
    assert torch.equal(flushed, torch.tensor([1.5, 1.5]) * tiny)
    inputs = NormQuantInputs(x, r, torch.ones(len(rows), dtype=torch.bfloat16), 1e-5, torch.float8_e4m3fn)
    outputs = emulated.make(contract)(inputs)
    assert isinstance(outputs, NormQuantOutputs)
    assert outputs.residual_out is not None
    outputs.residual_out.copy_(stored)
    [found] = [c for c in compare(inputs, outputs, contract) if c.output == "residual_out"]
    assert found.violations == sum(not row[3] for row in rows)
    assert sorted(e.col for e in found.worst) == [i for i, row in enumerate(rows) if not row[3]][: len(found.worst)]
    strict = violations(inputs, outputs, contract.replace(denormals="preserve"))["residual_out"]
    assert strict == sum(float(s) != float(a) + float(b) for a, b, s in zip(x[0], r[0], stored[0], strict=True))


@pytest.mark.parametrize("weight", [1.0, 2.0**100])
def test_an_element_that_a_flush_can_move_is_not_judged(weight: float) -> None:
    """A gain of 2**100 carries a flushed z over a code boundary: the row is reported, where at gain 1 it is judged."""
    contract = NORM_QUANT_CONTRACTS["aiter-triton"]
    x = torch.full((1, 64), 2.0**-127)
    x[0, 0] = 2.0**-20
    w = torch.full((64,), weight)
    w[0] = 1.0
    inputs = NormQuantInputs(x.bfloat16(), None, w.bfloat16(), 1e-5, torch.float8_e4m3fn)
    for flush in (False, True):
        outputs = emulated.make(contract, Variant(flush=flush))(inputs)
        found = {c.output: c for c in compare(inputs, outputs, contract)}
        assert sum(c.violations for c in found.values()) == 0
        assert found["codes"].judged == (64 if weight == 1.0 else 0)


# --- rows that the contract leaves open


@pytest.mark.parametrize("fp8", ["e4m3fn", "e4m3fnuz"])
def test_between_batches_any_nan_equals_any_nan_and_open_rows_are_not_judged(fp8: str) -> None:
    """A kernel whose vector body and scalar tail form two NaNs, and -Q or 0 in a row with NaN that is left open."""
    open_, closed = NORM_QUANT_CONTRACTS["vllm"], NORM_QUANT_CONTRACTS["vllm-native"]
    inputs = build(Case(ADD, 8, 264, "gaussian", fp8=fp8))
    assert isinstance(inputs, NormQuantInputs)
    inputs.x[2, 5] = float("nan")
    wanted = [row == 2 for row in range(8)]
    assert open_rows(inputs, open_).tolist() == wanted
    assert open_rows(inputs, closed).tolist() == [False] * 8

    def kernel(contract: NormQuantContract, codes: tuple[int, int], scales: tuple[int, int], row: int = 2) -> Check:
        def call(given: Inputs, buffers: Outputs) -> Outputs:
            outputs = emulated.make(contract)(given, buffers)
            assert isinstance(given, NormQuantInputs)
            at, one = (row, 0) if len(given.x) == 8 else (0, 1)
            if len(given.x) == 8 or torch.equal(given.x[0], inputs.x[row]) or bool(given.x[0].isnan().any()):
                outputs.codes.view(torch.uint8)[at] = codes[one]
                outputs.scale.view(torch.int32)[at] = scales[one]
            return outputs

        rows = functools.partial(open_rows, inputs, contract)
        made = call(inputs, make_buffers(inputs, poison=POISONS[0]).outputs)
        return batch_invariance(Kernel("demo/nan", ADD, None, call), inputs, made, rows=8, open_rows=rows)

    nan = (0x7F, 0xFF) if fp8 == "e4m3fn" else (0x80, 0x80)
    payloads = (0x7FC00000, -1)
    for contract in (open_, closed):
        assert kernel(contract, nan, payloads).ok is True
    # Other values in an open row are not judged; where the contract says NaN, or in an ordinary row, they are.
    assert kernel(open_, (0x08, 0x10), payloads).ok is True
    assert kernel(open_, nan, (0, 1)).ok is True
    assert kernel(closed, (0x08, 0x10), payloads).ok is False
    assert kernel(open_, (0x08, 0x10), (7, 7), row=3).ok is False


# --- fields that are sets of values


UNSETTLED = [name for name, c in NORM_QUANT_CONTRACTS.items() if c.unsettled]


@pytest.mark.parametrize("name", UNSETTLED)
@pytest.mark.parametrize("op", [ADD, QUANT])
@pytest.mark.parametrize("recipe", ["gaussian", "zero_rows", "magnitude_ladder", "midpoints"])
def test_every_member_of_an_unsettled_contract_is_admitted(name: str, op: str, recipe: str) -> None:
    contract = NORM_QUANT_CONTRACTS[name]
    for member in contract.members():
        inputs, outputs = made(op, recipe, member)
        assert sum(violations(inputs, outputs, contract).values()) == 0
        assert sum(violations(inputs, outputs, settled(inputs, outputs, contract)).values()) == 0


def test_a_call_follows_one_member_in_all_its_rows() -> None:
    """Either norm input is admitted; one in half of the rows and the other in the rest is not, nor is any third."""
    contract = NORM_QUANT_CONTRACTS["unfused"]
    members = contract.members()
    inputs, first = made(ADD, "gaussian", members[0])
    _, second = made(ADD, "gaussian", members[2])
    for outputs, norm_input in ((first, "unrounded"), (second, "stored")):
        [codes] = [c for c in compare(inputs, outputs, contract) if c.output == "codes"]
        assert codes.violations == 0
        assert f"leaves unsettled, judged by norm_input={norm_input}, amax_floor=0.0" in codes.observed
    mixed = emulated.make(members[0])(inputs)
    assert isinstance(mixed, NormQuantOutputs)
    for ours, theirs in ((mixed.codes.view(torch.uint8), second.codes.view(torch.uint8)), (mixed.scale, second.scale)):
        ours[16:] = theirs[16:]
    assert sum(violations(inputs, mixed, contract).values()) > 0
    _, other = made(ADD, "gaussian", members[0].replace(round_after_weight=False))
    assert sum(violations(inputs, other, contract).values()) > 0
