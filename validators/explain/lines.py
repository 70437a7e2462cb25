"""Lines of the report of one element, and numbers in them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from reference import budgets
from validators.judge.gemm import bits_of

_LABEL = 14


@dataclass
class Text:
    """Labelled lines, in the order in which the arithmetic runs. ok: the verdict, once the last line says it."""

    lines: list[str] = field(default_factory=list)
    ok: bool | None = None

    def add(self, label: str, *texts: str) -> None:
        """``label`` before the first text, the others below it."""
        for i, text in enumerate(texts):
            self.lines.append("  " + (label if i == 0 else "").ljust(_LABEL) + text)

    def verdict(self, ok: bool | None, what: str) -> None:
        """The last line: ok None where the contract leaves the element unspecified."""
        self.ok = ok
        word = {True: "ADMISSIBLE", False: "NOT ADMISSIBLE", None: "UNSPECIFIED"}[ok]
        self.add("verdict", f"{word}: {what}")


def row_of(tensor: torch.Tensor, row: int) -> torch.Tensor:
    """Row ``row`` of [..., N] as [1, N] on the CPU."""
    return tensor.reshape(-1, tensor.shape[-1])[row : row + 1].cpu()


def number(value: float) -> str:
    """Up to 10 significant digits; enough to tell fp32 numbers apart."""
    return f"{value:.10g}"


def with_bits(value: float, name: str) -> str:
    """``0.4375  0x3ee0 bf16``: a value of the format ``name`` (bf16, fp16, fp32) with its bits."""
    return f"{number(value)}  {bits_of(value, name)} {name}"


def interval(low: float, high: float) -> str:
    """``[low, high]``, or the one value where they are equal."""
    return number(low) if low == high else f"[{number(low)}, {number(high)}]"


def terms(budget: budgets.Budget) -> str:
    """``25 u = reduction 20.5 + mean and eps 2.5 + rsqrt 2``."""
    return f"{budget.total_u:.4g} u = " + " + ".join(f"{name} {value:.4g}" for name, value in budget.terms)
