"""``gsm8k compare``: the verdict on two recorded runs, or on two totals."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import sys
from pathlib import Path

from evals.commands import report
from evals.commands.record import Subject, record
from evals.errors import EvalError, NotDecided
from evals.gsm8k import store
from evals.gsm8k.answers import find_extractor
from evals.gsm8k.samples import TokenPair
from evals.stats import tokens
from evals.stats.criterion import CRITERIA, Criterion, Verdict, find_criterion
from evals.stats.pairing import check_headers
from evals.stats.parity import Parity, decide, decide_totals
from evals.stats.token_gates import TokenLevel, Yardstick
from validators.commands import options as shared
from validators.process.guard import Exit
from validators.records import files
from validators.records.command_line import command_line, name_of
from validators.records.store import Sink
from validators.words import FUSED

STATUS = {Verdict.PARITY: Exit.YES, Verdict.REGRESSION: Exit.NO, Verdict.INCONCLUSIVE: Exit.NO_DECISION}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run directories: baseline, candidate")
    parser.add_argument(
        "--totals", nargs=2, metavar="RIGHT/ALL", help="two totals in place of runs: 1250/1319 1244/1319"
    )
    parser.add_argument("--discordance", type=float, metavar="SHARE", help="with --totals: share of changed questions")
    parser.add_argument("--rerun", metavar="RUN", help="the baseline's own re-run, the noise floor")
    parser.add_argument("--yardstick", metavar="RUN", help="a higher-precision arm, for the token level")
    parser.add_argument("--any-model", action="store_true", help="the arms may serve models of different names")
    parser.add_argument("--aa", action="store_true", help="the two runs are the same arm twice, on purpose")
    parser.add_argument("--early-stop", action="store_true", help="judge unfinished runs by betting")
    shared.add_records(parser)
    shared.add(parser, "--kernel", "with --records: whose claim it is", "default: from the run", several=True)
    add_criterion_options(parser)


def add_criterion_options(parser: argparse.ArgumentParser) -> None:
    """Options of every command that ends in a verdict; ``criterion_of`` reads them."""
    default = Criterion()
    parser.add_argument(
        "--criterion",
        default="non-inferiority",
        **shared.closed("criterion", tuple(CRITERIA), help="of accuracy (default: non-inferiority)"),
    )
    shared.add(parser, "--margin", default=100 * default.margin)
    parser.add_argument(
        "--alpha", type=float, metavar="P", default=default.alpha, help=f"one-sided error (default: {default.alpha:g})"
    )
    parser.add_argument(
        "--extractor", default="", metavar="NAME", help="how answers are found (default: the profile's)"
    )
    shared.add(parser, "--json")


def criterion_of(options: argparse.Namespace) -> Criterion:
    """The criterion that the options state; EvalError where they state none."""
    if not 0 < options.margin < 100:
        raise EvalError(f"--margin {options.margin:g} is no loss between 0 and 100 points")
    if not 0 < options.alpha < 0.5:
        raise EvalError(f"--alpha {options.alpha:g} is no error probability between 0 and 0.5")
    if options.extractor:
        find_extractor(options.extractor)
    return dataclasses.replace(
        find_criterion(options.criterion),
        margin=options.margin / 100,
        alpha=options.alpha,
        extractor=options.extractor,
        early_stop=getattr(options, "early_stop", False),
        any_model=getattr(options, "any_model", False),
        aa=getattr(options, "aa", False),
    )


def command(options: argparse.Namespace) -> int:
    """The status of the verdict; EvalError where there can be none."""
    criterion = criterion_of(options)
    if options.json:
        files.check_json(options.json)
    if options.records:
        files.check_folder(options.records)
    if options.totals:
        if options.runs or options.rerun or options.yardstick or options.records:
            raise EvalError("--totals takes no other runs: totals hold no answers to compare or to record")
        return show(_totals(options, criterion), options)
    if options.discordance is not None:
        raise EvalError("--discordance belongs to --totals: of runs it is counted")
    if len(options.runs) != 2:
        raise EvalError("name two run directories, baseline and candidate, or two --totals")
    _check_paths(options)
    return _compare(options, criterion)


def _compare(options: argparse.Namespace, criterion: Criterion) -> int:
    baseline, candidate = (store.read(run) for run in options.runs)
    rerun = store.read(options.rerun) if options.rerun else None
    yardstick = store.read(options.yardstick) if options.yardstick else None
    for run in (baseline, candidate, rerun, yardstick):
        if run is not None:
            _check_scores(run, criterion)
    if rerun is not None:
        check_headers(baseline.header, rerun.header, any_model=criterion.any_model, same_arm=True)
    verdict = decide(
        baseline.everything,
        candidate.everything,
        rerun=rerun.everything if rerun else None,
        tokens=_token_level(baseline, candidate, rerun, yardstick),
        criterion=criterion,
        headers=(baseline.header, candidate.header),
    )
    if options.records:
        _record(verdict, baseline, candidate, options)
    return show(verdict, options)


def show(parity: Parity, options: argparse.Namespace) -> int:
    """Prints the verdict as ``--json`` and ``--quiet`` say; returns its exit status."""
    if options.json == files.STDOUT:
        files.write_json(options.json, report.as_json(parity))
        return STATUS[parity.verdict]
    sys.stdout.write(f"{parity.sentence}\n" if options.quiet else report.text(parity))
    if options.verbose:
        sys.stdout.write(report.numbers(parity))
    if options.json:
        files.write_json(options.json, report.as_json(parity))
    return STATUS[parity.verdict]


def _check_paths(options: argparse.Namespace) -> None:
    """EvalError where one directory is named as two runs, which would agree with itself."""
    named = [("baseline", options.runs[0]), ("re-run", options.rerun), ("yardstick", options.yardstick)]
    named += [] if options.aa else [("candidate", options.runs[1])]
    seen: dict[Path, str] = {}
    for name, run in named:
        if run is None:
            continue
        if (other := seen.setdefault(Path(run).resolve(), name)) != name:
            also = " (--aa does that on purpose)" if name == "candidate" and other == "baseline" else ""
            raise EvalError(f"{other} and {name} are the same run directory, {run}{also}")


def _check_scores(run: store.Run, criterion: Criterion) -> None:
    """NotDecided if scores of gold solutions were asked for and some lack: two arms could lack the same ones."""
    if run.unscored:
        first = run.unscored[0]
        raise NotDecided(
            f"{len(run.unscored)} gold solutions of {run.path} could not be scored, so there is no verdict (first "
            f"{first.question}: {first.error}); run it again to finish them"
        )
    asked, found = run.header.questions, len(run.tokens)
    if run.header.settings.get("prompt_logprobs") and found != asked and not criterion.early_stop:
        raise NotDecided(
            f"{run.path} has the scores of {found:,} of {asked:,} gold solutions, so there is no verdict; run it again "
            "to finish it"
        )


def _token_level(
    baseline: store.Run, candidate: store.Run, rerun: store.Run | None, yardstick: store.Run | None
) -> TokenLevel | None:
    """The scores of the gold solutions; None where neither arm has any."""
    pairs = _pairs(baseline, candidate, "candidate")
    noise = None if rerun is None else _pairs(baseline, rerun, "re-run")
    measured = yardstick is not None and _pairs(baseline, yardstick, "yardstick") is not None
    if pairs is None:
        return None
    if yardstick is None or not measured:
        return TokenLevel(pairs, noise)
    own = (tokens.pairs(yardstick.tokens, arm.tokens) for arm in (baseline, candidate))
    return TokenLevel(pairs, noise, Yardstick(*own))


def _pairs(a: store.Run, b: store.Run, name: str) -> list[TokenPair] | None:
    """name: of ``b``, for the sentence of the error."""
    if not (a.tokens or b.tokens):
        return None
    if not a.tokens or not b.tokens:
        raise EvalError(f"only the {'baseline' if a.tokens else name} has token scores: score both, or neither")
    return tokens.pairs(a.tokens, b.tokens)


def _totals(options: argparse.Namespace, criterion: Criterion) -> Parity:
    found = [re.fullmatch(r"(\d+)/(\d+)", t) for t in options.totals]
    if not found[0] or not found[1]:
        raise EvalError(f"totals are written RIGHT/ALL, as in 1250/1319, and not {' '.join(options.totals)}")
    (a, n), (b, m) = ((int(f[1]), int(f[2])) for f in found if f)
    if n != m:
        raise EvalError(f"the totals are over {n} and {m} questions: not the same questions, so nothing is paired")
    if options.discordance is None or not math.isfinite(options.discordance):
        raise EvalError(
            f"totals do not say how many questions changed, and the verdict depends on it: state a --discordance, at "
            f"least {abs(a - b) / max(n, 1):.4f} here and usually 0.02 to 0.05, or compare the runs"
        )
    return decide_totals(a, b, n, options.discordance, criterion)


def _record(parity: Parity, baseline: store.Run, candidate: store.Run, options: argparse.Namespace) -> None:
    header = candidate.header
    if len(options.kernel) > 1:
        raise EvalError(f"a record is about one kernel, and --kernel names {' and '.join(options.kernel)}")
    kernel = name_of("".join(options.kernel), FUSED) or header.kernels.get(FUSED)
    if not kernel:
        raise EvalError("the candidate's run names no kernel of add_rmsnorm_quant: say with --kernel whose claim it is")
    about = header.provenance
    runs = (str(baseline.path), str(candidate.path))
    subject = Subject(
        kernel=kernel,
        model=header.model,
        seed=header.seed,
        device=str(about.get("device", "unknown")),
        arch=str(about.get("arch", "unknown")),
        emulated=bool(about.get("emulated", False)),
        reproduce=command_line("evals", "gsm8k compare", *runs, margin=options.margin),
        arms=(baseline.header.arm, header.arm),
        profile=header.profile,
        kernels=header.kernels,
    )
    with Sink(options.records) as sink:
        sink.write(record(parity, subject))
