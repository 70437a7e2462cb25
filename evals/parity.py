"""The verdict: PARITY, REGRESSION or INCONCLUSIVE, with the sentence that a maintainer can quote.

Parity is a claim and needs evidence: the lower bound of the accuracy difference lies above a margin stated beforehand,
and no gate says no. Regression is a claim too. What is neither is inconclusive, and the verdict says how many questions
would settle it. An error that is left, or a question that one arm lacks, is no verdict at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from evals import paired, sequential
from evals import tokens as token_level
from evals.answers import EXTRACTORS, Extractor, Grade, find_extractor
from evals.errors import EvalError
from evals.gate import Gate
from evals.paired import NonInferiority, Table, noninferiority, planned
from evals.pairing import Graded, Pairs, Texts, align, check_headers, graded, texts
from evals.samples import Header, Sample, TokenPair

LENGTH_RATIO = (0.9, 1.1)
"""Mean completion length, candidate over baseline. A policy taken from MLPerf's rules (tokens per sample within 90 to
110 % of the reference): outside it answers are degenerate, short or run-on, whatever they score."""


class Verdict(str, Enum):
    PARITY = "PARITY"
    REGRESSION = "REGRESSION"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True)
class Policy:
    """What is claimed, stated before the data are seen.

    margin: the loss of accuracy that would be accepted, as a fraction; 1.5 points gives 92 % power at 1,319 questions
    of which 3 % change. alpha: one-sided error. ratio: MLPerf's rule in place of the bound (see ``POLICIES``).
    extractor: how answers are found; empty for the one of the runs' profile. early_stop: judge the contiguous
    beginning of the permutation by betting. aa: compare a run with its own re-run on purpose.
    """

    name: str = "non-inferiority"
    margin: float = 0.015
    alpha: float = paired.ALPHA
    ratio: float | None = None
    extractor: str = ""
    early_stop: bool = False
    any_model: bool = False
    aa: bool = False
    seed: int = 0


POLICIES = {
    "non-inferiority": Policy(),
    "mlperf-99": Policy("mlperf-99", ratio=0.99),
    "mlperf-99.9": Policy("mlperf-99.9", ratio=0.999),
}
"""MLPerf inference asks for 99 %, for some models 99.9 %, of the reference accuracy. That rule has no error bar, so a
pass by it may be luck; it is offered because submissions are held to it, and the interval is always printed beside."""


def find_policy(name: str) -> Policy:
    if name not in POLICIES:
        raise EvalError(f"unknown policy {name!r}; known: {', '.join(POLICIES)}")
    return POLICIES[name]


@dataclass(frozen=True)
class Parity:
    """A verdict with everything that it rests on. ``gates`` hold the sentences; ``numbers`` the same as JSON values.

    table: over (question, repeat) pairs. needed: questions that a run needs to settle it, None where it is settled.
    """

    verdict: Verdict
    sentence: str
    gates: tuple[Gate, ...]
    policy: Policy
    extractor: str
    questions: int
    table: Table
    needed: int | None = None
    numbers: dict[str, Any] = field(default_factory=dict)


def decide(
    baseline: Sequence[Sample], candidate: Sequence[Sample], *, again: Sequence[Sample] | None = None,
    tokens: Sequence[TokenPair] | None = None, noise: Sequence[TokenPair] | None = None,
    yardstick: Sequence[TokenPair] | None = None, policy: Policy = POLICIES["non-inferiority"],
    headers: tuple[Header, Header] | None = None,
) -> Parity:  # fmt: skip
    """The verdict on ``candidate`` against ``baseline``.

    again: the baseline's own re-run. tokens, noise, yardstick: token-level pairs of the baseline with the candidate,
    with its re-run, and with a higher-precision arm. headers: of both arms; checked where given. Raises EvalError where
    there can be no verdict.
    """
    differ = ""
    if headers is not None:
        differ = check_headers(*headers, any_model=policy.any_model, same_arm=policy.aa)
        _complete(headers, baseline, candidate, policy)
    if policy.early_stop:
        baseline, candidate = _beginning(baseline, candidate)
        again = None if again is None else [s for s in again if s.question in {b.question for b in baseline}]
    pairs = align(baseline, candidate)
    extractor = _extractor(policy, headers)
    marks, how = graded(pairs, extractor), texts(pairs)
    table = paired.table(marks.right("baseline"), marks.right("candidate"))
    accuracy, bounds = _accuracy(table, marks, pairs, policy)
    gates = [
        _floor(table, policy), accuracy, *_guards(marks, how, pairs, policy),
        _arms_differ(differ, how, pairs, policy), *_reported(table, marks, how, pairs),
        _sensitivity(pairs, policy, extractor),
    ]  # fmt: skip
    if again is not None:
        gates.append(_excess(pairs, align(baseline, again, names=("baseline", "its re-run")), marks, extractor))
    if tokens:
        gates += token_level.gates(tokens, noise, yardstick, alpha=policy.alpha, seed=policy.seed)
    else:
        gates.append(Gate("token level", None, "no token-level scores were given: accuracy alone misses subtle faults",
                          decides=False))  # fmt: skip
    verdict = _verdict(gates)
    needed = _needed(_expected(table), policy) if verdict is Verdict.INCONCLUSIVE and accuracy.ok is None else None
    parity = Parity(verdict, "", tuple(gates), policy, extractor.id, pairs.questions, table, needed,
                    _numbers(table, bounds, marks, how, headers))  # fmt: skip
    return replace(parity, sentence=_sentence(parity, headers, bool(tokens)))


def decide_totals(baseline: int, candidate: int, count: int, discordance: float, policy: Policy) -> Parity:
    """The verdict that two totals would give, were ``discordance`` of the questions changed between right and wrong.

    The paired counts are what matters, and totals do not hold them: the share is an assumption, and is named as one.
    """
    if not 0 <= baseline <= count or not 0 <= candidate <= count or count < 1:
        raise EvalError(f"{baseline} and {candidate} of {count} are no totals")
    change = candidate - baseline
    pairs = round((discordance * count - abs(change)) / 2) * 2 + abs(change)
    lost, gained = (pairs - change) // 2, (pairs + change) // 2
    if discordance > 1 or pairs < abs(change) or lost > baseline or gained > count - baseline:
        raise EvalError(
            f"a discordance of {100 * discordance:g} % is impossible with {baseline} and {candidate} of {count}; it is "
            f"at least {100 * abs(change) / count:.2g} %"
        )
    table = Table(baseline - lost, lost, gained, count - baseline - gained)
    accuracy, _ = _accuracy_of(table, policy)
    gates = (
        _floor(table, policy), accuracy, _mcnemar(table),
        Gate("totals", None, f"the discordance of {100 * discordance:g} % is assumed: totals do not hold the paired "
             "counts, and the token level was not looked at", decides=False),
    )  # fmt: skip
    verdict = _verdict(gates)
    needed = _needed(discordance, policy) if verdict is Verdict.INCONCLUSIVE else None
    numbers = {"assumed_discordance": discordance}
    parity = Parity(verdict, "", gates, policy, "totals", count, table, needed, numbers)
    return replace(parity, sentence=_sentence(parity, None, True) + f" Assumed: {100 * discordance:g} % discordance.")


def _verdict(gates: Sequence[Gate]) -> Verdict:
    deciding = [g.ok for g in gates if g.decides]
    if False in deciding:
        return Verdict.REGRESSION
    return Verdict.INCONCLUSIVE if None in deciding else Verdict.PARITY


def _complete(headers: tuple[Header, Header], a: Sequence[Sample], b: Sequence[Sample], policy: Policy) -> None:
    if policy.early_stop:
        return
    for header, samples in zip(headers, (a, b), strict=True):
        asked = len({s.question for s in samples})
        if asked != header.questions:
            raise EvalError(
                f"{header.arm} has {asked:,} of {header.questions:,} questions, so there is no verdict; run it again "
                "to finish it"
            )


def _beginning(a: Sequence[Sample], b: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Both arms cut to the contiguous beginning of the permutation that both have answered, repeat 0."""
    answered = [{s.order for s in arm if s.error is None and s.repeat == 0} for arm in (a, b)]
    length = sequential.contiguous(answered[0] & answered[1])
    if not length:
        raise EvalError("the first question of the permutation is not answered yet, so there is nothing to look at")
    cut = [[s for s in arm if s.order < length and s.repeat == 0 and s.error is None] for arm in (a, b)]
    return cut[0], cut[1]


