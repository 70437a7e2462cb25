"""Word problems in the form of GSM8K, made without end from a seed: the questions of the embedded model.

Every answer is a function of its question: one operation per line as ``x+y=<<x+y=z>>z``, and ``#### n`` at the end, as
in GSM8K's own solutions. Problem ``i`` of seed ``s`` is the same on every machine and Python (the numbers come from
splitmix64, not from ``random``, whose methods change between versions). Whether a problem may be trained on is decided
by the digest of its question, so the two splits cannot share one, whatever the seeds are.

What makes a problem hard is written in it: products of two numbers of several digits (``hard``), and many lines. They
are there on purpose: a model that is sure of every answer gives the same answers with a defective kernel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

MASK = (1 << 64) - 1
HELD_OUT_IN_256 = 8  # about 3 % of all problems are never trained on
EMBEDDED_SEED = 2025
EMBEDDED_QUESTIONS = 1319  # as many as GSM8K's test set

NAMES = ("Anna", "Ben", "Ella", "Emma", "Jack", "Leo", "Lily", "Max", "Mia", "Nora", "Sam", "Tom")
ITEMS = ("apples", "books", "cards", "coins", "cookies", "eggs", "marbles", "pencils", "shells", "stamps")
PLACES = ("bags", "boxes", "jars", "packs")

LINES = (1, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 6, 6)  # number of lines of a solution: uniform over this list
LARGEST = 99_999


class Dice:
    """splitmix64 (Steele, Lea, Flood 2014): 64-bit numbers from a 64-bit state, in whole numbers of Python."""

    def __init__(self, seed: int, index: int):
        self._state = (seed * 0x9E3779B97F4A7C15 + index * 0xD1B54A32D192ED03 + 0x2545F4914F6CDD1D) & MASK
        self.next()

    def next(self) -> int:
        self._state = (self._state + 0x9E3779B97F4A7C15) & MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def between(self, low: int, high: int) -> int:
        """A whole number in low..high, both included; the bias is below 2**-50 for the ranges used here."""
        return low + ((self.next() * (high - low + 1)) >> 64)

    def one_of(self, values: Sequence[T]) -> T:
        return values[(self.next() * len(values)) >> 64]

    def percent(self, chance: int) -> bool:
        return self.between(0, 99) < chance


@dataclass(frozen=True)
class Problem:
    """One problem. question, solution: text as in GSM8K's ``question`` and ``answer``. gold: the number, as text.

    lines: operations in the solution. hard: whether it has a product of two factors of several digits.
    """

    question: str
    solution: str
    gold: str
    lines: int
    hard: bool

    @property
    def held_out(self) -> bool:
        return is_held_out(self.question)

    @property
    def id(self) -> str:
        return "synthetic-" + hashlib.sha256(self.question.encode()).hexdigest()[:12]


def is_held_out(question: str) -> bool:
    """Whether a question belongs to the held-out split: decided by its digest alone."""
    return hashlib.sha256(question.encode()).digest()[0] < HELD_OUT_IN_256


def _operand(dice: Dice) -> int:
    return dice.between(100, 999) if dice.percent(25) else dice.between(2, 99)


def _factors(dice: Dice) -> tuple[int, int, bool]:
    """How many boxes, and how many in each; a fifth of them are long products."""
    draw = dice.between(0, 99)
    if draw < 65:
        return dice.between(2, 9), dice.between(2, 99), False
    if draw < 80:
        return dice.between(2, 9), dice.between(100, 999), False
    if draw < 93:
        return dice.between(11, 49), dice.between(11, 49), True
    return dice.between(11, 99), dice.between(11, 99), True


def problem(seed: int, index: int) -> Problem:
    """Problem ``index`` of stream ``seed``."""
    dice = Dice(seed, index)
    name, item = dice.one_of(NAMES), dice.one_of(ITEMS)
    wanted = dice.one_of(LINES)
    value = _operand(dice)
    story, work, hard = [f"{name} has {value} {item}."], [], False

    def line(x: int, sign: str, y: int, z: int, unit: str) -> int:
        work.append(f"{x}{sign}{y}=<<{x}{sign}{y}={z}>>{z} {unit}.")
        return z

    asks = f"How many {item} does {name} have now?"
    sells = dice.percent(20)
    body = wanted - 1 if sells else wanted
    while len(work) < body:
        kind = dice.between(0, 99)
        if kind < 28:
            other = _operand(dice)
            story.append(f"{name} buys {other} more {item}.")
            value = line(value, "+", other, value + other, item)
        elif kind < 52 and value > 12:
            other = dice.between(2, min(value - 2, 999))
            story.append(f"{name} gives {other} {item} to a friend.")
            value = line(value, "-", other, value - other, item)
        elif kind < 66 and value < 1000:
            times = dice.between(2, 9)
            story.append(f"Then it becomes {times} times as many.")
            value = line(value, "*", times, value * times, item)
        elif kind < 80:
            shares = tuple(k for k in range(2, 10) if value % k == 0 and value // k > 1)
            if not shares:
                continue
            parts = dice.one_of(shares)
            story.append(f"{name} makes {parts} equal parts and keeps one.")
            value = line(value, "/", parts, value // parts, item)
        elif body - len(work) >= 2:
            place = dice.one_of(PLACES)
            count, each, long = _factors(dice)
            story.append(f"{name} finds {count} {place} with {each} {item} each.")
            found = line(count, "*", each, count * each, item)
            value = line(value, "+", found, value + found, item)
            hard = hard or long
    if sells:
        price = dice.between(11, 99) if dice.percent(20) and value < 1000 else dice.between(2, 9)
        story.append(f"One costs {price} dollars.")
        asks = f"How many dollars do all the {item} cost?"
        hard = hard or (price > 10 and value > 10)
        value = line(value, "*", price, value * price, "dollars")
    if value > LARGEST:  # rare; the next index of a far stream is taken, so that every index has a problem
        return problem(seed + 1_000_003, index)
    return Problem(" ".join([*story, asks]), "\n".join([*work, f"#### {value}"]), str(value), len(work), hard)


def held_out(count: int = EMBEDDED_QUESTIONS, seed: int = EMBEDDED_SEED) -> list[Problem]:
    """The first ``count`` different held-out problems of a stream, in its order."""
    found: dict[str, Problem] = {}
    index = 0
    while len(found) < count:
        made = problem(seed, index)
        index += 1
        if made.held_out:
            found.setdefault(made.question, made)
    return list(found.values())


def prompt(question: str) -> str:
    """What the model is asked: the completion form of GSM8K's public harnesses, without shots."""
    return f"Question: {question}\nAnswer:"


def completion(solution: str) -> str:
    """What the model should go on with after ``prompt``."""
    return f" {solution}"
