"""Contracts by a preset's name and changed fields: ``eager+amax_floor=1e-10``, ``fp32+bias=after_store``.

A kernel often follows a preset but for one detail, such as the floor of amax. The notation names that detail, so that
a record, the command line and a sign-off can carry it. Parsing is strict: an unknown field, a value that the field does
not have, or a field that does not change the preset is refused with one sentence. Works on any contract dataclass: a
new field whose type is a ``Literal``, bool, int, float or one of these with None joins by itself.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

C = TypeVar("C")

FIXED = frozenset(
    {
        "name",
        "source",
        "deterministic",
        "batch_invariant",
        "unsettled",
        # Allowances for errors: widening one would make a tolerance of it.
        "reduction",
        "mean_u",
        "rsqrt_u",
        "scale_u",
        "reciprocal_u",
        # Another unit or order of k is another preset.
        "accumulator",
        "k_map",
    }
)
"""Fields that the notation does not change."""
POSITIVE = frozenset({"scale_floor_divisor", "fnuz_max", "splits"})
"""Numbers that are divisors, sizes or counts: zero is none of them."""


class NotationError(ValueError):
    """A changed field that the preset cannot have; its message is one sentence without a full stop."""


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def split(name: str) -> tuple[str, list[tuple[str, str]]]:
    """``eager+amax_floor=1e-10`` -> (``eager``, [(``amax_floor``, ``1e-10``)])."""
    # A plus sign may belong to an exponent; one that starts a field is followed by its name or by nothing sensible.
    preset, *changes = re.split(r"\+(?!\d)", name)
    pairs = [change.partition("=") for change in changes]
    return preset, [(field, text) for field, _, text in pairs]


def changeable(contract: object) -> list[str]:
    """Fields of the contract that the notation may change, in the order of the dataclass."""
    kind = type(contract)
    names = [f.name for f in dataclasses.fields(kind) if f.name not in FIXED]  # type: ignore[arg-type]
    return [name for name in names if _choices(kind, name) or _number(kind, name)]


def literals(contract: object, field: str) -> tuple[object, ...]:
    """The values of a field that has a closed list of them (None included where it may be None); else empty."""
    return _choices(type(contract), field)


def _parts(kind: type, field: str) -> tuple[Any, ...]:
    hint = _hints(kind)[field]
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _choices(kind: type, field: str) -> tuple[object, ...]:
    found: list[object] = []
    for part in _parts(kind, field):
        if get_origin(part) is Literal:
            found += get_args(part)
        elif part is bool:
            found += [False, True]
        elif part is type(None):
            found.append(None)
    return () if found == [None] else tuple(found)


def _number(kind: type, field: str) -> type | None:
    return next((part for part in _parts(kind, field) if part in (int, float)), None)


def takes_numbers(contract: object, field: str) -> bool:
    """Whether the field has numbers as values, whatever closed list it also has."""
    return _number(type(contract), field) is not None


def may_be_none(contract: object, field: str) -> bool:
    """Whether None is a value of the field."""
    return type(None) in _parts(type(contract), field)


def text_of(value: object) -> str:
    """A field's value as the notation writes it: ``1e-10``, ``true``, ``none``, ``divide``."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value)


def _value(contract: object, field: str, text: str) -> object:
    kind = type(contract)
    known = [text_of(v) for v in _choices(kind, field)]
    if text in known:
        return _choices(kind, field)[known.index(text)]
    if text == "none" and may_be_none(contract, field):
        return None
    number = _number(kind, field)
    if number is None:
        raise NotationError(f"field {field} has no value {text!r}; known: {', '.join(known)}")
    try:
        value = number(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and (value > 0 if field in POSITIVE else value >= 0)):
        wanted = "a number above zero" if field in POSITIVE else "a number that is not negative"
        raise NotationError(f"field {field} needs {wanted}, not {text!r}")
    return value


def parse(preset: C, changes: list[tuple[str, str]]) -> C:
    """The preset with its changed fields, named in the notation; raises NotationError with one sentence."""
    known, values = changeable(preset), dict[str, object]()
    for field, text in changes:
        if field not in known:
            raise NotationError(f"{field!r} is no field that can be changed; known: {', '.join(known)}")
        if field in values:
            raise NotationError(f"field {field} is changed twice")
        values[field] = _value(preset, field, text)
        if values[field] == getattr(preset, field):
            name = getattr(preset, "name", "")
            raise NotationError(f"{field}={text} changes nothing: the preset {name} says so already")
    return named(preset, dataclasses.replace(preset, **values))  # type: ignore[type-var]


def named(preset: C, contract: C) -> C:
    """``contract`` under the name that says how it differs from ``preset``; one contract has one name."""
    differs = [f for f in changeable(preset) if getattr(preset, f) != getattr(contract, f)]
    words = "".join(f"+{f}={text_of(getattr(contract, f))}" for f in differs)
    return dataclasses.replace(contract, name=f"{preset.name}{words}")  # type: ignore