def _extractor(policy: Policy, headers: tuple[Header, Header] | None) -> Extractor:
    named = policy.extractor or (headers[0].settings.get("extractor") if headers else "") or "strict"
    return find_extractor(str(named))


def _points(x: float) -> str:
    return f"{100 * x:+.2f}"


def _margin(policy: Policy) -> str:
    points = f"{100 * policy.margin:g}"
    return f"{points} point" + ("" if points == "1" else "s")


def _floor(table: Table, policy: Policy) -> Gate:
    """Where the baseline has no more right than the margin, a model that answers nothing right would pass."""
    share = table.baseline / table.count
    enough = share > policy.margin
    words = "so a loss can show" if enough else "no more than the margin: even a total loss would pass"
    return Gate("baseline", True if enough else None, f"the baseline has {100 * share:.2f} % right, {words}")


def _accuracy(table: Table, marks: Graded, pairs: Pairs, policy: Policy) -> tuple[Gate, NonInferiority]:
    if policy.early_stop:
        return _early(table, marks, policy)
    if pairs.repeats > 1:
        return _repeated(table, marks, pairs, policy)
    return _accuracy_of(table, policy)


def _accuracy_of(table: Table, policy: Policy) -> tuple[Gate, NonInferiority]:
    """The accuracy gate of one table: Tango's bound, exact McNemar for harm; or MLPerf's ratio.

    False needs harm to be shown (McNemar) and the margin not to be kept: a loss that is significant and within the
    margin was accepted when the margin was stated.
    """
    bounds = noninferiority(table.lost, table.gained, table.count, policy.margin, policy.alpha)
    low, high = paired.tango(table.lost, table.gained, table.count)
    words = (
        f"{table.baseline:,} -> {table.candidate:,} of {table.count:,} right ({table.lost} lost, {table.gained} "
        f"gained, discordance {100 * table.discordance:.2g} %); difference {_points(table.difference)} points, "
        f"95 % interval [{_points(low)}, {_points(high)}], one-sided lower bound {_points(bounds.low)}; "
        f"margin {_margin(policy)}"
    )
    if policy.ratio is not None:
        kept = table.candidate / table.baseline if table.baseline else math.nan
        rule = f"{100 * policy.ratio:g} % of the baseline (MLPerf's rule, without an error bar)"
        return Gate("accuracy", kept >= policy.ratio, f"{100 * kept:.2f} %, asked is {rule}; {words}"), bounds
    ok = True if bounds.holds else False if bounds.harm_shown else None
    return Gate("accuracy", ok, words), bounds


