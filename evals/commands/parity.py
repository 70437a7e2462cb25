"""``python -m evals parity``: the embedded model on two choices of kernels, and the verdict.

Nothing is served, downloaded or installed: a GLM-4-MoE of ten million parameters, trained on problems in GSM8K's form,
answers 1,319 held-out ones in both arms; the baseline's re-run with another batch size is the noise floor, and an arm
without activation quantization after the norms is the yardstick of the model's own quantisation noise. Gold solutions
are teacher-forced through all four. Not GSM8K itself: what it shows is whether a kernel changes what a model does.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.commands import places
from evals.commands.progress import Progress
from evals.errors import EvalError
from evals.gsm8k.samples import Header, Sample
from evals.model import synthetic, tokenizer
from evals.stats import logit_gates

MODELS = Path(__file__).parents[1] / "models"
DEFAULT_MODEL = "tiny-glm"
PROFILE = "synthetic-zero-shot/1"
LIMIT = 224  # tokens of a completion; the longest gold solution of the generator has fewer than 200
BATCH, GPU_BATCH = 256, 2048
AGAIN_SHARE = 0.7  # the re-run's batch is so much smaller: another order of sums in everything that is batched
TOKEN_BATCH, TOKEN_SPLIT = 32, 12


@dataclass(frozen=True)
class Questions:
    """The questions of a run: problems in the order of the seeded permutation, and the digest of them all."""

    problems: list[synthetic.Problem]
    sha256: str
    seed: int

    @property
    def prompts(self) -> list[list[int]]:
        return [tokenizer.encode(synthetic.prompt(made.question)) for made in self.problems]

    @property
    def solutions(self) -> list[list[int]]:
        return [[*tokenizer.encode(synthetic.completion(made.solution)), tokenizer.END_ID] for made in self.problems]


def questions(count: int, seed: int) -> Questions:
    """``count`` held-out problems: seed 0 gives the embedded set, any other seed problems of another stream."""
    from evals.gsm8k.data import ordered

    problems = synthetic.held_out(count, synthetic.EMBEDDED_SEED + seed)
    lines = "".join(json.dumps([made.question, made.solution]) + "\n" for made in problems)
    return Questions(ordered(problems, seed), hashlib.sha256(lines.encode()).hexdigest(), seed)


def shipped(model: str) -> Path | None:
    """The folder of the model that is shipped under this name, if there is one."""
    folder = MODELS / model
    return folder if folder.parent == MODELS and model not in ("", ".", "..") and folder.is_dir() else None


def load(model: str, device: str) -> Any:
    """The decoder of a shipped model's name or a folder; EvalError if it is missing or has another vocabulary."""
    from evals.model.decoder import from_folder

    folder = shipped(model) or Path(model)
    if not model or not folder.is_dir():
        names = ", ".join(sorted(path.name for path in MODELS.iterdir() if path.is_dir())) if MODELS.is_dir() else ""
        raise EvalError(f"there is no model {model!r}: neither shipped ({names or 'none'}) nor a folder")
    decoder = from_folder(folder, device)
    try:
        known = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    except (OSError, ValueError, KeyError, TypeError):
        raise EvalError(f"{folder} has no readable tokenizer.json") from None
    if known != tokenizer.vocabulary():
        raise EvalError(f"{folder} has another vocabulary than the embedded problems, so it cannot answer them")
    return decoder


def header(arm: Any, asked: Questions, model: str, device: str) -> Header:
    """What a run directory says of an arm."""
    from validators.records.store import provenance

    return Header(
        arm=arm.name,
        model=model,
        backend="in-process",
        profile=PROFILE,
        data="synthetic held-out",
        data_sha256=asked.sha256,
        questions=len(asked.problems),
        seed=asked.seed,
        kernels=dict(arm.kernels),
        settings={"max_tokens": LIMIT, "temperature": 0, "extractor": "strict"},
        provenance={**provenance(device), "device": device, "emulated": arm.emulated},
    )


