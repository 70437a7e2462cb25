"""Probe kit: what a matrix unit does, read off from a few hundred directed dot products.

Each probe is one row of a and one row of b with a handful of nonzero products; the diagonal of the kernel's output has
the answers. Large products cancel before the end, so that every answer has few significant bits and a bf16 output
shows it as well as an fp32 one. B is the largest power of two that a product can be (2^16 for e4m3fn, 2^14 for
e4m3fnuz), x = v * 2^-d * B a small one. The answers are compared with the same probes on every unit that
``reference.accumulators`` knows; what the parameters are is inferred from the answers alone.

A kernel is a function of codes a [P, K], b [P, K] (uint8) that returns [P, P], scales 1. Position p of K is the
kernel's logical k: a unit that groups other k than consecutive ones shows in ``group_positions``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from reference.accumulators import UNITS, emulate
from reference.formats import FORMATS, FloatFormat, encode
from validators.calls.call import call as call_kernel
from validators.cases.tensors import GemmInputs, named_tensors
from validators.errors import RunFault
from validators.kernels.kernel import Kernel

KernelCall = Callable[[Tensor, Tensor], Tensor]
SCHEMA = 1
ROWS = 128
K_SHORT, K_LONG = 256, 2048
DEPTH = 28
"""Largest d: B * 2^-28 is the smallest normal product of either format."""
ANCHORS = (0, 16, 32)
LATER = 64
"""A position in a later step of the same chain for every group up to 64."""
VALUES = (1.0, -1.0, 1.5, -1.5)
NOT_SEEN = "cannot be seen with FP8 operands"
PROMOTION_DEPTH = 20
"""An fp32 sum keeps B * 2^-20, a chain of at most 19 fraction bits does not."""


class ProbeError(RunFault):
    """A kernel whose answers cannot be read; the message is one sentence."""


class Probe(NamedTuple):
    """terms: (position, a, b), exact FP8 values. k: length of the rows."""

    name: str
    terms: tuple[tuple[int, float, float], ...]
    k: int = K_SHORT


class _Maker:
    """Products as pairs of FP8 values."""

    def __init__(self, fmt: FloatFormat) -> None:
        self.top = math.frexp(fmt.max)[1] - 1
        self.low = fmt.min_exponent
        self.tiny = fmt.min_subnormal

    def big(self, p: int, factor: float = 1.0) -> tuple[int, float, float]:
        return p, factor * 2.0**self.top, 2.0**self.top

    def small(self, p: int, d: float, value: float = 1.0, base: int | None = None) -> tuple[int, float, float]:
        """value * 2^(base - d), base the exponent of B; exact for normal factors."""
        e = int((2 * self.top if base is None else base) - d)
        left = min(self.top, max(self.low, e - e // 2))
        return p, value * 2.0**left, 2.0 ** (e - left)


def probes(fmt: FloatFormat) -> list[Probe]:
    """Every probe that needs no earlier answer. Names are ``family/details``."""
    make, found = _Maker(fmt), []

    def add(name: str, *terms: tuple[int, float, float], k: int = K_SHORT) -> None:
        found.append(Probe(name, terms, k))

    for d in range(1, DEPTH + 1):
        for v in VALUES:
            tail = f"{v:+g}/{d}"
            add(f"align_last/{tail}", make.big(0), make.big(2, -1), make.small(4, d, v))
            if v == 1.0:
                add(f"align_between/{tail}", make.big(0), make.small(2, d, v), make.big(4, -1))
            add(f"align_other_half/{tail}", make.big(0), make.big(2, -1), make.small(5, d, v))
            # c is small: it comes first and is aligned to the products of a later step.
            add(f"small_c/{tail}", make.small(0, d, v), make.big(LATER, 1.5), make.big(LATER + 2, -1.5))
            for sign in (1, -1):
                ends = make.big(0, 1.5 * sign), make.big(2 * LATER, -1.5 * sign)
                add(f"large_c{sign:+d}/{tail}", ends[0], make.small(LATER, d, v), ends[1])
                six = [make.big(2 * i, sign) for i in range(6)]
                back = [make.big(LATER + 2 * i, -sign) for i in range(6)]
                if d > 1:  # a product of 6B's binade or the next below does not exist
                    add(f"output{sign:+d}/{tail}", *six, make.small(12, d, v, 2 * make.top + 2), *back)
        add(f"two_halves/{d}", make.big(0), make.big(2, -1), make.small(4, d), make.small(6, d))
        renormalised = [(p, s * 1.5 * 2.0**make.top, 1.5 * 2.0**make.top) for p, s in ((0, 1), (2, -1))]
        add(f"unnormalised/{d}", *renormalised, make.small(4, d))
        # A subnormal operand of the lowest bit: value 2^(low + top - 3), nominal exponent low + top.
        nominal = make.low + make.top
        if nominal - d >= 2 * make.low:
            pair = [(p, s * make.tiny, 2.0**make.top) for p, s in ((0, 1), (2, -1))]
            add(f"subnormal/{d}", *pair, make.small(4, d, 1.0, nominal))
            add(f"zero/{d}", (0, 0.0, 2.0**make.top), make.small(4, d, 1.0, nominal))
    for p in range(4, 132):
        add(f"cancel/{p}", make.big(0), make.small(2, 24), make.big(p, -1))
    for p in range(16, K_LONG - 16, 16):
        terms = make.big(0), make.small(p, PROMOTION_DEPTH), make.big(K_LONG - 1, -1)
        add(f"promotion/{p}", *terms, k=K_LONG)
    return found


def group_probes(fmt: FloatFormat, fraction: int) -> list[Probe]:
    """Which positions share a step with an anchor, once ``fraction`` bits are known to survive an alignment.

    +B and -B are at the anchor and two further on; x is half a unit below what survives, so it is lost in their step
    or, as accumulator, before it, and survives after it. Negative: shows whether a position truncates or floors.
    """
    make, found = _Maker(fmt), []
    for anchor in ANCHORS:
        for p in range(128):
            if p not in (anchor, anchor + 2):
                ends = make.big(anchor), make.big(anchor + 2, -1)
                found.append(Probe(f"group{anchor}/{p}", (*ends, make.small(p, fraction + 1))))
                if anchor == 0:
                    found.append(Probe(f"negative/{p}", (*ends, make.small(p, fraction + 1, -1.0))))
    return found


def answers(call: KernelCall, wanted: list[Probe], fmt: FloatFormat, *, rows: int = ROWS) -> dict[str, float]:
    """The kernel's answer to each probe, float64; ``rows`` probes a call, padded with zero rows.

    Raises ProbeError if an output has the wrong shape.
    """
    found: dict[str, float] = {}
    for k in sorted({p.k for p in wanted}):
        some = [p for p in wanted if p.k == k]
        for first in range(0, len(some), rows):
            batch = some[first : first + rows]
            values = torch.zeros(2, rows, k, dtype=torch.float64)
            for i, probe in enumerate(batch):
                for position, a, b in probe.terms:
                    values[0, i, position], values[1, i, position] = a, b
            codes = encode(values, fmt)
            out = call(codes[0], codes[1])
            if tuple(out.shape) != (rows, rows):
                raise ProbeError(f"the kernel returned {tuple(out.shape)} for a GEMM of {rows} x {rows} outputs")
            diagonal = out.detach().cpu().double().diagonal().tolist()
            found |= {p.name: diagonal[i] for i, p in enumerate(batch)}
    return found


_PATTERNS: dict[tuple[float, ...], str] = {
    (0, 0, 0, 0, 0, 0, 0, 0): "toward zero, each term before the sum",
    (0, -1, -1, -1, 1, 0, 0, 0): "toward zero, the sum",
    (0, -1, -1, -1, 0, -1, -1, -1): "toward minus infinity",
    (0, -1, -1, 0, 0, -1, -1, 0): "toward minus infinity, nothing from 2 bits below on",
    (1, -1, 0, 0, 1, -1, 0, 0): "to nearest even",
}


class _Reader:
    """Reads parameters off the answers. All sizes are relative to B, the exponent of the alignment."""

    def __init__(self, seen: Mapping[str, float], fmt: FloatFormat) -> None:
        self.seen = seen
        self.make = _Maker(fmt)

    def unit(self, d: int, base: int | None = None) -> float:
        return 2.0 ** ((2 * self.make.top if base is None else base) - d)

    def kept(self, family: str, base: int | None = None, name: str = "/+1/") -> int:
        """Largest d up to which every x = 2^-d survives unchanged; probes that do not exist count as surviving."""
        d = 0 if f"{family}{name}1" in self.seen else 1
        while d < DEPTH and self.seen.get(f"{family}{name}{d + 1}") == self.unit(d + 1, base):
            d += 1
        return d

    def rounding(self, families: tuple[str, str], kept: int, base: int | None = None) -> str:
        """What becomes of 3/4, -3/4, -1/2 and -1/4 of the last surviving unit, on a positive and a negative sum."""
        if kept + 2 > DEPTH:
            return NOT_SEEN
        wanted = (f"+1.5/{kept + 1}", f"-1.5/{kept + 1}", f"-1/{kept + 1}", f"-1/{kept + 2}")
        q = self.unit(kept, base)
        pattern = [self.seen[f"{f}/{w}"] / q for f in families for w in wanted]
        return _PATTERNS.get(tuple(pattern), f"unlike any known: {', '.join(f'{p:g}' for p in pattern)} units")


def infer(seen: Mapping[str, float], fmt: FloatFormat) -> dict[str, object]:
    """Parameters in words and numbers from the answers of ``probes`` and ``group_probes``.

    fraction_bits: bits below the largest exponent that a product keeps (28: all that FP8 operands can show).
    """
    r = _Reader(seen, fmt)
    fraction, between = r.kept("align_last"), r.kept("align_between")
    other = r.kept("align_other_half")
    large, small = r.kept("large_c+1"), r.kept("small_c")
    out_base = 2 * r.make.top + 2
    output = r.kept("output+1", out_base)
    found: dict[str, object] = {
        "fraction_bits": fraction,
        "fraction_bits_if_between": between,
        "sequential": between != fraction,
        "alignment": r.rounding(("align_last",) * 2, fraction),
        "fraction_bits_other_half": other,
        "alignment_other_half": r.rounding(("align_other_half",) * 2, other),
        "large_accumulator_bits": large,
        "large_accumulator_rounding": r.rounding(("large_c+1", "large_c-1"), large),
        "small_accumulator_bits": small,
        "small_accumulator_rounding": r.rounding(("small_c",) * 2, small),
        "output_bits": output,
        "output_rounding": r.rounding(("output+1", "output-1"), output, out_base),
    }
    visible = fraction < DEPTH
    found["sticky_bits"] = seen[f"two_halves/{fraction + 1}"] != 0 if visible else NOT_SEEN
    # With a renormalised exponent, one higher, one bit less survives.
    renormalised = r.kept("unnormalised", name="/")
    found["product_exponent_renormalised"] = renormalised == fraction - 1 if visible else NOT_SEEN
    nominal = r.make.low + r.make.top
    probe = f"/{fraction + 1}"
    for name, family in (("subnormal_renormalised", "subnormal"), ("zero_takes_part", "zero")):
        if not visible or f"{family}{probe}" not in seen:
            found[name] = NOT_SEEN
        else:
            survives = seen[f"{family}{probe}"] == r.unit(fraction + 1, nominal)
            found[name] = survives if family == "subnormal" else not survives
    found |= _groups(seen, r, fraction)
    found["promotion_interval"] = _promotion(seen, r, large)
    return found


def _groups(seen: Mapping[str, float], r: _Reader, fraction: int) -> dict[str, object]:
    found: dict[str, object] = {}
    if any(name.startswith("group") for name in seen):
        x = r.unit(fraction + 1)
        for anchor in ANCHORS:
            lost = [p for p in range(128) if seen.get(f"group{anchor}/{p}", 0.0) != x]
            found[f"group_positions_{anchor}"] = lost
        first = found["group_positions_0"]
        assert isinstance(first, list)
        found["group"] = len(first)
        moved = [p for p in first if seen.get(f"negative/{p}", 0.0) != 0.0]
        found["floored_positions"] = moved
        return found
    x = r.unit(24)
    # Nothing is lost by aligning: a step ends where a cancelling product comes too late to save x.
    width = 4
    while width < 132 and seen[f"cancel/{width}"] == x:
        width += 1
    found["group"] = 1 if width == 4 else width
    return found


def _promotion(seen: Mapping[str, float], r: _Reader, large: int) -> object:
    if large >= PROMOTION_DEPTH:
        return NOT_SEEN
    x = r.unit(PROMOTION_DEPTH)
    kept = [p for p in range(16, K_LONG - 16, 16) if seen[f"promotion/{p}"] == x]
    return min(kept) if kept else None


def probe(call: KernelCall, *, fp8: str = "e4m3fn", rows: int = ROWS, known: bool = True) -> dict[str, object]:
    """Probe a kernel: ``{"schema", "format", "rows", "inferred", "follows", "answers"}``, all JSON values.

    call: codes a [rows, K], b [rows, K] (uint8, CPU) -> outputs [rows, rows], fp32 or bf16, scales 1. K is 256 and
    2048. follows: the known units that give the same answers to every probe (known=False leaves it out).
    Raises ProbeError if the kernel's answers cannot be read.
    """
    if fp8 not in ("e4m3fn", "e4m3fnuz"):
        raise ProbeError(f"unknown FP8 format {fp8!r}; known: e4m3fn, e4m3fnuz")
    fmt = FORMATS[fp8]
    first = probes(fmt)
    seen = answers(call, first, fmt, rows=rows)
    if not any(seen.values()):
        raise ProbeError("the kernel answered every probe with zero")
    fraction = _Reader(seen, fmt).kept("align_last")
    if fraction < DEPTH:
        more = group_probes(fmt, fraction)
        seen |= answers(call, more, fmt, rows=rows)
        first = first + more
    record: dict[str, object] = {"schema": SCHEMA, "format": fp8, "rows": rows, "inferred": infer(seen, fmt)}
    if known:
        record["follows"] = [name for name in UNITS if _same(seen, first, fmt, name)]
    record["answers"] = {name: value if math.isfinite(value) else str(value) for name, value in seen.items()}
    return record


def _same(seen: Mapping[str, float], wanted: list[Probe], fmt: FloatFormat, unit: str) -> bool:
    def call(a: Tensor, b: Tensor) -> Tensor:
        return emulate(a, b, fmt, unit)

    # Only the diagonal counts, so few rows a call cost less; the first difference ends it. Short rows first, and probes
    # of every family in each part, so that a unit that differs is seen to differ early.
    for k in sorted({p.k for p in wanted}):
        some = [p for p in wanted if p.k == k]
        parts = -(-len(some) // 64)
        for first in range(parts):
            part = some[first::parts]
            if any(seen[name] != value for name, value in answers(call, part, fmt, rows=64).items()):
                return False
    return True


def kernel_call(kernel: Kernel, *, device: str = "cpu", fp8: str = "e4m3fn", dtype: str = "bf16") -> KernelCall:
    """A ``ptpc_gemm`` kernel of the registry as a function of codes: scales 1, no bias, outputs of ``dtype``.

    Raises ``KernelFault`` at the call if the kernel fails.
    """
    fp8_dtype = {"e4m3fn": torch.float8_e4m3fn, "e4m3fnuz": torch.float8_e4m3fnuz}[fp8]
    out_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]

    def run(a: Tensor, b: Tensor) -> Tensor:
        left, right = (x.to(device).view(fp8_dtype) for x in (a, b))
        ones = [torch.ones(len(x), 1, dtype=torch.float32, device=device) for x in (a, b)]
        outputs, _, _ = call_kernel(kernel, GemmInputs(left, ones[0], right, ones[1], None, out_dtype), 0x7F)
        found: Tensor = named_tensors(outputs)["out"]
        return found

    return run


def lines(record: Mapping[str, object]) -> list[str]:
    """The record in words, without the answers."""
    inferred, follows = record["inferred"], record.get("follows")
    assert isinstance(inferred, dict)
    out = [f"{name.replace('_', ' ')}: {_short(value)}" for name, value in inferred.items()]
    if isinstance(follows, list):
        out.append(f"answers every probe as {', '.join(follows)}" if follows else "answers like no known matrix unit")
    return out


def _short(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value[:40])) + (" ..." if len(value) > 40 else "") if value else "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
