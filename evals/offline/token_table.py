"""Gold solutions through a model on several kernels: one row per arm, and the table in Markdown.

Accuracy cannot give this table: a model too small to solve GSM8K still has an opinion of every token of its worked
answers, and a kernel that changes that opinion is seen on a few thousand tokens. Every arm is compared with the
baseline on whole distributions; the yardstick is the same model without activation quantization after its norms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evals.errors import EvalError
from evals.gsm8k.samples import TeacherForced
from evals.model.arms import make_arm
from evals.model.decoder import Decoder
from evals.model.inprocess import GoldSolution, Pass, score
from evals.stats import logit_gates, token_gates
from evals.stats.gate import Gate
from evals.stats.token_gates import TokenLevel
from evals.stats.tokens import TokenStats, statistics, typical_kl_ratio
from validators.process.progress import Progress
from validators.records.command_line import split_op

RERUN = "unfused again, other batch"
YARDSTICKS = ("bf16-norms", "bf16")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One arm against the baseline. gates: of the token level and of the logits.
    noise: the arm's quantisation noise over the baseline's at a typical token, by KL; logits, bounds: by the variance
    of the logits' change, with its bounds. apart: KL between the arms over the baseline's noise."""

    arm: str
    kernels: dict[str, str]
    stats: TokenStats
    gates: list[Gate]
    noise: float | None = None
    logits: float | None = None
    bounds: tuple[float, float] | None = None
    apart: float | None = None

    @property
    def ok(self) -> bool | None:
        """Whether the deciding gates are met; None where none is missed and some could not decide."""
        decided = [gate.ok for gate in self.gates if gate.decides]
        return False if False in decided else True if all(decided) else None

    @property
    def verdict(self) -> str:
        """``yes``, ``NO: gates that say so``, or ``open``."""
        if self.ok is False:
            return "NO: " + ", ".join(gate.name for gate in self.gates if gate.decides and gate.ok is False)
        return "yes" if self.ok else "open"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """baseline, yardstick: specs of arms. batch: rows per batch. seed: of the bootstrap. show: progress on stderr."""

    baseline: str = "unfused"
    yardstick: str = "bf16-norms"
    device: str = "cpu"
    batch: int = 8
    seed: int = 0
    show: bool = True


@dataclass(frozen=True)
class Table:
    """rows: of the arms under test. floor: of the re-run and the yardstick. All of them against the baseline."""

    rows: list[Row]
    floor: list[Row]


def label(spec: str) -> str:
    """A short name of an arm: the preset, and the functions or kernels that were put in."""
    preset, *changes = spec.split(",")
    return ", ".join([preset, *(split_op(change)[1].rpartition(":")[2] for change in changes)])


def table(model: Decoder, gold: Sequence[GoldSolution], specs: Sequence[str], settings: Settings) -> Table:
    """Every arm of ``specs`` against the baseline; EvalError where two have one name, or the yardstick is none."""
    baseline = make_arm(settings.baseline, settings.device)
    arms = [make_arm(spec, settings.device, label(spec)) for spec in specs]
    if len({arm.name for arm in arms}) != len(arms):
        raise EvalError("two arms have the same name: name each kernel once")
    yardstick = make_arm(settings.yardstick, settings.device, f"yardstick {settings.yardstick}")
    if yardstick.preset not in YARDSTICKS or yardstick.preset == baseline.preset:
        raise EvalError(
            f"--yardstick-arm {settings.yardstick} does not measure the quantisation noise of "
            f"{settings.baseline}: it must be {' or '.join(YARDSTICKS)}, and another than the baseline"
        )
    passes = [Pass(arm.name, arm) for arm in arms]
    passes += [Pass(RERUN, baseline, max(1, settings.batch // 3)), Pass(yardstick.name, yardstick)]
    with Progress(f"gold solutions through {len(passes) + 1} arms", len(gold), show=settings.show) as progress:
        scored = list(
            score(model, baseline, passes, gold, batch=settings.batch, yardstick=yardstick.name, tick=progress.tick)
        )
    rows = [_row(entry, scored, yardstick.name, settings.seed) for entry in passes]
    return Table(rows[: len(arms)], rows[len(arms) :])


def _row(entry: Pass, scored: Sequence[TeacherForced], yardstick: str, seed: int) -> Row:
    """yardstick: the name of its pass."""
    arm, kernels = entry.name, entry.arm.kernels
    pairs = [s.pairs[arm] for s in scored]
    stats = statistics(pairs)
    if not stats.finite:
        return Row(arm=arm, kernels=kernels, stats=stats, gates=token_gates.gates(TokenLevel(pairs)))
    apart, _, _ = typical_kl_ratio(pairs, [s.noise[""] for s in scored], seed=seed)
    if arm == yardstick:
        return Row(arm=arm, kernels=kernels, stats=stats, gates=[], apart=apart)
    compared = logit_gates.collected(scored, {"candidate": arm, "re-run": RERUN, "yardstick": yardstick})
    level = token_gates.gates(compared.token_level, seed=seed)
    gates = [*(logit_gates.only_reported(gate) for gate in level), *logit_gates.gates(compared, seed)]
    kl, flat = (
        typical_kl_ratio(noise["candidate"], noise["baseline"], seed=seed)
        for noise in (compared.noise, compared.flat_noise)
    )
    return Row(
        arm=arm,
        kernels=kernels,
        stats=stats,
        gates=gates,
        noise=kl[0],
        logits=flat[0],
        bounds=(flat[1].low, flat[1].high),
        apart=apart,
    )


HEAD = (
    "arm",
    "dlogp/token",
    "error",
    "t",
    "KL/token",
    "p99 KL",
    "top-1 %",
    "apart",
    "noise",
    "logits",
    "token level",
)


def text(found: Table) -> str:
    """The table in Markdown, the re-run and the yardstick first."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    lines += [_line(row, "-") for row in found.floor] + [_line(row, row.verdict) for row in found.rows]
    return "\n".join(lines) + "\n"


def _line(row: Row, verdict: str) -> str:
    s = row.stats
    if not s.finite:
        return f"| {row.arm} | not finite" + " | " * (len(HEAD) - 2) + "NO |"
    apart, noise, logits = ("" if v is None else f"{v:.2f}" for v in (row.apart, row.noise, row.logits))
    if row.bounds is not None:
        logits += f" [{row.bounds[0]:.2f}, {row.bounds[1]:.2f}]"
    numbers = [f"{s.mean_dlogp:+.5f}", f"{s.error:.5f}", f"{s.t:+.1f}", f"{s.kl_mean:.3g}", f"{s.kl_p99:.3g}"]
    return "| " + " | ".join([row.arm, *numbers, f"{100 * s.top1:.2f}", apart, noise, logits, verdict]) + " |"
