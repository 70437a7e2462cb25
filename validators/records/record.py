"""Records: one verdict with everything needed to reproduce it, one JSON line each."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from validators.records.evidence import Evaluation, Golden, Launches, Limit, WalkEvidence
from validators.records.provenance import Provenance

SCHEMA_VERSION = 2


class Status(str, Enum):
    """Outcome of one validation. UNTESTED is the default: nothing passes by not running."""

    PASSED = "PASSED"
    FAILED = "FAILED"
    MISTRUSTED = "MISTRUSTED"  # nothing wrong seen, but the case could hardly have failed
    NONDETERMINISTIC = "NONDETERMINISTIC"
    UNSUPPORTED = "UNSUPPORTED"  # the kernel does not offer this case, with a reason
    ERROR = "ERROR"  # the kernel raised, hung, or returned something that is no output
    UNTESTED = "UNTESTED"


@dataclass(frozen=True, kw_only=True)
class Element:
    """One element of an output with its arithmetic.

    exact: float64 truth before the last rounding. low, high: ends of the admissible set, decoded.
    got: the kernel's value, got_bits its bytes in hex. err, budget: absolute, in the output's units
    (for codes: in units of the quantized value t = y/s). err_ulp: distance in steps of the output format.
    terms: the budget's named terms.
    """

    row: int
    col: int
    exact: float
    low: float
    high: float
    got: float
    got_bits: str
    err: float
    budget: float
    err_ulp: float
    terms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Numbers about one output against its admissible set; data only.

    elements = judged + unspecified. violations: judged elements outside their admissible set.
    single: judged elements that have exactly one admissible value. worst_use: largest err/budget over
    all judged elements; worst_use_passing: over those that are admissible. use_quantiles: p50/p99/max of
    err/budget. ulp_histogram: steps from the correctly rounded exact value -> count, keys "-2", "0", ">=5".
    nonfinite: counts "got_nan", "got_inf", "unexpected" (not admissible there), "missing".
    where: words, "all in row 9". rows/cols: how many rows and columns hold a violation.
    observed: what was seen where the contract says unspecified, in words.
    """

    output: str
    elements: int
    judged: int
    unspecified: int
    violations: int
    single: int
    worst_use: float
    worst_use_passing: float
    where: str
    rows: int
    cols: int
    worst: tuple[Element, ...] = ()
    use_quantiles: dict[str, float] = field(default_factory=dict)
    ulp_histogram: dict[str, int] = field(default_factory=dict)
    nonfinite: dict[str, int] = field(default_factory=dict)
    observed: str = ""
    vacuous: int = 0
    """Judged elements whose budget is so wide that a wrong value could hardly have left the admissible set."""
    wide: int = 0
    """Elements that were not judged because their set is as wide as an output."""


@dataclass(frozen=True)
class Check:
    """A check beyond values. ok is None where the result is reported and not judged.

    unjudged: why ok is None, where it is neither left open by the contract nor only reported: "raised" where the kernel
    could not be run again, "nothing" where the case has nothing to compare with.

    name: "poison", "guards", "inputs unchanged", "dtype and shape", "run to run", "batch invariance",
    "strided equals contiguous", "joint: row maximum", "bias", ... detail: one sentence with the numbers.
    kind: "integrity", "determinism", "invariance", "joint", "statistical".
    """

    name: str
    ok: bool | None
    detail: str
    kind: str = "integrity"
    unjudged: str = ""


EXPLANATION_KINDS = ("check", "field", "defect", "contract", "wiring", "observation", "result")


@dataclass(frozen=True)
class Explanation:
    """One thing that would explain the violations of a record, or a sentence about a whole path.

    name: of the check that failed, the changed field, the defect or the contract; "" where nothing has a name.
    share: of the violations that it explains, 0 to 1; None where it is not counted. kind: one of EXPLANATION_KINDS;
    "contract" is another contract that the outputs follow, "observation" a fact about the bits, "result" the finding
    of an evaluation.
    """

    name: str
    sentence: str
    share: float | None = None
    kind: str = "defect"

    @property
    def title(self) -> str:
        """``tail-not-in-amax``, ``follows vllm``; "" without a name."""
        return f"follows {self.name}" if self.kind == "contract" else self.name

    @property
    def text(self) -> str:
        """``tail-not-in-amax: every violation vanishes if ...``."""
        return f"{self.title}: {self.sentence}" if self.name else self.sentence


@dataclass(frozen=True, kw_only=True)
class Record:
    """One verdict. Every field is a JSON value after ``to_json``.

    stage: what it is evidence of, one of ``words.STAGES``. lane: of a case of the suite; of another stage its name.
    subject: "kernel" for one kernel on one case, "path" for a walk, evaluation or trace as a whole, "truth" where the
    reference or the inputs are held to what was accepted.
    fault: of an ERROR, "raised" where the kernel raised. limit: of UNSUPPORTED. golden, walk, evaluation, launches: of
    their stages. contract: None where none was declared, given or identified.
    contract_from: "declared" by the kernel, "given" on the command line, "identified" from outputs. follows: a stricter
    contract than the stated one that the outputs follow too; looked for where the stated one left most elements of a
    case several values, "" where none was found or none was looked for.
    explanations: most convincing first. strength: {"single_share": .., "judged": ..}.
    arch: "cpu", "sm_90", "gfx942". emulated, fake: see ``validators.kernels.kernel.Kernel``.
    """

    status: Status
    reasons: tuple[str, ...]
    kernel: str
    op: str
    case: str
    lane: str
    contract: str | None
    contract_from: str
    device: str
    arch: str
    stage: str = "ops"
    subject: str = "kernel"
    emulated: bool = False
    fake: bool = False
    fault: str = ""
    limit: Limit | None = None
    comparisons: tuple[Comparison, ...] = ()
    checks: tuple[Check, ...] = ()
    explanations: tuple[Explanation, ...] = ()
    identified: tuple[str, ...] = ()
    follows: str = ""
    strength: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    kernel_seconds: float = 0.0
    peak_bytes: int = 0
    reproduce: str = ""
    golden: Golden | None = None
    walk: WalkEvidence | None = None
    evaluation: Evaluation | None = None
    launches: Launches | None = None
    provenance: Provenance = field(default_factory=Provenance)
    schema: int = SCHEMA_VERSION
