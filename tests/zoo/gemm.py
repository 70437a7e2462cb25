"""Defects of the PTPC GEMM: scales, layouts, tiles, split-K, bias, stores."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.zoo import Defect, first, gemm_case, gemm_defect
from validators.kernels.emulated_gemm import STAGES, GemmStage, GemmWork, accumulate_fp32, accumulate_groups, decode
from validators.kernels.emulated_rounding import round_to, truncate_to

CLEAN = STAGES
SPLITS = 4


def _token_scale_missing(w: GemmWork) -> None:
    w.value = w.accumulator * w.b_scale.view(1, -1)


def _scales_swapped(w: GemmWork) -> None:
    m, n = w.accumulator.shape
    rows, columns = torch.arange(m, device=w.out.device) % n, torch.arange(n, device=w.out.device) % m
    w.value = w.accumulator * w.b_scale.view(-1)[rows, None] * w.a_scale.view(-1)[columns]


def _first_token_scale(w: GemmWork) -> None:
    w.value = w.accumulator * w.a_scale.view(-1)[0] * w.b_scale.view(1, -1)


def _channel_scale_per_tile(w: GemmWork) -> None:
    tile = torch.arange(w.out.shape[1], device=w.out.device) // 16 * 16
    w.value = w.accumulator * w.a_scale.view(-1, 1) * w.b_scale.view(-1)[tile]


def _token_scale_clamped(w: GemmWork) -> None:
    m = len(w.accumulator)
    rows = torch.arange(m, device=w.out.device).clamp(max=m // 16 * 16 if m % 16 else m - 1)
    w.value = w.accumulator * w.a_scale.view(-1)[rows, None] * w.b_scale.view(1, -1)


def _slices(w: GemmWork) -> list[Tensor]:
    """Partial products of the four split-K slices, fp32 [m, n] each."""
    step = -(-w.a_value.shape[1] // SPLITS)
    parts = zip(w.a_value.split(step, 1), w.b_value.split(step, 1), strict=True)
    return [accumulate_fp32(a, b, 128, serial=False) for a, b in parts]


def _k_tail_dropped(w: GemmWork) -> None:
    k = w.a_value.shape[1] // 128 * 128
    w.accumulator = accumulate_fp32(w.a_value[:, :k], w.b_value[:, :k], 128, serial=False)


def _slice_missing(w: GemmWork) -> None:
    parts = _slices(w)
    w.accumulator = sum(parts[:-1], torch.zeros_like(parts[0]))


def _slices_in_bf16(w: GemmWork) -> None:
    parts = [round_to(part, torch.bfloat16).float() for part in _slices(w)]
    w.accumulator = sum(parts, torch.zeros_like(parts[0]))


def _add_to_old_content(w: GemmWork) -> None:
    w.out.add_(w.stored)


def _bias_in_each_slice(w: GemmWork) -> None:
    if w.bias is not None:
        w.value = w.value + SPLITS * w.bias.float()


def _bias_before_scales(w: GemmWork) -> None:
    if w.bias is not None:
        w.accumulator = w.accumulator + w.bias.float()
    CLEAN["scale"](w)


def _no_bias(w: GemmWork) -> None:
    return


def _store_truncated(w: GemmWork) -> None:
    w.stored = w.value if w.out.dtype == torch.float32 else truncate_to(w.value, w.out.dtype)


def _store_through_bf16(w: GemmWork) -> None:
    w.value = round_to(w.value, torch.bfloat16).float()


def _columns_unwritten(w: GemmWork) -> None:
    n = w.out.shape[1] // 128 * 128
    w.out[:, :n] = w.stored[:, :n]


def _rows_unwritten(w: GemmWork) -> None:
    m = len(w.out) // 16 * 16
    w.out[:m] = w.stored[:m]


def _tile_not_launched(w: GemmWork) -> None:
    m, n = w.out.shape
    tiles = (-(-m // 128)) * (-(-n // 128))
    kept = w.out[-128:, -128:].clone()
    w.out.copy_(w.stored)
    # A grid mapped by shifts and masks comes out right only when the tiles are a power of two.
    if tiles >= 16 and tiles & (tiles - 1):
        w.out[-128:, -128:] = kept


def _weight_read_as_shuffled(w: GemmWork) -> None:
    # Whole tiles of 16 rows and 32 columns; shuffled weights have no others.
    n, k = w.b.shape[0] // 16 * 16, w.b.shape[1] // 32 * 32
    w.b = w.b.clone()
    tiles = w.b[:n, :k].reshape(n // 16, k // 32, 2, 16, 16)
    w.b[:n, :k] = tiles.permute(0, 3, 1, 2, 4).reshape(n, k)
    CLEAN["decode"](w)


def _weight_stride_ignored(w: GemmWork) -> None:
    w.b = w.b.as_strided(w.b.shape, (w.b.shape[1], 1))
    CLEAN["decode"](w)


def _weight_in_other_format(w: GemmWork) -> None:
    w.a_value = decode(w.a, w.fp8[0])
    w.b_value = decode(w.b, "e4m3fnuz" if w.fp8[1] == "e4m3fn" else "e4m3fn")


def _nan_spreads(w: GemmWork) -> None:
    bad = w.accumulator.isnan().any(1)
    tiles = torch.nn.functional.pad(bad, (0, -len(bad) % 16)).view(-1, 16).any(1)
    w.accumulator[tiles.repeat_interleave(16)[: len(bad)]] = float("nan")


def _order_by_coin() -> GemmStage:
    calls = 0

    def accumulate(w: GemmWork) -> None:
        nonlocal calls
        calls += 1
        # Alternating is the least random coin: two runs of one case always meet both orders.
        parts = _slices(w)[:: -1 if calls % 2 else 1]
        w.accumulator = sum(parts, torch.zeros_like(parts[0]))

    return accumulate


def _short_accumulator(w: GemmWork) -> None:
    def keep_14_bits(total: Tensor) -> Tensor:
        return (total.view(torch.int32) & ~0x3FF).view(torch.float32)

    w.accumulator = accumulate_groups(w.a_value, w.b_value, keep_14_bits)


def defects() -> list[Defect]:
    """G01 to G21, and the short accumulator XG7."""
    gaussian, scales = gemm_case("gaussian"), gemm_case("scale_ladder")
    integers, bias = gemm_case("small_integers"), gemm_case("gaussian", bias=True)
    k_tail = gemm_case("one_hot_k", m=288, n=32, k=288)
    make, accumulate = gemm_defect, CLEAN["accumulate"]
    return [
        make(
            "G01",
            "token-scale-missing",
            "The activation scale is not applied.",
            scales,
            gaussian,
            report="vllm-project/vllm#53338",
            scale=_token_scale_missing,
        ),
        make(
            "G02",
            "scales-swapped",
            "Activation scales go to columns and weight scales to rows.",
            scales,
            report="vllm-project/compressed-tensors#393",
            scale=_scales_swapped,
        ),
        make(
            "G03",
            "first-token-scale",
            "Every row gets the first row's scale.",
            scales,
            report="ROCm/aiter#1258",
            scale=_first_token_scale,
        ),
        make(
            "G04",
            "channel-scale-per-tile",
            "16 columns share the scale of the first of them.",
            scales,
            report="ROCm/rocm-libraries#11724",
            scale=_channel_scale_per_tile,
        ),
        make(
            "G05",
            "token-scale-clamped",
            "In the last, partial tile of rows all rows use the scale of the tile's first.",
            gemm_case("scale_ladder", m=37),
            report="ROCm/aiter#4546",
            scale=_token_scale_clamped,
        ),
        make(
            "G06",
            "k-tail-dropped",
            "The last k % 128 products are left out.",
            k_tail,
            report="pytorch/FBGEMM#6159",
            accumulate=_k_tail_dropped,
        ),
        make(
            "G07",
            "split-k-slice-missing",
            "One of four split-K slices is not added.",
            gaussian,
            integers,
            report="ROCm/aiter#2335",
            accumulate=_slice_missing,
        ),
        make(
            "G08",
            "split-k-in-bf16",
            "Split-K partial sums are stored in bf16.",
            gaussian,
            gemm_case("cancellation"),
            report="ROCm/aiter#2567",
            accumulate=_slices_in_bf16,
        ),
        make(
            "G09",
            "adds-to-old-content",
            "The result is added to what the output buffer held.",
            integers,
            gaussian,
            report="ROCm/aiter#3997",
            write=_add_to_old_content,
        ),
        make("G10", "bias-in-each-slice", "Each of four split-K slices adds the bias.", bias, bias=_bias_in_each_slice),
        make(
            "G11",
            "bias-before-scales",
            "The bias is added before the scales.",
            bias,
            report="ROCm/aiter#1841",
            scale=_bias_before_scales,
            bias=_no_bias,
        ),
        make("G12", "output-truncated", "The output is rounded toward zero.", gaussian, store=_store_truncated),
        make(
            "G13",
            "fp16-through-bf16",
            "An fp16 output has passed through bf16.",
            gemm_case("gaussian", dtype="fp16"),
            report="ROCm/aiter#665",
            store=first(_store_through_bf16, CLEAN["store"]),
        ),
        make(
            "G14",
            "column-tail-unwritten",
            "Columns past the last whole 128 are not written.",
            gemm_case("small_integers", n=160),
            report="ROCm/aiter#3220",
            write=_columns_unwritten,
        ),
        make(
            "G15",
            "row-tail-unwritten",
            "Rows past the last whole 16 are not written.",
            gemm_case("small_integers", m=37),
            report="ROCm/aiter#3223",
            write=_rows_unwritten,
        ),
        make(
            "G16",
            "tile-never-launched",
            "In a large grid that is no power of two the last tile never runs.",
            gemm_case("small_integers", m=640, n=640, k=32),
            report="ROCm/aiter#3445",
            write=_tile_not_launched,
        ),
        make(
            "G17",
            "weight-not-shuffled",
            "A plain weight is read as a pre-shuffled one.",
            integers,
            gaussian,
            report="ROCm/aiter#671",
            decode=_weight_read_as_shuffled,
        ),
        make(
            "G18",
            "weight-stride-ignored",
            "A padded weight is read with row stride k.",
            gemm_case("small_integers", layout="strided"),
            report="ROCm/aiter#2466",
            decode=_weight_stride_ignored,
        ),
        make(
            "G19",
            "weight-in-other-format",
            "e4m3fn weight bytes are read as e4m3fnuz: half of every value.",
            integers,
            gaussian,
            report="ROCm/aiter#4051",
            decode=_weight_in_other_format,
        ),
        make(
            "G20",
            "nan-spreads",
            "A NaN row makes its whole tile of 16 rows NaN.",
            gemm_case("nan_row"),
            report="vllm-project/vllm#40047",
            accumulate=first(accumulate, _nan_spreads),
        ),
        make(
            "G21",
            "order-by-coin",
            "The order in which split-K slices are added changes from call to call.",
            gemm_case("gaussian", m=256, n=256, k=1024, dtype="fp16"),
            gemm_case("random_bytes", m=256, n=256, k=1024, dtype="fp16"),
            report="ROCm/aiter#3261",
            accumulate=_order_by_coin(),
        ),
        make(
            "XG7",
            "short-accumulator",
            "The accumulator keeps 14 significant bits and cuts off the rest.",
            gemm_case("positive_mean", k=4096),
            gaussian,
            report="deepseek-ai/DeepGEMM#37",
            accumulate=_short_accumulator,
        ),
    ]
