"""Inputs and outputs of an op, as plain frozen dataclasses of tensors: what every op's have, and those of three ops.

FP8 tensors are passed in their torch dtype (``torch.float8_e4m3fn`` or ``torch.float8_e4m3fnuz``);
the judge only ever looks at their bytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch

SomeInputs = TypeVar("SomeInputs", bound="Inputs")
SomeOutputs = TypeVar("SomeOutputs", bound="Outputs")

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def as_ints(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as integers of the element's size (uint8, int16, int32, int64), any strides."""
    return tensor.detach().view(_INTEGERS[tensor.element_size()])


def _rows_side_by_side(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1, tensor.shape[-1]).contiguous()


def _picked(tensor: torch.Tensor, indices: list[int]) -> torch.Tensor:
    # FP8 tensors cannot be indexed with a list on every device and version; their bytes can.
    return as_ints(tensor)[torch.tensor(indices, device=tensor.device)].view(tensor.dtype)


@dataclass(frozen=True)
class Outputs:
    """What a kernel computes; every tensor has one row for each row of the inputs."""

    op: ClassVar[str]

    def flat(self: SomeOutputs) -> SomeOutputs:
        """The same outputs as contiguous two-dimensional tensors."""
        tensors: dict[str, Any] = {name: _rows_side_by_side(t) for name, t in named_tensors(self).items()}
        return dataclasses.replace(self, **tensors)

    def take_rows(self: SomeOutputs, indices: list[int]) -> SomeOutputs:
        """Two-dimensional outputs with only these rows, in this order."""
        tensors: dict[str, Any] = {name: _picked(t, indices) for name, t in named_tensors(self).items()}
        return dataclasses.replace(self, **tensors)


