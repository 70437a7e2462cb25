"""One arm's answers from a server, resumable at any moment, each question exactly once.

The last answer is held back until the server has been found to be the one that the run began with. So a run that was
killed before that lacks a question, and no verdict can be made of it. A server that proves to be another one leaves a
run-level error in ``errors.jsonl`` that nothing settles.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from evals.errors import EvalError, WorkFault
from evals.gsm8k import data, probe, prompts, store
from evals.gsm8k.client import Client, Completion, Limits, RequestFailed
from evals.gsm8k.samples import ANSWER, SCORE, Header, Sample
from validators.process.progress import Progress

WHOLE_RUN = "(the whole run)"
"""Represents a question in the error that spoils a run."""
BREAKER = 3
"""So many failures per place of the pool, one after another with no success between: the server is gone for good.
Each has by then been tried ``attempts`` times. Stopping keeps the remaining questions out of errors.jsonl."""


@dataclass(frozen=True)
class Task:
    """One thing to ask. text: of the prompt; solution: what is scored after it."""

    question: str
    repeat: int
    order: int
    gold: str
    text: str
    solution: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One arm's run. name: of the arm. kernels: op -> kernel that the server runs, as the user says. model: as
    the server names it, None for the only one. max_tokens: None for the profile's. score_solutions: whether gold
    solutions are scored as well. show: whether progress is written to stderr."""

    server: str
    out: str
    name: str
    profile: prompts.Profile
    data: data.Data
    tasks: list[Task]
    repeat: int = 1
    seed: int = 0
    model: str | None = None
    kernels: Mapping[str, str] = field(default_factory=dict)
    max_tokens: int | None = None
    score_solutions: bool = False
    limits: Limits = field(default_factory=Limits)
    api_key: str | None = None
    show: bool = True

    @property
    def questions(self) -> int:
        return len(self.tasks) // self.repeat


def tasks(
    profile: prompts.Profile,
    questions: data.Data,
    train: Sequence[data.Problem],
    *,
    seed: int,
    count: int | None,
    repeat: int,
) -> list[Task]:
    """What is asked, in the order of ``seed``, the first ``count`` of it; EvalError if there are fewer.

    train: the train file, where the profile takes its shots from there.
    """
    texts = prompts.prompts(profile, questions.problems, train)
    order = data.ordered(prompts.asked(profile, questions.problems), seed)
    if count is not None and count > len(order):
        raise EvalError(f"--questions {count} is more than the {len(order)} that there are")
    return [
        Task(p.id, number, place, p.answer, texts[p.id], " " + p.solution)
        for number in range(repeat)
        for place, p in enumerate(order[:count])
    ]


class Report(NamedTuple):
    """text: what the run directory holds. left: a sentence on what is still to be asked; empty where nothing is."""

    text: str
    left: str


async def run(plan: Plan) -> Report:
    """Asks what the run directory lacks."""
    async with Client(plan.server, plan.limits, plan.api_key) as client:
        model = await probe.served_model(client, plan.model)
        await probe.wake(client, model)
        fingerprint = await probe.fingerprint(client, model)
        method = await probe.find_method(client, model) if plan.score_solutions else None
        if plan.score_solutions and method is None:
            raise EvalError(
                f"{client.server} gives no log-probabilities of a prompt (neither by /generate, prompt_logprobs nor "
                "echo); leave --score-solutions out"
            )
        with store.Writer(plan.out, _header(plan, model, fingerprint, method)) as writer:
            return await _Run(client, writer, plan, method).go(fingerprint)


