"""Conditions behind which a mutant hides: of shapes, types, features, columns, rows and calls.

A condition is a short text that parses back to it, so that a mutant's id holds its guard. They are drawn without
knowing which cases any suite has: thresholds, moduli and intervals are random, and exact widths are those that
deployments of transformers have.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from validators.cases.case import Case
from validators.cases.tensors import Inputs
from validators.kernels import emulated_gemm
from validators.kernels.emulated_variant import FP8_NAMES

DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Facts:
    """What a condition may ask about a call: a case has the same names."""

    m: int
    n: int
    k: int
    dtype: str
    fp8: str
    residual: bool = False
    gemma: bool = False
    gamma: str = "T"
    eps: str = ""
    bias: bool = False
    layout: str = "contiguous"

    @staticmethod
    def of(inputs: Inputs) -> Facts:
        """The facts of these inputs."""
        given: Any = inputs
        layout = _layout(inputs.leading)
        if inputs.op == "ptpc_gemm":
            m, n, k = given.shape
            layout = layout if given.b.is_contiguous() else "strided"
            return Facts(
                m, n, k, DTYPES[given.out_dtype], FP8_NAMES[given.a.dtype], bias=given.bias is not None, layout=layout
            )
        m, n, dtype, fp8 = inputs.row_count, inputs.width, DTYPES[given.x.dtype], FP8_NAMES[given.fp8_dtype]
        if inputs.op != "add_rmsnorm_quant":
            return Facts(m, n, 0, dtype, fp8, layout=layout)
        gamma = "fp32" if given.weight.dtype == torch.float32 else "T"
        return Facts(
            m, n, 0, dtype, fp8, given.residual is not None, given.gemma, gamma, f"{given.eps:g}", layout=layout
        )

    @staticmethod
    def of_case(case: Case) -> Facts:
        """The facts of a case's inputs, which are not built."""
        norm = case.op == "add_rmsnorm_quant"
        eps = f"{float(case.eps):g}" if norm else ""
        return Facts(
            case.m,
            case.n,
            case.k,
            case.dtype,
            case.fp8,
            case.residual and norm,
            case.gemma,
            case.gamma,
            eps,
            case.bias,
            case.layout,
        )

    def alone(self) -> list[Facts]:
        """The facts of the calls that the checks of invariance make: single rows, half of the rows, another layout."""
        flat = replace(self, layout="contiguous")
        return [flat, replace(flat, m=1), replace(flat, m=(self.m + 1) // 2)]


def _layout(x: Tensor) -> str:
    if x.dim() == 3:
        return "3d" if x.is_contiguous() else "3dstrided"
    return "contiguous" if x.is_contiguous() else "strided"


_SHAPE = re.compile(r"([mnk])(>|<=|=)(\d+)|([mnk])%(\d+)(=0|!=0)|([mnk])in(\d+)\.\.(\d+)")
_FLAGS = ("residual", "gemma", "bias")
_WORDS = re.compile(r"(dtype|fp8|gamma|eps|layout)=([\w.-]+)")
_COLUMNS = re.compile(r"col(?:in(\d+)\.\.(\d+)|%(\d+)=(\d+))")
_CALLS = re.compile(r"call(?:=(\d+)|>(\d+)|%(\d+)=0)")
_ROW_NUMBER = re.compile(r"row%(\d+)=(\d+)")


@dataclass(frozen=True)
class Condition:
    """text: as in ids. sort: shape, option, columns, row-number, row-class or call. about: the variable's name."""

    text: str
    sort: str
    about: str

    def meets(self, facts: Facts) -> bool:
        """Whether a call with these facts can meet it. Of columns: whether there are such columns."""
        return _meets(self.text, facts)

    def called(self, call: int) -> bool:
        """Whether the call with this number, from 1, meets it."""
        found = _CALLS.fullmatch(self.text)
        if not found:
            return True
        exact, beyond, every = (None if g is None else int(g) for g in found.groups())
        return call == exact if exact else call > beyond if beyond is not None else call % (every or 1) == 0


def _meets(text: str, facts: Facts) -> bool:
    if found := _SHAPE.fullmatch(text):
        a, op, t, b, mod, rest, c, low, high = found.groups()
        if a:
            value, limit = getattr(facts, a), int(t)
            return bool(value > limit if op == ">" else value <= limit if op == "<=" else value == limit)
        if b:
            return bool((getattr(facts, b) % int(mod) == 0) == (rest == "=0"))
        return bool(int(low) <= getattr(facts, c) < int(high))
    if found := _WORDS.fullmatch(text):
        return bool(getattr(facts, found[1]) == found[2])
    if text.removeprefix("no-") in _FLAGS:
        return bool(getattr(facts, text.removeprefix("no-")) != text.startswith("no-"))
    if found := _COLUMNS.fullmatch(text):
        return facts.n > int(found[1] if found[1] else found[4])
    if found := _ROW_NUMBER.fullmatch(text):
        return facts.m > int(found[2])
    return True


@functools.cache
def parse(text: str) -> Condition:
    """The condition with that text; raises ValueError for any other."""
    if found := _SHAPE.fullmatch(text):
        return Condition(text, "shape", found[1] or found[4] or found[7])
    if found := _WORDS.fullmatch(text):
        return Condition(text, "option", found[1])
    if text.removeprefix("no-") in _FLAGS:
        return Condition(text, "option", text.removeprefix("no-"))
    if _COLUMNS.fullmatch(text):
        return Condition(text, "columns", "col")
    if _CALLS.fullmatch(text):
        return Condition(text, "call", "call")
    if _ROW_NUMBER.fullmatch(text):
        return Condition(text, "row-number", "row")
    if text.removeprefix("row:") in ROW_CLASSES and text.startswith("row:"):
        return Condition(text, "row-class", "row")
    raise ValueError(f"{text!r} is no condition")


@dataclass(frozen=True)
class Guard:
    """Up to two conditions that must all hold."""

    conditions: tuple[Condition, ...] = ()

    @property
    def text(self) -> str:
        """``always`` or the conditions joined by ``&``."""
        return "&".join(c.text for c in self.conditions) or "always"

    @staticmethod
    def parse(text: str) -> Guard:
        """The guard with that text."""
        return Guard(() if text == "always" else tuple(parse(part) for part in text.split("&")))

    def sorts(self) -> set[str]:
        """The sorts of its conditions."""
        return {c.sort for c in self.conditions}

    def meets(self, facts: Facts) -> bool:
        """Whether some call with these facts can meet it."""
        return all(c.meets(facts) for c in self.conditions)

    def called(self, call: int) -> bool:
        """Whether the call with this number can meet it."""
        return all(c.called(call) for c in self.conditions)

    @property
    def of_elements(self) -> bool:
        """Whether it holds for some elements of a call only."""
        return bool(self.sorts() & {"columns", "row-number", "row-class"})

    def rows(self, inputs: Inputs, memo: dict[str, Tensor] | None = None) -> Tensor:
        """Rows of the flattened inputs that meet it, bool [m]. memo: kept answers about the same inputs."""
        hit = torch.ones(inputs.row_count, dtype=torch.bool)
        for condition in self.conditions:
            if condition.sort == "row-number":
                found = _ROW_NUMBER.fullmatch(condition.text)
                assert found
                hit &= torch.arange(len(hit)) % int(found[1]) == int(found[2])
            elif condition.sort == "row-class":
                if memo is None or condition.text not in memo:
                    mask = ROW_CLASSES[condition.text.removeprefix("row:")](_magnitudes(inputs), inputs)
                    if memo is not None:
                        memo[condition.text] = mask
                else:
                    mask = memo[condition.text]
                hit &= mask
        return hit

    def columns(self, n: int) -> Tensor:
        """Columns of an output with n columns that meet it, bool [n]."""
        index, hit = torch.arange(n), torch.ones(n, dtype=torch.bool)
        for condition in self.conditions:
            if condition.sort == "columns":
                found = _COLUMNS.fullmatch(condition.text)
                assert found
                low, high, mod, rest = (int(g or 0) for g in found.groups())
                hit &= index % mod == rest if mod else (index >= low) & (index < high)
        return hit


# ---- classes of a row's input


def _magnitudes(inputs: Inputs) -> Tensor:
    """What decides a row's class, fp32 [m, n]: x + residual, or the decoded a of a GEMM with its scale."""
    given: Any = inputs
    if inputs.op == "ptpc_gemm":
        return emulated_gemm.decode(given.a.view(torch.uint8), FP8_NAMES[given.a.dtype])
    x = given.x.reshape(-1, inputs.width).float()
    residual = getattr(given, "residual", None)
    return x if residual is None else x + residual.reshape(-1, inputs.width).float()


def _finite(v: Tensor) -> Tensor:
    return v.abs().nan_to_num(nan=0.0, posinf=0.0)


def _largest(v: Tensor) -> Tensor:
    return _finite(v).amax(1) if v.numel() else torch.zeros(len(v))


def _peak_of(v: Tensor) -> Tensor:
    return _finite(v).argmax(1, keepdim=True)


def _gain(v: Tensor, inputs: Any) -> Tensor:
    """Rows whose largest |value times weight| is at a column whose gain is above 2."""
    if inputs.op != "add_rmsnorm_quant" or not v.numel():
        return torch.zeros(len(v), dtype=torch.bool)
    gain = inputs.weight.float() + (1.0 if inputs.gemma else 0.0)
    return gain.abs()[_peak_of(v * gain).squeeze(1)] > 2.0


def _scale_of(v: Tensor, inputs: Any) -> Tensor:
    """A GEMM's rows are as large as their scale says."""
    return inputs.a_scale.view(-1) * _largest(v) if inputs.op == "ptpc_gemm" else _largest(v)


def _equal_magnitudes(v: Tensor, inputs: Any) -> Tensor:
    size = v.abs()
    return (size.amax(1) == size.amin(1)) & (size.amax(1) > 0) if v.numel() else torch.zeros(len(v), dtype=torch.bool)


def _negative_peak(v: Tensor, inputs: Any) -> Tensor:
    return v.gather(1, _peak_of(v)).squeeze(1) < 0 if v.numel() else torch.zeros(len(v), dtype=torch.bool)


ROW_CLASSES: Mapping[str, Callable[[Tensor, Any], Tensor]] = {
    "huge": lambda v, inputs: _scale_of(v, inputs) > 3000.0,
    "tiny": lambda v, inputs: (_scale_of(v, inputs) < 0.002) & (_largest(v) > 0),
    "one-nonzero": lambda v, inputs: (v != 0).sum(1) == 1,
    "equal": _equal_magnitudes,
    "negative-peak": _negative_peak,
    "gain": _gain,
    "many-zeros": lambda v, inputs: (v == 0).sum(1) * 2 > v.shape[1],
    "no-negative": lambda v, inputs: (v >= 0).all(1) & (_largest(v) > 0),
}
"""Name -> (what ``_magnitudes`` gives, inputs) -> rows of that class, bool [m]."""


# ---- drawing

_WIDTHS = (1536, 2048, 3072, 4096, 5120, 6144, 7168, 8192, 12288)
_INNER = (192, 768, 1536, 3072, 5120, 6144, 12288)
_OUTPUTS = (384, 768, 1792, 3072, 3584, 5120)
_EXACT = {
    "add_rmsnorm_quant": (5120, 5120, 5120, 1536, 12288, *_WIDTHS),
    "per_token_quant": (5120, 1536, 12288, *_WIDTHS),
    "ptpc_gemm": _OUTPUTS,
}
_MODULI = (2, 3, 4, 8, 16, 24, 32, 64, 128, 256, 512)
_LIMITS = {"m": (2, 3000), "n": (9, 12000), "k": (17, 11000)}


def _log(rng: random.Random, low: int, high: int) -> int:
    return round(low * (high / low) ** rng.random())


def _size(rng: random.Random, op: str, name: str) -> str:
    low, high = _LIMITS[name]
    high = 3000 if op == "ptpc_gemm" and name == "n" else high
    form = rng.randrange(7)
    if form == 0:
        return f"{name}=1" if name == "m" else f"{name}={rng.choice(_INNER if name == 'k' else _EXACT[op])}"
    if form == 1:
        return f"{name}%2!=0"
    if form == 2:
        return f"{name}>{_log(rng, low, high)}"
    if form == 3:
        return f"{name}<={_log(rng, low, high)}"
    if form in (4, 5):
        return f"{name}%{rng.choice(_MODULI)}{'=0' if form == 4 else '!=0'}"
    start = _log(rng, low, high)
    # Kernels dispatch by intervals whose ends are some factor apart, never by a few sizes in a row.
    return f"{name}in{start}..{round(start * rng.choice((1.5, 2, 4))) + 1}"


def _columns(rng: random.Random, op: str) -> str:
    if rng.random() < 0.4:
        mod = rng.choice((2, 4, 8, 16, 32, 64, 128))
        return f"col%{mod}={rng.randrange(mod)}"
    width = rng.choice((1, 4, 8, 16, 32, 64, 128, 256))
    start = _log(rng, 1, 2000 if op == "ptpc_gemm" else 8000) // width * width
    return f"colin{start}..{start + width}"


def draw(rng: random.Random, op: str, *, elements: bool) -> str:
    """The text of one condition. elements: also those that hold for some rows or columns of a call only."""
    sizes = ("m", "n", "k") if op == "ptpc_gemm" else ("m", "n")
    options = ["dtype=fp16", "dtype=bf16", "fp8=e4m3fnuz", "fp8=e4m3fn", "layout=strided", "layout=contiguous"]
    if op == "ptpc_gemm":
        options += ["bias", "no-bias", "bias"]
    else:
        options += ["layout=3d", "layout=3dstrided"]
    if op == "add_rmsnorm_quant":
        options += ["residual", "no-residual", "no-residual", "gemma", "no-gemma", "gamma=fp32", "gamma=T", "eps=1e-06"]
    choice = rng.random()
    if choice < 0.45:
        return _size(rng, op, rng.choice(sizes))
    if choice < 0.65:
        return rng.choice(options)
    if choice < 0.73 or not elements:
        return rng.choice(("call=1", "call=2", "call>1", "call%2=0", "call%3=0", "call>4"))
    if choice < 0.86:
        return _columns(rng, op)
    if choice < 0.9:
        mod = rng.choice((2, 3, 4, 8, 16, 32, 64, 100))
        return f"row%{mod}={rng.randrange(mod)}"
    names = [name for name in ROW_CLASSES if name != "gain" or op == "add_rmsnorm_quant"]
    return f"row:{rng.choice(names)}"
