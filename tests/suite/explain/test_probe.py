"""The probe kit recovers the parameters of every unit that is known, and says what it cannot see."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from torch import Tensor

from reference.accumulators import Unit, emulate, get_unit
from reference.formats import E4M3FN, FORMATS, decode, encode
from validators.explain import probe as kit
from validators.explain.probe import NOT_SEEN, ProbeError, probe
from validators.kernels.registry import find_kernel

EACH, SUM = "toward zero, each term before the sum", "toward zero, the sum"
FLOOR, FLOOR_2 = "toward minus infinity", "toward minus infinity, nothing from 2 bits below on"
NEAREST = "to nearest even"


def _format(unit: str) -> str:
    return "e4m3fnuz" if unit.startswith("cdna3") else "e4m3fn"


def _call(unit: str | Unit, fp8: str, dtype: torch.dtype) -> kit.KernelCall:
    def run(a: Tensor, b: Tensor) -> Tensor:
        return emulate(a, b, FORMATS[fp8], unit).to(dtype)

    return run


@functools.lru_cache
def _record(unit: str, dtype: torch.dtype = torch.bfloat16) -> dict[str, object]:
    fp8 = _format(unit)
    return probe(_call(unit, fp8, dtype), fp8=fp8, rows=64)


EXPECTED: dict[str, dict[str, object]] = {
    "hopper-promote128": {
        "fraction_bits": 13,
        "sequential": False,
        "alignment": EACH,
        "large_accumulator_bits": 13,
        "small_accumulator_bits": 13,
        "small_accumulator_rounding": EACH,
        "output_bits": 13,
        "output_rounding": SUM,
        "sticky_bits": False,
        "product_exponent_renormalised": False,
        "subnormal_renormalised": False,
        "zero_takes_part": False,
        "group": 32,
        "floored_positions": [],
        "promotion_interval": 128,
    },
    "hopper-fast": {"fraction_bits": 13, "group": 32, "output_rounding": SUM, "promotion_interval": None},
    "ada": {"fraction_bits": 13, "alignment": EACH, "group": 16, "promotion_interval": None},
    "cdna3-mfma": {
        "fraction_bits": 24,
        "alignment": EACH,
        "alignment_other_half": FLOOR,
        "large_accumulator_bits": 23,
        "large_accumulator_rounding": NEAREST,
        "small_accumulator_bits": 24,
        "small_accumulator_rounding": FLOOR_2,
        "output_bits": 23,
        "output_rounding": NEAREST,
        "sticky_bits": False,
        "product_exponent_renormalised": False,
        "group": 16,
        "floored_positions": [1, 3, 5, 7, 9, 11, 13, 15],
        "promotion_interval": NOT_SEEN,
    },
    "blackwell-mma": {
        "fraction_bits": 28,
        "sequential": False,
        "alignment": NOT_SEEN,
        "large_accumulator_bits": 23,
        "large_accumulator_rounding": NEAREST,
        "output_bits": 23,
        "output_rounding": NEAREST,
        "group": 32,
    },
    "blackwell-tcgen05": {
        "fraction_bits": 25,
        "alignment": EACH,
        "output_bits": 23,
        "output_rounding": SUM,
        "group": 32,
    },
    "fp32-serial": {
        "fraction_bits": 28,
        "fraction_bits_if_between": 23,
        "sequential": True,
        "large_accumulator_bits": 23,
        "large_accumulator_rounding": NEAREST,
        "small_accumulator_rounding": NEAREST,
        "group": 1,
    },
}


@pytest.mark.parametrize("unit", EXPECTED)
def test_the_parameters_of_an_emulated_unit_are_recovered(unit: str) -> None:
    """From bf16 outputs: what kernels for the model store."""
    record = _record(unit)
    inferred = record["inferred"]
    assert isinstance(inferred, dict)
    assert {name: inferred[name] for name in EXPECTED[unit]} == EXPECTED[unit]
    assert record["follows"] == [unit]


def test_group_positions_show_a_permuted_k() -> None:
    from reference.accumulators import K_MAPS

    def run(a: Tensor, b: Tensor) -> Tensor:
        return emulate(a, b, FORMATS["e4m3fnuz"], "cdna3-mfma", k_map=K_MAPS["lane16-16x16x32"])

    inferred = probe(run, fp8="e4m3fnuz", rows=64, known=False)["inferred"]
    assert isinstance(inferred, dict)
    assert inferred["group_positions_0"] == [*range(8), *range(16, 24)]


@pytest.mark.parametrize(
    ("changes", "parameter", "value"),
    [
        ({"fraction": 12}, "fraction_bits", 12),
        ({"kept": 12}, "output_bits", 12),
        ({"group": 8}, "group", 8),
        ({"promote": 256}, "promotion_interval", 256),
    ],
)
def test_a_changed_unit_is_seen_to_differ(changes: dict[str, object], parameter: str, value: int) -> None:
    unit = get_unit("hopper-fast").replace(name="changed", **changes)
    record = probe(_call(unit, "e4m3fn", torch.float32), rows=64)
    inferred = record["inferred"]
    assert isinstance(inferred, dict)
    assert inferred[parameter] == value
    assert record["follows"] == []


def test_probes_of_a_kernel_of_the_registry() -> None:
    """torch's fp32 GEMM keeps what fp32 keeps; nothing 13-bit about it."""
    call = kit.kernel_call(find_kernel("torch_native/eager", "ptpc_gemm"))
    inferred = probe(call, rows=64, known=False)["inferred"]
    assert isinstance(inferred, dict)
    assert inferred["fraction_bits_if_between"] >= 23
    assert inferred["large_accumulator_bits"] == 23
    assert inferred["large_accumulator_rounding"] == NEAREST


