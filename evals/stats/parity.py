"""The verdict: PARITY, REGRESSION or INCONCLUSIVE, with the sentence that a maintainer can quote.

Parity is a claim and needs evidence: the lower bound of the accuracy difference is above a margin stated beforehand,
and no gate says no. Regression is a claim too. What is neither is inconclusive, and the verdict says how many questions
would settle it. An error that is left, or a question that one arm lacks, is no verdict at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from evals.errors import EvalError, NotDecided
from evals.gsm8k.answers import Extractor, find_extractor
from evals.gsm8k.samples import Header, Sample
from evals.stats import answer_gates, empty, paired, sequential, token_gates
from evals.stats.criterion import CRITERIA, Criterion, Verdict, verdict_of
from evals.stats.gate import Gate
from evals.stats.paired import NonInferiority, Table, planned
from evals.stats.pairing import Graded, Texts, align, check_headers, texts
from evals.stats.token_gates import TokenLevel


@dataclass(frozen=True)
class Parity:
    """A verdict with everything that it rests on. ``gates`` hold the sentences; ``numbers`` the same as JSON values.

    table: over (question, repeat) pairs. needed: questions that a run needs to settle it, None where it is settled.
    """

    verdict: Verdict
    sentence: str
    gates: tuple[Gate, ...]
    criterion: Criterion
    extractor: str
    questions: int
    table: Table
    needed: int | None = None
    numbers: dict[str, Any] = field(default_factory=dict)


def decide(
    baseline: Sequence[Sample],
    candidate: Sequence[Sample],
    *,
    rerun: Sequence[Sample] | None = None,
    tokens: TokenLevel | None = None,
    criterion: Criterion = CRITERIA["non-inferiority"],
    headers: tuple[Header, Header] | None = None,
) -> Parity:
    """The verdict on ``candidate`` against ``baseline``. Empty completions of imported runs are counted both ways.

    rerun: the baseline's own re-run. tokens: the scores of the gold solutions. headers: of both arms; checked where
    given. Raises EvalError where there can be no verdict.
    """
    if headers is None or criterion.early_stop or not empty.among(headers, baseline, candidate, rerun or ()):
        return _decide(baseline, candidate, rerun, tokens, criterion, headers)
    extractor = _extractor(criterion, headers)
    own = None if rerun is None else empty.filled(rerun, extractor, right=False)
    against, for_ = (
        _decide(
            empty.filled(baseline, extractor, right=not favour),
            empty.filled(candidate, extractor, right=favour),
            own,
            tokens,
            criterion,
            headers,
        )
        for favour in (False, True)
    )
    gate = empty.gate(headers, (baseline, candidate), against.verdict, for_.verdict)
    # A loss is claimed only if it is shown with the empty ones counted for the candidate.
    shown = for_ if against.verdict is Verdict.REGRESSION else against
    gates = (*shown.gates, gate)
    found = replace(shown, gates=gates, verdict=verdict_of(gates))
    return replace(found, sentence=f"{quotable(found, headers, tokens is not None)} Empty: {gate.sentence}.")


def _decide(
    baseline: Sequence[Sample],
    candidate: Sequence[Sample],
    rerun: Sequence[Sample] | None,
    tokens: TokenLevel | None,
    criterion: Criterion,
    headers: tuple[Header, Header] | None,
) -> Parity:
    differ = ""
    if headers is not None:
        differ = check_headers(*headers, any_model=criterion.any_model, same_arm=criterion.aa)
        _complete(headers, baseline, candidate, criterion)
    if criterion.early_stop:
        baseline, candidate = _beginning(baseline, candidate)
        rerun = None if rerun is None else [s for s in rerun if s.question in {b.question for b in baseline}]
    pairs = align(baseline, candidate)
    extractor = _extractor(criterion, headers)
    rules, how = answer_gates.by_rule(pairs), texts(pairs)
    marks = rules[extractor.name]
    table = paired.table(marks.right("baseline"), marks.right("candidate"))
    accuracy, bounds = answer_gates.accuracy(table, marks, pairs, criterion)
    gates = [
        answer_gates.floor(table, criterion),
        accuracy,
        answer_gates.answers_found(rules, criterion, extractor),
        *answer_gates.guards(marks, how, pairs, criterion),
        answer_gates.arms_differ(differ, how, pairs, criterion, headers is not None),
        *answer_gates.reported(table, marks, how, pairs),
        answer_gates.sensitivity(pairs, rules, criterion, extractor),
    ]
    if rerun is not None:
        floor = align(baseline, rerun, names=("baseline", "its re-run"))
        gates.append(answer_gates.excess(pairs, floor, marks, extractor))
    if tokens is not None:
        gates += token_gates.gates(tokens, alpha=criterion.alpha, seed=criterion.seed)
    else:
        gates.append(
            Gate(
                "token level",
                None,
                "no token-level scores were given: accuracy alone misses subtle faults",
                decides=False,
            )
        )
    verdict = verdict_of(gates)
    needed = _needed(_expected(table), criterion) if verdict is Verdict.INCONCLUSIVE and accuracy.ok is None else None
    parity = Parity(
        verdict=verdict,
        sentence="",
        gates=tuple(gates),
        criterion=criterion,
        extractor=extractor.id,
        questions=pairs.questions,
        table=table,
        needed=needed,
        numbers={**_numbers(table, bounds, marks, how, headers), "tokens": _scored(tokens)},
    )
    return replace(parity, sentence=quotable(parity, headers, tokens is not None))


def _scored(tokens: TokenLevel | None) -> int:
    """Tokens of gold solutions that both arms have scored."""
    return sum(len(pair.kl) for pair in tokens.candidate) if tokens is not None else 0


def decide_totals(baseline: int, candidate: int, count: int, discordance: float, criterion: Criterion) -> Parity:
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
    accuracy, _ = answer_gates.accuracy_of(table, criterion)
    gates = (
        answer_gates.floor(table, criterion),
        accuracy,
        answer_gates.mcnemar(table),
        Gate(
            "totals",
            None,
            f"the discordance of {100 * discordance:g} % is assumed: totals do not hold the paired "
            "counts, and the token level was not looked at",
            decides=False,
        ),
    )
    verdict = verdict_of(gates)
    needed = _needed(discordance, criterion) if verdict is Verdict.INCONCLUSIVE else None
    numbers = {"assumed_discordance": discordance}
    parity = Parity(
        verdict=verdict,
        sentence="",
        gates=gates,
        criterion=criterion,
        extractor="totals",
        questions=count,
        table=table,
        needed=needed,
        numbers=numbers,
    )
    return replace(parity, sentence=quotable(parity, None, True) + f" Assumed: {100 * discordance:g} % discordance.")


def _complete(headers: tuple[Header, Header], a: Sequence[Sample], b: Sequence[Sample], criterion: Criterion) -> None:
    if criterion.early_stop:
        return
    for header, samples in zip(headers, (a, b), strict=True):
        asked = len({s.question for s in samples})
        if asked != header.questions:
            raise NotDecided(
                f"{header.arm} has {asked:,} of {header.questions:,} questions, so there is no verdict; run it again "
                "to finish it"
            )


def _beginning(a: Sequence[Sample], b: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Both arms cut to the contiguous beginning of the permutation that both have answered, repeat 0."""
    answered = [{s.order for s in arm if s.error is None and s.repeat == 0} for arm in (a, b)]
    length = sequential.contiguous(answered[0] & answered[1])
    if not length:
        raise NotDecided("the first question of the permutation is not answered yet, so there is nothing to look at")
    cut = [[s for s in arm if s.order < length and s.repeat == 0 and s.error is None] for arm in (a, b)]
    return cut[0], cut[1]