def _repeated(table: Table, marks: Graded, pairs: Pairs, policy: Policy) -> tuple[Gate, NonInferiority]:
    """Repeats of a question are no further questions: per-question means, questions as clusters."""
    sums: dict[str, int] = {}
    for sample, a, b in zip(pairs.baseline, marks.right("baseline"), marks.right("candidate"), strict=True):
        sums[sample.question] = sums.get(sample.question, 0) + int(b) - int(a)
    mean, error, low, high = paired.clustered([s / pairs.repeats for s in sums.values()], policy.alpha)
    holds = low > -policy.margin
    bounds = NonInferiority(low, high, policy.margin, holds, not holds and high < 0, math.nan)
    words = (
        f"{100 * table.baseline / table.count:.2f} % -> {100 * table.candidate / table.count:.2f} % of "
        f"{pairs.questions:,} questions, {pairs.repeats} times each; difference {_points(mean)} points, error "
        f"clustered by question {100 * error:.2f}, one-sided lower bound {_points(low)}; margin {_margin(policy)}"
    )
    if policy.ratio is not None:
        return Gate("accuracy", table.candidate >= policy.ratio * table.baseline, words), bounds
    return Gate("accuracy", True if holds else False if bounds.harm_shown else None, words), bounds


def _early(table: Table, marks: Graded, policy: Policy) -> tuple[Gate, NonInferiority]:
    differences = [int(b) - int(a) for a, b in zip(marks.right("baseline"), marks.right("candidate"), strict=True)]
    race = sequential.watch(differences, policy.margin, policy.alpha)
    bounds = noninferiority(table.lost, table.gained, table.count, policy.margin, policy.alpha)
    words = (
        f"by betting on the first {race.count:,} questions of the permutation: capital {race.parity:.3g} on 'no worse "
        f"than {_margin(policy)}', {race.harm:.3g} on 'worse', {1 / policy.alpha:g} decides; {table.lost} lost and "
        f"{table.gained} gained of {table.count:,}"
    )
    return Gate("accuracy", {"parity": True, "harm": False, "": None}[race.decided], words), bounds


