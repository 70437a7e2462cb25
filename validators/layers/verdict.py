"""From a walk's numbers to records: the ops one by one, and the trajectories as a whole."""

from __future__ import annotations

import dataclasses
import itertools
import math
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from validators.arch import architecture
from validators.kernels.kernel import Kernel
from validators.layers.checkpoint_check import listed
from validators.layers.path import Kernels
from validators.layers.result import Contracts, Depth, Judged, Result
from validators.records.evidence import ErrorByDepth, WalkEvidence
from validators.records.record import Check, Record, Status
from validators.words import FUSED, GEMM, PATH

LANE = "layers"
CONFIDENCE = 0.95
MARGIN = 0.5
"""A policy and no measurement: the fused path rounds less, so its error should be no larger than the unfused path's;
half as much again is about half a bit of the hidden state."""


TOKENS = 128
"""Default length of the sequence. Of 18 walks of right kernels through the tiny model (three contracts, six seeds) all
were decided with it, the highest upper bound being 1.21; with 8 tokens 8 of 18 were undecided, with 64 one."""
ENOUGH = f"--tokens {TOKENS} decided all of 18 walks with right kernels"


@dataclass(frozen=True)
class MedianBounds:
    """Median of a sample with exact one-sided bounds, each wrong with probability at most 1 - CONFIDENCE."""

    median: float
    low: float
    high: float
    count: int


def median_bounds(values: Sequence[float], confidence: float = CONFIDENCE) -> MedianBounds:
    """Bounds of the population's median by the sign test, for any distribution; values are taken as independent.

    The number of values below the true median is binomial(T, 1/2). high is the smallest order statistic that is below
    the median with probability at most 1 - confidence, low the mirror image; infinite below 5 values at 95 %.
    """
    ordered = sorted(values)
    count = len(ordered)
    if not count:
        return MedianBounds(math.nan, -math.inf, math.inf, 0)
    middle = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    tail, below = 0.0, count
    # tail = P(at least ``below`` of the values are under the median): then the below-th smallest may be under it too.
    while below > 0 and tail + math.comb(count, below) / 2**count <= 1 - confidence:
        tail += math.comb(count, below) / 2**count
        below -= 1
    if below == count:
        return MedianBounds(middle, -math.inf, math.inf, count)
    return MedianBounds(middle, ordered[count - below - 1], ordered[below], count)


def ratio(depth: Depth) -> MedianBounds:
    """Fused error over unfused error of the same token, paired; tokens where both are zero count as 1."""
    fused, unfused = depth.error["fused"], depth.error["unfused"]
    both = (fused == 0) & (unfused == 0)
    return median_bounds(torch.where(both, 1.0, fused / unfused).tolist())


