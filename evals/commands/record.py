"""A parity verdict as a record of the suite, so that the sign-off can join it to the kernel's other evidence."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from evals.stats.criterion import Verdict
from evals.stats.gate import Gate
from evals.stats.parity import Parity
from validators.records.evidence import Evaluation
from validators.records.provenance import Provenance, provenance
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
    return f"parity-{stem}-n{parity.questions}-margin{100 * parity.criterion.margin:g}-s{seed}"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Whose verdict it is, and where it was reached.

    kernel: the candidate's norm kernel, whose claim this is. device, arch: where the candidate ran, ``cpu`` and
    ``cpu``, ``cuda`` and ``sm_90``. emulated, fake: of that kernel, passed through. kernels: op -> kernel of the
    candidate, as far as it is known. provenance: with what tells its kernel from others of its
    name; None: that of this machine. arms, profile: names of the two runs and of their prompts.
    """

    kernel: str
    model: str
    seed: int = 0
    device: str = "unknown"
    arch: str = "unknown"
    contract: str | None = None
    emulated: bool = False
    fake: bool = False
    reproduce: str = ""
    provenance: Provenance | None = None
    arms: tuple[str, ...] = ()
    profile: str = ""
    kernels: Mapping[str, str] = field(default_factory=dict)


def record(parity: Parity, subject: Subject) -> Record:
    """The verdict as a record of the suite."""
    status = STATUS[parity.verdict]
    return Record(
        status=status,
        reasons=() if status is Status.PASSED else (parity.sentence,),
        kernel=subject.kernel,
        op=OP,
        case=case_name(subject.model, parity, subject.seed),
        lane=LANE,
        stage=LANE,
        subject="path",
        contract=subject.contract,
        contract_from="declared" if subject.contract else "",
        device=subject.device,
        arch=subject.arch,
        emulated=subject.emulated,
        fake=subject.fake,
        checks=tuple(_check(g) for g in parity.gates),
        explanations=(Explanation("", parity.sentence, kind="result"),) if status is Status.PASSED else (),
        strength={
            "questions": float(parity.questions),
            "margin": parity.criterion.margin,
            "discordance": parity.table.discordance,
            "lost": float(parity.table.lost),
            "gained": float(parity.table.gained),
        },
        reproduce=subject.reproduce,
        evaluation=dataclasses.replace(evidence(parity, subject.kernels), arms=subject.arms, profile=subject.profile),
        provenance=subject.provenance or provenance(_device(subject)),
    )


def _device(subject: Subject) -> str:
    """Where the candidate ran, as far as torch knows such a device."""
    return subject.device if subject.device.startswith(("cpu", "cuda")) else "cpu"


def evidence(parity: Parity, kernels: Mapping[str, str]) -> Evaluation:
    """How much the verdict shows, for a policy of the sign-off to hold against what it asks.

    rule: a ratio of scores in place of a bound has no error bar; a beginning that was looked at early has fewer
    questions, which are counted.
    """
    criterion, numbers = parity.criterion, parity.numbers
    return Evaluation(
        rule=criterion.name if criterion.ratio is not None else "non-inferiority",
        margin=100 * criterion.margin,
        alpha=criterion.alpha,
        questions=parity.questions,
        data=str(numbers.get("data") or ""),
        data_sha256=str(numbers.get("data_sha256") or ""),
        tokens=numbers.get("tokens", 0),
        aa=criterion.aa,
        open=tuple(g.name for g in parity.gates if g.decides and g.ok is None),
        any_model=criterion.any_model,
        kernels=dict(kernels),
        difference=numbers.get("difference"),
        interval=tuple(numbers.get("interval_95", ())),
        policy=criterion.name,
        extractor=parity.extractor,
    )


def _check(gate: Gate) -> Check:
    return Check(gate.name, gate.ok if gate.decides else None, gate.sentence, "statistical")
