"""Defects of the residual add and of the norm. Most of them leave every code right: only the scale shows them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.zoo import Defect, first, lanes_lost, norm_case, norm_quant_defect
from validators.kernels.emulated import STAGES, Stage, Work
from validators.kernels.emulated_rounding import square_root

CLEAN = STAGES["add_rmsnorm_quant"]
# Rows further than this from the start wrap around in N21; a real kernel wraps at 2**31 or 2**32 elements.
WRAP_ELEMENTS = 1 << 15


def _store_residual_unchanged(w: Work) -> None:
    if w.residual is not None:
        w.stored = w.residual


def _ignore_residual(w: Work) -> None:
    w.z = w.x.float()


def _mean_of_padded_row(w: Work) -> None:
    w.mean = w.square_sum / (-(-w.z.shape[-1] // 1024) * 1024)


def _sum_over(drop: Callable[[Tensor], Tensor]) -> Stage:
    """Sums ``drop(z)`` in the declared order, so that nothing but the lost elements changes."""

    def square_sum(w: Work) -> None:
        z = w.z
        w.z = drop(z)
        CLEAN["square_sum"](w)
        w.z = z

    return square_sum


def _tail_lost(z: Tensor) -> Tensor:
    n = z.shape[-1]
    return torch.where(torch.arange(n, device=z.device) < n // 8 * 8, z, 0.0)


def _sum_into_next_row(w: Work) -> None:
    if w.z.shape[-1] % 2:
        w.square_sum[:-1] += w.z[1:, :1].square()


def _no_eps(w: Work) -> None:
    w.variance = w.mean


def _eps_after_root(w: Work) -> None:
    w.rms = 1.0 / (square_root(w.mean) + w.eps)


def _fixed_eps(w: Work) -> None:
    w.variance = w.mean + 1e-6


def _relative_eps(w: Work) -> None:
    w.variance = w.mean + w.eps * w.z.abs().amax(-1, keepdim=True).square()


def _gamma_plus_one(w: Work) -> None:
    w.gamma = w.gamma + 1.0


def _gamma_bytes_as_storage_type(w: Work) -> None:
    assert w.weight is not None
    w.gamma = w.weight.view(w.x.dtype)[: w.z.shape[-1]].float()


def _gamma_not_interleaved(w: Work) -> None:
    n = w.gamma.shape[-1] // 16 * 16
    head = w.gamma[:n].view(2, n // 16, 8).transpose(0, 1).reshape(n)
    w.gamma = torch.cat([head, w.gamma[n:]])


def _residual_overwritten_by_norm(w: Work) -> None:
    w.stored = w.stored.clone()
    w.stored[:, 16:24] = (w.z * w.rms)[:, 16:24].to(w.stored.dtype)


def _x_without_row_stride(w: Work) -> None:
    w.total = w.x.as_strided(w.x.shape, (w.x.shape[-1], 1)).float()


def _residual_with_x_stride(w: Work) -> None:
    if w.residual is None:
        return
    # Beyond the end of a smaller tensor the hardware's bounds check reads zero.
    size = w.residual.untyped_storage().nbytes() // w.residual.element_size()
    flat = w.residual.as_strided((size,), (1,), 0)
    device = w.x.device
    rows = torch.arange(len(w.x), device=device)[:, None] * w.x.stride(0)
    index = rows + torch.arange(w.x.shape[-1], device=device) + int(w.residual.storage_offset())
    w.total += flat[index.clamp(max=size - 1)].float().masked_fill(index >= size, 0.0)


def _last_row_unwritten(w: Work) -> None:
    if len(w.codes) % 2 == 0:
        CLEAN["write"](w)
        return
    w.out_codes[:-1] = w.codes[:-1]
    w.out_scale[:-1] = w.scale[:-1]
    if w.out_residual is not None:
        w.out_residual[:-1] = w.stored[:-1]


def _row_offset_wraps(w: Work) -> None:
    rows = torch.arange(len(w.x), device=w.x.device)
    w.total = w.total[rows % max(1, WRAP_ELEMENTS // w.x.shape[-1])]


def _x_overwritten(w: Work) -> None:
    w.x.copy_(w.stored)


def defects() -> list[Defect]:
    """N01 to N22."""
    gaussian = norm_case("gaussian")
    ragged = norm_case("gaussian", n=769)
    tail = norm_case("energy_walk", n=516)
    ladder = norm_case("magnitude_ladder")
    make = norm_quant_defect
    return [
        make(
            "N01",
            "residual-not-added",
            "residual_out is the incoming residual instead of the sum.",
            gaussian,
            norm_case("cancellation"),
            report="sgl-project/sglang#31403",
            write=first(_store_residual_unchanged, CLEAN["write"]),
        ),
        make(
            "N02",
            "residual-ignored-by-norm",
            "The norm reads x alone while residual_out is right.",
            gaussian,
            norm_case("cancellation"),
            report="sgl-project/sglang#31403",
            norm_input=_ignore_residual,
        ),
        make(
            "N03",
            "norm-of-stored-residual",
            "The norm reads the rounded residual, the unrounded sum is declared.",
            gaussian,
            norm_case("gaussian", n=5120),
            report="ROCm/aiter#1507",
            executes={"norm_input": "stored"},
        ),
        make(
            "N04",
            "residual-truncated",
            "residual_out is rounded toward zero.",
            norm_case("residual_ties"),
            gaussian,
            report="ROCm/aiter#2011",
            executes={"residual_store": "truncate"},
        ),
        make(
            "N05",
            "mean-of-padded-row",
            "The sum of squares is divided by n rounded up to a multiple of 1024.",
            gaussian,
            norm_case("gaussian", n=5124),
            report="vllm-project/vllm#44692",
            mean=_mean_of_padded_row,
        ),
        make(
            "N06",
            "tail-not-in-sum",
            "The sum of squares leaves out the last n % 8 columns.",
            ragged,
            tail,
            report="flashinfer-ai/flashinfer#634",
            square_sum=_sum_over(_tail_lost),
        ),
        make(
            "N07",
            "half-wave-not-in-sum",
            "The sum of squares leaves out half of the lanes of every wave.",
            gaussian,
            norm_case("energy_walk"),
            report="vllm-project/vllm#3262",
            square_sum=_sum_over(lanes_lost(8)),
        ),
        make(
            "N08",
            "next-row-in-sum",
            "On odd n the sum of squares takes the first element of the next row along.",
            ragged,
            report="ROCm/aiter#5044",
            square_sum=first(CLEAN["square_sum"], _sum_into_next_row),
        ),
        make("N09", "no-eps", "eps is left out.", ladder, norm_case("zero_rows"), variance=_no_eps),
        make(
            "N10",
            "eps-after-root",
            "eps is added to the root instead of to the mean square.",
            ladder,
            gaussian,
            report="NVIDIA/TransformerEngine#364",
            rsqrt=_eps_after_root,
        ),
        make(
            "N11",
            "fixed-eps",
            "eps is 1e-6 whatever is asked for.",
            ladder,
            report="apache/tvm#15856",
            variance=_fixed_eps,
        ),
        make(
            "N12",
            "relative-eps",
            "eps is multiplied by the row's largest square.",
            norm_case("crest_ladder"),
            gaussian,
            report="apple/coremltools#2822",
            variance=_relative_eps,
        ),
        make(
            "N13",
            "gamma-plus-one",
            "The weight is taken as 1 + weight without being asked.",
            gaussian,
            report="ROCm/aiter#3872",
            gamma=first(CLEAN["gamma"], _gamma_plus_one),
        ),
        make(
            "N14",
            "gamma-bytes-misread",
            "An fp32 weight is read as if it were of the storage type.",
            norm_case("gaussian", gamma="fp32"),
            report="ROCm/aiter#4567",
            gamma=_gamma_bytes_as_storage_type,
        ),
        make(
            "N15",
            "norm-rounded-to-storage",
            "Both products of the norm are rounded to T where fp32 is declared.",
            norm_case("gaussian_gain"),
            norm_case("double_rounding"),
            report="vllm-project/vllm#42379",
            executes={"round_after_normalize": True, "round_after_weight": True},
        ),
        make(
            "N16",
            "gamma-not-interleaved",
            "The weight is read in order while x is interleaved over the lanes.",
            norm_case("gaussian_gain"),
            gamma=first(CLEAN["gamma"], _gamma_not_interleaved),
        ),
        make(
            "N17",
            "residual-overwritten",
            "A vector of eight columns of residual_out holds normalised values.",
            gaussian,
            report="ROCm/aiter#2011",
            write=first(_residual_overwritten_by_norm, CLEAN["write"]),
        ),
        make(
            "N18",
            "x-stride-ignored",
            "x is read with row stride n although its rows are further apart.",
            norm_case("gaussian", layout="strided"),
            report="vllm-project/vllm#19452",
            load=_x_without_row_stride,
        ),
        make(
            "N19",
            "residual-read-with-x-stride",
            "The residual is read with the row stride of x.",
            norm_case("gaussian", layout="strided"),
            report="ROCm/aiter#1658",
            add=_residual_with_x_stride,
        ),
        make(
            "N20",
            "last-odd-row-unwritten",
            "With two rows per block the last row of an odd m is never written.",
            norm_case("gaussian", m=63),
            norm_case("gaussian", m=1),
            report="ROCm/aiter#4244",
            write=_last_row_unwritten,
        ),
        make(
            "N21",
            "row-offset-wraps",
            f"The offset of a row of x + r is taken modulo {WRAP_ELEMENTS} elements.",
            norm_case("gaussian", m=128),
            report="vllm-project/vllm#9425",
            add=first(CLEAN["add"], _row_offset_wraps),
        ),
        make(
            "N22",
            "x-overwritten",
            "x is used as scratch space: its memory holds the sum afterwards.",
            gaussian,
            report="pytorch/pytorch#153389",
            write=first(CLEAN["write"], _x_overwritten),
        ),
    ]
