"""What would explain the violations of a kernel that failed? Sentences, the most convincing first.

The order: what was never written or was overwritten; one changed field of the declared contract; a known defect that
meets every violation and contradicts nothing; two changed fields; another preset; a defect that explains a part. A
contract is asked about every element by the same judgement that gave the verdict, and a defect about the right
elements as well as the wrong ones: what contradicts them is no explanation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from reference.contract import NORM_QUANT_CONTRACTS, Contract, GemmContract, NormQuantContract
from reference.formats import format_of
from validators.cases.tensors import GemmInputs, GemmOutputs, Inputs, NormQuantInputs, Outputs, QuantInputs
from validators.explain import nearby
from validators.explain import scene as explain_scene
from validators.explain.bits import observations
from validators.explain.gemm import explain_gemm
from validators.explain.norm import HYPOTHESES
from validators.judge.compare import settled
from validators.records.record import Check, Comparison, Explanation
from validators.records.wording import LEAST, MOST, vanishes

SAMPLE_ROWS, SAMPLE_ELEMENTS = 48, 2**18
"""Rows that a hypothesis is tried on; violating rows first. Enough to tell hypotheses apart, cheap to try all. Of rows
wider than the model's hidden width fewer, since 48 rows of 16,384 took 12 s of a core; never fewer than 8."""


MOST_DEFECTS, MOST_PRESETS = 3, 2
"""Sentences of a kind that are shown."""


class Diagnosis(NamedTuple):
    """explanations: best first. near: ``eager, but for an amax floor of 1e-10`` where a contract with one or
    two changed fields admits every element, else None."""

    explanations: tuple[Explanation, ...]
    near: str | None = None


def explain(
    inputs: Inputs,
    outputs: Outputs,
    contract: Contract,
    comparisons: Sequence[Comparison],
    checks: Sequence[Check] = (),
) -> tuple[Explanation, ...]:
    """The explanations of ``diagnose``."""
    return diagnose(inputs, outputs, contract, comparisons, checks).explanations


def diagnose(
    inputs: Inputs,
    outputs: Outputs,
    contract: Contract,
    comparisons: Sequence[Comparison],
    checks: Sequence[Check] = (),
) -> Diagnosis:
    """What would explain the violations, best first; empty if nothing known does.

    A failed integrity check (unwritten elements, overwritten guards or inputs) explains before any arithmetic does;
    a failed invariance is a symptom and comes after.
    """
    broken = {kind: [c for c in checks if c.ok is False and c.kind == kind] for kind in ("integrity", "invariance")}
    first, last = (tuple(Explanation(c.name, c.detail, kind="check") for c in found) for found in broken.values())
    failing = [c.output for c in comparisons if c.violations]
    if not failing:
        return Diagnosis(first + last)
    with torch.inference_mode():
        if isinstance(inputs, GemmInputs):
            assert isinstance(outputs, GemmOutputs)
            assert isinstance(contract, GemmContract)
            found = Diagnosis(*explain_gemm(inputs, outputs, contract))
        else:
            assert isinstance(contract, NormQuantContract)
            assert isinstance(inputs, NormQuantInputs | QuantInputs)
            contract = settled(inputs, outputs, contract)
            found = _explain_norm(inputs, outputs, contract, failing, comparisons)
    return Diagnosis(first + found.explanations + last, None if first else found.near)