def _extractor(criterion: Criterion, headers: tuple[Header, Header] | None) -> Extractor:
    named = criterion.extractor or (headers[0].settings.get("extractor") if headers else "") or "strict"
    return find_extractor(str(named))


def _expected(table: Table) -> float:
    """The discordance to plan with; where nothing changed, as if one question had, since none is never the truth."""
    return max(table.discordance, 1 / table.count)


def _needed(discordance: float, criterion: Criterion) -> int:
    """Questions of a run that settles it, if nothing changed in truth."""
    return math.ceil(planned(discordance, criterion.margin, alpha=criterion.alpha))


def _numbers(
    table: Table, bounds: NonInferiority, marks: Graded, how: Texts, headers: tuple[Header, Header] | None
) -> dict[str, Any]:
    low, high = paired.tango(table.lost, table.gained, table.count)
    return {
        "difference": table.difference,
        "interval_95": [low, high],
        "lower_bound": bounds.low,
        "discordance": table.discordance,
        "lost": table.lost,
        "gained": table.gained,
        "accuracy": [table.baseline / table.count, table.candidate / table.count],
        "invalid": [marks.invalid("baseline"), marks.invalid("candidate")],
        "length_stops": list(how.stopped),
        "length_ratio": how.ratio,
        "identical": how.identical,
        "answers_changed": sum(marks.changed),
        "first_divergence": how.divergence,
        "divergence_unit": how.unit,
        "profile": headers[0].profile if headers else None,
        "data": headers[0].data if headers else None,
        "data_sha256": headers[0].data_sha256 if headers else None,
    }


def quotable(parity: Parity, headers: tuple[Header, Header] | None, with_tokens: bool) -> str:
    """The one sentence of a verdict that a maintainer can quote, from its gates."""
    accuracy = next(g for g in parity.gates if g.name == "accuracy")
    on = f" ({headers[0].profile}, {headers[0].data}, {headers[0].model})" if headers else ""
    who = headers[1].arm if headers else "the candidate"
    than = headers[0].arm if headers else "the baseline"
    margin = answer_gates.margin_words(parity.criterion)
    if parity.verdict is Verdict.PARITY:
        alone = "" if with_tokens else " By accuracy alone: token-level scores were not given."
        if parity.criterion.ratio is not None:
            start = f"PARITY by {parity.criterion.name}: {who} keeps {100 * parity.criterion.ratio:g} % of {than}"
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
        if parity.criterion.alpha == paired.ALPHA:
            text += f" (6.18 d / margin^2 with d = {100 * d:.2g} %)"
        text += f"; if the difference is what was seen, {_if_seen(parity, d)}."
    return text


def _if_seen(parity: Parity, discordance: float) -> str:
    criterion = parity.criterion
    seen = planned(discordance, criterion.margin, parity.table.difference, alpha=criterion.alpha)
    return (
        f"{math.ceil(seen):,}" if math.isfinite(seen) else "it is not within the margin, and no number will show that"
    )