def _guards(marks: Graded, how: Texts, pairs: Pairs, policy: Policy) -> list[Gate]:
    """Format and length, which move scores by themselves: no only where harm is shown, or by LENGTH_RATIO."""

    def guard(name: str, bad_a: Sequence[bool], bad_b: Sequence[bool]) -> Gate:
        t = paired.table([not x for x in bad_a], [not x for x in bad_b])
        result = noninferiority(t.lost, t.gained, t.count, policy.margin, policy.alpha)
        return Gate(name, not result.harm_shown, f"{sum(bad_a)} -> {sum(bad_b)} of {t.count:,}")

    low, high = LENGTH_RATIO
    return [
        guard("no number found", [g is Grade.INVALID for g in marks.baseline],
              [g is Grade.INVALID for g in marks.candidate]),
        guard("cut by the length limit", [s.finish == "length" for s in pairs.baseline],
              [s.finish == "length" for s in pairs.candidate]),
        Gate("mean length", low <= how.ratio <= high,
             f"{how.ratio:.3f} of the baseline's, allowed {low:g} to {high:g}"),
    ]  # fmt: skip


def _arms_differ(differ: str, how: Texts, pairs: Pairs, policy: Policy) -> Gate:
    same = how.identical == len(pairs.baseline)
    words = f"the arms differ: {differ}" if differ else "nothing recorded shows that the arms differ"
    if same and not policy.aa:
        words += "; all completions are identical, so make sure that the change was on"
    return Gate("arms", None, words, decides=False)


def _mcnemar(table: Table) -> Gate:
    test = paired.mcnemar(table.lost, table.gained)
    low, high = paired.newcombe(table)
    return Gate("McNemar", None, f"exact p = {test.two_sided:.2g} two-sided, {test.harm:.2g} for harm; "
                f"Newcombe's interval [{_points(low)}, {_points(high)}]", decides=False)  # fmt: skip


def _reported(table: Table, marks: Graded, how: Texts, pairs: Pairs) -> list[Gate]:
    count = len(pairs.baseline)
    place = f", first difference at {how.unit[:-1]} {how.divergence:g} (median)" if how.divergence is not None else ""
    return [
        _mcnemar(table),
        Gate("flips", None, f"{table.lost + table.gained} answers changed between right and wrong, "
             f"{sum(marks.changed)} changed at all; {how.identical:,} of {count:,} completions are identical{place}",
             decides=False),
    ]  # fmt: skip


def _sensitivity(pairs: Pairs, policy: Policy, chosen: Extractor) -> Gate:
    """The accuracy gate by every extractor that finds answers in these texts."""
    found: dict[str, Verdict] = {}
    parts = []
    for name, extractor in EXTRACTORS.items():
        marks = graded(pairs, extractor)
        table = paired.table(marks.right("baseline"), marks.right("candidate"))
        if table.baseline <= policy.margin * table.count:
            continue
        gate, _ = _accuracy(table, marks, pairs, policy)
        found[name] = _verdict([gate])
        parts.append(f"{name} {_points(table.difference)} {found[name].value}")
    depends = len(set(found.values())) > 1
    words = "the accuracy gate DEPENDS on the extractor" if depends else "no extractor changes the accuracy gate"
    return Gate("extractors", None, f"{words} ({', '.join(parts) or 'none finds answers'}); used {chosen.id}",
                decides=False)  # fmt: skip


