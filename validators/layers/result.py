"""What a walk through the layers found: every judged op, the error after every layer, and the logits."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from reference.contract import GemmContract, NormQuantContract
from validators.records.record import Check, Comparison, Explanation, Status


@dataclass(frozen=True)
class Contracts:
    """What the three kernels are held to."""

    norm: NormQuantContract
    quant: NormQuantContract
    gemm: GemmContract


@dataclass(frozen=True)
class Judged:
    """One op of one layer. step: ``input_layernorm``, ``qkv_proj``, ``shared.down_proj`` ... ; rank of a split
    linear."""

    arm: str
    layer: int
    step: str
    op: str
    contract: str
    status: Status
    reasons: tuple[str, ...]
    comparisons: tuple[Comparison, ...] = ()
    checks: tuple[Check, ...] = ()
    explanations: tuple[Explanation, ...] = ()
    shape: tuple[int, ...] = ()
    rank: int = 0
    seconds: float = 0.0
    own_norm: bool = False
    """Whether this is a bf16 norm of the walk's own, judged together with the quantizer that follows it."""


@dataclass(frozen=True)
class Depth:
    """After one layer. error: arm -> float64 [T], relative 2-norm error of each token's stream against the truth.

    rms: of the truth's stream. rerouted: arm -> (tokens, layer's choice differs from the truth's in any expert).
    """

    layer: int
    error: dict[str, Tensor]
    rms: float
    rerouted: dict[str, int]


@dataclass
class Result:
    """What a walk found.

    unjudged: linears that the checkpoint does not quantize. logits: path -> float64 [T, vocab], only after the last
    layer of the model. digest: arm -> sha256 of its hidden
    state and residual stream at the end, to compare walks bit for bit.
    """

    judged: list[Judged] = field(default_factory=list)
    depths: list[Depth] = field(default_factory=list)
    logits: dict[str, Tensor] = field(default_factory=dict)
    digest: dict[str, str] = field(default_factory=dict)
    unjudged: tuple[str, ...] = ()
    stopped: str = ""
    seconds: float = 0.0
