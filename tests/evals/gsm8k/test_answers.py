"""Extraction by a table of cases, each worked out by hand from the harness's rule."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.errors import EvalError
from evals.gsm8k.answers import EXTRACTORS, Grade, boxed, find_extractor, flexible, grade, number, sglang

NAMES = ("strict", "flexible", "last-number", "last-mark", "sglang", "boxed")
# text -> the answer by each rule, in the order of NAMES; None is "no number".
CASES: list[tuple[str, tuple[str | None, ...]]] = [
    ("#### 18", ("18", "18", "18", "18", "18", None)),
    ("$18.00", (None, "18", "18", None, "0", None)),
    ("18.", (None, "18", "18", None, "18", None)),
    ("#### 18\n\nThat took 3 steps.", ("18", "3", "3", "18", "3", None)),
    ("-10", (None, "-10", "-10", None, "10", None)),
    ("#### -10", ("-10", "-10", "-10", "-10", "10", None)),
    ("1,080", (None, "1080", "1080", None, "1080", None)),
    ("18.5", (None, "18.5", "18.5", None, "5", None)),
    ("007", (None, "7", "7", None, None, None)),
    ("The answer is \\boxed{18}.", (None, "18", "18", None, "18", "18")),
    ("\\boxed{\\text{about } 1{,}080\\%} of 3", (None, "3", "3", None, "3", "1080")),
    ("\\boxed{\\frac{1}{2}}", (None, "2", "2", None, "2", None)),
    ("18 dollars (9 eggs at $2)", (None, "2", "2", None, "2", None)),
    ("#### 18\nQuestion: next\nAnswer: 4\n#### 4", ("18", "4", "4", "4", "4", None)),
    ("20-5=15, so 10-3", (None, "-3", "3", None, "3", None)),
    ("#### $18", (None, "18", "18", "18", "18", None)),
    ("5 and then...", (None, None, "5", None, "5", None)),
    ("no number", (None, None, None, None, None, None)),
    ("", (None, None, None, None, None, None)),
]


@pytest.mark.parametrize(("text", "wanted"), CASES, ids=[repr(c[0])[:40] for c in CASES])
def test_the_table(text: str, wanted: tuple[str | None, ...]) -> None:
    found = {name: EXTRACTORS[name].find(text) for name in NAMES}
    assert found == {name: None if w is None else Decimal(w) for name, w in zip(NAMES, wanted, strict=True)}


def test_every_extractor_is_in_the_table_and_some_case_tells_each_two_apart() -> None:
    assert set(NAMES) == set(EXTRACTORS)
    columns = list(zip(*(wanted for _, wanted in CASES), strict=True))
    assert len(set(columns)) == len(NAMES)


def test_numbers_are_compared_as_exact_decimals() -> None:
    strict = find_extractor("strict/1")
    assert grade(strict, "#### 18.00", "18") is Grade.RIGHT
    assert grade(strict, "#### 18.000000000000000000001", "18") is Grade.WRONG
    assert grade(strict, "#### 0.30", "0.3") is Grade.RIGHT
    assert grade(strict, "18", "18") is Grade.INVALID


def test_sglang_scores_a_sign_error_as_right_as_it_does_in_truth() -> None:
    """Its extractor reads the gold answer too; every other extractor sees the sign."""
    assert grade(find_extractor("sglang"), "#### 10", "-10") is Grade.RIGHT
    assert grade(find_extractor("strict"), "#### 10", "-10") is Grade.WRONG


def test_an_unknown_extractor_or_version_is_one_sentence() -> None:
    with pytest.raises(EvalError, match=r"unknown extractor 'strikt'; known: strict, flexible"):
        find_extractor("strikt")
    with pytest.raises(EvalError, match="version 1 here, not 2"):
        find_extractor("strict/2")


@settings(deadline=None)
@given(st.text(max_size=60))
def test_no_text_breaks_an_extractor(text: str) -> None:
    for extractor in EXTRACTORS.values():
        found = extractor.find(text)
        assert found is None or found.is_finite()


@settings(deadline=None)
@given(st.integers(-(10**12), 10**12))
def test_every_rule_finds_an_integer_that_stands_as_it_wants(value: int) -> None:
    assert number(f"{value:,}") == value
    assert EXTRACTORS["strict"].find(f"so\n#### {value:,}") == value
    assert EXTRACTORS["last-mark"].find(f"so\n#### {value:,}") == value
    assert flexible(f"it is {value:,} in all") == value
    assert EXTRACTORS["last-number"].find(f"it is {value:,} in all") == value
    assert sglang(f"it is {value:,} in all") == abs(value)
    assert boxed(f"\\boxed{{{value}}}") == value


@pytest.mark.parametrize("text", ["1e5", "NaN", "Infinity", "٣", "1_000", "--1", "1.2.3", ".", "-"])
def test_what_decimal_would_read_and_nobody_writes_is_no_number(text: str) -> None:
    assert number(text) is None