def _header(plan: Plan, model: str, fingerprint: dict[str, Any], method: str | None) -> Header:
    settings = {
        **plan.profile.settings(),
        "repeat": plan.repeat,
        "concurrency": plan.limits.concurrency,
        **({"max_tokens": plan.max_tokens} if plan.max_tokens else {}),
        **({"prompt_logprobs": method} if method else {}),
    }
    return Header(
        arm=plan.name,
        model=model,
        backend="openai",
        profile=plan.profile.id,
        data=plan.data.name,
        data_sha256=plan.data.sha256,
        questions=plan.questions,
        seed=plan.seed,
        kernels=dict(plan.kernels),
        settings=settings,
        fingerprint=fingerprint,
        provenance={"started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())},
    )


class _Run:
    """One process's part of a run."""

    def __init__(self, client: Client, writer: store.Writer, plan: Plan, method: str | None):
        self.client, self.writer, self.plan, self.method = client, writer, plan, method
        self.tasks, self.header = plan.tasks, writer.header
        self.failed, self.in_row, self.asked = 0, 0, 0
        self.checked, self.lock = client.disturbances, asyncio.Lock()
        self.held: Sample | None = None
        self.first_error = ""
        self.progress: Progress | None = None

    async def go(self, fingerprint: dict[str, Any]) -> Report:
        self._not_spoiled()
        self._same(fingerprint, spoil=False)
        left = [t for t in self.tasks if (t.question, t.repeat) not in self.writer.done]
        unscored = [t for t in self.tasks if t.repeat == 0 and t.question not in self.writer.scored]
        unscored = unscored if self.method else []
        if left:
            await self._warm_up(left)
        await self._pool(unscored, self._score)
        done = len(self.writer.done)
        with Progress("questions answered", len(self.tasks), done=done, show=self.plan.show) as self.progress:
            await self._pool(left, self._ask)
        if self.asked:
            await self._check()
        if self.held is not None:
            self.writer.add(self.held)
        return self._report()

    async def _warm_up(self, left: list[Task]) -> None:
        """Compiles, captures and fills what a server does on its first requests; nothing of it is kept."""
        jobs = [self._complete(t) for t in left[: min(4, self.client.limits.concurrency)]]
        for result in await asyncio.gather(*jobs, return_exceptions=True):
            if isinstance(result, EvalError):
                raise result

    async def _complete(self, task: Task) -> Completion:
        settings = self.header.settings
        return await self.client.complete(
            self.header.model,
            task.text,
            kind=settings["kind"],
            max_tokens=settings["max_tokens"],
            stop=settings["stop"],
        )

    async def _pool(self, tasks: list[Task], work: Callable[[Task], Awaitable[None]]) -> None:
        """Workers that draw from one iterator: what is in memory does not grow with the number of questions."""
        source = iter(tasks)
        count = min(self.client.limits.concurrency, len(tasks))
        workers = [asyncio.ensure_future(self._worker(source, work)) for _ in range(count)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _worker(self, source: Iterator[Task], work: Callable[[Task], Awaitable[None]]) -> None:
        for task in source:
            try:
                await work(task)
                self.in_row = 0
            except RequestFailed as error:
                self._failure(task, error, work == self._ask)

    async def _ask(self, task: Task) -> None:
        done = await self._complete(task)
        await self._settle()
        sample = Sample(
            question=task.question,
            order=task.order,
            gold=task.gold,
            text=done.text,
            finish=done.finish,
            tokens=done.tokens,
            length=done.length,
            prompt_sha256=prompts.prompt_sha256(task.text),
            repeat=task.repeat,
            attempts=done.attempts,
            seconds=round(done.seconds, 4),
        )
        self.asked += 1
        if self.held is None:
            self.held = sample
            return
        self.writer.add(sample)
        if self.progress is not None:
            self.progress.tick(len(self.writer.done))

    async def _score(self, task: Task) -> None:
        assert self.method is not None
        made = await probe.score(self.client, self.header.model, self.method, task.question, task.text, task.solution)
        await self._settle()
        self.asked += 1
        self.writer.add_tokens(made)

    def _failure(self, task: Task, error: RequestFailed, answer: bool) -> None:
        self.failed, self.in_row = self.failed + 1, self.in_row + 1
        self.first_error = self.first_error or f"{task.question}: {error}"
        self.writer.add(
            Sample(
                question=task.question,
                order=task.order,
                gold=task.gold,
                text=None,
                error=str(error),
                prompt_sha256=prompts.prompt_sha256(task.text),
                repeat=task.repeat,
                attempts=error.attempts,
                seconds=round(error.seconds, 4),
                what=ANSWER if answer else SCORE,
            )
        )
        if self.in_row >= BREAKER * self.client.limits.concurrency:
            raise WorkFault(
                f"{self.in_row} requests failed one after another, so the run stops (last {task.question}: {error}); "
                "what was answered stays, and the same command goes on from there"
            )

    async def _settle(self) -> None:
        """After a connection broke the server may be another one: looked at before anything more is recorded."""
        if self.client.disturbances == self.checked:
            return
        async with self.lock:
            seen = self.client.disturbances
            if seen != self.checked:
                await self._check()
                self.checked = seen

    async def _check(self) -> None:
        self._same(await probe.fingerprint(self.client, self.header.model), spoil=True)

    def _same(self, now: dict[str, Any], spoil: bool) -> None:
        """EvalError unless the server still says what the header says of it."""
        before = self.header.fingerprint
        if gone := [name for name in before if name not in now]:
            raise WorkFault(
                f"{self.client.server} no longer says its {gone[0]}, so nobody can tell whether it is the server that "
                "the run began with; what was answered stays, and the same command goes on"
            )
        words = probe.difference(before, now)
        if not words:
            return
        if spoil:
            self.writer.add(Sample(WHOLE_RUN, -1, "", None, error=f"the server changed during the run ({words})"))
            raise WorkFault(f"the server changed during the run, so nothing can be concluded from it ({words})")
        raise EvalError(
            f"{self.client.server} is not the server that {self.writer.path} began with ({words}); start that one "
            "again, or take a new directory"
        )

    def _not_spoiled(self) -> None:
        if any(s.question == WHOLE_RUN for s in store.read(self.writer.path).errors):
            raise EvalError(f"{self.writer.path} is spoiled, the server changed during the run; take a new directory")

    def _report(self) -> Report:
        done, path = len(self.writer.done), self.writer.path
        text = f"{done:,} of {len(self.tasks):,} answers in {path} (model {self.header.model})"
        if self.method:
            scored = len(self.writer.scored)
            text += f"\n{scored:,} of {self.plan.questions:,} gold solutions scored, by {self.method}"
        left = (
            f"{self.failed} requests ended in an error, so there is no verdict yet (first {self.first_error}); the "
            "same command asks them again"
        )
        return Report(text, left if self.failed else "")
