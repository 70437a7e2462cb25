"""The generator: known bits, independence from chunks, and the shape of its distributions."""

from __future__ import annotations

import hashlib

import pytest
import torch

from validators.cases.case import Case
from validators.cases.generator import (
    GAUSSIAN_MAX,
    Block,
    bits,
    stream_key,
    to_gaussian,
    to_integers,
    to_signs,
    to_uniform,
)

KEY = stream_key("per_token_quant-m2-n8-bf16-e4m3fn-gaussian-s0", "x")
MASK = (1 << 64) - 1


def splitmix(key: int, index: int) -> int:
    """The published generator in Python integers: output ``index`` from the state ``key``."""
    z = (key + (index + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_bits_are_those_of_splitmix64_in_python_integers() -> None:
    start = 12345
    got = [word & MASK for word in bits(KEY, start, 300).tolist()]
    assert got == [splitmix(KEY, start + i) for i in range(300)]


def test_known_values_of_splitmix64() -> None:
    # First outputs for seed 1234567, as published with the algorithm's reference code.
    assert [word & MASK for word in bits(1234567, 0, 3).tolist()] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_known_bits_do_not_change() -> None:
    digest = hashlib.sha256(bits(KEY, 0, 1 << 12).numpy().tobytes()).hexdigest()
    assert KEY == -5171753748000594125
    assert digest == "4ac6a044c1a5cafae71c3a2019b06a09de710a2afed5507bc166c09e7a76c8a2"
    assert (to_gaussian(bits(KEY, 0, 4)) * 2.0**22).tolist() == [6165717, -699078, -148518, -1940391]
    assert (to_uniform(bits(KEY, 0, 4)) * 2.0**24).tolist() == [15401287, 9764203, 12003868, 46737]
    assert to_integers(bits(KEY, 0, 8), 10).tolist() == [9, 5, 9, 7, 7, 4, 0, 9]
    assert to_signs(bits(KEY, 0, 8)).tolist() == [-1.0, -1.0, -1.0, 1.0, -1.0, 1.0, 1.0, -1.0]


def test_streams_differ_by_case_and_by_tensor() -> None:
    keys = {stream_key(case, tensor) for case in ("a", "b", "ab") for tensor in ("", "x", "y", "bx")}
    assert len(keys) == 12


def test_whole_equals_parts() -> None:
    whole = bits(KEY, 0, 1000)
    parts = torch.cat([bits(KEY, 0, 1), bits(KEY, 1, 600), bits(KEY, 601, 399)])
    assert torch.equal(whole, parts)
    case = Case("per_token_quant", 10, 24, "gaussian")
    block = Block(case, 0, 10, 24)
    for draw in ("gaussian", "uniform", "signs"):
        expected = getattr(block, draw)("x")
        rows = [getattr(block.part(start, start + 2), draw)("x") for start in range(0, 10, 2)]
        assert torch.equal(expected, torch.cat(rows))
    assert torch.equal(block.row_integers("x", 99)[4:6], block.part(4, 6).row_integers("x", 99))
    assert torch.equal(block.col_gaussian("w"), block.part(4, 6).col_gaussian("w"))


def test_distributions() -> None:
    count = 1 << 20
    words = bits(KEY, 0, count).double()
    assert abs(words.mean().item()) < 6 * 2.0**63 / (3 * count) ** 0.5
    g = to_gaussian(bits(KEY, 0, count)).double()
    # Six standard errors of the mean and of the variance (kurtosis of four uniforms: 3 - 0.3).
    assert abs(g.mean().item()) < 6 / count**0.5
    assert abs(g.var().item() - 1.0026) < 6 * (1.7 / count) ** 0.5
    assert g.abs().max().item() <= GAUSSIAN_MAX
    assert abs((g.abs() < 1).double().mean().item() - 0.68) < 0.02
    u = to_uniform(bits(KEY, 0, count)).double()
    assert u.min().item() >= 0
    assert u.max().item() < 1
    assert torch.equal(u * 2**24, (u * 2**24).round())
    assert abs(u.mean().item() - 0.5) < 6 * (1 / 12 / count) ** 0.5
    assert set(to_signs(bits(KEY, 0, 1000)).tolist()) == {1.0, -1.0}
    counts = torch.bincount(to_integers(bits(KEY, 0, count), 7), minlength=7).double()
    assert len(counts) == 7
    assert (counts - count / 7).abs().max().item() < 6 * (count / 7) ** 0.5


def test_gaussian_is_exact_in_fp32() -> None:
    words = bits(KEY, 0, 1000)
    fields = [sum((word >> shift) & 0xFFFF for shift in (0, 16, 32, 48)) for word in words.tolist()]
    expected = [(total - 131070) * 111 / 2**22 for total in fields]
    assert to_gaussian(words).tolist() == expected


@pytest.mark.parametrize("bound", [0, (1 << 31) + 1])
def test_bounds_outside_the_range_are_refused(bound: int) -> None:
    with pytest.raises(ValueError, match="not in"):
        to_integers(bits(KEY, 0, 1), bound)