@dataclass(frozen=True)
class Inputs:
    """What a kernel is given. The names of the fields are the names of the parameters of a user's own kernel."""

    op: ClassVar[str]
    OUTPUTS: ClassVar[type[Outputs]]
    ROWS: ClassVar[tuple[str, ...]] = ("x",)
    """Fields that have one row for each row of the outputs; the first is never None."""

    def expected(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each output by name."""
        raise NotImplementedError

    def outputs(self, tensors: Mapping[str, torch.Tensor]) -> Outputs:
        """Outputs of these tensors."""
        return self.OUTPUTS(**tensors)

    def empty(self) -> Outputs:
        """Uninitialised outputs of the right shapes and dtypes on the device of the inputs."""
        return self.outputs(
            {
                name: torch.empty(shape, dtype=dtype, device=self.device)
                for name, (shape, dtype) in self.expected().items()
            }
        )

    @property
    def leading(self) -> torch.Tensor:
        """The tensor whose last dimension is a row."""
        tensor: torch.Tensor = getattr(self, self.ROWS[0])
        return tensor

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.leading.device

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes in words of the op: those of x, or m, n, k of a GEMM."""
        return tuple(self.leading.shape)

    @property
    def row_count(self) -> int:
        """Rows, of all batches together."""
        return self.leading.shape[:-1].numel()

    @property
    def width(self) -> int:
        """Elements of a row."""
        return self.leading.shape[-1]

    def flat(self: SomeInputs) -> SomeInputs:
        """The same inputs with every tensor contiguous, and those that have rows two-dimensional."""
        tensors: dict[str, Any] = {
            name: _rows_side_by_side(t) if name in self.ROWS else t.contiguous()
            for name, t in named_tensors(self).items()
        }
        return dataclasses.replace(self, **tensors)

    def take_rows(self: SomeInputs, indices: list[int]) -> SomeInputs:
        """Two-dimensional inputs with only these rows, in this order."""
        tensors: dict[str, Any] = {
            name: _picked(t, indices) for name, t in named_tensors(self).items() if name in self.ROWS
        }
        return dataclasses.replace(self, **tensors)


def named_tensors(bundle: Inputs | Outputs) -> dict[str, torch.Tensor]:
    """The tensors of an inputs or outputs dataclass by field name, in field order, without the absent ones."""
    found = {f.name: getattr(bundle, f.name) for f in dataclasses.fields(bundle)}
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


@dataclass(frozen=True)
class NormQuantOutputs(Outputs):
    """codes: FP8, x's shape. scale: fp32 [M, 1] ([B, S, 1] in 3-D). residual_out: x's shape and dtype, or None."""

    op: ClassVar[str] = "add_rmsnorm_quant"
    codes: torch.Tensor
    scale: torch.Tensor
    residual_out: torch.Tensor | None = None


@dataclass(frozen=True)
class QuantOutputs(Outputs):
    """codes: FP8, x's shape. scale: fp32 [M, 1] ([B, S, 1] in 3-D)."""

    op: ClassVar[str] = "per_token_quant"
    codes: torch.Tensor
    scale: torch.Tensor


@dataclass(frozen=True)
class GemmOutputs(Outputs):
    """out: [M, N] of out_dtype."""

    op: ClassVar[str] = "ptpc_gemm"
    out: torch.Tensor


def codes_and_scale(x: torch.Tensor, fp8_dtype: torch.dtype) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """What ``Inputs.expected`` gives where every row of x [..., N] becomes codes and one scale."""
    shape = tuple(x.shape)
    return {"codes": (shape, fp8_dtype), "scale": ((*shape[:-1], 1), torch.float32)}


@dataclass(frozen=True)
class NormQuantInputs(Inputs):
    """Inputs of ``add_rmsnorm_quant``.

    x: [M, N] (or [B, S, N] in a 3-D case, M = B*S) bf16/fp16. residual: same shape and dtype as x, or
    None. weight: [N], dtype of x or fp32. eps: python float. fp8_dtype: dtype of the codes.
    gemma: multiply by ``1 + weight`` instead of ``weight``.
    """

    op: ClassVar[str] = "add_rmsnorm_quant"
    OUTPUTS: ClassVar[type[Outputs]] = NormQuantOutputs
    ROWS: ClassVar[tuple[str, ...]] = ("x", "residual")
    x: torch.Tensor
    residual: torch.Tensor | None
    weight: torch.Tensor
    eps: float
    fp8_dtype: torch.dtype
    gemma: bool = False

    def expected(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        found = codes_and_scale(self.x, self.fp8_dtype)
        return found if self.residual is None else {**found, "residual_out": (tuple(self.x.shape), self.x.dtype)}


@dataclass(frozen=True)
class QuantInputs(Inputs):
    """Inputs of ``per_token_quant``: x [M, N] (or [B, S, N]) bf16/fp16, fp8_dtype of the codes."""

    op: ClassVar[str] = "per_token_quant"
    OUTPUTS: ClassVar[type[Outputs]] = QuantOutputs
    x: torch.Tensor
    fp8_dtype: torch.dtype

    def expected(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return codes_and_scale(self.x, self.fp8_dtype)


@dataclass(frozen=True)
class GemmInputs(Inputs):
    """Inputs of ``ptpc_gemm``.

    a: [M, K] FP8. a_scale: [M, 1] fp32. b: [N, K] FP8 (a weight, row-major, not shuffled).
    b_scale: [N, 1] fp32. bias: [N] of out_dtype, or None. out_dtype: bf16, fp16 or fp32.
    """

    op: ClassVar[str] = "ptpc_gemm"
    OUTPUTS: ClassVar[type[Outputs]] = GemmOutputs
    ROWS: ClassVar[tuple[str, ...]] = ("a", "a_scale")
    a: torch.Tensor
    a_scale: torch.Tensor
    b: torch.Tensor
    b_scale: torch.Tensor
    bias: torch.Tensor | None
    out_dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.a), *self.b.shape

    def expected(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"out": ((self.a.shape[0], self.b.shape[0]), self.out_dtype)}
