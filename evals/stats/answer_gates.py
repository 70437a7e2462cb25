"""The gates that look at answers: accuracy and its guards, and what is reported with them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from evals.gsm8k.answers import EXTRACTORS, Extractor, Grade
from evals.stats import paired, sequential
from evals.stats.criterion import Criterion, Verdict, verdict_of
from evals.stats.gate import Gate
from evals.stats.paired import NonInferiority, Table, noninferiority
from evals.stats.pairing import Graded, Pairs, Texts, graded

LENGTH_RATIO = (0.9, 1.1)
"""Mean completion length, candidate over baseline. Taken from MLPerf's rules (tokens per sample within 90 to 110 % of
the reference): outside it answers are degenerate, short or run-on, whatever they score."""


def points(x: float) -> str:
    return f"{100 * x:+.2f}"


def margin_words(criterion: Criterion) -> str:
    points = f"{100 * criterion.margin:g}"
    return f"{points} point" + ("" if points == "1" else "s")


def floor(table: Table, criterion: Criterion) -> Gate:
    """Where the baseline has no more right than the margin, a model that answers nothing right would pass."""
    share = table.baseline / table.count
    enough = share > criterion.margin
    words = "so a loss can show" if enough else "no more than the margin: even a total loss would pass"
    return Gate("baseline", True if enough else None, f"the baseline has {100 * share:.2f} % right, {words}")


def accuracy(table: Table, marks: Graded, pairs: Pairs, criterion: Criterion) -> tuple[Gate, NonInferiority]:
    if criterion.early_stop:
        return _early(table, marks, criterion)
    if pairs.repeats > 1:
        return _repeated(table, marks, pairs, criterion)
    return accuracy_of(table, criterion)


def accuracy_of(table: Table, criterion: Criterion) -> tuple[Gate, NonInferiority]:
    """The accuracy gate of one table: Tango's bound, exact McNemar for harm; or MLPerf's ratio.

    False needs harm to be shown (McNemar) and the margin not to be kept: a loss that is significant and within the
    margin was accepted when the margin was stated.
    """
    bounds = noninferiority(table.lost, table.gained, table.count, criterion.margin, criterion.alpha)
    low, high = paired.tango(table.lost, table.gained, table.count)
    words = (
        f"{table.baseline:,} -> {table.candidate:,} of {table.count:,} right ({table.lost} lost, {table.gained} "
        f"gained, discordance {100 * table.discordance:.2g} %); difference {points(table.difference)} points, "
        f"95 % interval [{points(low)}, {points(high)}], one-sided lower bound {points(bounds.low)}; "
        f"margin {margin_words(criterion)}"
    )
    if criterion.ratio is not None:
        kept = table.candidate / table.baseline if table.baseline else math.nan
        rule = f"{100 * criterion.ratio:g} % of the baseline (MLPerf's rule, without an error bar)"
        return Gate("accuracy", kept >= criterion.ratio, f"{100 * kept:.2f} %, asked is {rule}; {words}"), bounds
    ok = True if bounds.holds else False if bounds.harm_shown else None
    return Gate("accuracy", ok, words), bounds


def _repeated(table: Table, marks: Graded, pairs: Pairs, criterion: Criterion) -> tuple[Gate, NonInferiority]:
    """Repeats of a question are no further questions: per-question means, questions as clusters."""
    sums: dict[str, int] = {}
    for sample, a, b in zip(pairs.baseline, marks.right("baseline"), marks.right("candidate"), strict=True):
        sums[sample.question] = sums.get(sample.question, 0) + int(b) - int(a)
    mean, error, low, high = paired.clustered([s / pairs.repeats for s in sums.values()], criterion.alpha)
    holds = low > -criterion.margin
    bounds = NonInferiority(low, high, criterion.margin, holds, not holds and high < 0)
    words = (
        f"{100 * table.baseline / table.count:.2f} % -> {100 * table.candidate / table.count:.2f} % of "
        f"{pairs.questions:,} questions, {pairs.repeats} times each; difference {points(mean)} points, error "
        f"clustered by question {100 * error:.2f}, one-sided lower bound {points(low)}; "
        f"margin {margin_words(criterion)}"
    )
    if criterion.ratio is not None:
        return Gate("accuracy", table.candidate >= criterion.ratio * table.baseline, words), bounds
    return Gate("accuracy", True if holds else False if bounds.harm_shown else None, words), bounds


def _early(table: Table, marks: Graded, criterion: Criterion) -> tuple[Gate, NonInferiority]:
    differences = [int(b) - int(a) for a, b in zip(marks.right("baseline"), marks.right("candidate"), strict=True)]
    race = sequential.watch(differences, criterion.margin, criterion.alpha)
    bounds = noninferiority(table.lost, table.gained, table.count, criterion.margin, criterion.alpha)
    words = (
        f"by betting on the first {race.count:,} questions of the permutation: capital {race.parity:.3g} on 'no worse "
        f"than {margin_words(criterion)}', {race.harm:.3g} on 'worse', {1 / criterion.alpha:g} decides; "
        f"{table.lost} lost and {table.gained} gained of {table.count:,}"
    )
    return Gate("accuracy", {"parity": True, "harm": False, "": None}[race.decided], words), bounds


def guards(marks: Graded, how: Texts, pairs: Pairs, criterion: Criterion) -> list[Gate]:
    """Format and length, which move scores by themselves: no only where harm is shown, or by LENGTH_RATIO."""

    def guard(name: str, bad_a: Sequence[bool], bad_b: Sequence[bool]) -> Gate:
        t = paired.table([not x for x in bad_a], [not x for x in bad_b])
        result = noninferiority(t.lost, t.gained, t.count, criterion.margin, criterion.alpha)
        return Gate(name, not result.harm_shown, f"{sum(bad_a)} -> {sum(bad_b)} of {t.count:,}")

    low, high = LENGTH_RATIO
    return [
        guard(
            "no number found",
            [g is Grade.INVALID for g in marks.baseline],
            [g is Grade.INVALID for g in marks.candidate],
        ),
        guard(
            "cut by the length limit",
            [s.finish == "length" for s in pairs.baseline],
            [s.finish == "length" for s in pairs.candidate],
        ),
        Gate(
            "mean length", low <= how.ratio <= high, f"{how.ratio:.3f} of the baseline's, allowed {low:g} to {high:g}"
        ),
    ]


def arms_differ(differ: str, how: Texts, pairs: Pairs, criterion: Criterion, known: bool) -> Gate:
    """Reported, but open where two recorded runs (known) agree in every completion and nothing shows that they are
    two: the same file imported twice would otherwise be the easiest pass of all."""
    same = how.identical == len(pairs.baseline)
    words = f"the arms differ: {differ}" if differ else "nothing recorded shows that the arms differ"
    if same and not criterion.aa:
        words += "; all completions are identical, so make sure that the change was on"
        words += "" if differ else ", and name the kernels"
    return Gate("arms", None, words, decides=known and same and not differ and not criterion.aa)


def mcnemar(table: Table) -> Gate:
    test = paired.mcnemar(table.lost, table.gained)
    low, high = paired.newcombe(table)
    return Gate(
        "McNemar",
        None,
        f"exact p = {test.two_sided:.2g} two-sided, {test.harm:.2g} for harm; "
        f"Newcombe's interval [{points(low)}, {points(high)}]",
        decides=False,
    )


def reported(table: Table, marks: Graded, how: Texts, pairs: Pairs) -> list[Gate]:
    count = len(pairs.baseline)
    place = f", first difference at {how.unit[:-1]} {how.divergence:g} (median)" if how.divergence is not None else ""
    return [
        mcnemar(table),
        Gate(
            "flips",
            None,
            f"{table.lost + table.gained} answers changed between right and wrong, "
            f"{sum(marks.changed)} changed at all; {how.identical:,} of {count:,} completions are identical{place}",
            decides=False,
        ),
    ]


def by_rule(pairs: Pairs) -> dict[str, Graded]:
    """Both arms graded by every extractor."""
    return {name: graded(pairs, extractor) for name, extractor in EXTRACTORS.items()}


def answers_found(rules: Mapping[str, Graded], criterion: Criterion, chosen: Extractor) -> Gate:
    """Does the rule in use read the answers that are there?

    Open where another rule finds more right answers than it in one arm, by more than the margin: so many right answers
    count as wrong in both arms, and a loss among them, larger than the margin, would not show. Completions that run on
    behind a right ``#### N`` into further questions are the usual cause: the last number is that of another question.
    A rule that finds fewer is none that these texts are written for, and is only said.
    """
    used = rules[chosen.name]
    count, worst = len(used.baseline), (0, "", "")
    for arm in ("baseline", "candidate"):
        # A rule that reads the gold answer too grades by another key; more right by it is no answer found.
        right = {
            n: sum(marks.right(arm)) for n, marks in rules.items() if n == chosen.name or not EXTRACTORS[n].find_gold
        }
        best = max(right, key=lambda name: right[name])
        worst = max(worst, (right[best] - right[chosen.name], best, arm))
    more, best, arm = worst
    if more > criterion.margin * count:
        mine, theirs = used.right(arm), rules[best].right(arm)
        hidden = sum(b and not a for a, b in zip(mine, theirs, strict=True))
        words = (
            f"in the {arm} {best} finds {sum(theirs):,} right answers of {count:,} and {chosen.name} {sum(mine):,}: "
            f"two rules differ by {100 * more / count:.1f} points within one arm, more than the margin; in {hidden:,} "
            f"completions with a right answer {chosen.name} reads another number or none, as where text runs on behind "
            f"it; --extractor {best} judges by the other rule"
        )
        return Gate("answers found", None, words)
    words = f"no other rule finds more right answers in one arm by more than {margin_words(criterion)}"
    return Gate("answers found", True, words + _fewer(rules, criterion, chosen))


def _fewer(rules: Mapping[str, Graded], criterion: Criterion, chosen: Extractor) -> str:
    """The rule that finds least in one arm, of those that find any to speak of, where it differs by over the margin."""
    count = len(rules[chosen.name].baseline)
    found = []
    for arm in ("baseline", "candidate"):
        right = {name: sum(marks.right(arm)) for name, marks in rules.items()}
        found += [(right[chosen.name] - n, name, arm, n) for name, n in right.items() if n > criterion.margin * count]
    less, name, arm, number = max(found, default=(0, "", "", 0))
    if less <= criterion.margin * count:
        return ""
    return (
        f"; {name} finds {number:,} of {count:,} in the {arm}, {100 * less / count:.1f} points fewer than {chosen.name}"
    )


def sensitivity(pairs: Pairs, rules: Mapping[str, Graded], criterion: Criterion, chosen: Extractor) -> Gate:
    """The accuracy gate by every extractor that finds answers in these texts."""
    found: dict[str, Verdict] = {}
    parts = []
    for name, marks in rules.items():
        table = paired.table(marks.right("baseline"), marks.right("candidate"))
        if table.baseline <= criterion.margin * table.count:
            continue
        gate, _ = accuracy(table, marks, pairs, criterion)
        found[name] = verdict_of([gate])
        parts.append(f"{name} {points(table.difference)} {found[name].value}")
    depends = len(set(found.values())) > 1
    words = "the accuracy gate DEPENDS on the extractor" if depends else "no extractor changes the accuracy gate"
    return Gate(
        "extractors", None, f"{words} ({', '.join(parts) or 'none finds answers'}); used {chosen.id}", decides=False
    )


def excess(pairs: Pairs, rerun: Pairs, marks: Graded, extractor: Extractor) -> Gate:
    other = graded(rerun, extractor)
    first = marks.right("baseline")
    flips = [a != b for a, b in zip(first, marks.right("candidate"), strict=True)]
    floor = [a != b for a, b in zip(first, other.right("candidate"), strict=True)]
    excess = paired.excess_flips(flips, floor)
    answers = paired.excess_flips(marks.changed, other.changed)
    return Gate(
        "excess flips",
        None,
        f"{excess.candidate} flips against {excess.again} of the baseline's own re-run (exact p = {excess.p:.2g}, "
        f"excess [{points(excess.interval.low)}, {points(excess.interval.high)}] points); answers changed: "
        f"{answers.candidate} against {answers.again} (p = {answers.p:.2g})",
        decides=False,
    )
