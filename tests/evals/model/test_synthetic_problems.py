"""The embedded problems and their tokens: right arithmetic, disjoint splits, the same everywhere, exact round trip."""

from __future__ import annotations

import hashlib
import re

import pytest

from evals.model import synthetic, tokenizer

STEP = re.compile(r"^(\d+)([-+*/])(\d+)=<<(\d+)([-+*/])(\d+)=(\d+)>>(\d+) [a-z]+\.$")


@pytest.fixture(scope="module")
def problems() -> list[synthetic.Problem]:
    return [synthetic.problem(7, index) for index in range(3000)]


def test_every_line_is_right_and_the_last_is_the_answer(problems: list[synthetic.Problem]) -> None:
    for made in problems:
        *lines, last = made.solution.split("\n")
        assert len(lines) == made.lines
        for line in lines:
            found = STEP.match(line)
            assert found, line
            x, sign, y, again, sign_again, y_again, z, shown = found.groups()
            assert (x, sign, y, z) == (again, sign_again, y_again, shown)
            a, b = int(x), int(y)
            wanted = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[sign]
            assert int(z) == wanted
            assert sign != "/" or a % b == 0
        assert last == f"#### {made.gold}" == f"#### {shown}"


def test_the_mix_has_what_the_model_card_says(problems: list[synthetic.Problem]) -> None:
    assert {made.lines for made in problems} == {1, 2, 3, 4, 5, 6}
    assert 0.05 < sum(made.hard for made in problems) / len(problems) < 0.2


def test_problems_are_the_same_on_every_machine() -> None:
    """The digest was taken once; a change of it makes the trained model worthless."""
    text = "".join(made.question + made.solution for made in (synthetic.problem(2025, i) for i in range(200)))
    assert hashlib.sha256(text.encode()).hexdigest() == DIGEST


DIGEST = "3b8e604ee38a0edb78990d430cb354a8863d8725b2857b7e575cc2ee768663e8"


def test_decoding_gives_back_every_character(problems: list[synthetic.Problem]) -> None:
    for made in problems[:500]:
        asked, answered = synthetic.prompt(made.question), synthetic.completion(made.solution)
        ids = tokenizer.encode(asked) + tokenizer.encode(answered)
        assert ids == tokenizer.encode(asked + answered), "the cut between prompt and completion moves no token"
        assert tokenizer.decode(ids) == asked + answered


def test_numbers_are_single_digits() -> None:
    assert [tokenizer.decode([i]) for i in tokenizer.encode("1080")] == ["1", "0", "8", "0"]


def test_a_word_that_the_model_does_not_know_is_an_error() -> None:
    with pytest.raises(ValueError, match="' elephants'"):
        tokenizer.encode("Tom has 3 elephants")