def answers(model: Any, arm: Any, asked: Questions, batch: int = BATCH) -> Iterator[Sample]:
    """Greedy answers of one arm, each yielded when its batch is done."""
    from evals.model.inprocess import generate

    prompts = asked.prompts
    expected = [len(solution) for solution in asked.solutions]
    began = time.monotonic()
    for written in generate(model, arm, prompts, limit=LIMIT, end=tokenizer.END_ID, batch=batch, expected=expected):
        made = asked.problems[written.place]
        digest = hashlib.sha256(synthetic.prompt(made.question).encode()).hexdigest()
        now = time.monotonic()
        yield Sample(
            made.id,
            written.place,
            made.gold,
            tokenizer.decode(list(written.tokens)),
            written.finish,
            None,
            written.tokens,
            len(written.tokens),
            digest,
            seconds=now - began,
        )


def token_level(
    model: Any, baseline: Any, candidate: Any, yardstick: Any, asked: Questions, count: int
) -> logit_gates.Tokens:
    """Teacher-forces the first ``count`` questions of the permutation through baseline and four passes."""
    from evals.model.inprocess import Pass, score

    some = list(zip((made.id for made in asked.problems), asked.prompts, asked.solutions, strict=True))[:count]
    passes = [
        Pass("candidate", candidate),
        Pass("re-run", baseline, TOKEN_SPLIT),
        Pass("yardstick", yardstick),
        Pass("candidate again", candidate, TOKEN_SPLIT, against="candidate"),
    ]
    with Progress("gold solutions, teacher-forced five times", len(some)) as progress:
        known = len(tokenizer.vocabulary())
        scored = list(
            score(
                model,
                baseline,
                passes,
                some,
                batch=TOKEN_BATCH,
                vocabulary=known,
                ruler="yardstick",
                tick=progress.tick,
            )
        )
    return logit_gates.collected(scored, {entry.name: entry.name for entry in passes})


def add_options(parser: argparse.ArgumentParser) -> None:
    from evals.commands.compare import add_policy_options

    parser.add_argument("--baseline", default="unfused", metavar="ARM", help="preset[,norm=..][,quant=..][,gemm=..]")
    parser.add_argument(
        "--candidate", default="fused", metavar="ARM", help="the same; kernels by name or FILE:FUNCTION"
    )
    parser.add_argument("--model", default=DEFAULT_MODEL, help=f"shipped model or folder (default: {DEFAULT_MODEL})")
    parser.add_argument("--questions", type=int, default=synthetic.EMBEDDED_QUESTIONS, metavar="N")
    parser.add_argument("--token-questions", type=int, default=400, metavar="N", help="for the token level")
    parser.add_argument("--seed", type=int, default=0, help="0: the embedded questions; else others, held out as well")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--runs", metavar="DIR", help="keep both arms' answers as run directories in DIR")
    parser.add_argument("--records", metavar="DIR", help="write a record for the sign-off into this directory")
    add_policy_options(parser)


def command(options: argparse.Namespace) -> int:
    """Runs both arms and judges: 0 for PARITY, 1 for any other verdict; EvalError where there is none."""
    from evals.commands import compare
    from evals.model.arms import make_arm

    policy = compare.policy_of(options)
    if options.questions < 2 or options.token_questions < 2:
        raise EvalError("--questions and --token-questions need at least two questions")
    check_device(options.device)
    if options.json and options.json != "-":
        places.check_file(options.json)
    for folder in (options.records, options.runs):
        if folder:
            places.check_folder(folder)
    baseline, candidate = (make_arm(spec, options.device) for spec in (options.baseline, options.candidate))
    if baseline.kernels == candidate.kernels and not policy.aa:
        raise EvalError(f"baseline and candidate are the same kernels: {options.baseline} and {options.candidate}")
    asked = questions(options.questions, options.seed)
    model = load(options.model, options.device)
    verdict = judge(model, baseline, candidate, asked, options, policy)
    code = compare.show(verdict, options.json)
    if options.records:
        _record(verdict, baseline, candidate, options)
    return code


def check_device(device: str) -> None:
    """EvalError if torch has no such device here."""
    import torch

    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise EvalError(f"device {device!r} is not available here")


