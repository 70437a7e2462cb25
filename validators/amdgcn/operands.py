"""Operands of an instruction: registers, constants, labels; and what is written around them: -x, |x|, sext(x)."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

VCC, FLAT_SCRATCH, XNACK, M0, EXEC = 106, 102, 104, 124, 126
"""Numbers of the named scalar registers, as the encoding has them."""
SGPRS = 128

_NAMED = {
    "vcc": (VCC, 2),
    "vcc_lo": (VCC, 1),
    "vcc_hi": (VCC + 1, 1),
    "flat_scratch": (FLAT_SCRATCH, 2),
    "flat_scratch_lo": (FLAT_SCRATCH, 1),
    "flat_scratch_hi": (FLAT_SCRATCH + 1, 1),
    "xnack_mask": (XNACK, 2),
    "m0": (M0, 1),
    "exec": (EXEC, 2),
    "exec_lo": (EXEC, 1),
    "exec_hi": (EXEC + 1, 1),
}
_REGISTER = re.compile(r"([vas])(\d+)|([vas])\[(\d+)(?::(\d+))?\]")
_INTEGER = re.compile(r"-?(0x[0-9a-fA-F]+|\d+)")
_FLOAT = re.compile(r"-?\d+\.\d*(e[-+]?\d+)?|-?\d+e[-+]?\d+")
_NAME = re.compile(r"[.A-Za-z_$][\w.$@]*")
_LIMITS = {"v": 256, "a": 256, "s": 102}


@dataclass(frozen=True)
class Operand:
    """kind: "v", "a" or "s" (registers ``index`` to ``index + count - 1``), "const" (``value``: an int is bits, a
    float a number whose bits the operation's type decides), "label" or "raw" (``name``), "off", "scc"."""

    kind: str
    index: int = 0
    count: int = 1
    value: int | float = 0
    name: str = ""
    neg: bool = False
    abs: bool = False
    sext: bool = False

    @property
    def registers(self) -> range:
        """Numbers of its registers."""
        return range(self.index, self.index + self.count)


def parse_operand(text: str) -> Operand | None:
    """The operand that ``text`` writes; None where it is none."""
    wrapped = _wrapped(text)
    if wrapped is not None:
        return wrapped
    if text in _NAMED:
        index, count = _NAMED[text]
        return Operand("s", index, count)
    if text in ("off", "null"):
        return Operand("off")
    if text in ("scc", "src_scc"):
        return Operand("scc")
    if found := _REGISTER.fullmatch(text):
        return _register(*found.groups())
    if _INTEGER.fullmatch(text):
        return Operand("const", value=int(text, 0))
    if _FLOAT.fullmatch(text):
        return Operand("const", value=float(text))
    if text.startswith("hwreg("):
        return Operand("raw", name=text)
    return Operand("label", name=text) if _NAME.fullmatch(text) else None


def _wrapped(text: str) -> Operand | None:
    if text.startswith("|") and text.endswith("|") and len(text) > 2:
        inner = parse_operand(text[1:-1])
        return replace(inner, abs=True) if inner else None
    for word in ("neg", "abs", "sext"):
        if text.startswith(word + "(") and text.endswith(")"):
            inner = parse_operand(text[len(word) + 1 : -1])
            return replace(inner, **{word: True}) if inner else None  # type: ignore[arg-type]
    if text.startswith("-") and not _INTEGER.fullmatch(text) and not _FLOAT.fullmatch(text):
        inner = parse_operand(text[1:])
        return replace(inner, neg=True) if inner else None
    return None


def _register(one: str, number: str, many: str, first: str, last: str) -> Operand | None:
    kind = one or many
    low = int(number or first)
    high = int(last or low)
    return Operand(kind, low, high - low + 1) if low <= high < _LIMITS[kind] else None


def split_top(text: str, separator: str) -> list[str]:
    """``text`` cut at ``separator`` outside of brackets; pieces stripped, empty text gives none."""
    pieces, depth, piece = [], 0, ""
    for character in text:
        depth += (character in "[(") - (character in "])")
        if character == separator and depth == 0:
            pieces.append(piece.strip())
            piece = ""
        else:
            piece += character
    pieces.append(piece.strip())
    return [p for p in pieces if p] if separator == " " else ([] if pieces == [""] else pieces)
