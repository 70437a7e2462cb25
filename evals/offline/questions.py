"""What is asked offline: the embedded model's own problems, and gold solutions in the tokens of any model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evals.errors import EvalError
from evals.gsm8k import data as gsm8k
from evals.model import synthetic, tokenizer
from evals.model.inprocess import GoldSolution

SYNTHETIC, SYNTHETIC_NAME = "synthetic", "synthetic held-out problems"


@dataclass(frozen=True)
class EmbeddedQuestions:
    """Problems in the order of the seeded permutation. sha256: of all of them as JSON lines. seed: of both."""

    problems: list[synthetic.Problem]
    sha256: str
    seed: int

    @property
    def prompts(self) -> list[list[int]]:
        """Token ids of every prompt."""
        return [tokenizer.encode(synthetic.prompt(problem.question)) for problem in self.problems]

    @property
    def solutions(self) -> list[list[int]]:
        """Token ids of every gold solution, with the end token."""
        return [
            [*tokenizer.encode(synthetic.completion(problem.solution)), tokenizer.END_ID] for problem in self.problems
        ]

    def gold(self, count: int) -> list[GoldSolution]:
        """The first ``count`` of the permutation, to be teacher-forced."""
        ids = (problem.id for problem in self.problems)
        rows = zip(ids, self.prompts, self.solutions, strict=True)
        return [GoldSolution(*row) for row in rows][:count]


def embedded_questions(count: int, seed: int) -> EmbeddedQuestions:
    """``count`` held-out problems: seed 0 gives the embedded set, any other seed problems of another stream."""
    problems = synthetic.held_out(count, synthetic.EMBEDDED_SEED + seed)
    lines = "".join(json.dumps([problem.question, problem.solution]) + "\n" for problem in problems)
    return EmbeddedQuestions(gsm8k.ordered(problems, seed), hashlib.sha256(lines.encode()).hexdigest(), seed)


@dataclass(frozen=True)
class GoldSolutions:
    """What is teacher-forced. name: of the data in words. sha256: of the questions' file, or of the generated
    problems' JSON lines. solutions: the first of the permutation."""

    name: str
    sha256: str
    solutions: list[GoldSolution]


def gold_solutions(
    data: str | None,
    count: int,
    seed: int,
    *,
    encode: Callable[[str], Sequence[int]],
    end: Sequence[int] = (),
    any_data: bool = False,
) -> GoldSolutions:
    """The first ``count`` gold solutions of the permutation of ``seed``; EvalError if there are fewer.

    data: a file or folder of GSM8K's, None for where ``GSM8K_PATH`` points, or ``synthetic``. encode: text to token
    ids of the model. end: ids that close a solution. any_data: take questions that are not GSM8K's.
    """
    if data == SYNTHETIC:
        embedded = embedded_questions(count, seed)
        texts = [(problem.id, problem.question, problem.solution) for problem in embedded.problems]
        name, sha256 = SYNTHETIC_NAME, embedded.sha256
    else:
        read = gsm8k.load(data, any_data=any_data)
        if count > len(read.problems):
            raise EvalError(f"--questions {count} is more than the {len(read.problems)} that there are")
        ordered = gsm8k.ordered(read.problems, seed)[:count]
        texts = [(problem.id, problem.question, problem.solution) for problem in ordered]
        name, sha256 = read.name, read.sha256
    solutions = [
        GoldSolution(identity, encode(synthetic.prompt(question)), [*encode(synthetic.completion(solution)), *end])
        for identity, question, solution in texts
    ]
    return GoldSolutions(name, sha256, solutions)
