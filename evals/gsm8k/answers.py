"""Finding the answer in a completion: named, versioned, pure functions on exact decimals.

Harnesses disagree on where the answer is and what a number is; each extractor here is one of their rules, and a
verdict says whether it depends on the choice. Two numbers are equal when they are equal as decimals: ``18.00`` is 18
(lm-eval, which compares text, says it is not). The one exception is ``sglang``, which is wrong on purpose: see there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import Enum

from evals.gsm8k.versioned import Versioned, find


class Grade(str, Enum):
    """INVALID: no number was found; it counts as not right, and is reported apart."""

    RIGHT = "right"
    WRONG = "wrong"
    INVALID = "invalid"


@dataclass(frozen=True, kw_only=True)
class Extractor(Versioned):
    """One rule. find: completion -> number, None where there is none. find_gold: the rule reads the gold answer too."""

    find: Callable[[str], Decimal | None]
    find_gold: bool = False


def number(text: str) -> Decimal | None:
    """``text`` as an exact decimal after dropping thousands commas, dollars, spaces and one trailing full stop."""
    cleaned = re.sub(r"[,$\s]", "", text)
    cleaned = cleaned[:-1] if cleaned.endswith(".") else cleaned
    # Decimal also reads "1e5", "NaN" and other scripts' digits: no answer is written so.
    if not re.fullmatch(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)", cleaned):
        return None
    try:
        return Decimal(cleaned)
    except InvalidOperation:
        return None


def strict(text: str) -> Decimal | None:
    """lm-eval's strict-match: the FIRST ``#### number``."""
    found = re.search(r"#### (-?[0-9.,]+)", text)
    return number(found[1]) if found else None


def flexible(text: str) -> Decimal | None:
    """lm-eval's flexible-extract: the LAST run of two or more of ``$ 0-9 . ,``, or of digits, with its sign."""
    found = re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", text)
    return number(found[-1][0] or found[-1][1]) if found else None


def last_number(text: str) -> Decimal | None:
    """The last decimal number; commas between digits are thousands, a minus after digit, letter or bracket no sign."""
    joined = re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", "", text)
    found = re.findall(r"(?<![0-9A-Za-z)\].])-?\$?[0-9]+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?", joined)
    return number(found[-1]) if found else None


def sglang(text: str) -> Decimal | None:
    """SGLang's and vLLM's ``get_answer_value``: commas deleted, the last run of digits, read as a Python literal.

    So ``$18.00`` is 0, ``18.5`` is 5, ``-10`` is 10, and ``007`` is invalid. The gold answer goes through it as well:
    the two negative ones of the test file lose their sign, and a sign error counts as right.
    """
    found = re.findall(r"\d+", text.replace(",", ""))
    if not found:
        return None
    try:
        return Decimal(ast.literal_eval(found[-1]))
    except (SyntaxError, ValueError):
        return None


def boxed(text: str) -> Decimal | None:
    """The last ``\\boxed{...}``, braces balanced; what is in it, without LaTeX spacing, text, %, must be a number."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed")
    for end in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            inner = re.sub(r"\\(text|mathrm|mbox)\{[^{}]*\}", "", text[begin + 1 : end])
            inner = re.sub(r"\\[,!;: ]|\\%|%|\\\$|\{|\}", "", inner)
            return number(inner)
    return None


def last_mark(text: str) -> Decimal | None:
    """What follows the LAST ``####``; a completion that runs on into further questions is read at its end."""
    found = re.findall(r"####\s*(-?\$?[0-9][0-9.,]*)", text)
    return number(found[-1]) if found else None


EXTRACTORS = {
    e.name: e
    for e in (
        Extractor(name="strict", find=strict),
        Extractor(name="flexible", find=flexible),
        Extractor(name="last-number", find=last_number),
        Extractor(name="last-mark", find=last_mark),
        Extractor(name="sglang", find=sglang, find_gold=True),
        Extractor(name="boxed", find=boxed),
    )
}


def find_extractor(name: str) -> Extractor:
    """The extractor ``name`` or ``name/version``; EvalError for one that is not known."""
    return find("extractor", EXTRACTORS, name)


def grade(extractor: Extractor, text: str, gold: str) -> Grade:
    """Right, wrong or invalid; ``gold`` is exact decimal text."""
    return grade_answer(extractor.find(text), gold_answer(extractor, gold))


def gold_answer(extractor: Extractor, gold: str) -> Decimal | None:
    """The gold answer as the rule sees it."""
    return extractor.find(gold) if extractor.find_gold else number(gold)


def grade_answer(answer: Decimal | None, right: Decimal | None) -> Grade:
    if answer is None:
        return Grade.INVALID
    return Grade.RIGHT if answer == right else Grade.WRONG