def judge(model: Any, baseline: Any, candidate: Any, asked: Questions, options: argparse.Namespace, policy: Any) -> Any:
    """Generation of both arms and of the re-run, the token level, and ``evals.stats.parity.decide`` on it all."""
    from evals.model.arms import make_arm
    from evals.stats.parity import decide

    names = ("baseline", "candidate") if baseline.name == candidate.name else (baseline.name, candidate.name)
    again = dataclasses.replace(baseline, name=f"{names[0]} again")
    batch = min(BATCH if options.device == "cpu" else GPU_BATCH, len(asked.problems))
    arms = [(names[0], baseline, batch), (names[1], candidate, batch)]
    arms.append((again.name, again, max(1, int(AGAIN_SHARE * batch))))
    headers = [header(arm, asked, model.name, options.device) for _, arm, _ in arms]
    collected: list[list[Sample]] = []
    # The token level is cheaper and the stronger instrument: it comes first, and a kernel that raises shows at once.
    ruler = make_arm("bf16-norms", options.device)
    tokens = token_level(model, baseline, candidate, ruler, asked, options.token_questions)
    for place, ((name, arm, size), about) in enumerate(zip(arms, headers, strict=True)):
        with ExitStack() as stack:
            progress = stack.enter_context(Progress(f"{name}: questions answered", len(asked.problems)))
            writer = None
            if options.runs:
                from evals.gsm8k.store import Writer

                writer = stack.enter_context(
                    Writer(Path(options.runs) / ("baseline", "candidate", "again")[place], about)
                )
            samples = []
            for sample in answers(model, arm, asked, size):
                samples.append(sample)
                if writer is not None and (sample.question, sample.repeat) not in writer.done:
                    writer.add(sample)
                progress.tick(len(samples))
        collected.append(samples)
    full, about_both = tokens.full, (headers[0], headers[1])
    verdict = decide(
        collected[0],
        collected[1],
        again=collected[2],
        tokens=full["candidate"],
        noise=full["re-run"],
        yardstick=tokens.yardstick,
        policy=policy,
        headers=about_both,
    )
    more = logit_gates.gates(tokens, policy.seed)
    return with_gates(verdict, more, about_both)


def with_gates(verdict: Any, more: list[Any], headers: tuple[Header, Header]) -> Any:
    """The verdict with KL reported and further gates: one that says no, or is open, counts as those of parity do."""
    from evals.stats import parity
    from evals.stats.policy import verdict_of

    gates = (*(logit_gates.only_reported(gate) for gate in verdict.gates), *more)
    made = dataclasses.replace(verdict, gates=gates, verdict=verdict_of(gates))
    return dataclasses.replace(made, sentence=parity.quotable(made, headers, True))


def _record(verdict: Any, baseline: Any, candidate: Any, options: argparse.Namespace) -> None:
    import shlex

    from evals.commands.record import record
    from validators import arch
    from validators.records.store import Sink, StoreError

    kernel = candidate.norm or candidate.quant
    if kernel is None:
        raise EvalError("the candidate quantizes nothing, so there is no kernel whose claim a record could be")
    words = ["--baseline", options.baseline, "--candidate", options.candidate, "--model", options.model]
    words += ["--questions", str(options.questions), "--token-questions", str(options.token_questions)]
    words += ["--seed", str(options.seed), "--policy", options.policy, "--margin", f"{options.margin:g}"]
    words += ["--alpha", f"{options.alpha:g}", *(["--extractor", options.extractor] if options.extractor else [])]
    made = record(
        verdict,
        kernel=kernel.name,
        model=options.model,
        seed=options.seed,
        device=options.device,
        arch=arch.architecture(options.device),
        contract=kernel.contract,
        emulated=kernel.emulated,
        fake=kernel.fake,
        reproduce=f"python -m evals parity {shlex.join(words)} --device {options.device}",
        provenance={
            "arms": [baseline.name, candidate.name],
            "profile": PROFILE,
            "kernels": candidate.kernels,
            **kernel.identity(),
        },
        kernels=candidate.kernels,
    )
    try:
        with Sink(options.records) as sink:
            sink.write(made)
    except StoreError as error:
        raise EvalError(str(error)) from None
