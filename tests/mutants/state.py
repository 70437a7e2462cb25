"""Operators that remember: values of an earlier call by number, pointer or shape, of an earlier row, of the buffer that
was there before; and those that write too little, too much, or into the inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from tests.mutants.operator import PLACES, Operator, Place, Stage, at, on_place, stages_of

Key = Callable[[Any, Tensor], object]
_KEYS: tuple[tuple[str, str, Key], ...] = (
    ("by-shape", "of the first call with its shape", lambda w, v: tuple(v.shape)),
    ("by-pointer", "of the first call with its pointer", lambda w, v: (_leading(w).data_ptr(), tuple(v.shape))),
    ("by-rows", "of the last call with as many rows", lambda w, v: len(v)),
)


def _leading(w: Any) -> Tensor:
    tensor: Tensor = w.a if hasattr(w, "a") else w.x
    return tensor


def _remembered(op: str, place: Place, key: Key, newest: bool) -> Callable[[], Mapping[str, Stage]]:
    def install() -> Mapping[str, Stage]:
        held: dict[object, Tensor] = {}

        def change(w: Any, value: Tensor) -> Tensor:
            name = key(w, value)
            known = held.get(name)
            if known is None or newest:
                held[name] = value.clone()
            return value if known is None or known.shape != value.shape else known.clone()

        return at(op, place, change)

    return install


def _counted(op: str, place: Place, wrong: Callable[[int], bool], factor: float) -> Callable[[], Mapping[str, Stage]]:
    def install() -> Mapping[str, Stage]:
        calls = 0

        def change(w: Any, value: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return (value.float() * factor).to(value.dtype) if wrong(calls) else value

        return at(op, place, change)

    return install


def _accumulated(op: str, place: Place, how: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Mapping[str, Stage]]:
    def install() -> Mapping[str, Stage]:
        held: dict[tuple[int, ...], Tensor] = {}

        def change(w: Any, value: Tensor) -> Tensor:
            known = held.get(tuple(value.shape))
            held[tuple(value.shape)] = value.clone()
            return value if known is None else how(value, known)

        return at(op, place, change)

    return install


_COUNTS: tuple[tuple[str, str, Callable[[int], bool]], ...] = (
    ("second-call", "in the second call alone", lambda n: n == 2),
    ("from-second-call", "from the second call on", lambda n: n >= 2),
    ("odd-calls", "in odd calls", lambda n: n % 2 == 1),
    ("third-calls", "in every third call", lambda n: n % 3 == 0),
)


def operators(op: str) -> Iterator[Operator]:
    """Every operator of the kind."""
    for place in PLACES[op]:
        for slug, words, key in _KEYS:
            yield Operator(
                f"{place.name}:{slug}",
                "state",
                f"{place.words} is that {words}.",
                _remembered(op, place, key, slug == "by-rows"),
                pure=False,
            )
        if place.sort == "codes":
            continue
        for slug, words, wrong in _COUNTS:
            for factor, name in ((1.0 + 2.0**-6, "1+2^-6"), (1.0 - 2.0**-18, "1-2^-18")):
                yield Operator(
                    f"{place.name}:{slug}-x({name})",
                    "state",
                    f"{place.words} is off by {name} {words}.",
                    _counted(op, place, wrong, factor),
                    pure=False,
                )
        if place.sort in ("row", "matrix"):
            yield Operator(
                f"{place.name}:larger-of-calls",
                "state",
                f"{place.words} is the larger of this call and the last with its shape.",
                _accumulated(op, place, torch.maximum),
                pure=False,
            )
            yield Operator(
                f"{place.name}:adds-up",
                "state",
                f"{place.words} is added to that of the last call.",
                _accumulated(op, place, lambda a, b: a + b),
                pure=False,
            )
            yield from _between_rows(op, place)
    yield from _writes(op)


def _between_rows(op: str, place: Place) -> Iterator[Operator]:
    """Rows that share what each should have of its own."""

    def per_tensor(w: Any, v: Tensor) -> Tensor:
        return v.nan_to_num(0.0).amax(0, keepdim=True).expand_as(v).clone()

    def carried(step: int) -> Callable[[Any, Tensor], Tensor]:
        def change(w: Any, v: Tensor) -> Tensor:
            row = torch.arange(len(v))
            before = torch.maximum(v, torch.cat([v[:1], v[:-1]]))
            return torch.where((row % step > 0).view(-1, 1), before, v)

        return change

    if place.sort == "row":
        yield on_place(op, place, "of-all-rows", "state", "is the largest of all rows", per_tensor, pure=False)
    for step in (2, 4, 16, 64):
        words = f"is held against that of the row before, in groups of {step} rows"
        yield on_place(op, place, f"carried-{step}", "state", words, carried(step), pure=False)

    def by_rows(w: Any, v: Tensor) -> Tensor:
        return v * (1.0 + 2.0**-7) if len(v) > 16 else v

    yield on_place(
        op,
        place,
        "by-row-count",
        "state",
        "is off by 2**-7 for more than 16 rows",
        by_rows,
        pure=False,
        needs=f"{place.sizes(op)[0]}>16",
    )


def _outputs(w: Any) -> dict[str, Tensor]:
    found = {name: getattr(w, name, None) for name in ("out_codes", "out_scale", "out_residual", "out")}
    return {name: value for name, value in found.items() if value is not None}


def _write_around(
    op: str, slug: str, words: str, before: Callable[[Any], Any], later: Callable[[Any, Any], None], **flags: Any
) -> Operator:
    clean = stages_of(op)["write"]

    def write(w: Any) -> None:
        kept = before(w)
        clean(w)
        later(w, kept)

    return Operator(f"write:{slug}", "state", words, lambda: {"write": write}, pure=False, **flags)


def _writes(op: str) -> Iterator[Operator]:
    """Stores that do not reach, that reach too far, or that add to what was there."""
    names = ("out",) if op == "ptpc_gemm" else ("out_codes", "out_scale", "out_residual")[: 3 if "norm" in op else 2]
    parts: dict[str, Callable[[Tensor], Tensor]] = {
        "last-row": lambda t: t[-1:],
        "first-row": lambda t: t[:1],
        "last-element": lambda t: t[-1:, -1:],
        "last-column": lambda t: t[:, -1:],
        "middle-row": lambda t: t[len(t) * 3 // 8 : len(t) * 3 // 8 + 1],
        "odd-rows": lambda t: t[1::2],
        "rows-past-64": lambda t: t[64:],
        "columns-past-512": lambda t: t[:, 512:],
    }
    for name in names:
        for part, pick in parts.items():
            if part == "columns-past-512" and name == "out_scale":
                continue

            def before(w: Any, name: str = name, pick: Callable[[Tensor], Tensor] = pick) -> Any:
                value = _outputs(w).get(name)
                return None if value is None else pick(value).clone()

            def later(w: Any, kept: Any, name: str = name, pick: Callable[[Tensor], Tensor] = pick) -> None:
                if kept is not None:
                    pick(_outputs(w)[name]).copy_(kept)

            words = f"Of {name} the {part.replace('-', ' ')} is not written."
            needs = {"rows-past-64": "m>64", "columns-past-512": "n>512", "odd-rows": "m>1"}.get(part, "")
            yield _write_around(op, f"{name}-without-{part}", words, before, later, needs=needs)
        for bytes_past in (1, 4, 16, 64, 256, 1024):
            for side in ("after", "before"):

                def spill(w: Any, kept: Any, name: str = name, count: int = bytes_past, side: str = side) -> None:
                    value = _outputs(w).get(name)
                    if value is None or not value.numel():
                        return
                    flat = torch.empty(0, dtype=torch.uint8).set_(value.untyped_storage())
                    start = value.storage_offset() * value.element_size()
                    end = start + value.numel() * value.element_size()
                    flat[end : end + count] = 0
                    if side == "before":
                        flat[max(0, start - count) : start] = 0

                words = f"{bytes_past} bytes {side} {name} are overwritten."
                yield _write_around(op, f"{name}-spills-{bytes_past}-{side}", words, lambda w: None, spill)

        def old(w: Any, name: str = name) -> Any:
            value = _outputs(w).get(name)
            return None if value is None else value.clone()

        def joined(w: Any, kept: Any, name: str = name) -> None:
            value = _outputs(w).get(name)
            if value is None or kept is None:
                return
            new = kept | value if value.dtype == torch.uint8 else torch.maximum(kept.nan_to_num(0.0), value)
            value.copy_(new)

        yield _write_around(op, f"{name}-joins-old", f"{name} is joined with what was there.", old, joined)
    fields = {"ptpc_gemm": ("a_scale", "b_scale", "bias"), "per_token_quant": ("x",)}.get(
        op, ("x", "residual", "weight")
    )
    for field in fields:
        for what, words in (("normed", "is overwritten with an intermediate"), ("nudged", "loses its first value")):

            def overwrite(w: Any, kept: Any, field: str = field, what: str = what) -> None:
                value = getattr(w, field, None)
                if value is None or not value.numel():
                    return
                stored = getattr(w, "stored", None)
                if what == "normed" and stored is not None and stored.shape == value.shape:
                    value.copy_(stored)
                else:
                    value[:1] = 0

            slug, sentence = f"input-{field}-{what}", f"The input {field} {words}."
            yield _write_around(op, slug, sentence, lambda w: None, overwrite, overwrites=True)
