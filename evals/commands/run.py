"""``gsm8k run``: one arm's answers from a server."""

from __future__ import annotations

import argparse
import asyncio
import math
import os
from collections.abc import Sequence

from evals.errors import EvalError, WorkFault
from evals.gsm8k import data, prompts, runner
from evals.gsm8k.client import Limits
from validators.commands import options as shared
from validators.process.guard import Exit
from validators.records import files
from validators.records.command_line import names_by_op


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--server", required=True, metavar="URL", help="host:port of an OpenAI-compatible server")
    shared.add(parser, "--name", "such as unfused", required=True)
    shared.add(parser, "--out", "a run; an unfinished one is resumed", required=True)
    shared.add(parser, "--model", "as the server names it", "default: the only one that it serves")
    parser.add_argument(
        "--profile", default="sglang-5shot-clean", metavar="NAME", help=f"prompts: {', '.join(prompts.PROFILES)}"
    )
    shared.add(parser, "--data", "default: GSM8K_PATH, the hub")
    shared.add(parser, "--any-data")
    shared.add(parser, "--questions", "the first of the seeded order", "default: all")
    parser.add_argument("--repeat", type=int, default=1, metavar="R", help="ask each question R times")
    shared.add(parser, "--seed", "the order of the questions", default=0)
    parser.add_argument("--max-tokens", type=int, metavar="N", help="new tokens (default: the profile's)")
    parser.add_argument("--concurrency", type=int, default=32, metavar="C", help="requests in flight")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="S", help="seconds for one attempt")
    parser.add_argument("--attempts", type=int, default=5, metavar="N", help="attempts of one request")
    parser.add_argument("--score-solutions", action="store_true", help="also score the gold solutions, token by token")
    shared.add(parser, "--kernel", "that the server runs; NAME alone is of add_rmsnorm_quant", several=True)
    parser.add_argument("--api-key-variable", metavar="NAME", help="environment variable that holds the server's key")


def command(options: argparse.Namespace) -> int:
    """YES where every question is answered; WorkFault where one is left."""
    for name in ("questions", "repeat", "max_tokens", "concurrency", "timeout", "attempts"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise EvalError(f"--{name.replace('_', '-')} must be positive, and is {value:g}")
    files.check_folder(options.out)
    report = asyncio.run(runner.run(_plan(options)))
    print(report.text)
    if report.left:
        raise WorkFault(report.left)
    return Exit.YES


def _plan(options: argparse.Namespace) -> runner.Plan:
    profile = prompts.find_profile(options.profile)
    questions = data.load(options.data, any_data=options.any_data)
    train: Sequence[data.Problem] = ()
    if profile.shots_from.startswith("train"):
        place = options.data if options.data and os.path.isdir(options.data) else None
        train = data.load(place, split="train", any_data=options.any_data).problems
    asked = runner.tasks(profile, questions, train, seed=options.seed, count=options.questions, repeat=options.repeat)
    if options.score_solutions and profile.kind == "chat":
        raise EvalError(f"profile {profile.id} sends chat messages; gold solutions need a completion profile")
    key = os.environ.get(options.api_key_variable) if options.api_key_variable else None
    if options.api_key_variable and not key:
        raise EvalError(f"the environment variable {options.api_key_variable} is not set")
    return runner.Plan(
        server=options.server,
        out=options.out,
        name=options.name,
        profile=profile,
        data=questions,
        tasks=asked,
        repeat=options.repeat,
        seed=options.seed,
        model=options.model,
        kernels=names_by_op(options.kernel),
        max_tokens=options.max_tokens,
        score_solutions=options.score_solutions,
        limits=Limits(concurrency=options.concurrency, timeout=options.timeout, attempts=options.attempts),
        api_key=key,
        show=not options.quiet,
    )
