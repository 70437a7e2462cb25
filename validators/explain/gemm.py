"""The known defects of a PTPC GEMM, each as the value that every sampled output would have under it.

Which of them would have produced these outputs? Diagnosis only; ``ops.ptpc_gemm`` holds them against the outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from reference.accumulators import slices
from reference.formats import BF16, E4M3FN, E4M3FNUZ, FloatFormat, bytes_of, exponent_of, format_of, pow2, round_to
from reference.ptpc_gemm import operand
from validators.cases.tensors import GemmInputs

SPLITS = 4


@dataclass(frozen=True)
class GemmScene:
    """A block of sampled rows and columns; float64. a [m, K], b [n, K] decoded; sa [m], sb [n]; rows, cols global numbers."""

    rows: Tensor
    cols: Tensor
    a: Tensor
    b: Tensor
    sa: Tensor
    sb: Tensor
    bias: Tensor | None
    inputs: GemmInputs
    fmt: FloatFormat
    out_format: FloatFormat

    @classmethod
    def of(cls, inputs: GemmInputs, rows: Tensor, cols: Tensor) -> GemmScene:
        """These rows of a and of b (the columns of the output) with what belongs to them."""
        fmt = format_of(inputs.a.dtype)
        return cls(
            rows,
            cols,
            operand(bytes_of(inputs.a)[rows], fmt),
            operand(bytes_of(inputs.b)[cols], fmt),
            inputs.a_scale.reshape(-1)[rows].double(),
            inputs.b_scale.reshape(-1)[cols].double(),
            None if inputs.bias is None else inputs.bias[cols].double(),
            inputs,
            fmt,
            format_of(inputs.out_dtype),
        )

    @property
    def k(self) -> int:
        """Inner dimension."""
        return self.a.shape[1]

    def out(self, accumulator: Tensor, sa: Tensor | None = None, sb: Tensor | None = None, bias: float = 1.0) -> Tensor:
        """Accumulator [m, n] -> output value with the given scales; bias times a factor."""
        value = accumulator * (self.sa if sa is None else sa)[:, None] * (self.sb if sb is None else sb)[None, :]
        return value if self.bias is None else value + bias * self.bias[None, :]


@dataclass(frozen=True)
class GemmHypothesis:
    """slug: the defect's name. value: predicted output before the last rounding. needs: whether it can differ here."""

    slug: str
    sentence: str
    value: Callable[[GemmScene], Tensor]
    needs: Callable[[GemmScene], bool] = lambda scene: True
    loose: bool = False
    """Predicts a rounding error rather than a value: judged by agreement after the last rounding."""


def sums(scene: GemmScene, first: int = 0, last: int | None = None) -> Tensor:
    """Exact sums of these products, [m, n]."""
    return scene.a[:, first:last] @ scene.b[:, first:last].T


