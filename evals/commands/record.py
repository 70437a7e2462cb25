"""A parity verdict as a record of the suite, so that the sign-off can join it to the kernel's other evidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evals.errors import EvalError
from evals.stats.gate import Gate
from evals.stats.parity import Parity, Verdict
from validators.records.record import Check, Explanation, Record, Status

OP = "gsm8k_parity"
LANE = "parity"
STATUS = {
    Verdict.PARITY: Status.PASSED,
    Verdict.REGRESSION: Status.FAILED,
    # Nothing wrong was shown, and a pass would be no evidence.
    Verdict.INCONCLUSIVE: Status.MISTRUSTED,
}


def case_name(model: str, parity: Parity, seed: int) -> str:
    """``parity-tiny-glm-n1319-margin1.5-s0``."""
    stem = "".join(c if c.isalnum() or c in "._" else "-" for c in model.rsplit("/", 1)[-1]).strip("-")
    return f"parity-{stem}-n{parity.questions}-margin{100 * parity.policy.margin:g}-s{seed}"


def record(
    parity: Parity,
    *,
    kernel: str,
    model: str,
    seed: int = 0,
    device: str = "unknown",
    arch: str = "unknown",
    contract: str | None = None,
    contract_from: str = "declared",
    emulated: bool = False,
    fake: bool = False,
    seconds: float = 0.0,
    reproduce: str = "",
    provenance: dict[str, Any] | None = None,
    kernels: Mapping[str, str] | None = None,
) -> Record:
    """kernel: the candidate's norm kernel, whose claim this is. emulated, fake: of that kernel, passed through.
    device, arch: where the candidate ran, ``cpu`` and ``cpu``, ``cuda`` and ``sm_90``. kernels: op -> kernel of the
    candidate, as far as it is known."""
    from validators.records.store import provenance as machine

    status = STATUS[parity.verdict]
    about = {
        **machine(device if device.startswith(("cpu", "cuda")) else "cpu"),
        **(provenance or {}),
        "policy": parity.policy.name,
        "extractor": parity.extractor,
        "evidence": evidence(parity, kernels),
        "parity": {key: parity.numbers[key] for key in ("difference", "interval_95") if key in parity.numbers},
    }
    return Record(
        status=status,
        reasons=() if status is Status.PASSED else (parity.sentence,),
        kernel=kernel,
        op=OP,
        case=case_name(model, parity, seed),
        lane=LANE,
        contract=contract,
        contract_from=contract_from if contract else "",
        device=device,
        arch=arch,
        emulated=emulated,
        fake=fake,
        checks=tuple(_check(g) for g in parity.gates),
        explanations=(Explanation("", parity.sentence, kind="result"),) if status is Status.PASSED else (),
        strength={
            "questions": float(parity.questions),
            "margin": parity.policy.margin,
            "discordance": parity.table.discordance,
            "lost": float(parity.table.lost),
            "gained": float(parity.table.gained),
        },
        seconds=seconds,
        reproduce=reproduce,
        provenance=about,
    )


def evidence(parity: Parity, kernels: Mapping[str, str] | None) -> dict[str, Any]:
    """How much the verdict shows, for a policy to hold against what it asks.

    ``validators.signoff.evidence`` says the fields.

    rule: a ratio of scores in place of a bound has no error bar; a beginning that was looked at early has fewer
    questions, which are counted.
    """
    policy, numbers = parity.policy, parity.numbers
    return {
        "rule": policy.name if policy.ratio is not None else "non-inferiority",
        "margin": 100 * policy.margin,
        "alpha": policy.alpha,
        "questions": parity.questions,
        "data": numbers.get("data"),
        "data_sha256": numbers.get("data_sha256"),
        "tokens": numbers.get("tokens", 0),
        "aa": policy.aa,
        "open": [g.name for g in parity.gates if g.decides and g.ok is None],
        "any_model": policy.any_model,
        "kernels": dict(kernels or {}),
    }


def write(made: Record, directory: str) -> None:
    """Appends the record to ``directory``; EvalError where that is not possible."""
    from validators.records.store import Sink, StoreError

    try:
        with Sink(directory) as sink:
            sink.write(made)
    except StoreError as error:
        raise EvalError(str(error)) from None


def _check(gate: Gate) -> Check:
    return Check(gate.name, gate.ok if gate.decides else None, gate.sentence, "statistical")
