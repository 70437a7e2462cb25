"""The search for an explanation that is the same for every op: changed fields, known defects, other presets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from reference import notation
from reference.contract import Contract, presets
from validators.explain import nearby
from validators.explain.op import Asked, Diagnosis
from validators.explain.scoring import MOST_DEFECTS
from validators.records.record import Comparison, Explanation
from validators.records.wording import MOST, vanishes

SAMPLE_ROWS, SAMPLE_ELEMENTS = 48, 2**18
"""Rows that a hypothesis is tried on; violating rows first. Enough to tell hypotheses apart, cheap to try all. Of rows
wider than the model's hidden width fewer, since 48 rows of 16,384 took 12 s of a core; never fewer than 8."""
MOST_PRESETS = 2
"""Sentences about presets that are shown."""


def search(
    asked: Asked,
    defects: Callable[[list[int]], list[Explanation]],
    change_words: Callable[[nearby.Change], Explanation | None] = lambda change: None,
    observations: Callable[[], Sequence[str]] = tuple,
) -> Diagnosis:
    """One changed field, a known defect, two changed fields, another preset, the bits: in this order.

    defects(rows): hypotheses that nothing contradicts, best first, tried on these rows. change_words: the name and
    sentence of a changed field that is a known defect. observations: what the bits show, asked last.
    """
    inputs, outputs, contract = asked.inputs, asked.outputs, asked.contract
    rows = violating_rows(asked.comparisons, inputs.row_count, inputs.width)
    scenes = [nearby.scene_of(inputs, outputs, rows)]
    judged = sum(c.judged for c in asked.comparisons)

    def sentence(change: nearby.Change) -> Explanation:
        return change_words(change) or change_sentence(change)

    single = nearby.first_admitting(scenes, [contract], least=judged, most_fields=1)
    others = [c for name, c in presets(inputs.op).items() if name != contract.name]
    if single:
        sentences = [sentence(change) for change in single[:2]]
        return Diagnosis((*sentences, *_followed(scenes, contract, others)), nearby.title(single[0].contract))
    scored = defects(rows)
    # A changed field is asked by the judgement itself below; here it may only explain a part.
    whole = [e for e in scored if e.share is not None and e.share >= MOST and e.kind == "defect"]
    part = [e for e in scored if e not in whole]
    if whole:
        return Diagnosis(tuple([*whole, *part][:MOST_DEFECTS]))
    several = nearby.first_admitting(scenes, [contract], least=judged) or nearby.first_admitting(scenes, [contract])
    near = nearby.title(several[0].contract) if several else None
    follows = _followed(scenes, contract, others)
    bits = () if several or follows else observations()
    shown = tuple(Explanation("the bits show", fact, kind="observation") for fact in bits)
    return Diagnosis((*map(sentence, several[:2]), *follows, *part[:MOST_DEFECTS], *shown), near)


def change_sentence(change: nearby.Change) -> Explanation:
    """``amax_floor=0.5: every violation vanishes if the contract has an amax floor of 0.5 (contract ...)``."""
    slug = "+".join(f"{field}={notation.text_of(value)}" for field, value in change.fields.items())
    words = " and ".join(nearby.field_words(f, v) for f, v in change.fields.items())
    return named_change(change, slug, f"the contract has {words}")


def named_change(change: nearby.Change, slug: str, sentence: str) -> Explanation:
    """The explanation by a changed field, with the contract that has it."""
    return vanishes(slug, sentence, note=f" (contract {change.contract.name})", kind="field")


def preset_sentence(contract: Contract) -> Explanation:
    """``eager: every violation vanishes if it is judged under the contract 'eager' (source)``."""
    words = f"it is judged under the contract {contract.name!r} ({contract.source})"
    return vanishes(contract.name, words, kind="contract")


def violating_rows(comparisons: Sequence[Comparison], rows: int, width: int = 1) -> list[int]:
    """Up to SAMPLE_ROWS row numbers: those of the worst elements, then evenly spread ones."""
    most = min(SAMPLE_ROWS, max(8, SAMPLE_ELEMENTS // width))
    chosen: list[int] = []
    for c in comparisons:
        chosen += [e.row for e in c.worst]
    spread = torch.linspace(0, rows - 1, min(rows, most)).long().tolist()
    chosen += [rows - 1, 0, *spread]
    return list(dict.fromkeys(chosen))[:most]


def _followed(
    scenes: Sequence[nearby.Scene], declared: Contract, others: Sequence[Contract]
) -> tuple[Explanation, ...]:
    """Presets that admit every element: nearest to the declared contract first, then the strictest."""
    found = []
    for contract in others:
        result = nearby.admits(scenes, contract)
        if result is not None:
            found.append((nearby.distance(declared, contract, scenes[0].whole[0]), result.open, contract))
    found.sort(key=lambda item: item[:2])
    return tuple(preset_sentence(contract) for _, _, contract in found[:MOST_PRESETS])
