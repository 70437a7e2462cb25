"""``gsm8k run``: one arm's answers from a server, resumable at any moment, each question exactly once.

The last answer is held back until the server has been found to be the one that the run began with. So a run that was
killed before that lacks a question, and no verdict can be made of it. A server that proves to be another one leaves a
run-level error in ``errors.jsonl`` that nothing settles.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from evals.errors import EvalError
from evals.gsm8k import data, probe, prompts, store
from evals.gsm8k.client import Client, Limits, RequestFailed
from evals.gsm8k.samples import ANSWER, SCORE, Header, Sample

WHOLE_RUN = "(the whole run)"
"""Stands for a question in the error that spoils a run."""
BREAKER = 3
"""So many failures per place of the pool, one after another with no success between: the server is gone for good.
Each has by then been tried ``attempts`` times. Stopping keeps the remaining questions out of errors.jsonl."""
EVERY_S = 10.0


@dataclass(frozen=True)
class Task:
    """One thing to ask. text: of the prompt; solution: what is scored after it."""

    question: str
    repeat: int
    order: int
    gold: str
    text: str
    solution: str


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--server", required=True, metavar="URL", help="host:port of an OpenAI-compatible server")
    parser.add_argument("--arm", required=True, metavar="NAME", help="what this run is called, such as unfused")
    parser.add_argument("--out", required=True, metavar="RUN", help="run directory; an unfinished one is resumed")
    parser.add_argument("--model", help="as the server names it (default: the only one that it serves)")
    parser.add_argument("--profile", default="sglang-5shot-clean", help=f"{', '.join(prompts.PROFILES)}")
    parser.add_argument("--data", metavar="PATH", help="GSM8K's JSONL file or folder (default: GSM8K_PATH, the hub)")
    parser.add_argument("--any-data", action="store_true", help="take questions that are not GSM8K's")
    parser.add_argument("--questions", type=int, metavar="N", help="only the first N of the seeded order")
    parser.add_argument("--repeat", type=int, default=1, metavar="R", help="ask each question R times")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the questions")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="new tokens (default: the profile's)")
    parser.add_argument("--concurrency", type=int, default=32, metavar="C", help="requests in flight")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="S", help="seconds for one attempt")
    parser.add_argument("--attempts", type=int, default=5, metavar="N", help="attempts of one request")
    parser.add_argument("--tokens", action="store_true", help="also score the gold solutions, token by token")
    parser.add_argument("--norm-kernel", metavar="NAME", help="kernel of add_rmsnorm_quant that the server runs")
    parser.add_argument("--api-key-variable", metavar="NAME", help="environment variable that holds the server's key")


def command(options: argparse.Namespace) -> int:
    for name in ("questions", "repeat", "max_tokens", "concurrency", "timeout", "attempts"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise EvalError(f"--{name.replace('_', '-')} must be positive, and is {value:g}")
    tasks, found, profile = _tasks(options)
    if options.tokens and profile.kind == "chat":
        raise EvalError(f"profile {profile.id} sends chat messages; gold solutions need a completion profile")
    return asyncio.run(_run(options, tasks, found, profile))


def _tasks(options: argparse.Namespace) -> tuple[list[Task], data.Data, prompts.Profile]:
    profile = prompts.find_profile(options.profile)
    found = data.load(options.data, any_data=options.any_data)
    train: Any = ()
    if profile.shots_from.startswith("train"):
        place = options.data if options.data and os.path.isdir(options.data) else None
        train = data.load(place, split="train", any_data=options.any_data).problems
    texts = prompts.prompts(profile, found.problems, train)
    order = data.ordered(prompts.asked(profile, found.problems), options.seed)
    if options.questions is not None and options.questions > len(order):
        raise EvalError(f"--questions {options.questions} is more than the {len(order)} that there are")
    kept = order[: options.questions]
    tasks = [
        Task(p.id, repeat, place, p.answer, texts[p.id], " " + p.solution)
        for repeat in range(options.repeat)
        for place, p in enumerate(kept)
    ]
    return tasks, found, profile


async def _run(options: argparse.Namespace, tasks: list[Task], found: data.Data, profile: prompts.Profile) -> int:
    key = os.environ.get(options.api_key_variable) if options.api_key_variable else None
    if options.api_key_variable and not key:
        raise EvalError(f"the environment variable {options.api_key_variable} is not set")
    limits = Limits(concurrency=options.concurrency, timeout=options.timeout, attempts=options.attempts)
    async with Client(options.server, limits, key) as client:
        model = await probe.served_model(client, options.model)
        await probe.wake(client, model)
        words = await probe.fingerprint(client, model)
        method = await probe.find_method(client, model) if options.tokens else None
        if options.tokens and method is None:
            raise EvalError(
                f"{client.server} gives no log-probabilities of a prompt (neither by /generate, prompt_logprobs nor "
                "echo); leave --tokens out"
            )
        settings = {
            **profile.settings(),
            "repeat": options.repeat,
            "concurrency": options.concurrency,
            **({"max_tokens": options.max_tokens} if options.max_tokens else {}),
            **({"prompt_logprobs": method} if method else {}),
        }
        header = Header(
            options.arm,
            model,
            "openai",
            profile.id,
            found.name,
            found.sha256,
            len(tasks) // options.repeat,
            options.seed,
            {"add_rmsnorm_quant": options.norm_kernel} if options.norm_kernel else {},
            settings,
            words,
            {"started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())},
        )
        with store.Writer(options.out, header) as writer:
            return await _Run(client, writer, tasks, method, len(tasks) // options.repeat).go(words)


class _Run:
    """One process's part of a run."""

    def __init__(self, client: Client, writer: store.Writer, tasks: list[Task], method: str | None, questions: int):
        self.client, self.writer, self.tasks, self.method = client, writer, tasks, method
        self.questions, self.header = questions, writer.header
        self.failed, self.in_row, self.asked = 0, 0, 0
        self.checked, self.lock = client.disturbances, asyncio.Lock()
        self.held: Sample | None = None
        self.first_error = ""
        self.progress = _Progress(len(tasks), len(writer.done))

    async def go(self, words: dict[str, Any]) -> int:
        self._not_spoiled()
        self._same(words, spoil=False)
        left = [t for t in self.tasks if (t.question, t.repeat) not in self.writer.done]
        unscored = [t for t in self.tasks if t.repeat == 0 and t.question not in self.writer.scored]
        unscored = unscored if self.method else []
        if left:
            await self._warm_up(left)
        try:
            await self._pool(unscored, self._score)
            await self._pool(left, self._ask)
            if self.asked:
                await self._check()
            if self.held is not None:
                self.writer.add(self.held)
                self.progress.step()
        finally:
            self.progress.end()
        return self._report()

    async def _warm_up(self, left: list[Task]) -> None:
        """Compiles, captures and fills what a server does on its first requests; nothing of it is kept."""
        jobs = [self._complete(t) for t in left[: min(4, self.client.limits.concurrency)]]
        for result in await asyncio.gather(*jobs, return_exceptions=True):
            if isinstance(result, EvalError):
                raise result

    async def _complete(self, task: Task) -> Any:
        settings = self.header.settings
        return await self.client.complete(
            self.header.model,
            task.text,
            kind=settings["kind"],
            max_tokens=settings["max_tokens"],
            stop=settings["stop"],
        )

    async def _pool(self, tasks: list[Task], work: Any) -> None:
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

    async def _worker(self, source: Iterator[Task], work: Any) -> None:
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
            task.question,
            task.order,
            task.gold,
            done.text,
            done.finish,
            None,
            done.tokens,
            done.length,
            prompts.prompt_sha256(task.text),
            task.repeat,
            done.attempts,
            round(done.seconds, 4),
        )
        self.asked += 1
        if self.held is None:
            self.held = sample
            return
        self.writer.add(sample)
        self.progress.step()

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
                task.question,
                task.order,
                task.gold,
                None,
                None,
                str(error),
                None,
                None,
                prompts.prompt_sha256(task.text),
                task.repeat,
                error.attempts,
                round(error.seconds, 4),
                ANSWER if answer else SCORE,
            )
        )
        if self.in_row >= BREAKER * self.client.limits.concurrency:
            raise EvalError(
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
            raise EvalError(
                f"{self.client.server} no longer says its {gone[0]}, so nobody can tell whether it is the server that "
                "the run began with; what was answered stays, and the same command goes on"
            )
        words = probe.difference(before, now)
        if not words:
            return
        if spoil:
            self.writer.add(Sample(WHOLE_RUN, -1, "", None, error=f"the server changed during the run ({words})"))
            raise EvalError(f"the server changed during the run, so nothing can be concluded from it ({words})")
        raise EvalError(
            f"{self.client.server} is not the server that {self.writer.path} began with ({words}); start that one "
            "again, or take a new directory"
        )

    def _not_spoiled(self) -> None:
        if any(s.question == WHOLE_RUN for s in store.read(self.writer.path).errors):
            raise EvalError(f"{self.writer.path} is spoiled, the server changed during the run; take a new directory")

    def _report(self) -> int:
        done = len(self.writer.done)
        print(f"{done:,} of {len(self.tasks):,} answers in {self.writer.path} (model {self.header.model})")
        if self.method:
            print(f"{len(self.writer.scored):,} of {self.questions:,} gold solutions scored, by {self.method}")
        if self.failed:
            raise EvalError(
                f"{self.failed} requests ended in an error, so there is no verdict yet (first {self.first_error}); the "
                "same command asks them again"
            )
        return 0


class _Progress:
    """A line every ten seconds on stderr, or a bar where rich and a terminal are there."""

    def __init__(self, total: int, done: int) -> None:
        self.total, self.done, self.start, self.first, self.last = total, done, time.monotonic(), done, time.monotonic()
        self.bar: Any = None
        if sys.stderr.isatty():
            try:
                from rich.console import Console
                from rich.progress import Progress
            except ImportError:
                return
            self.bar = Progress(console=Console(stderr=True), transient=True)
            self.bar.add_task("questions", total=total, completed=done)
            self.bar.start()

    def step(self) -> None:
        if self.done == self.first:
            self.start = self.last = time.monotonic()
        self.done += 1
        if self.bar is not None:
            self.bar.advance(self.bar.task_ids[0])
        elif time.monotonic() - self.last >= EVERY_S:
            self.last = time.monotonic()
            rate = (self.done - self.first - 1) / (self.last - self.start)
            print(f"{self.done:,} of {self.total:,} questions, {rate:.1f} a second", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self.bar is not None:
            self.bar.stop()
