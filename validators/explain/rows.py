"""What explains the outputs of the norm and of the per-token quantizer: hypotheses on a scene, and numbers of floors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial

import torch

from reference import notation
from reference.contract import NormQuantContract
from reference.quantize import scale_of
from reference.setting import Setting
from validators.cases.tensors import Inputs, NormQuantInputs, NormQuantOutputs, Outputs, QuantInputs, QuantOutputs
from validators.explain import nearby
from validators.explain.bits import observations
from validators.explain.norm import HYPOTHESES
from validators.explain.op import Asked, Diagnosis
from validators.explain.scene import (
    Hypothesis,
    Prediction,
    Scene,
    Widths,
    make_scene,
    met,
    predict,
    scale_distance,
    tolerances,
    wide_tolerances,
)
from validators.explain.scoring import Candidate, Evidence, ranked
from validators.explain.search import named_change, search
from validators.judge.compare import compare
from validators.records.record import Explanation


def diagnose_rows(asked: Asked) -> Diagnosis:
    """What would explain the violations of the norm or the quantizer."""
    inputs, outputs, contract, _, _ = asked
    whole = inputs.flat(), outputs.flat()
    return search(
        asked,
        lambda rows: _defects(asked, rows),
        lambda change: _change_words(change, asked),
        lambda: observations([whole], contract),
    )


def _change_words(change: nearby.Change, asked: Asked) -> Explanation | None:
    """``no-amax-floor: every violation vanishes if amax has no floor (contract eager+amax_floor=0)``."""
    if change.fields == {"round_quotient": True}:
        storage = Setting.of(asked.inputs, asked.contract).storage.name
        return named_change(change, f"codes-through-{storage}", f"y/s is rounded to {storage} before FP8")
    for hypothesis in HYPOTHESES:
        differs = {f: v for f, v in hypothesis.contract.items() if getattr(asked.contract, f) != v}
        if not hypothesis.stages and differs == change.fields:
            return named_change(change, hypothesis.slug, hypothesis.sentence)
    return None


def _defects(asked: Asked, rows: list[int]) -> list[Explanation]:
    """Hypotheses that nothing contradicts, best first; of kind "field" where they change fields of the contract alone."""
    inputs, outputs, contract, failing, _ = asked
    scene = make_scene(inputs, outputs, torch.tensor(rows, device=inputs.device), contract)
    widths = tolerances(scene, contract)
    nominal = met(scene, predict(scene, contract, {}), widths)
    wrong = {output: ~hit for output, hit in nominal.items()}
    evidence = Evidence(wrong, failing, _noise(inputs, outputs, contract, rows, nominal))
    return ranked(evidence, _candidates(scene, contract, widths))


def _candidates(scene: Scene, contract: NormQuantContract, widths: Widths) -> Iterator[Candidate]:
    for hypothesis in HYPOTHESES:
        changed = contract.replace(**hypothesis.contract)
        if not hypothesis.needs(scene) or (hypothesis.contract and changed == contract):
            continue
        prediction = predict(scene, changed, hypothesis.stages)
        yield Candidate(
            hypothesis.slug,
            hypothesis.sentence,
            met(scene, prediction, widths),
            partial(_compatible, scene, changed, hypothesis, prediction),
            distance=scale_distance(scene, prediction),
            kind="defect" if hypothesis.stages else "field",
        )


def _compatible(
    scene: Scene,
    contract: NormQuantContract,
    hypothesis: Hypothesis,
    prediction: Prediction,
) -> dict[str, torch.Tensor]:
    wide = wide_tolerances(scene, contract, hypothesis.stages)
    return met(scene, prediction, wide)


def _noise(
    inputs: Inputs, outputs: Outputs, contract: NormQuantContract, rows: list[int], met: dict[str, torch.Tensor]
) -> dict[str, int]:
    """Right elements of the rows, by output, that even the contract's own nominal values miss: rounding noise."""
    flat, given = inputs.flat(), outputs.flat()
    part = flat.take_rows(rows), given.take_rows(rows)
    wrong = {c.output: c.violations for c in compare(*part, contract)}
    return {output: max(0, int((~hit).sum()) - wrong.get(output, 0)) for output, hit in met.items()}


def observed(
    inputs: NormQuantInputs | QuantInputs, outputs: NormQuantOutputs | QuantOutputs, contract: NormQuantContract
) -> dict[str, list[object]]:
    """Numbers that the outputs themselves show: what the scales of the smallest rows would come from."""
    floors: dict[str, list[object]] = {"amax_floor": [], "zero_scale": [], "scale_floor_divisor": []}
    residual = getattr(inputs, "residual", None)
    total = inputs.x if residual is None else inputs.x + residual
    scale = outputs.scale.reshape(-1).double().cpu()
    empty = (total == 0).all(dim=-1).reshape(-1).cpu()
    usable = scale.isfinite() & (scale > 0)
    setting = Setting.of(inputs, contract)
    qmax = setting.qmax
    smallest = scale[usable].amin().reshape(1) if bool(usable.any()) else scale[:0]
    for s in torch.cat((scale[empty & usable], smallest)).unique().tolist()[:4]:
        floors["zero_scale"].append(s)
        floors["amax_floor"] += _short(s * qmax, partial(_gives, setting, s))
        floors["scale_floor_divisor"] += _short(1.0 / (s * qmax), partial(_divides, qmax, s))
    return floors


def _divides(qmax: float, scale: float, divisor: float) -> bool:
    return divisor > 0 and float(torch.tensor(1.0 / (qmax * divisor), dtype=torch.float32)) == scale


def _gives(setting: Setting, scale: float, floor: float) -> bool:
    amax = torch.tensor(floor, dtype=torch.float32).double()
    contract = setting.contract
    bare = contract.replace(amax_floor=0.0, scale_floor_divisor=None, zero_scale=None)
    settings = [
        dataclasses.replace(setting, contract=bare.replace(scale_rule=rule))
        for rule in notation.literals(contract, "scale_rule")
    ]
    return any(float(scale_of(amax, one)) == scale for one in settings)


def _short(value: float, right: Callable[[float], bool]) -> list[object]:
    """The shortest decimal number near ``value`` that is right, or nothing; nobody writes a floor of many digits."""
    for digits in range(1, 5):
        text = float(f"{value:.{digits}g}")
        if right(text):
            return [text]
    return []