def _slice_bounds(scene: GemmScene, index: int) -> tuple[int, int]:
    step = -(-scene.k // SPLITS)
    return index * step, min(scene.k, (index + 1) * step)


def _without_slice(index: int) -> Callable[[GemmScene], Tensor]:
    return lambda s: s.out(sums(s) - sums(s, *_slice_bounds(s, index)))


def _slices_rounded(scene: GemmScene) -> Tensor:
    parts = [round_to(sums(scene, *_slice_bounds(scene, i)), BF16) for i in range(SPLITS)]
    return scene.out(sum(parts, torch.zeros_like(parts[0])))


def _whole_slices_rounded(splits: int) -> Callable[[GemmScene], Tensor]:
    def value(scene: GemmScene) -> Tensor:
        parts = [round_to(sums(scene, first, last), BF16) for first, last in slices(scene.k, splits)]
        return scene.out(sum(parts, torch.zeros_like(parts[0])))

    return value


def _reads_on(block: int) -> Callable[[GemmScene], Tensor]:
    """Rows of both operands read on to a whole block of K, zero beyond the end of the tensor."""

    def row(codes: Tensor, rows: Tensor, scene: GemmScene) -> Tensor:
        width = -(-scene.k // block) * block
        flat = torch.nn.functional.pad(bytes_of(codes).reshape(-1), (0, block))
        return operand(flat[rows[:, None] * scene.k + torch.arange(width, device=rows.device)], scene.fmt)

    return lambda s: s.out(row(s.inputs.a, s.rows, s) @ row(s.inputs.b, s.cols, s).T)


def _no_multiple_of(block: int) -> Callable[[GemmScene], bool]:
    return lambda s: s.k % block != 0


def _all(scene: GemmScene, name: str) -> Tensor:
    scales: Tensor = getattr(scene.inputs, name)
    return scales.reshape(-1).double()


def _swapped(scene: GemmScene) -> Tensor:
    sa, sb = _all(scene, "a_scale"), _all(scene, "b_scale")
    return scene.out(sums(scene), sb[scene.rows % len(sb)], sa[scene.cols % len(sa)])


def _clamped_rows(scene: GemmScene) -> Tensor:
    sa = _all(scene, "a_scale")
    m = len(sa)
    return scene.out(sums(scene), sa[scene.rows.clamp(max=m // 16 * 16 if m % 16 else m - 1)])


def _neighbour(scene: GemmScene) -> Tensor:
    sa = _all(scene, "a_scale")
    return scene.out(sums(scene), sa[(scene.rows - 1) % len(sa)])


def _exchanged(scene: GemmScene) -> Tensor:
    sa = _all(scene, "a_scale")
    return scene.out(sums(scene), sa[(scene.rows ^ 1).clamp(max=len(sa) - 1)])


def _other_format(scene: GemmScene, both: bool) -> Tensor:
    other = E4M3FNUZ if scene.fmt is E4M3FN else E4M3FN
    b = operand(bytes_of(scene.inputs.b)[scene.cols], other)
    a = operand(bytes_of(scene.inputs.a)[scene.rows], other) if both else scene.a
    return scene.out(a @ b.T)


def _rows_of_b(scene: GemmScene, codes: Tensor) -> Tensor:
    return scene.out(scene.a @ operand(codes[scene.cols], scene.fmt).T)


def _read_as_shuffled(scene: GemmScene) -> Tensor:
    n, k = scene.inputs.b.shape
    raw = scene.inputs.b.view(torch.uint8).reshape(n // 16, k // 32, 2, 16, 16).permute(0, 3, 1, 2, 4)
    return _rows_of_b(scene, raw.reshape(n, k))


def _shuffled(scene: GemmScene) -> Tensor:
    n, k = scene.inputs.b.shape
    raw = scene.inputs.b.view(torch.uint8).reshape(n // 16, 16, k // 32, 2, 16).permute(0, 2, 3, 1, 4)
    return _rows_of_b(scene, raw.reshape(n, k))


def _packed(codes: Tensor) -> Tensor:
    """The bytes of ``codes`` [R, K] as a kernel meets them that takes its rows to be side by side."""
    raw = codes.view(torch.uint8)
    return raw.as_strided(raw.shape, (raw.shape[1], 1))


def _stride_ignored(a: bool, b: bool) -> Callable[[GemmScene], Tensor]:
    def value(scene: GemmScene) -> Tensor:
        left = operand(_packed(scene.inputs.a)[scene.rows], scene.fmt) if a else scene.a
        right = operand(_packed(scene.inputs.b)[scene.cols], scene.fmt) if b else scene.b
        return scene.out(left @ right.T)

    return value


def _nan_spread(scene: GemmScene) -> Tensor:
    value = scene.out(sums(scene))
    bad = operand(scene.inputs.a, scene.fmt).isnan().any(dim=1)
    tiles = torch.nn.functional.pad(bad, (0, -len(bad) % 16)).view(-1, 16).any(1).repeat_interleave(16)[: len(bad)]
    return torch.where(tiles[scene.rows][:, None], torch.full_like(value, float("nan")), value)


def _bf16_scales(scene: GemmScene) -> Tensor:
    return scene.out(sums(scene), round_to(scene.sa, BF16), round_to(scene.sb, BF16))


def _kept_bits(scene: GemmScene, bits: int, group: int) -> Tensor:
    """A chain that adds groups of products and keeps ``bits`` significant bits by truncation."""
    total = torch.zeros(scene.a.shape[0], scene.b.shape[0], dtype=torch.float64, device=scene.a.device)
    for first in range(0, scene.k, group):
        total = total + sums(scene, first, first + group)
        step = pow2(exponent_of(total).clamp(min=-900) + 1 - bits)
        total = (total / step).trunc() * step
    return scene.out(total)


def _kept(bits: int, group: int) -> Callable[[GemmScene], Tensor]:
    return lambda scene: _kept_bits(scene, bits, group)


def _bias(scene: GemmScene) -> bool:
    return scene.bias is not None


def shufflable(scene: GemmScene) -> bool:
    """Whether the weight can be in the pre-shuffled layout."""
    n, k = scene.inputs.b.shape
    return n % 16 == 0 and k % 32 == 0


HYPOTHESES: tuple[GemmHypothesis, ...] = (
    GemmHypothesis(
        "token-scale-missing", "the token scale is not applied", lambda s: s.out(sums(s), sa=torch.ones_like(s.sa))
    ),
    GemmHypothesis(
        "channel-scale-missing", "the channel scale is not applied", lambda s: s.out(sums(s), sb=torch.ones_like(s.sb))
    ),
    GemmHypothesis("token-scale-twice", "the token scale is applied twice", lambda s: s.out(sums(s), sa=s.sa**2)),
    GemmHypothesis("scales-swapped", "token scales are applied to columns and channel scales to rows", _swapped),
    GemmHypothesis(
        "first-token-scale",
        "the first token's scale is used for every row",
        lambda s: s.out(sums(s), sa=_all(s, "a_scale")[:1].expand_as(s.sa)),
    ),
    GemmHypothesis(
        "first-channel-scale",
        "the first channel's scale is used for every column",
        lambda s: s.out(sums(s), sb=_all(s, "b_scale")[:1].expand_as(s.sb)),
    ),
    GemmHypothesis(
        "channel-scale-per-tile",
        "each tile of 16 columns uses its first channel's scale",
        lambda s: s.out(sums(s), sb=_all(s, "b_scale")[s.cols // 16 * 16]),
    ),
    GemmHypothesis(
        "token-scale-clamped", "rows of the last partial tile use the scale of its first row", _clamped_rows
    ),
    GemmHypothesis("token-scales-exchanged", "each row uses the scale of its neighbour in the pair", _exchanged),
    GemmHypothesis("token-scale-of-neighbour", "each row uses the scale of the row before it", _neighbour),
    GemmHypothesis("scales-in-bf16", "the scales are rounded to bf16", _bf16_scales),
    GemmHypothesis(
        "k-tail-dropped",
        "the last K % 128 products are dropped",
        lambda s: s.out(sums(s, 0, s.k // 128 * 128)),
        lambda s: s.k % 128 != 0,
    ),
    *(
        GemmHypothesis(
            "k-overrun",
            f"rows are read on to a multiple of {block} products, into the next row",
            _reads_on(block),
            _no_multiple_of(block),
        )
        for block in (32, 64, 128)
    ),
    GemmHypothesis("last-k-dropped", "the last product of the sum is dropped", lambda s: s.out(sums(s, 0, s.k - 1))),
    *(
        GemmHypothesis(
            "split-k-slice-missing",
            f"slice {i + 1} of {SPLITS} along K is missing",
            _without_slice(i),
            lambda s: s.k >= SPLITS,
        )
        for i in reversed(range(SPLITS))
    ),
    GemmHypothesis(
        "bias-before-scales",
        "the bias is added before the scales",
        lambda s: (sums(s) + s.bias[None, :]) * s.sa[:, None] * s.sb[None, :] if s.bias is not None else sums(s),
        _bias,
    ),
    GemmHypothesis("bias-missing", "the bias is not added", lambda s: s.out(sums(s), bias=0.0), _bias),
    GemmHypothesis("bias-twice", "the bias is added twice", lambda s: s.out(sums(s), bias=2.0), _bias),
    GemmHypothesis(
        "bias-in-each-slice",
        f"each of {SPLITS} split-K slices adds the bias",
        lambda s: s.out(sums(s), bias=float(SPLITS)),
        _bias,
    ),
    GemmHypothesis(
        "weight-in-other-format",
        "the weight's bytes are decoded in the other FP8 format",
        lambda s: _other_format(s, False),
    ),
    GemmHypothesis(
        "operands-in-other-format",
        "both operands are decoded in the other FP8 format",
        lambda s: _other_format(s, True),
    ),
    GemmHypothesis(
        "weight-not-shuffled", "the weight is read as pre-shuffled although it is not", _read_as_shuffled, shufflable
    ),
    GemmHypothesis("weight-shuffled-twice", "the weight is shuffled once more than it is read", _shuffled, shufflable),
    GemmHypothesis(
        "weight-stride-ignored",
        "rows of b are read as packed: the weight is read with row stride K",
        _stride_ignored(False, True),
        lambda s: not s.inputs.b.is_contiguous(),
    ),
    GemmHypothesis(
        "activation-stride-ignored",
        "rows of a are read as packed: the activation is read with row stride K",
        _stride_ignored(True, False),
        lambda s: not s.inputs.a.is_contiguous(),
    ),
    GemmHypothesis(
        "strides-ignored",
        "rows of a and of b are read as packed: both are read with row stride K",
        _stride_ignored(True, True),
        lambda s: not (s.inputs.a.is_contiguous() or s.inputs.b.is_contiguous()),
    ),
    GemmHypothesis(
        "nan-replaced",
        "NaN is replaced by zero",
        lambda s: s.out(sums(s)).nan_to_num(nan=0.0),
        lambda s: bool(sums(s).isnan().any()),
    ),
    GemmHypothesis("nan-spreads", "a NaN row makes its tile of 16 rows NaN", _nan_spread),
    GemmHypothesis(
        "output-truncated",
        "the output is rounded toward zero",
        lambda s: round_to(s.out(sums(s)), s.out_format, "truncate"),
        loose=True,
    ),
    GemmHypothesis(
        "fp16-through-bf16",
        "the fp16 output is rounded to bf16 first",
        lambda s: round_to(s.out(sums(s)), BF16),
        lambda s: s.out_format.name == "fp16",
        loose=True,
    ),
    GemmHypothesis("split-k-in-bf16", "split-K partial sums are rounded to bf16", _slices_rounded, loose=True),
    *(
        GemmHypothesis(
            "split-k-in-bf16",
            f"the sums of {splits} split-K slices of whole 128 products are rounded to bf16",
            _whole_slices_rounded(splits),
            loose=True,
        )
        for splits in (2, 3, 4, 8)
    ),
    *(
        GemmHypothesis(
            "short-accumulator",
            f"the accumulator keeps {bits} bits and truncates, {group} products at a time",
            _kept(bits, group),
            loose=True,
        )
        for bits in (14, 13, 11)
        for group in (32, 16)
    ),
)