def violating_rows(comparisons: Sequence[Comparison], rows: int, width: int = 1) -> list[int]:
    """Up to SAMPLE_ROWS row numbers: those of the worst elements, then evenly spread ones."""
    most = min(SAMPLE_ROWS, max(8, SAMPLE_ELEMENTS // width))
    chosen: list[int] = []
    for c in comparisons:
        chosen += [e.row for e in c.worst]
    spread = torch.linspace(0, rows - 1, min(rows, most)).long().tolist()
    chosen += [rows - 1, 0, *spread]
    return list(dict.fromkeys(chosen))[:most]


def _explain_norm(
    inputs: NormQuantInputs | QuantInputs,
    outputs: Outputs,
    contract: NormQuantContract,
    failing: list[str],
    comparisons: Sequence[Comparison],
) -> Diagnosis:
    n, storage = inputs.x.shape[-1], format_of(inputs.x.dtype).name
    count = inputs.x.numel() // n
    rows = violating_rows(comparisons, count, n)
    scenes = [nearby.scene_of(inputs, outputs, rows)]
    judged = sum(c.judged for c in comparisons)
    single = nearby.first_admitting(scenes, [contract], least=judged, most_fields=1)
    presets = [c for name, c in NORM_QUANT_CONTRACTS.items() if name != contract.name]
    if single:
        sentences = [change_sentence(c, contract, storage) for c in single[:2]]
        return Diagnosis((*sentences, *_followed(scenes, contract, presets)), nearby.title(single[0].contract))
    scored = _defects(inputs, outputs, contract, failing, rows, comparisons)
    # A changed field is asked by the judgement itself below; here it may only explain a part.
    whole = [e for e in scored if e.share is not None and e.share >= MOST and e.kind == "defect"]
    part = [e for e in scored if e not in whole]
    if whole:
        return Diagnosis(tuple([*whole, *part][:MOST_DEFECTS]))
    several = nearby.first_admitting(scenes, [contract], least=judged) or nearby.first_admitting(scenes, [contract])
    near = nearby.title(several[0].contract) if several else None
    sentences = [change_sentence(c, contract, storage) for c in several[:2]]
    follows = _followed(scenes, contract, presets)
    bits = () if several or follows else observations([s.whole for s in scenes], contract)
    shown = tuple(Explanation("the bits show", sentence, kind="observation") for sentence in bits)
    return Diagnosis((*sentences, *follows, *part[:MOST_DEFECTS], *shown), near)


def change_sentence(change: nearby.Change, contract: NormQuantContract, storage: str) -> Explanation:
    """``no-amax-floor: every violation vanishes if amax has no floor (contract eager+amax_floor=0)``.

    storage: the type of x, bf16 or fp16.
    """
    note = f" (contract {change.contract.name})"
    if change.fields == {"round_quotient": True}:
        return vanishes(f"codes-through-{storage}", f"y/s is rounded to {storage} before FP8", note=note, kind="field")
    for hypothesis in HYPOTHESES:
        differs = {f: v for f, v in hypothesis.contract.items() if getattr(contract, f) != v}
        if not hypothesis.stages and differs == change.fields:
            slug, sentence = hypothesis.slug, hypothesis.sentence
            break
    else:
        slug = "+".join(f"{field}={nearby.notation.text_of(value)}" for field, value in change.fields.items())
        words = " and ".join(nearby.field_words(f, v) for f, v in change.fields.items())
        sentence = f"the contract has {words}"
    return vanishes(slug, sentence, note=note, kind="field")


def _followed(
    scenes: Sequence[nearby.Scene], declared: NormQuantContract, presets: Sequence[NormQuantContract]
) -> tuple[Explanation, ...]:
    """Presets that admit every element: nearest to the declared contract first, then the strictest."""
    found = []
    for contract in presets:
        result = nearby.admits(scenes, contract)
        if result is not None:
            found.append((nearby.distance(declared, contract, scenes[0].whole[0]), result.open, contract))
    found.sort(key=lambda item: item[:2])
    return tuple(
        vanishes(c.name, f"it is judged under the contract {c.name!r} ({c.source})", kind="contract")
        for _, _, c in found[:MOST_PRESETS]
    )


def _defects(
    inputs: NormQuantInputs | QuantInputs,
    outputs: Outputs,
    contract: NormQuantContract,
    failing: list[str],
    rows: list[int],
    comparisons: Sequence[Comparison],
) -> list[Explanation]:
    """Hypotheses that nothing contradicts, best first; of kind "field" where they change fields of the contract alone."""
    chosen = torch.tensor(rows, device=inputs.x.device)
    scene = explain_scene.make_scene(inputs, outputs, chosen, contract)  # type: ignore[arg-type]
    widths = explain_scene.tolerances(scene, contract)
    nominal = explain_scene.predict(scene, contract, {})
    base = explain_scene.met(scene, nominal, widths)
    noise = _noise(inputs, outputs, contract, rows, base)
    scored = []
    for position, hypothesis in enumerate(HYPOTHESES):
        if not hypothesis.needs(scene):
            continue
        changed = contract.replace(**hypothesis.contract)
        if hypothesis.contract and changed == contract:
            continue
        try:
            prediction = explain_scene.predict(scene, changed, hypothesis.stages)
            found = explain_scene.met(scene, prediction, widths)
        except (RuntimeError, IndexError):  # a layout that this hypothesis cannot describe
            continue
        share, broken = _score(base, found, failing)
        if share > LEAST:
            far = explain_scene.scale_distance(scene, prediction)
            scored.append(((share, -broken, -far, -position), hypothesis, changed, prediction, found))
    # Among hypotheses that meet the same violations, the one whose scales lie nearest comes first.
    scored.sort(key=lambda s: s[0], reverse=True)
    kept: list[Explanation] = []
    for (share, *_), hypothesis, changed, prediction, found in scored:
        wide = explain_scene.wide_tolerances(scene, changed, hypothesis.stages)
        if not _contradicted(base, found, explain_scene.met(scene, prediction, wide), noise):
            kind = "defect" if hypothesis.stages else "field"
            kept.append(vanishes(hypothesis.slug, hypothesis.sentence, share, kind=kind))
        if len(kept) == MOST_DEFECTS:
            break
    return kept


def _noise(
    inputs: Inputs, outputs: Outputs, contract: NormQuantContract, rows: list[int], met: dict[str, torch.Tensor]
) -> dict[str, int]:
    """Right elements of the rows, by output, that even the contract's own nominal values miss: rounding noise."""
    flat, given = inputs.flat(), outputs.flat()
    part = flat.take_rows(rows), given.take_rows(rows)
    wrong = {c.output: c.violations for c in nearby.compare(*part, contract)}
    return {output: max(0, int((~hit).sum()) - wrong.get(output, 0)) for output, hit in met.items()}


def _contradicted(
    base: dict[str, torch.Tensor], found: dict[str, torch.Tensor], wide: dict[str, torch.Tensor], noise: dict[str, int]
) -> bool:
    """Whether elements that the contract gives right speak against a hypothesis: more than noise can, and more than
    one to twenty that it explains (the other side of ``MOST``)."""
    for output, was in base.items():
        against, explained = int((was & ~wide[output]).sum()), int((found[output] & ~was).sum())
        if against > max(2 * noise[output], (1 - MOST) * explained):
            return True
    return False


def _score(base: dict[str, torch.Tensor], found: dict[str, torch.Tensor], failing: list[str]) -> tuple[float, float]:
    """(share of what the contract misses that the hypothesis meets, share of what it met that the hypothesis breaks).

    The first is the smallest over the failing outputs, less what it breaks anywhere.
    """
    shares, broken = [], 0.0
    for output, was in base.items():
        now = found[output]
        missed, kept = int((~was).sum()), int(was.sum())
        if output in failing and missed:
            shares.append(float((now & ~was).sum()) / missed)
        if kept:
            broken = max(broken, float((was & ~now).sum()) / kept)
    share = min(shares) if shares else 0.0
    return round(max(0.0, share - broken), 3), round(broken, 4)
