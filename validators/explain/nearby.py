"""Contracts that differ from a preset in one or two fields, and which of them admit what a kernel gave.

A kernel often follows a preset but for a floor, a rounding or the place of a bias. The search is generic: every field
of the contract that the notation may change takes every other value that it can have (a closed list, or the numbers
that some preset declares or that the outputs themselves show), and each such contract is asked about all rows with the
same judgement that gives verdicts, right elements included. Diagnosis and identification use it; no verdict does.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar, cast

import torch

from reference import notation
from reference.contract import Contract, presets
from validators.cases.tensors import Inputs, Outputs
from validators.explain.op import op_explained
from validators.judge.compare import admits_all, compare

SomeContract = TypeVar("SomeContract", bound=Contract)

LOOSE = ("unspecified", "either", "any")
"""Values that say less than their field's others. A contract that says less admits more, so it explains nothing; only
denormals are named all the same, because flushing them is what a build does."""
FEW_ROWS, FEW_ELEMENTS = 8, 2**15
"""Rows that every contract is asked about first; nearly all that are wrong fail there already. Of wide rows fewer, but
two: hundreds of contracts are asked, and eight rows of 12,288 took ten seconds of a core."""
SPLITS = (1, 2, 3, 4, 8)


class Change(NamedTuple):
    """A contract, and the fields in which it differs from the one that was asked about."""

    contract: Contract
    fields: dict[str, object]


class Outcome(NamedTuple):
    """Elements outside their sets, judged ones, and judged ones with more than one admissible value."""

    violations: int
    judged: int
    open: int


class Scene(NamedTuple):
    """Outputs to judge: a few of their rows, and all of them."""

    few: tuple[Inputs, Outputs]
    whole: tuple[Inputs, Outputs]


def scene_of(inputs: Inputs, outputs: Outputs, rows: Sequence[int] = ()) -> Scene:
    """rows: those to ask about first, for example of violations; evenly spread ones are added."""
    flat, given = inputs.flat(), outputs.flat()
    count, width = flat.leading.shape
    few = max(2, min(FEW_ROWS, FEW_ELEMENTS // width))
    spread = torch.linspace(0, max(0, count - 1), min(count, few)).long().tolist()
    chosen = list(dict.fromkeys([*rows[:few], *spread]))
    return Scene((flat.take_rows(chosen), given.take_rows(chosen)), (flat, given))


def outcome(scenes: Iterable[tuple[Inputs, Outputs]], contract: Contract) -> Outcome:
    """The sum over the scenes."""
    found = [c for inputs, outputs in scenes for c in compare(inputs, outputs, contract)]
    judged = sum(c.judged for c in found)
    return Outcome(sum(c.violations for c in found), judged, judged - sum(c.single for c in found))


def admits(scenes: Sequence[Scene], contract: Contract) -> Outcome | None:
    """The outcome over all rows, or None if the contract does not admit every judged element."""
    for scene in scenes:
        if not admits_all(*scene.few, contract):
            return None
    found = outcome([scene.whole for scene in scenes], contract)
    return found if found.judged and not found.violations else None


def preset_of(contract: SomeContract) -> SomeContract:
    """The preset that the contract's name starts with; the contract itself where it is none of the closed list."""
    return cast(SomeContract, presets(contract.ops[0]).get(notation.split(contract.name)[0], contract))


def _observed(scenes: Sequence[Scene], contract: Contract) -> dict[str, list[object]]:
    """Numbers that the outputs of all scenes show, by field."""
    found: dict[str, list[object]] = {}
    for inputs, outputs in (scene.whole for scene in scenes):
        for field, values in op_explained(inputs.op).observed(inputs, outputs, contract).items():
            found.setdefault(field, []).extend(values)
    return found


def alternatives(
    contract: Contract, inputs: Inputs, seen: Mapping[str, Sequence[object]] | None = None
) -> dict[str, list[object]]:
    """Field -> its other values, for the fields that can matter for these inputs. seen: numbers that the outputs show."""
    table = presets(contract.ops[0])
    found: dict[str, list[object]] = {}
    for field in notation.changeable(contract):
        if field in op_explained(inputs.op).without_effect(contract, inputs):
            continue
        values: list[object] = [*notation.literals(contract, field)]
        if field == "splits":
            values += SPLITS
        elif notation.takes_numbers(contract, field):
            values += [getattr(preset, field) for preset in table.values()]
        values += (seen or {}).get(field, ())
        own = getattr(contract, field)
        kept = [v for v in dict.fromkeys(values) if v != own and (v not in LOOSE or field == "denormals")]
        if kept:
            found[field] = kept
    return found


def distance(first: Contract, second: Contract, inputs: Inputs) -> int:
    """Fields that matter for these inputs and in which the two contracts differ."""
    fields = set(notation.changeable(first)) - op_explained(inputs.op).without_effect(first, inputs)
    return sum(getattr(first, f) != getattr(second, f) for f in fields)


def changed(contract: SomeContract, fields: Mapping[str, object]) -> SomeContract:
    """``contract`` with other fields, named in the notation."""
    return notation.named(preset_of(contract), contract.replace(**fields))


