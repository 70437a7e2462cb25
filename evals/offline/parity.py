"""The embedded model on two choices of kernels: both arms' answers, the token level, and the verdict.

A GLM-4-MoE of ten million parameters, trained on problems in GSM8K's form, answers 1,319 held-out ones in both arms.
The baseline's re-run with another batch size is the noise floor. An arm without activation quantization after the norms
is the yardstick of the model's own quantisation noise. Gold solutions are teacher-forced through all four.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from evals.gsm8k.samples import Header, Sample
from evals.gsm8k.store import Writer
from evals.model import synthetic, tokenizer
from evals.model.arms import Arm, make_arm
from evals.model.decoder import Decoder
from evals.model.inprocess import Pass, generate, score
from evals.offline.questions import EmbeddedQuestions
from evals.stats import logit_gates, parity
from evals.stats.criterion import Criterion, verdict_of
from evals.stats.gate import Gate
from evals.stats.parity import Parity
from validators.process.progress import Progress
from validators.records.codec import encode
from validators.records.provenance import provenance

PROFILE = "synthetic-zero-shot/1"
LIMIT = 224  # tokens of a completion; the longest gold solution of the generator has fewer than 200
BATCH, GPU_BATCH = 256, 2048
RERUN_SHARE = 0.7  # the re-run's batch is so much smaller: another order of sums in everything that is batched
TOKEN_BATCH, TOKEN_SPLIT = 32, 12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """device: ``cpu`` or ``cuda``. token_questions: gold solutions that are teacher-forced. runs: a folder for the
    answers as run directories, or None. show: whether progress is written to stderr."""

    device: str = "cpu"
    token_questions: int = 400
    runs: str | None = None
    show: bool = True


def header(arm: Arm, questions: EmbeddedQuestions, model: str, device: str) -> Header:
    """What a run directory says of an arm."""
    return Header(
        arm=arm.name,
        model=model,
        backend="in-process",
        profile=PROFILE,
        data="synthetic held-out",
        data_sha256=questions.sha256,
        questions=len(questions.problems),
        seed=questions.seed,
        kernels=dict(arm.kernels),
        settings={"max_tokens": LIMIT, "temperature": 0, "extractor": "strict"},
        provenance={**encode(provenance(device)), "device": device, "emulated": arm.emulated},
    )


def answers(model: Decoder, arm: Arm, questions: EmbeddedQuestions, batch: int = BATCH) -> Iterator[Sample]:
    """Greedy answers of one arm, each yielded when its batch is done."""
    prompts = questions.prompts
    expected = [len(solution) for solution in questions.solutions]
    began = time.monotonic()
    for written in generate(model, arm, prompts, limit=LIMIT, end=tokenizer.END_ID, batch=batch, expected=expected):
        problem = questions.problems[written.place]
        yield Sample(
            question=problem.id,
            order=written.place,
            gold=problem.gold,
            text=tokenizer.decode(list(written.tokens)),
            finish=written.finish,
            tokens=written.tokens,
            length=len(written.tokens),
            prompt_sha256=hashlib.sha256(synthetic.prompt(problem.question).encode()).hexdigest(),
            seconds=time.monotonic() - began,
        )


class Arms(NamedTuple):
    """The arms of a comparison. yardstick: the higher-precision one, of the token level alone."""

    baseline: Arm
    candidate: Arm
    yardstick: Arm


def token_level(
    model: Decoder, arms: Arms, questions: EmbeddedQuestions, settings: Settings
) -> logit_gates.InProcessPairs:
    """Teacher-forces the first ``token_questions`` of the permutation through the baseline and four passes."""
    gold = questions.gold(settings.token_questions)
    passes = [
        Pass("candidate", arms.candidate),
        Pass("re-run", arms.baseline, TOKEN_SPLIT),
        Pass("yardstick", arms.yardstick),
        Pass("candidate again", arms.candidate, TOKEN_SPLIT, against="candidate"),
    ]
    with Progress("gold solutions, teacher-forced five times", len(gold), show=settings.show) as progress:
        scored = list(
            score(
                model,
                arms.baseline,
                passes,
                gold,
                batch=TOKEN_BATCH,
                vocabulary=len(tokenizer.vocabulary()),
                yardstick="yardstick",
                tick=progress.tick,
            )
        )
    return logit_gates.collected(scored, {entry.name: entry.name for entry in passes})


def judge(
    model: Decoder,
    baseline: Arm,
    candidate: Arm,
    questions: EmbeddedQuestions,
    criterion: Criterion,
    settings: Settings,
) -> Parity:
    """Generation of both arms and of the re-run, the token level, and the verdict on it all."""
    names = ("baseline", "candidate") if baseline.name == candidate.name else (baseline.name, candidate.name)
    rerun = dataclasses.replace(baseline, name=f"{names[0]} again")
    batch = min(BATCH if settings.device == "cpu" else GPU_BATCH, len(questions.problems))
    # The token level is cheaper and the stronger instrument: it comes first, and a kernel that raises shows at once.
    arms = Arms(baseline, candidate, make_arm("bf16-norms", settings.device))
    pairs = token_level(model, arms, questions, settings)
    jobs = [
        _Job(baseline, names[0], batch, "baseline"),
        _Job(candidate, names[1], batch, "candidate"),
        _Job(rerun, rerun.name, max(1, int(RERUN_SHARE * batch)), "again"),
    ]
    about = [header(job.arm, questions, model.name, settings.device) for job in jobs]
    samples = [_answered(model, job, questions, head, settings) for job, head in zip(jobs, about, strict=True)]
    verdict = parity.decide(
        samples[0],
        samples[1],
        rerun=samples[2],
        tokens=pairs.token_level,
        criterion=criterion,
        headers=(about[0], about[1]),
    )
    return with_gates(verdict, logit_gates.gates(pairs, criterion.seed), (about[0], about[1]))


class _Job(NamedTuple):
    """One arm's answers. name: in the progress line. folder: of the run directory."""

    arm: Arm
    name: str
    batch: int
    folder: str


def _answered(
    model: Decoder, job: _Job, questions: EmbeddedQuestions, about: Header, settings: Settings
) -> list[Sample]:
    """All answers of one arm, kept as a run directory where one is asked for."""
    samples: list[Sample] = []
    with ExitStack() as stack:
        progress = stack.enter_context(
            Progress(f"{job.name}: questions answered", len(questions.problems), show=settings.show)
        )
        writer = stack.enter_context(Writer(Path(settings.runs) / job.folder, about)) if settings.runs else None
        for sample in answers(model, job.arm, questions, job.batch):
            samples.append(sample)
            if writer is not None and (sample.question, sample.repeat) not in writer.done:
                writer.add(sample)
            progress.tick(len(samples))
    return samples


def with_gates(verdict: Parity, more: Sequence[Gate], headers: tuple[Header, Header]) -> Parity:
    """The verdict with KL reported and further gates: one that says no, or is open, counts as those of parity do."""
    gates = (*(logit_gates.only_reported(gate) for gate in verdict.gates), *more)
    judged = dataclasses.replace(verdict, gates=gates, verdict=verdict_of(gates))
    return dataclasses.replace(judged, sentence=parity.quotable(judged, headers, True))