def trajectory(result: Result, margin: float) -> tuple[Status, tuple[str, ...], tuple[Check, ...]]:
    """Status, reasons and checks of the free-running paths, judged once, after the last layer that can be judged.

    A hidden state of zeros has the relative error 1. Where the unfused path's median error times the allowed factor
    reaches that, the paths have lost the model, the ratio goes to 1 whatever the kernels do, and nothing is judged.
    """
    if result.stopped or not result.depths:
        return Status.ERROR, (result.stopped or "no layer was walked",), ()
    near = list(itertools.takewhile(lambda d: float(d.error["unfused"].median()) * (1 + margin) < 1, result.depths))
    last = near[-1] if near else result.depths[0]
    finite = all(bool(e.isfinite().all()) for d in result.depths for e in d.error.values())
    all_finite = "every hidden state is finite" if finite else "a hidden state is not finite"
    bounds = ratio(last)
    worse, fine = bounds.low > 1 + margin, bounds.high <= 1 + margin
    compared = (
        f"after layer {last.layer} the fused path's error of the hidden state is {bounds.median:.3g} of the "
        f"unfused path's (median of {bounds.count} tokens, paired; by the sign test it is above {bounds.low:.3g} "
        f"and below {bounds.high:.3g}, each with {100 * CONFIDENCE:g} %); allowed {1 + margin:g}"
    )
    checks = [
        Check("finite", finite, all_finite),
        Check("fused against unfused", True if fine else False if worse else None, compared, "statistical"),
    ]
    beyond = [d.layer for d in result.depths if d.layer > last.layer] if near else [d.layer for d in result.depths]
    lost = ""
    if beyond:
        lost = (
            f"after layer {beyond[0]} and on the unfused path's median error is {1 / (1 + margin):.3g} or more of the "
            "float64 model's hidden state (zeros would have 1): there the errors of the two paths cannot be compared"
        )
        checks.append(Check("depth", None, lost, "statistical"))
    plain = [j for j in result.judged if j.own_norm]
    broken = [j for j in plain if j.status is not Status.PASSED]
    if plain:
        checks.append(Check("bf16 norms", not broken, _plain_norms(plain, broken), "joint"))
    checks.append(Check("router", None, _router(result.depths), "statistical"))
    if result.logits:
        checks.append(Check("logits", None, logits_sentence(result.logits), "statistical"))
    if not finite:
        return Status.FAILED, (all_finite,), tuple(checks)
    if broken:
        return Status.FAILED, (_plain_norms(plain, broken),), tuple(checks)
    if not near:
        return Status.MISTRUSTED, (lost,), tuple(checks)
    if worse:
        return Status.FAILED, (compared,), tuple(checks)
    if not fine:
        return Status.MISTRUSTED, (f"undecided, walk more tokens ({ENOUGH}): {compared}",), tuple(checks)
    return Status.PASSED, (), tuple(checks)


def _plain_norms(plain: Sequence[Judged], broken: Sequence[Judged]) -> str:
    """The walk's own bf16 norms are no kernel of anybody's and make no claim; a wrong one spoils the trajectories."""
    if not broken:
        return f"{len(plain)} bf16 norms, each with the quantizer after it, lie in their admissible sets"
    j = broken[0]
    return (
        f"{len(broken)} of {len(plain)} bf16 norms with the quantizer after them are not admissible, the first in "
        f"layer {j.layer}, {j.step}, {j.arm} path: {'; '.join(j.reasons)}"
    )


def _router(depths: Sequence[Depth]) -> str:
    routed = [d for d in depths if d.rerouted]
    tokens = sum(len(d.error["fused"]) for d in routed)
    if not tokens:
        return "no layer with a router was walked"
    counts = {arm: sum(d.rerouted[arm] for d in routed) for arm in ("fused", "unfused")}
    return (
        f"of {tokens:,} choices of experts {counts['fused']:,} differ from the float64 model's on the fused path "
        f"and {counts['unfused']:,} on the unfused one"
    )


def divergence(truth: Tensor, other: Tensor) -> tuple[float, float]:
    """(mean KL(truth || other) in nats over tokens, share of tokens with the same first choice); logits float64
    [T, V]."""
    p, q = truth.log_softmax(-1), other.log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).mean()
    return float(kl), float((truth.argmax(-1) == other.argmax(-1)).double().mean())


def logits_sentence(logits: dict[str, Tensor]) -> str:
    """KL and agreement of the first choice, both paths against the truth and against each other."""
    pairs = [("truth", "fused"), ("truth", "unfused"), ("unfused", "fused")]
    parts = []
    for a, b in pairs:
        kl, same = divergence(logits[a], logits[b])
        parts.append(f"KL({a} || {b}) {kl:.3g} nats, same first choice {100 * same:.4g} %")
    return "; ".join(parts)


