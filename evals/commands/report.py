"""A parity verdict in text and in JSON; pure functions of the verdict."""

from __future__ import annotations

import json

from evals.stats.gate import Gate
from evals.stats.parity import Parity
from validators.records.codec import encode

_WIDTH = 24


def text(parity: Parity) -> str:
    """The quotable sentence, then every gate: yes, no, open, or a dash for what is reported and not judged."""
    lines = [parity.sentence, ""]
    lines += [f"  {_mark(g):5} {g.name:{_WIDTH}} {g.sentence}" for g in parity.gates]
    p = parity.criterion
    rule = f"criterion {p.name}, margin {100 * p.margin:g} points, alpha {p.alpha:g} one-sided"
    lines += ["", f"  {rule}, extractor {parity.extractor}, {parity.questions:,} questions"]
    return "\n".join(lines) + "\n"


def numbers(parity: Parity) -> str:
    """What the verdict was computed from, a number per line (``--verbose``)."""
    return "\n" + "".join(f"  {name:{_WIDTH + 5}} {value}\n" for name, value in parity.numbers.items())


def _mark(gate: Gate) -> str:
    if not gate.decides:
        return "-"
    return {True: "yes", False: "NO", None: "open"}[gate.ok]


def as_json(parity: Parity) -> str:
    """The same as JSON, one object; numbers that are not finite are text."""
    value = encode(parity)
    value["table"]["count"] = parity.table.count
    return strict_json(value)


def strict_json(value: object) -> str:
    """JSON that every reader takes: a number that is not finite is the text nan, inf or -inf."""
    return json.dumps(encode(value), indent=1, allow_nan=False) + "\n"