def changes(contract: Contract, options: Mapping[str, Sequence[object]], count: int) -> Iterator[Change]:
    """Every contract that differs in ``count`` fields; options: of ``alternatives``."""
    for fields in itertools.combinations(options, count):
        if count > 1 and "denormals" in fields:
            continue
        for values in itertools.product(*(options[f] for f in fields)):
            new = dict(zip(fields, values, strict=True))
            yield Change(changed(contract, new), new)


def first_admitting(
    scenes: Sequence[Scene],
    contracts: Sequence[Contract],
    *,
    least: int = 0,
    most_fields: int = 2,
    pairs_of: int = 3,
) -> list[Change]:
    """Changes of the fewest fields that admit every judged element of the scenes, the strictest first.

    contracts: to depart from, the likeliest first; two fields are changed of the first ``pairs_of`` only.
    least: how many elements a contract has to judge; one that leaves a row open explains nothing about that row.
    """
    if not scenes:
        return []
    for count in range(1, most_fields + 1):
        found: list[tuple[tuple[int, ...], Change]] = []
        tried = set[Contract]()
        for place, contract in enumerate(contracts if count == 1 else contracts[:pairs_of]):
            options = alternatives(contract, _widest(scenes), _observed(scenes, contract))
            for change in changes(contract, options, count):
                bare = change.contract.replace(name="", source="")
                if bare in tried:
                    continue
                tried.add(bare)
                result = admits(scenes, change.contract)
                if result is not None and result.judged >= least:
                    found.append(((-result.judged, result.open, *_unusual(change), place), change))
        if found:
            found.sort(key=lambda item: item[0])
            return [change for _, change in found]
    return []


def _unusual(change: Change) -> tuple[int, int]:
    """(fields with a number that no preset has, the place of the last of them).

    Of two descriptions of one arithmetic the usual one is better, and a floor of amax better than one of the scale.
    """
    table = presets(change.contract.ops[0])
    order, listed = notation.changeable(change.contract), notation.literals
    unusual = [
        order.index(f)
        for f, v in change.fields.items()
        if v not in listed(change.contract, f) and all(getattr(c, f) != v for c in table.values())
    ]
    return len(unusual), max(unusual, default=0)


def _widest(scenes: Sequence[Scene]) -> Inputs:
    """Inputs to which the most fields matter."""
    return max((s.whole[0] for s in scenes), key=lambda i: getattr(i, "residual", None) is not None)


# ---- words

_WORDS: dict[str, dict[object, str]] = {
    "norm_input": {"stored": "the norm of the stored residual", "unrounded": "the norm of the unrounded sum"},
    "residual_store": {
        "truncate": "a residual truncated toward zero",
        "rne": "a residual rounded to nearest even",
        "truncate_bf16": "a residual truncated toward zero in bf16, rounded to nearest even in fp16",
    },
    "round_after_normalize": {True: "z * rms rounded to the storage type", False: "z * rms not rounded"},
    "round_after_weight": {True: "y rounded to the storage type", False: "y not rounded"},
    "round_scale": {True: "a scale rounded to the storage type", False: "a scale in fp32"},
    "round_quotient": {True: "a quotient rounded to the storage type", False: "a quotient in fp32"},
    "scale_rule": {"multiply": "a scale of amax * fl32(1/Q)", "divide": "a scale of amax / Q"},
    "division": {"reciprocal": "y times a reciprocal of the scale", "divide": "y divided by the scale"},
    "overflow": {"nan": "overflow to NaN", "saturate": "overflow to the largest value"},
    "denormals": {"either": "flushed denormals", "preserve": "denormals that are kept"},
    "bias": {"after_store": "the bias added after the store", "epilogue": "the bias added before the store"},
    "scaling": {"operands": "operands scaled before the sum", "epilogue": "the finished sum scaled"},
}


def field_words(field: str, value: object) -> str:
    """``an amax floor of 1e-10``; ``field=value`` for a field without words of its own."""
    text = notation.text_of(value)
    if value in _WORDS.get(field, {}):
        return _WORDS[field][value]
    if field == "amax_floor":
        return f"an amax floor of {text}" if value else "no amax floor"
    if field == "scale_floor_divisor":
        return f"a scale floor of 1/({text} Q)" if value else "no floor of the scale"
    if field == "zero_scale":
        if value == "eps":
            return "the storage type's epsilon as the scale of a row of zeros"
        return "no scale of its own for a row of zeros" if value is None else f"scale {text} for a row of zeros"
    if field == "splits":
        return f"{text} slices along K"
    return f"{field}={text}"


def title(contract: Contract) -> str:
    """``eager, but for an amax floor of 1e-10``; the name alone where it is a preset's."""
    preset = preset_of(contract)
    differs = [f for f in notation.changeable(preset) if getattr(preset, f) != getattr(contract, f)]
    words = " and ".join(field_words(f, getattr(contract, f)) for f in differs)
    return f"{preset.name}, but for {words}" if words else preset.name