def _excess(pairs: Pairs, rerun: Pairs, marks: Graded, extractor: Extractor) -> Gate:
    other = graded(rerun, extractor)
    first = marks.right("baseline")
    flips = [a != b for a, b in zip(first, marks.right("candidate"), strict=True)]
    floor = [a != b for a, b in zip(first, other.right("candidate"), strict=True)]
    excess = paired.excess_flips(flips, floor)
    answers = paired.excess_flips(marks.changed, other.changed)
    return Gate(
        "excess flips", None,
        f"{excess.candidate} flips against {excess.again} of the baseline's own re-run (exact p = {excess.p:.2g}, "
        f"excess [{_points(excess.interval.low)}, {_points(excess.interval.high)}] points); answers changed: "
        f"{answers.candidate} against {answers.again} (p = {answers.p:.2g})", decides=False,
    )  # fmt: skip


def _expected(table: Table) -> float:
    """The discordance to plan with; where nothing changed, as if one question had, since none is never the truth."""
    return max(table.discordance, 1 / table.count)


def _needed(discordance: float, policy: Policy) -> int:
    """Questions of a run that settles it, if nothing changed in truth."""
    return math.ceil(planned(discordance, policy.margin, alpha=policy.alpha))


def _numbers(table: Table, bounds: NonInferiority, marks: Graded, how: Texts,
             headers: tuple[Header, Header] | None) -> dict[str, Any]:  # fmt: skip
    low, high = paired.tango(table.lost, table.gained, table.count)
    return {
        "difference": table.difference, "interval_95": [low, high], "lower_bound": bounds.low,
        "discordance": table.discordance, "lost": table.lost, "gained": table.gained,
        "accuracy": [table.baseline / table.count, table.candidate / table.count],
        "invalid": [marks.invalid("baseline"), marks.invalid("candidate")], "length_stops": list(how.stopped),
        "length_ratio": how.ratio, "identical": how.identical, "answers_changed": sum(marks.changed),
        "first_divergence": how.divergence, "divergence_unit": how.unit,
        "profile": headers[0].profile if headers else None, "data": headers[0].data if headers else None,
        "data_sha256": headers[0].data_sha256 if headers else None,
    }  # fmt: skip


def _sentence(parity: Parity, headers: tuple[Header, Header] | None, with_tokens: bool) -> str:
    accuracy = next(g for g in parity.gates if g.name == "accuracy")
    on = f" ({headers[0].profile}, {headers[0].data}, {headers[0].model})" if headers else ""
    who = headers[1].arm if headers else "the candidate"
    than = headers[0].arm if headers else "the baseline"
    margin = _margin(parity.policy)
    if parity.verdict is Verdict.PARITY:
        alone = "" if with_tokens else " By accuracy alone: token-level scores were not given."
        if parity.policy.ratio is not None:
            start = f"PARITY by {parity.policy.name}: {who} keeps {100 * parity.policy.ratio:g} % of {than}"
            return f"{start}{on}: {accuracy.sentence}.{alone}"
        return f"PARITY: {who} is no worse than {than} by {margin}{on}: {accuracy.sentence}.{alone}"
    if parity.verdict is Verdict.REGRESSION:
        no = [g for g in parity.gates if g.decides and g.ok is False]
        kept = "" if accuracy in no else f" Accuracy: {accuracy.sentence}."
        return f"REGRESSION: {who} against {than}{on}: " + "; ".join(f"{g.name}: {g.sentence}" for g in no) + f".{kept}"
    open_ = [g for g in parity.gates if g.decides and g.ok is None]
    text = f"INCONCLUSIVE: neither parity within {margin} nor a regression is shown{on}: "
    text += "; ".join(f"{g.name}: {g.sentence}" for g in open_) + "."
    if parity.needed is not None:
        d = parity.numbers.get("assumed_discordance", _expected(parity.table))
        more = max(0, parity.needed - parity.questions)
        text += (
            f" If nothing changed in truth, {parity.needed:,} questions ({more:,} more than here) settle it four times "
            f"of five"
        )
        if parity.policy.alpha == paired.ALPHA:
            text += f" (6.18 d / margin^2 with d = {100 * d:.2g} %)"
        text += f"; if the difference is what was seen, {_if_seen(parity, d)}."
    return text


def _if_seen(parity: Parity, discordance: float) -> str:
    policy = parity.policy
    seen = planned(discordance, policy.margin, parity.table.difference, alpha=policy.alpha)
    return (
        f"{math.ceil(seen):,}" if math.isfinite(seen) else "it is not within the margin, and no number will show that"
    )
