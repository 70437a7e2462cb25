"""A sign-off in Markdown, short enough for a comment on a pull request."""

from __future__ import annotations

import re
from collections import Counter

from validators.records.text import lane_order
from validators.signoff import judged
from validators.signoff.decision import Claim, Signoff
from validators.signoff.facts import Facts
from validators.signoff.ruling import Ruling

_MOST_REASONS = 5
_MOST_OF_A_LINE = 600  # characters; a kernel may declare any number of limits
_MOST_CHARACTERS = 60_000  # GitHub refuses a comment beyond 65,536


def markdown(signoff: Signoff) -> str:
    """Decision first, then a table kernel x lane, then what prevents each claim."""
    lines = [f"## {_escape(signoff.decision)}", "", summary_sentence(signoff), ""]
    lines += [f"- {_escape(text)}" for text in (*signoff.warnings, *signoff.ignored)]
    if signoff.rulings:
        for ruling in signoff.rulings:
            lines += _ruling_lines(ruling, ruling.decision if len(signoff.rulings) > 1 else ruling.outcome)
    else:
        lines += _claims_table(signoff)
        for c in signoff.claims:
            lines += _claim_lines(c, c.decision if len(signoff.claims) > 1 else c.outcome)
    if signoff.files:
        lines += ["", f"Record files read: {len(signoff.files)}; their digests are in signoff.json. {signoff.date}"]
    text = "\n".join(lines) + "\n"
    if len(text) > _MOST_CHARACTERS:
        text = text[:_MOST_CHARACTERS].rsplit("\n", 1)[0] + "\n\nCut to fit a comment; signoff.json has the rest.\n"
    return text


def _facts(facts: Facts) -> list[str]:
    """A line for each fact, then the caveats: what a reviewer needs at a glance."""
    lines = [f"- {name}: {_escape(_clip(text))}" for name, text in facts.rows()]
    return lines + [f"- {_escape(_clip(text))}" for text in facts.caveats[:_MOST_REASONS]]


def _clip(text: str) -> str:
    return text if len(text) <= _MOST_OF_A_LINE else f"{text[: _MOST_OF_A_LINE - 1]}…"


def _claims_table(signoff: Signoff) -> list[str]:
    lanes = lane_order(lane for c in signoff.claims for lane in c.cells)
    lines = ["", f"| kernel | contract | arch | decision | {' | '.join(lanes)} |", "|---" * (4 + len(lanes)) + "|"]
    for c in signoff.claims:
        cells = (judged.counts_text(c.cells[x]) if x in c.cells else "-" for x in lanes)
        head = (_code(c.kernel), _escape(f"{c.contract}"), _escape(c.arch), c.outcome)
        lines.append(f"| {' | '.join([*head, *cells])} |")
    return lines


def _ruling_lines(ruling: Ruling, said: str) -> list[str]:
    """One claim: reasons, a table stage x state, waivers, and what to run."""
    target = ruling.target
    lines = ["", f"### {_escape(target.name)}: {_escape(said)}", ""]
    lines += [f"{_escape(target.arch)}, policy {_escape(ruling.policy.words)}", ""]
    shown = ruling.reasons[:_MOST_REASONS]
    lines += [f"- **{_escape(reason)}**" for reason in shown]
    if len(ruling.reasons) > len(shown):
        lines.append(f"- and {len(ruling.reasons) - len(shown)} more reasons, in signoff.json")
    lines += [f"- {_escape(text)}" for text in ruling.waived]
    lines += _facts(ruling.facts)
    lines += ["", "| stage | kernel | cells | cases |", "|---|---|---|---|"]
    for key in dict.fromkeys((c.stage, c.op, c.kernel) for c in ruling.cells):
        here = [c for c in ruling.cells if (c.stage, c.op, c.kernel) == key]
        states = Counter(c.state for c in here)
        counts: Counter[str] = sum((c.counts for c in here), Counter())
        of = " ".join(x for x in (_code(key[2]) if key[2] else "", _escape(key[1])) if x) or "the whole path"
        words = ", ".join(f"{n} {state}" for state, n in states.items())
        lines.append(f"| {key[0]} | {of} | {words} | {judged.counts_text(counts)} |")
    if ruling.steps:
        lines += ["", "To test what is UNTESTED:"]
    for step in ruling.steps:
        lines += ["", _escape(f"{step.covers}, on {step.machine}. {step.note}".strip()), ""]
        lines += [f"    {_flat(text)}" for text in step.commands]
    return lines


def summary_sentence(signoff: Signoff) -> str:
    """``1 of 3 claims signed, from 420 records.``; under a policy the required cells are counted."""
    if signoff.rulings:
        states = Counter(cell.state for r in signoff.rulings for cell in r.cells)
        counted = len({id(x) for r in signoff.rulings for x in r.records})
        rest = "".join(f", {count} {state}" for state, count in states.items() if state != "PASSED")
        return f"{states['PASSED']} of {sum(states.values())} required cells PASSED{rest}; from {counted:,} records."
    signed = sum(c.signed for c in signoff.claims)
    records = len({id(r) for c in signoff.claims for r in c.records})
    noun = "claim" if len(signoff.claims) == 1 else "claims"
    return (
        f"{signed} of {len(signoff.claims)} {noun} signed, from {records:,} {'record' if records == 1 else 'records'}."
    )


def _claim_lines(c: Claim, said: str) -> list[str]:
    lines = ["", f"**{_code(c.kernel)}** ({_escape(c.contract)}, {_escape(c.arch)}): {_escape(said)}.", ""]
    shown = c.reasons[:_MOST_REASONS]
    lines += [f"- **{_escape(reason)}**" for reason in shown]
    if len(c.reasons) > len(shown):
        lines.append(f"- and {len(c.reasons) - len(shown)} more reasons, in signoff.json")
    lines += _facts(c.facts)
    if c.untested:
        lines += [
            "",
            "To test what is UNTESTED:",
            "",
            *(f"    {_flat(x)}" for step in c.untested for x in step.commands),
        ]
    return lines


def _flat(text: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\s]+", " ", text).strip()


def _code(text: str) -> str:
    """Inline code; a backtick or a table bar inside it would end it."""
    return "`" + _flat(text).replace("`", "'").replace("|", "¦") + "`"


def _escape(text: str) -> str:
    """Markdown's and HTML's own characters as plain text; an at-sign must not notify anybody."""
    flat = re.sub(r"([\\`*\[\]|#])", r"\\\1", _flat(text))
    return flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "&#64;")
