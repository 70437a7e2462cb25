"""What an operator of mutation is, and how it takes hold of a stage.

An emulated kernel is a list of named stages that read and set fields of a ``Work``. An operator replaces stages: it
changes a field after the stage that sets it, so that everything later sees the change, or it changes what one stage
alone sees of a field. So one change times each field of each stage gives many mutants.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from validators.kernels import emulated, emulated_gemm

KINDS = ("arithmetic", "rounding", "movement", "state", "special")
OPS = ("add_rmsnorm_quant", "per_token_quant", "ptpc_gemm")
ROWS_OPS = OPS[:2]
"""Ops whose rows become codes."""

Stage = Callable[[Any], None]
Change = Callable[[Any, Tensor], Tensor]
"""(work, a field's value) -> another value of the same shape and dtype; it never writes into what it is given."""


@dataclass(frozen=True)
class Operator:
    """One way to be wrong.

    name: stable words without blanks, unique in its op. install() -> replacements of stages by name; what the operator
    remembers from call to call lives in them, so each kernel asks for its own. pure: a row's bits depend on the values
    of that row alone, never on other rows, earlier calls, buffers or the layout. overwrites: it writes into the inputs.
    """

    name: str
    kind: str
    sentence: str
    install: Callable[[], Mapping[str, Stage]]
    pure: bool = True
    overwrites: bool = False
    needs: str = ""


class Place(NamedTuple):
    """Where an operator takes hold. sort: matrix [m, n], row [m, 1], column [n], of fp32 ("matrix", "row", "column"),
    of the storage type T ("stored") or bytes ("codes"). seen: only what this stage sees of the field changes."""

    stage: str
    field: str
    sort: str
    seen: bool = False

    @property
    def name(self) -> str:
        """``y`` after the stage that sets it last, else ``y.amax`` (what the stage amax sees) or ``total.of-add``."""
        return f"{self.field}.{self.stage}" if self.seen else f"{self.field}.of-{self.stage}"

    def sizes(self, op: str) -> tuple[str, str]:
        """Names of the sizes that its rows and its columns have."""
        if op != "ptpc_gemm":
            return "m", "n"
        rows = "n" if self.field in ("b", "b_value", "b_scale", "bias") else "m"
        return rows, "k" if self.field in ("a", "b", "a_value", "b_value") else "n"

    @property
    def words(self) -> str:
        """In a sentence."""
        return f"what {self.stage} sees of {self.field}" if self.seen else f"{self.field} as {self.stage} leaves it"


_QUANT = (
    Place("amax", "amax", "row"),
    Place("scale", "scale", "row"),
    Place("divide", "scaled", "matrix"),
    Place("encode", "codes", "codes"),
    Place("amax", "y", "matrix", seen=True),
    Place("divide", "y", "matrix", seen=True),
    Place("divide", "scale", "row", seen=True),
    # Stages after encode: the scale that is written, and not the one that the codes were divided by.
    Place("special_rows", "scale", "row", seen=False),
    Place("special_rows", "codes", "codes", seen=False),
)
PLACES: dict[str, tuple[Place, ...]] = {
    "add_rmsnorm_quant": (
        Place("load", "x", "stored", seen=True),
        Place("add", "residual", "stored", seen=True),
        Place("add", "total", "matrix"),
        Place("store_residual", "total", "matrix", seen=True),
        Place("store_residual", "stored", "stored"),
        Place("norm_input", "z", "matrix"),
        Place("square_sum", "z", "matrix", seen=True),
        Place("normalise", "z", "matrix", seen=True),
        Place("square_sum", "square_sum", "row"),
        Place("mean", "mean", "row"),
        Place("variance", "variance", "row"),
        Place("rsqrt", "rms", "row"),
        Place("gamma", "gamma", "column"),
        Place("normalise", "y", "matrix"),
        *_QUANT,
    ),
    "per_token_quant": (Place("load", "x", "stored", seen=True), Place("load", "y", "matrix"), *_QUANT),
    "ptpc_gemm": (
        Place("decode", "a", "codes", seen=True),
        Place("decode", "b", "codes", seen=True),
        Place("decode", "a_value", "matrix"),
        Place("decode", "b_value", "matrix"),
        Place("accumulate", "accumulator", "matrix"),
        Place("scale", "a_scale", "row", seen=True),
        Place("scale", "b_scale", "row", seen=True),
        Place("scale", "value", "matrix"),
        Place("bias", "bias", "stored", seen=True),
        Place("bias", "value", "matrix"),
        Place("store", "stored", "stored"),
    ),
}


def stages_of(op: str) -> Mapping[str, Stage]:
    """The clean stages by name."""
    return emulated_gemm.STAGES if op == "ptpc_gemm" else emulated.STAGES[op]


def after(base: Stage, field: str, change: Change) -> Stage:
    """The stage, then the change of a field; nothing where the field is None."""

    def stage(w: Any) -> None:
        base(w)
        value = getattr(w, field)
        if value is not None and value.numel():
            setattr(w, field, change(w, value))

    return stage


def seeing(base: Stage, field: str, change: Change) -> Stage:
    """The stage with the field changed while it runs; what it sets itself stays."""

    def stage(w: Any) -> None:
        value = getattr(w, field)
        if value is None or not value.numel():
            base(w)
            return
        shown = change(w, value)
        setattr(w, field, shown)
        base(w)
        if getattr(w, field) is shown:
            setattr(w, field, value)

    return stage


def at(op: str, place: Place, change: Change) -> Mapping[str, Stage]:
    """Replacements that make the change at the place."""
    base = stages_of(op)[place.stage]
    return {place.stage: (seeing if place.seen else after)(base, place.field, change)}


def on_place(
    op: str, place: Place, slug: str, kind: str, sentence: str, change: Change, *, pure: bool = True, needs: str = ""
) -> Operator:
    """An operator that makes one stateless change at a place."""
    return Operator(
        f"{place.name}:{slug}",
        kind,
        f"{place.words} {sentence}.",
        lambda: at(op, place, change),
        pure=pure,
        needs=needs,
    )


def replacing(
    op: str, slug: str, kind: str, sentence: str, stages: Mapping[str, Stage], *, pure: bool = True
) -> Operator:
    """An operator that puts other stages in the place of the clean ones."""
    unknown = set(stages) - set(stages_of(op))
    if unknown:
        raise ValueError(f"op {op} has no stage {sorted(unknown)[0]!r}")
    return Operator(slug, kind, sentence, lambda: stages, pure=pure)


def in_float(change: Callable[[Tensor], Tensor]) -> Change:
    """A change of fp32 numbers for a field of any float type."""
    return lambda w, value: change(value.float()).to(value.dtype)


def drawn(text: str, bound: int) -> int:
    """A number in [0, bound) that depends on the text alone: the same on every machine and in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") % bound


def hashed(shape: torch.Size, salt: int) -> Tensor:
    """int32 in [0, 2**23) for each element, from its column and the salt."""
    column = torch.arange(shape[-1], dtype=torch.int64)
    word = (column + salt) * 0x9E3779B1
    word ^= word >> 15
    return ((word * 0x85EBCA6B) >> 13 & 0x7FFFFF).to(torch.int32).expand(shape)
