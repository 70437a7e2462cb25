"""``parity``: the embedded model on two choices of kernels, and the verdict.

Nothing is served, downloaded or installed. It is not GSM8K itself: what it shows is whether a kernel changes what a
model does.
"""

from __future__ import annotations

import argparse

from evals.commands import compare
from evals.commands.record import Subject, record
from evals.errors import EvalError
from evals.model import synthetic
from evals.model.arms import PRESETS, Arm, make_arm
from evals.offline import parity
from evals.offline.models import DEFAULT_MODEL, load_embedded
from evals.offline.questions import embedded_questions
from evals.stats.parity import Parity
from validators import arch
from validators.commands import options as shared
from validators.commands.plan import devices
from validators.records import files
from validators.records.command_line import command_line
from validators.records.store import Sink


def add_options(parser: argparse.ArgumentParser) -> None:
    shared.add(parser, "--baseline", f"presets: {', '.join(PRESETS)}", default="unfused")
    parser.add_argument(
        "--candidate", default="fused", metavar="ARM", help="the arm under test, written alike (default: fused)"
    )
    shared.add(parser, "--model", "a shipped one or a folder", default=DEFAULT_MODEL)
    shared.add(parser, "--questions", default=synthetic.EMBEDDED_QUESTIONS)
    parser.add_argument("--token-questions", type=int, default=400, metavar="N", help="for the token level")
    shared.add(parser, "--seed", "0: the embedded questions; else others, held out as well", default=0)
    shared.add_device(parser, "cpu")
    parser.add_argument("--runs", metavar="DIR", help="keep both arms' answers as run directories in DIR")
    shared.add_records(parser)
    compare.add_criterion_options(parser)


def command(options: argparse.Namespace) -> int:
    """Runs both arms and judges; the status of the verdict. EvalError where there is none."""
    criterion = compare.criterion_of(options)
    if options.questions < 2 or options.token_questions < 2:
        raise EvalError("--questions and --token-questions need at least two questions")
    devices(options.device)
    if options.json:
        files.check_json(options.json)
    for folder in (options.records, options.runs):
        if folder:
            files.check_folder(folder)
    baseline, candidate = (make_arm(spec, options.device) for spec in (options.baseline, options.candidate))
    if baseline.kernels == candidate.kernels and not criterion.aa:
        raise EvalError(f"baseline and candidate are the same kernels: {options.baseline} and {options.candidate}")
    questions = embedded_questions(options.questions, options.seed)
    model = load_embedded(options.model, options.device)
    settings = parity.Settings(
        device=options.device, token_questions=options.token_questions, runs=options.runs, show=not options.quiet
    )
    verdict = parity.judge(model, baseline, candidate, questions, criterion, settings)
    status = compare.show(verdict, options)
    if options.records:
        _record(verdict, baseline, candidate, options)
    return status


def _record(verdict: Parity, baseline: Arm, candidate: Arm, options: argparse.Namespace) -> None:
    kernel = candidate.norm or candidate.quant
    if kernel is None:
        raise EvalError("the candidate quantizes nothing, so there is no kernel whose claim a record could be")
    subject = Subject(
        kernel=kernel.name,
        model=options.model,
        seed=options.seed,
        device=options.device,
        arch=arch.architecture(options.device),
        contract=kernel.contract,
        emulated=kernel.emulated,
        fake=kernel.fake,
        reproduce=_reproduce(options),
        provenance=kernel.provenance(options.device),
        arms=(baseline.name, candidate.name),
        profile=parity.PROFILE,
        kernels=candidate.kernels,
    )
    with Sink(options.records) as sink:
        sink.write(record(verdict, subject))


def _reproduce(options: argparse.Namespace) -> str:
    return command_line(
        "evals",
        "parity",
        baseline=options.baseline,
        candidate=options.candidate,
        model=options.model,
        questions=options.questions,
        token_questions=options.token_questions,
        seed=options.seed,
        criterion=options.criterion,
        margin=options.margin,
        alpha=options.alpha,
        extractor=options.extractor,
        device=options.device,
    )
