"""Matrix instructions: layouts by one-hot operands, sums in fractions, the model of gfx942 by the reference's."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest
import torch

from reference.accumulators import emulate
from reference.formats import format_of
from tests.support import amdgcn_exact as exact
from tests.support.amdgcn_bench import Bench
from tests.support.amdgcn_exact import F32
from validators.amdgcn.floats import from_fp8
from validators.amdgcn.policies import POLICIES, Policy

LANES = 64
SHAPES = {
    "16x16x32_fp8_fp8": (16, 32, "gfx942"),
    "32x32x16_fp8_fp8": (32, 16, "gfx942"),
    "16x16x128_f8f6f4": (16, 128, "gfx950"),
    "32x32x64_f8f6f4": (32, 64, "gfx950"),
}
ONCE = Policy("once", mfma="once")


def _spread(codes: np.ndarray) -> list[np.ndarray]:
    """Registers [64] of codes [rows, K]: row l % rows, consecutive k from block l // rows on."""
    rows, inner = codes.shape
    width = inner * rows // LANES
    lanes = [codes[lane % rows, lane // rows * width : (lane // rows + 1) * width] for lane in range(LANES)]
    return list(np.stack(lanes).astype(np.uint8).view("<u4").T)


def _product(name: str, a: np.ndarray, b: np.ndarray, c: np.ndarray, policy: Policy = ONCE) -> np.ndarray:
    """D uint32 [rows, columns] of one instruction, read by the documented layout."""
    rows, _, target = SHAPES[name]
    bench = Bench(1, policy)
    registers = rows * rows // LANES
    results: dict[int, np.ndarray] = {}
    for first, parts in ((20, _spread(a)), (30, _spread(b))):
        results |= {first + k: part[None] for k, part in enumerate(parts)}
    words = len(_spread(a))
    place = [
        (8 * (r // 4) * (rows == 32) + 4 * (lane // rows) + r % 4, lane % rows)
        for r in range(registers)
        for lane in range(LANES)
    ]
    for r in range(registers):
        results[r] = np.array([c[place[r * LANES + lane]] for lane in range(LANES)], dtype=np.uint32)[None]
    bench.v = results
    line = f"\tv_mfma_f32_{name} v[0:{registers - 1}], v[20:{19 + words}], v[30:{29 + words}], v[0:{registers - 1}]"
    state = bench.run(line, target)
    found = np.zeros((rows, rows), dtype=np.uint32)
    for r in range(registers):
        for lane in range(LANES):
            found[place[r * LANES + lane]] = state.vector[r][0][lane]
    return found


@pytest.mark.parametrize("name", SHAPES)
def test_a_product_of_one_row_and_one_column(name: str) -> None:
    rows, inner, _ = SHAPES[name]
    one = 0x40 if SHAPES[name][2] == "gfx942" else 0x38
    made = random.Random(name)
    for _ in range(6):
        i, j, k = made.randrange(rows), made.randrange(rows), made.randrange(inner)
        a, b = np.zeros((rows, inner), dtype=np.uint8), np.zeros((rows, inner), dtype=np.uint8)
        a[i, k], b[j, k] = one, one
        found = _product(name, a, b, np.zeros((rows, rows)))
        assert found[i, j] == 0x3F800000
        assert np.count_nonzero(found) == 1


@pytest.mark.parametrize("name", SHAPES)
def test_a_sum_is_rounded_once(name: str) -> None:
    rows, inner, target = SHAPES[name]
    fnuz = target == "gfx942"
    made = np.random.default_rng(7)
    a, b = (made.integers(0, 0x70, (rows, inner)).astype(np.uint8) for _ in "ab")
    a |= made.choice([0, 0x80], a.shape).astype(np.uint8)
    a = np.where(a == 0x80, 0, a).astype(np.uint8)
    c = made.normal(0, 100, (rows, rows)).astype(np.float32)
    found = _product(name, a, b, c.view(np.uint32))
    x, y = (from_fp8(codes, fnuz) for codes in (a, b))
    for i, j in ((0, 0), (3, 9), (rows - 1, rows - 2), (rows // 2, 1)):
        products = (Fraction(float(p)) * Fraction(float(q)) for p, q in zip(x[i], y[j], strict=True))
        assert int(found[i, j]) == F32.round(sum(products, Fraction(float(c[i, j]))))


@pytest.mark.parametrize("name", ["16x16x32_fp8_fp8", "32x32x16_fp8_fp8"])
def test_the_model_of_gfx942_is_that_of_the_reference(name: str) -> None:
    rows, inner, _ = SHAPES[name]
    made = np.random.default_rng(11)
    for spread in (1.0, 40.0):
        values = torch.from_numpy(made.normal(0, spread, (2, rows, inner)).astype(np.float32))
        a, b = (part.clamp(-240, 240).to(torch.float8_e4m3fnuz).contiguous() for part in values)
        codes = [x.view(torch.uint8).numpy() for x in (a, b)]
        found = _product(name, codes[0], codes[1], np.zeros((rows, rows)), POLICIES["nearest"])
        wanted = emulate(a, b, format_of(a.dtype), "cdna3-mfma")
        assert np.array_equal(found.view(np.float32), wanted.float().numpy())


def test_what_is_no_number() -> None:
    a, b = np.zeros((16, 32), dtype=np.uint8), np.zeros((16, 32), dtype=np.uint8)
    a[2, 5] = 0x80
    found = _product("16x16x32_fp8_fp8", a, b, np.zeros((16, 16)))
    assert all(F32.is_nan(int(x)) for x in found[2])
    assert not found[3].any()
    assert int(found[2, 0]) == exact.NAN32
