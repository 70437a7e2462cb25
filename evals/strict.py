"""JSON values as the dataclasses that they were written from, or a sentence about the first field that is not."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from typing import Any

from evals.errors import EvalError


def build(kind: Any, value: Any, where: str) -> Any:
    """``value`` as the dataclass ``kind``; lists become tuples, text keys the numbers that they stand for, int float.

    Raises EvalError with ``where`` (file and line) for what is no object, for a field that is unknown, lacking, or of
    another type than its annotation.
    """
    if not isinstance(value, dict):
        raise EvalError(f"{where} is no JSON object")
    hints = _hints(kind)
    if unknown := sorted(set(value) - set(hints)):
        raise EvalError(f"{where} has a field {unknown[0]!r} that this schema does not know")
    fields = dataclasses.fields(kind)
    wanted = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [name for name in wanted if name not in value]:
        raise EvalError(f"{where} lacks the field {missing[0]!r}")
    made = {}
    for name, item in value.items():
        try:
            made[name] = _as(item, hints[name])
        except (TypeError, ValueError, OverflowError):
            raise EvalError(f"{where}: {name} is not of type {_words(hints[name])}") from None
    return kind(**made)


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _words(hint: Any) -> str:
    return str(hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else hint).replace("typing.", "")


def _as(value: Any, hint: Any) -> Any:
    """TypeError, ValueError or OverflowError where ``value`` is not of that type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _as(value, next(a for a in arguments if a is not type(None)))
    if origin is tuple and type(value) is list:
        return tuple(_as(v, arguments[0]) for v in value)
    if origin is dict and type(value) is dict:
        key = int if arguments[0] is int else str
        return {key(k): _as(v, arguments[1]) for k, v in value.items()}
    if hint is float and type(value) in (int, float):
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        if hint is int and abs(value) >= 1 << 63:  # no count, place or id is that large
            raise OverflowError
        return value
    raise TypeError
