"""Dataclasses as strict JSON and back: what is written is read to the same value, and nothing else is read.

The annotations of a dataclass are its schema. Floats that are not finite are the texts "nan", "inf" and "-inf", which
JSON has no numbers for; only a field of type float reads them as numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import math
import numbers
import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar

T = TypeVar("T")
_NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_LARGEST_INT = 1 << 63
"""No count, place or id is that large."""


class CodecError(ValueError):
    """A value that has no JSON form, or JSON that is not of the type asked for; its message is one sentence."""


def encode(value: object, where: str = "value") -> Any:
    """``value`` as JSON values; a dataclass is an object with every field. Raises CodecError, which names ``where``."""
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name), f"{where}.{f.name}") for f in dataclasses.fields(value)}
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        if math.isfinite(number):
            return number
        return "nan" if math.isnan(number) else ("inf" if number > 0 else "-inf")
    if isinstance(value, Mapping):
        return {str(k): encode(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [encode(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, datetime.date):
        return value.isoformat()
    raise CodecError(f"{where} is a {type(value).__name__}, which has no JSON form")


def decode(value: Any, kind: type[T], where: str = "value") -> T:
    """The JSON ``value`` as the dataclass ``kind``; raises CodecError with the path of what does not fit."""
    found: T = _decode(value, kind, where)
    return found


def known_fields(value: dict[str, Any], kind: Any) -> dict[str, Any]:
    """The fields of the dataclass ``kind`` that ``value`` has in their type; everything else is left out."""
    found = {}
    for name, hint in _hints(kind).items():
        try:
            if name in value:
                _decode(value[name], hint, name)
                found[name] = value[name]
        except CodecError:
            continue
    return found


def _decode(value: Any, kind: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _decode(value, next(a for a in arguments if a is not type(None)), where)
    if isinstance(kind, type) and issubclass(kind, Enum):
        if value not in [member.value for member in kind]:
            raise CodecError(f"{where} is {value!r}, which is no {kind.__name__.lower()}")
        return kind(value)
    if dataclasses.is_dataclass(kind):
        return _fields(value, kind, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_decode(v, arguments[0], f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict and isinstance(value, dict):
        key = functools.partial(_key, kind=arguments[0], where=where)
        return {key(k): _decode(v, arguments[1], f"{where}.{k}") for k, v in value.items()}
    if kind is float:
        if isinstance(value, str) and value in _NONFINITE:
            return _NONFINITE[value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            with contextlib.suppress(OverflowError):  # a whole number beyond the floats
                return float(value)
    elif kind in (int, bool, str) and type(value) is kind and not (kind is int and abs(value) >= _LARGEST_INT):
        return value
    raise CodecError(f"{where} is {_short(value)}, which is not of type {getattr(kind, '__name__', kind)}")


def _key(key: str, *, kind: Any, where: str) -> str | int:
    """A key of an object as the text that it is, or as the number that it is the text of."""
    if kind is not int:
        return key
    try:
        return int(key)
    except ValueError:
        raise CodecError(f"{where} has the key {key!r}, which is not of type int") from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _fields(value: Any, kind: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise CodecError(f"{where} is {_short(value)}, which is not an object")
    hints = _hints(kind)
    unknown = sorted(set(value) - set(hints))
    if unknown:
        raise CodecError(f"{where} has a field {unknown[0]!r} that this schema does not know")
    needed = (f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING)
    if missing := [name for name in needed if name not in value]:
        raise CodecError(f"{where} lacks the field {missing[0]!r}")
    return kind(**{k: _decode(v, hints[k], f"{where}.{k}") for k, v in value.items()})


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    known = typing.get_type_hints(kind)
    return {f.name: known[f.name] for f in dataclasses.fields(kind)}
