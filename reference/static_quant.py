"""``static_quant``, FP8 codes from x and one given scale: contracts, their evidence, and the admissible codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch

from reference.contract import Contract
from reference.evidence import Evidence
from reference.formats import decode, encode, format_of
from reference.quantize import quotient_ends
from reference.sets import Sets

SCALES = (2.0**-100, 2.0**100)
"""Scales outside leave every code open: a reciprocal may overflow or be flushed there. Within them an x below 2**-126,
which may be flushed, has t < 2**-26 and the code 0 either way."""
OPEN = "a scale whose reciprocal may overflow or be flushed"


class Given(Protocol):
    """Inputs. x: [..., N] bf16 or fp16. scale: fp32, one element. fp8_dtype: of the codes."""

    @property
    def x(self) -> torch.Tensor: ...

    @property
    def scale(self) -> torch.Tensor: ...

    @property
    def fp8_dtype(self) -> torch.dtype: ...


@dataclass(frozen=True)
class StaticQuantContract(Contract):
    """Declared arithmetic, every operation rounded to fp32, s the given scale and Q the largest code value in use::

    t    = x / s                       division "divide"
         = x * fl32(1/s)               division "reciprocal"
    code = RNE_fp8(min(max(t, -Q), Q))
    """

    ops: ClassVar[tuple[str, ...]] = ("static_quant",)
    name: str
    division: Literal["divide", "reciprocal"] = "reciprocal"
    nan: Literal["propagate", "largest"] = "propagate"
    """The code of a NaN: NaN, or Q, where the clamp is made of fminf and fmaxf, which drop a NaN. Both clamp Inf."""
    fnuz_max: float = 240.0
    """Q on e4m3fnuz."""
    reciprocal_u: float = 1.0
    """Maximal relative error of the quotient or of 1/s in units of 2**-24; exact for powers of two."""
    deterministic: bool = True
    batch_invariant: bool = True
    source: str = ""
    unsettled: tuple[tuple[str, tuple[object, ...]], ...] = ()

    def qmax(self, fp8: str) -> float:
        """Q in ``"e4m3fn"`` or ``"e4m3fnuz"``."""
        return 448.0 if fp8 == "e4m3fn" else self.fnuz_max


_VLLM = StaticQuantContract(
    "vllm",
    nan="largest",
    fnuz_max=224.0,
    source="vLLM csrc/quantization/w8a8/fp8/common.cu, scaled_fp8_quant_kernel_strided",
    # The source divides; whether a build does so correctly rounded or by an approximate reciprocal is up to its flags.
    unsettled=(("reciprocal_u", (1.0, 2.0)),),
)
CONTRACTS: dict[str, StaticQuantContract] = {
    c.name: c
    for c in (
        _VLLM,
        _VLLM.replace(
            name="vllm-native",
            nan="propagate",
            source="vLLM QuantFP8.forward_native (input_quant_fp8.py) with a static scale",
            unsettled=(),
        ),
        StaticQuantContract(
            "compressed-tensors",
            division="divide",
            source="compressed-tensors quantization/lifecycle/forward.py, quantize, strategy tensor, fp32 scale [1]",
        ),
    )
}

_KEPT = Evidence("run", "torch.clamp and the conversion to FP8 keep a NaN, on a CPU")
_Q = Evidence("source", "vLLM quant_type_max_v and get_fp8_min_max: 224 for e4m3fnuz")
_INVERSE = "vLLM common.cu: 1.0f / (*scale), a product, a clamp; SGLang's per_tensor_quant_fp8_kernel has the same form"
_LIBRARY = "compressed-tensors 0.17 and 0.20 on a CPU"
EVIDENCE: Mapping[str, Mapping[str, Evidence]] = {
    "vllm": {
        "division": Evidence("source", _INVERSE),
        "nan": Evidence("document", "CUDA's fminf and fmaxf return the other argument where one is NaN"),
        "fnuz_max": _Q,
        "reciprocal_u": Evidence("document", "CUDA: 1.0f / x is correctly rounded, or 1 ulp off under -use_fast_math"),
    },
    "vllm-native": {"division": Evidence("source", "forward_native: x times 1/s"), "nan": _KEPT, "fnuz_max": _Q},
    "compressed-tensors": {
        "division": Evidence("run", f"{_LIBRARY} (_quantize: scaled = x / scale, in fp32)"),
        "nan": Evidence("run", _LIBRARY),
    },
}
"""From which evidence each field comes; a field that has the dataclass's default needs none."""


def quotients(x: torch.Tensor, scale: float, contract: StaticQuantContract) -> tuple[torch.Tensor, torch.Tensor]:
    """Ends of t before the clamp for float64 x (values of T), float64 of the same shape; NaN for NaN."""
    low, high = quotient_ends(x.abs(), x.abs(), torch.full_like(x, scale), contract)
    return torch.where(x < 0, -high, low), torch.where(x < 0, -low, high)


def sets(inputs: Given, contract: StaticQuantContract, rows: slice) -> dict[str, Sets]:
    """Admissible codes, decoded, of these rows of the flattened inputs."""
    fmt = format_of(inputs.fp8_dtype)
    q = contract.qmax(fmt.name)
    x = inputs.x.reshape(-1, inputs.x.shape[-1])[rows].double()
    scale = float(inputs.scale)
    low, high = quotients(x, scale, contract)
    ends = [decode(encode(t.clamp(-q, q), fmt), fmt) for t in (low, high)]
    exact = (x / scale).clamp(-q, q)
    if contract.nan == "largest":
        exact, *ends = [torch.where(x.isnan(), torch.full_like(x, q), values) for values in (exact, *ends)]
    unknown = torch.full_like(x, not SCALES[0] <= scale <= SCALES[1], dtype=torch.bool)
    return {"codes": Sets(exact, ends[0], ends[1], unknown, OPEN)}