def test_the_record_is_json_and_its_words_name_every_parameter() -> None:
    record = _record("hopper-promote128")
    assert json.loads(json.dumps(record)) == record
    words = kit.lines(record)
    assert "fraction bits: 13" in words
    assert "promotion interval: 128" in words
    assert "sticky bits: no" in words
    assert words[-1] == "answers every probe as hopper-promote128"


@pytest.mark.parametrize("fp8", ["e4m3fn", "e4m3fnuz"])
def test_every_term_of_every_probe_is_an_fp8_value(fp8: str) -> None:
    """The answers mean nothing if a product was rounded when it was encoded; names are unique."""
    fmt = FORMATS[fp8]
    wanted = kit.probes(fmt) + kit.group_probes(fmt, 13) + kit.group_probes(fmt, 24)
    values = torch.tensor([v for p in wanted for _, a, b in p.terms for v in (a, b)], dtype=torch.float64)
    assert torch.equal(decode(encode(values, fmt), fmt), values)
    names = [p.name for p in kit.probes(fmt)]
    assert len(names) == len(set(names))
    assert all(0 <= position < p.k for p in wanted for position, _, _ in p.terms)


def test_unreadable_kernels_are_refused_in_one_sentence() -> None:
    with pytest.raises(ProbeError, match="answered every probe with zero"):
        probe(lambda a, b: torch.zeros(len(a), len(b)), rows=64)
    with pytest.raises(ProbeError, match=r"returned \(64, 1\) for a GEMM of 64 x 64 outputs"):
        probe(lambda a, b: torch.zeros(len(a), 1), rows=64)
    with pytest.raises(ProbeError, match="unknown FP8 format 'e5m2'"):
        probe(lambda a, b: a, fp8="e5m2")


def test_an_unlike_rounding_is_reported_in_units() -> None:
    """Rounds every term up in magnitude: no name for it, so the record shows the numbers."""

    def run(a: Tensor, b: Tensor) -> Tensor:
        p = decode(a, E4M3FN).unsqueeze(1) * decode(b, E4M3FN).unsqueeze(0)
        q = torch.exp2(torch.log2(p.abs().amax(2, keepdim=True).clamp(min=2.0**-30)).floor() - 10)
        return (torch.sign(p) * (p.abs() / q).ceil() * q).sum(2).float()

    inferred = probe(run, rows=64, known=False)["inferred"]
    assert isinstance(inferred, dict)
    assert inferred["fraction_bits"] == 10
    assert inferred["alignment"] == "unlike any known: 1, -1, -1, -1, 1, -1, -1, -1 units"
