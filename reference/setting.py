"""One arithmetic on one kind of tensor: all that an admissible residual, scale or code depends on, except the data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch

from reference import budgets
from reference.contract import GemmContract, NormQuantContract
from reference.formats import FloatFormat, format_of

STORAGE_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""The types T of x and of the residual, by name."""


class Given(Protocol):
    """What a setting takes from the inputs of an op: x [..., n] bf16 or fp16, the type of the codes; a norm's inputs
    have eps and gemma too."""

    @property
    def x(self) -> torch.Tensor: ...

    @property
    def fp8_dtype(self) -> torch.dtype: ...


@dataclass(frozen=True)
class Setting:
    """A contract, with the formats and numbers that a case gives it.

    fp8: format of the codes. storage: T, the format of x. n: elements of a row. eps, gemma: of the norm; a quantizer
    has none. Raises ValueError for a T that is neither bf16 nor fp16.
    """

    contract: NormQuantContract
    fp8: FloatFormat
    storage: FloatFormat
    n: int
    eps: float = 0.0
    gemma: bool = False

    def __post_init__(self) -> None:
        if self.storage.name not in STORAGE_TYPES:
            raise ValueError(
                f"contract {self.contract.name!r} rounds to the storage type of x, which is bf16 or fp16 and "
                f"not {self.storage.name}"
            )

    @classmethod
    def of(cls, inputs: Given, contract: NormQuantContract) -> Setting:
        """The contract on these inputs."""
        x, fp8 = inputs.x, format_of(inputs.fp8_dtype)
        eps, gemma = getattr(inputs, "eps", cls.eps), getattr(inputs, "gemma", cls.gemma)
        return cls(contract, fp8, format_of(x.dtype), x.shape[-1], eps, gemma)

    @cached_property
    def qmax(self) -> float:
        """Q: the value that a row's largest element is scaled to."""
        return self.contract.qmax(self.fp8.name)

    @property
    def dtype(self) -> torch.dtype:
        """T as torch names it."""
        return STORAGE_TYPES[self.storage.name]

    @property
    def grid(self) -> FloatFormat | None:
        """The format that the norm's y has before the quantizer; None where it stays fp32."""
        return self.storage if self.contract.round_after_weight else None

    @cached_property
    def rms_budget(self) -> budgets.Budget:
        """Of the kernel's reciprocal rms."""
        return budgets.rms_budget(self.contract, self.n)

    @cached_property
    def y_budget(self) -> budgets.Budget:
        """Of the two multiplications of y."""
        return budgets.multiply_budget(self.contract, gemma=self.gemma)

    @cached_property
    def step_budget(self) -> budgets.Budget:
        """Of the scale against amax/Q."""
        return budgets.scale_step_budget(self.contract, self.qmax)

    @cached_property
    def code_bound(self) -> float:
        """Of t where the kernel's rms cancels."""
        return budgets.code_budget(self.contract, self.qmax, gemma=self.gemma).bound

    @cached_property
    def y_bound(self) -> float:
        """``y_budget`` as a number."""
        return self.y_budget.bound

    def division_bound(self, *, rounded: bool = True) -> float:
        """Of t = y/s for given y and s; rounded: with the rounding of t to T, where the contract has it."""
        return budgets.division_budget(self.contract, self.storage if rounded else None).bound


@dataclass(frozen=True)
class GemmSetting:
    """A GEMM's contract, with what a case gives it. out: T, the format of the outputs. k: products of each output."""

    contract: GemmContract
    out: FloatFormat
    k: int