def records(
    result: Result,
    kernels: Kernels,
    contracts: Contracts,
    *,
    model: str,
    margin: float,
    device: str,
    reproduce: str,
    origin: dict[str, str],
    peak_bytes: int,
    about: WalkEvidence,
    of: int = 0,
) -> list[Record]:
    """One record per op of a layer, in the order walked, then one of the trajectories.

    origin: op -> where its contract comes from. of: layers that the model has, walked or not. The walk's own bf16 norms
    are a check of the trajectories' record.
    """
    by_op = dict(zip(PATH, (kernels.norm, kernels.quant, kernels.gemm), strict=True))
    own = Counter(j.op for j in result.judged if not j.own_norm)
    walk = dataclasses.replace(
        about,
        model=model,
        layers=tuple(d.layer for d in result.depths),
        of=of,
        margin=margin,
        walk=secrets.token_hex(8),
        records=dict(own),
    )
    frames = {op: _frame(kernel, device, reproduce) for op, kernel in by_op.items()}
    found = [
        Record(case=case_name(model, j), contract_from=origin[j.op], walk=walk, **_judgement(j), **frames[j.op])
        for j in result.judged
        if not j.own_norm
    ]
    status, reasons, checks = trajectory(result, margin)
    where = "allocated on the GPU" if device.startswith("cuda") else "resident in this process"
    memory = f"peak memory {peak_bytes / 2**30:.2f} GiB {where}"
    whole = Record(
        status=status,
        reasons=reasons,
        case=f"layers-{model}-trajectory",
        contract=contracts.norm.name,
        contract_from=origin[FUSED],
        checks=(*checks, Check("environment", None, environment(result)), Check("memory", None, memory)),
        subject="path",
        walk=dataclasses.replace(walk, depth=medians_by_layer(result)),
        seconds=result.seconds,
        peak_bytes=peak_bytes,
        **frames[FUSED],
    )
    return [*found, whole]


def _judgement(j: Judged) -> dict[str, Any]:
    return {
        "status": j.status,
        "reasons": tuple(f"layer {j.layer}, {j.step}, {j.arm} path: {r}" for r in j.reasons),
        "contract": j.contract,
        "comparisons": j.comparisons,
        "checks": j.checks,
        "explanations": j.explanations,
        "seconds": j.seconds,
    }


def _frame(kernel: Kernel, device: str, reproduce: str) -> dict[str, Any]:
    """The fields that all records of one kernel of a walk have in common."""
    return {
        "kernel": kernel.name,
        "op": kernel.op,
        "lane": LANE,
        "stage": LANE,
        "device": device,
        "arch": architecture(device),
        "emulated": kernel.emulated,
        "fake": kernel.fake,
        "reproduce": reproduce,
        "provenance": kernel.provenance(device),
    }


def medians_by_layer(result: Result) -> ErrorByDepth:
    """For each path the median relative error of the hidden state after each layer; None if not finite."""

    def medians(arm: str) -> tuple[float | None, ...]:
        values = [float(d.error[arm].median()) for d in result.depths]
        return tuple(v if math.isfinite(v) else None for v in values)

    return ErrorByDepth(tuple(d.layer for d in result.depths), medians("fused"), medians("unfused"))


def environment(result: Result) -> str:
    """What of the walk is no kernel of the user's, and how much of the routed experts was judged."""
    rows = sum(j.shape[0] for j in result.judged if j.step == "experts.down_proj" and j.shape)
    gemms = sum(j.op == GEMM and j.step.startswith("experts.") for j in result.judged)
    words = (
        f"of the routed experts the quantizer was judged on all {rows:,} rows and {gemms} GEMMs, those of the fullest "
        f"expert of each layer and path that is judged; what experts add to the stream is W8A8 in float64 and no "
        f"kernel's; "
        if rows
        else ""
    )
    if result.unjudged:
        words += f"not quantized in the checkpoint, so walked in bf16 and not judged: {listed(result.unjudged)}; "
    return f"{words}attention, router, activation, bf16 norms and all-reduce are the walk's own on both paths"


def case_name(model: str, j: Judged) -> str:
    """``layers-glm-tiny-l03-fused-qkv_proj-ptpc_gemm-8x384x128``, the rank after it where there are several."""
    size = "x".join(map(str, j.shape)) or "none"
    rank = f"-r{j.rank}" if j.rank else ""
    return f"layers-{model}-l{j.layer:02d}-{j.arm}-{j.step}-{j.op}-{size}{rank}"
