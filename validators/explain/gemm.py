"""Which known defect would have produced these outputs of a PTPC GEMM?

Each hypothesis predicts the exact value of every sampled output under one defect; it explains a violation if the
kernel's output lies within the contract's own budget of that value. Diagnosis only; see ``norm``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from reference.accumulators import slices
from reference.contract import GEMM_CONTRACTS, GemmContract
from reference.formats import BF16, E4M3FN, E4M3FNUZ, FloatFormat, bytes_of, exponent_of, format_of, pow2, round_to, ulp
from reference.ptpc_gemm import GemmTruth, emulated_truth, gemm_truth, is_emulated, operand
from validators.cases.tensors import GemmInputs, GemmOutputs
from validators.explain import nearby
from validators.explain.nearby import Change
from validators.explain.units import followed, match_shares
from validators.records.record import Explanation
from validators.records.wording import LEAST, MOST, percent_low, vanishes

SAMPLE_ROWS = 64
SAMPLE_COLS = 256
SPLITS = 4
TILE_N, TILE_K = 16, 32
"""Tile of the pre-shuffled weight layout (aiter's ``shuffle_weight`` with layout (16, 16)): 16 rows of two halves of 16 bytes."""
UNIT_ROWS, UNIT_COLS = 16, 64


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


def _dot(scene: GemmScene, first: int = 0, last: int | None = None) -> Tensor:
    return scene.a[:, first:last] @ scene.b[:, first:last].T


def _slice_bounds(scene: GemmScene, index: int) -> tuple[int, int]:
    step = -(-scene.k // SPLITS)
    return index * step, min(scene.k, (index + 1) * step)


def _without_slice(index: int) -> Callable[[GemmScene], Tensor]:
    return lambda s: s.out(_dot(s) - _dot(s, *_slice_bounds(s, index)))


def _slices_rounded(scene: GemmScene) -> Tensor:
    parts = [round_to(_dot(scene, *_slice_bounds(scene, i)), BF16) for i in range(SPLITS)]
    return scene.out(sum(parts, torch.zeros_like(parts[0])))


def _whole_slices_rounded(splits: int) -> Callable[[GemmScene], Tensor]:
    def value(scene: GemmScene) -> Tensor:
        parts = [round_to(_dot(scene, first, last), BF16) for first, last in slices(scene.k, splits)]
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
    return scene.out(_dot(scene), sb[scene.rows % len(sb)], sa[scene.cols % len(sa)])


def _clamped_rows(scene: GemmScene) -> Tensor:
    sa = _all(scene, "a_scale")
    m = len(sa)
    return scene.out(_dot(scene), sa[scene.rows.clamp(max=m // 16 * 16 if m % 16 else m - 1)])


def _neighbour(scene: GemmScene) -> Tensor:
    sa = _all(scene, "a_scale")
    return scene.out(_dot(scene), sa[(scene.rows - 1) % len(sa)])


def _exchanged(scene: GemmScene) -> Tensor:
    sa = _all(scene, "a_scale")
    return scene.out(_dot(scene), sa[(scene.rows ^ 1).clamp(max=len(sa) - 1)])


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
    """The bytes of ``codes`` [R, K] as a kernel meets them that takes its rows to lie side by side."""
    raw = codes.view(torch.uint8)
    return raw.as_strided(raw.shape, (raw.shape[1], 1))


def _stride_ignored(a: bool, b: bool) -> Callable[[GemmScene], Tensor]:
    def value(scene: GemmScene) -> Tensor:
        left = operand(_packed(scene.inputs.a)[scene.rows], scene.fmt) if a else scene.a
        right = operand(_packed(scene.inputs.b)[scene.cols], scene.fmt) if b else scene.b
        return scene.out(left @ right.T)

    return value


def _nan_spread(scene: GemmScene) -> Tensor:
    value = scene.out(_dot(scene))
    bad = operand(scene.inputs.a, scene.fmt).isnan().any(dim=1)
    tiles = torch.nn.functional.pad(bad, (0, -len(bad) % 16)).view(-1, 16).any(1).repeat_interleave(16)[: len(bad)]
    return torch.where(tiles[scene.rows][:, None], torch.full_like(value, float("nan")), value)


def _bf16_scales(scene: GemmScene) -> Tensor:
    return scene.out(_dot(scene), round_to(scene.sa, BF16), round_to(scene.sb, BF16))


def _kept_bits(scene: GemmScene, bits: int, group: int) -> Tensor:
    """A chain that adds groups of products and keeps ``bits`` significant bits by truncation."""
    total = torch.zeros(scene.a.shape[0], scene.b.shape[0], dtype=torch.float64, device=scene.a.device)
    for first in range(0, scene.k, group):
        total = total + _dot(scene, first, first + group)
        step = pow2(exponent_of(total).clamp(min=-900) + 1 - bits)
        total = (total / step).trunc() * step
    return scene.out(total)


def _kept(bits: int, group: int) -> Callable[[GemmScene], Tensor]:
    return lambda scene: _kept_bits(scene, bits, group)


def _bias(scene: GemmScene) -> bool:
    return scene.bias is not None


def _shufflable(scene: GemmScene) -> bool:
    n, k = scene.inputs.b.shape
    return n % 16 == 0 and k % 32 == 0


HYPOTHESES: tuple[GemmHypothesis, ...] = (
    GemmHypothesis(
        "token-scale-missing", "the token scale is not applied", lambda s: s.out(_dot(s), sa=torch.ones_like(s.sa))
    ),
    GemmHypothesis(
        "channel-scale-missing", "the channel scale is not applied", lambda s: s.out(_dot(s), sb=torch.ones_like(s.sb))
    ),
    GemmHypothesis("token-scale-twice", "the token scale is applied twice", lambda s: s.out(_dot(s), sa=s.sa**2)),
    GemmHypothesis("scales-swapped", "token scales are applied to columns and channel scales to rows", _swapped),
    GemmHypothesis(
        "first-token-scale",
        "the first token's scale is used for every row",
        lambda s: s.out(_dot(s), sa=_all(s, "a_scale")[:1].expand_as(s.sa)),
    ),
    GemmHypothesis(
        "first-channel-scale",
        "the first channel's scale is used for every column",
        lambda s: s.out(_dot(s), sb=_all(s, "b_scale")[:1].expand_as(s.sb)),
    ),
    GemmHypothesis(
        "channel-scale-per-tile",
        "each tile of 16 columns uses its first channel's scale",
        lambda s: s.out(_dot(s), sb=_all(s, "b_scale")[s.cols // 16 * 16]),
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
        lambda s: s.out(_dot(s, 0, s.k // 128 * 128)),
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
    GemmHypothesis("last-k-dropped", "the last product of the sum is dropped", lambda s: s.out(_dot(s, 0, s.k - 1))),
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
        lambda s: (_dot(s) + s.bias[None, :]) * s.sa[:, None] * s.sb[None, :] if s.bias is not None else _dot(s),
        _bias,
    ),
    GemmHypothesis("bias-missing", "the bias is not added", lambda s: s.out(_dot(s), bias=0.0), _bias),
    GemmHypothesis("bias-twice", "the bias is added twice", lambda s: s.out(_dot(s), bias=2.0), _bias),
    GemmHypothesis(
        "bias-in-each-slice",
        f"each of {SPLITS} split-K slices adds the bias",
        lambda s: s.out(_dot(s), bias=float(SPLITS)),
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
        "weight-not-shuffled", "the weight is read as pre-shuffled although it is not", _read_as_shuffled, _shufflable
    ),
    GemmHypothesis("weight-shuffled-twice", "the weight is shuffled once more than it is read", _shuffled, _shufflable),
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
        lambda s: s.out(_dot(s)).nan_to_num(nan=0.0),
        lambda s: bool(_dot(s).isnan().any()),
    ),
    GemmHypothesis("nan-spreads", "a NaN row makes its tile of 16 rows NaN", _nan_spread),
    GemmHypothesis(
        "output-truncated",
        "the output is rounded toward zero",
        lambda s: round_to(s.out(_dot(s)), s.out_format, "truncate"),
        loose=True,
    ),
    GemmHypothesis(
        "fp16-through-bf16",
        "the fp16 output is rounded to bf16 first",
        lambda s: round_to(s.out(_dot(s)), BF16),
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


def _sample(count: int, most: int, worst: Tensor, device: torch.device) -> Tensor:
    spread = torch.linspace(0, count - 1, min(count, most), device=device).long()
    chosen = torch.cat((worst[: most // 2].to(device), torch.tensor([count - 1, 0], device=device), spread))
    return torch.tensor(list(dict.fromkeys(chosen.tolist()))[:most], device=device)


def _scene(inputs: GemmInputs, fmt: FloatFormat, out_format: FloatFormat, rows: Tensor, cols: Tensor) -> GemmScene:
    """The rows of a and of b (the columns of the output) with what belongs to them."""
    return GemmScene(
        rows,
        cols,
        operand(bytes_of(inputs.a)[rows], fmt),
        operand(bytes_of(inputs.b)[cols], fmt),
        inputs.a_scale.reshape(-1)[rows].double(),
        inputs.b_scale.reshape(-1)[cols].double(),
        None if inputs.bias is None else inputs.bias[cols].double(),
        inputs,
        fmt,
        out_format,
    )


def explain_gemm(
    inputs: GemmInputs, outputs: GemmOutputs, contract: GemmContract
) -> tuple[tuple[Explanation, ...], str | None]:
    """(explanations, best first; the contract with one changed field that fits, in words, or None).

    Looks at violating rows and columns first.
    """
    m, n = outputs.out.shape
    device = outputs.out.device
    fmt, out_format = format_of(inputs.a.dtype), format_of(outputs.out.dtype)
    scene_of = functools.partial(_scene, inputs, fmt, out_format)

    def truth_of(scene: GemmScene, contract: GemmContract) -> GemmTruth:
        bias = None if inputs.bias is None else inputs.bias[scene.cols]
        sa, sb = scene.sa.float(), scene.sb.float()
        if is_emulated(contract):
            codes = bytes_of(inputs.a)[scene.rows], bytes_of(inputs.b)[scene.cols]
            return emulated_truth(*codes, fmt, sa, sb, bias, out_format, contract)
        return gemm_truth(scene.a, scene.b, sa, sb, bias, out_format, contract)

    def bad_of(scene: GemmScene, contract: GemmContract = contract) -> Tensor:
        truth = truth_of(scene, contract)
        got = outputs.out[scene.rows][:, scene.cols].double()
        inside = (got >= truth.low) & (got <= truth.high)
        return ~torch.where(truth.value.isnan(), got.isnan(), inside)

    every = torch.arange(m, device=device), torch.arange(n, device=device)
    probe = scene_of(_sample(m, 256, every[0][:0], device), _sample(n, SAMPLE_COLS, every[1][:0], device))
    bad = bad_of(probe)
    rows = _sample(m, SAMPLE_ROWS, probe.rows[bad.any(dim=1)], device)
    cols = _sample(n, SAMPLE_COLS, probe.cols[bad.any(dim=0)], device)
    scene = scene_of(rows, cols)
    bad = bad_of(scene)
    if not bool(bad.any()):
        return (), None
    got = outputs.out[rows][:, cols].double()
    truth = truth_of(scene, contract)
    near = _one_field(inputs, contract, lambda other: not bool(bad_of(scene, other).any()))
    follows = []
    for name, other in GEMM_CONTRACTS.items():
        # "unknown" admits nearly everything at long K, so it explains nothing.
        if near is None and name not in (contract.name, "unknown") and not bool(bad_of(scene, other).any()):
            words = f"it is judged under the contract {name!r} ({other.source})"
            follows.append(vanishes(name, words, kind="contract"))
    if not (near or follows) and is_emulated(contract):
        # Another interval, split-K or unit than the presets name. Positive data shows it; on other data many agree.
        shares = match_shares(inputs, outputs, rows=rows[:UNIT_ROWS], cols=cols[:UNIT_COLS])
        follows += followed(shares)
    found = _defects(scene, got, bad, truth)
    note = f" (contract {near.contract.name})" if near else ""
    first = (vanishes(*_named(near), note=note, kind="field"),) if near else ()
    more = (*_weight_tile(scene, got, bad, out_format), *_bias_direction(got, truth.value, bad))
    return (*first, *follows, *found, *more), nearby.title(near.contract) if near else None


def _one_field(inputs: GemmInputs, contract: GemmContract, fits: Callable[[GemmContract], bool]) -> Change | None:
    """The declared contract with one other field, where that fits."""
    for change in nearby.changes(contract, nearby.alternatives(contract, inputs), 1):
        if fits(cast(GemmContract, change.contract)):
            return change
    return None


def _named(change: Change) -> tuple[str, str]:
    """Slug and sentence of a changed field."""
    (field, value), *_ = change.fields.items()
    slugs = {"after_store": "bias-after-store", "operands": "operands-scaled-first"}
    sentences_of = {
        "bias-after-store": "the bias is added after the store",
        "operands-scaled-first": "the scales multiply the operands before the sum",
    }
    slug = slugs.get(str(value), f"{field}={value}")
    return slug, sentences_of.get(slug, f"the contract has {nearby.field_words(field, value)}")


def _defects(scene: GemmScene, got: Tensor, bad: Tensor, truth: GemmTruth) -> list[Explanation]:
    """Known defects that meet violations and that no right element contradicts, best first."""
    out_format, scored = scene.out_format, []
    for position, h in enumerate(HYPOTHESES):
        if not h.needs(scene):
            continue
        value = h.value(scene)
        spread = truth.error * (value.abs() / truth.value.abs()).nan_to_num(1.0, 1.0).clamp(min=1.0)
        width = torch.zeros_like(spread) if h.loose else spread
        close = (got >= round_to(value - width, out_format)) & (got <= round_to(value + width, out_format))
        close |= (got - value).abs() <= 0.5 * ulp(value, out_format) if not h.loose else torch.zeros_like(close)
        close |= got.isnan() & value.isnan()
        near = close | ((got >= round_to(value - spread, out_format)) & (got <= round_to(value + spread, out_format)))
        explained, against = int((close & bad).sum()), int((~near & ~bad).sum())
        if against > (1 - MOST) * explained:
            continue  # right elements contradict it
        kept = int((~bad).sum())
        broken = float((~close & ~bad).sum()) / kept if kept and not h.loose else 0.0
        scored.append((round(max(0.0, explained / int(bad.sum()) - broken), 3), round(broken, 4), -position, h))
    scored.sort(key=lambda s: (s[0], -s[1], s[2]), reverse=True)
    # Beside a defect that explains all, one that explains most is wrong about the rest.
    scored = [s for s in scored if s[0] == 1.0] or scored
    return [vanishes(h.slug, h.sentence, share) for share, _, _, h in scored[:3] if share > LEAST]


def _weight_tile(scene: GemmScene, got: Tensor, bad: Tensor, out_format: FloatFormat) -> tuple[Explanation, ...]:
    """Is one 16 x 32 tile of the weight read in the other layout? Only where all violations lie in 16 such columns."""
    tiles = torch.unique(scene.cols[bad.any(dim=0)] // TILE_N)
    if len(tiles) != 1 or not _shufflable(scene):
        return ()
    first = int(tiles[0]) * TILE_N
    mine = (scene.cols // TILE_N == tiles[0]).nonzero().flatten()
    raw = bytes_of(scene.inputs.b)[first : first + TILE_N]
    total = _dot(scene)[:, mine]
    for k in range(0, scene.k, TILE_K):
        tile = raw[:, k : k + TILE_K]
        layouts = {
            "shuffled although it is not": tile.reshape(2, TILE_N, 16).permute(1, 0, 2).reshape(TILE_N, TILE_K),
            "plain although it is shuffled": tile.reshape(TILE_N, 2, 16).permute(1, 0, 2).reshape(TILE_N, TILE_K),
        }
        for words, other in layouts.items():
            change = operand(other, scene.fmt)[scene.cols[mine] - first] - scene.b[mine][:, k : k + TILE_K]
            value = (total + scene.a[:, k : k + TILE_K] @ change.T) * scene.sa[:, None] * scene.sb[mine][None, :]
            value = value if scene.bias is None else value + scene.bias[mine][None, :]
            near = (got[:, mine] - value).abs() <= ulp(value, out_format)
            if float((near & bad[:, mine]).sum()) >= MOST * int(bad[:, mine].sum()):
                where = f"rows {first} to {first + TILE_N - 1} of the weight, k {k} to {k + TILE_K - 1}"
                return (vanishes("weight-tile-misread", f"the tile at {where} is read as {words}"),)
    return ()


def _bias_direction(got: Tensor, value: Tensor, bad: Tensor) -> tuple[Explanation, ...]:
    """One-sided errors in words: what a short or truncating accumulator looks like."""
    usable = bad & value.isfinite() & got.isfinite() & (value != 0)
    if int(usable.sum()) < 16:
        return ()
    ratio = (got[usable] / value[usable]) - 1.0
    low = float((ratio < 0).double().mean())
    lost = percent_low(-float(ratio.median()))
    # Beyond 100 % outputs have another sign: that is no loss of magnitude.
    if low > 0.99 and lost:
        words = f"outputs are low in magnitude by {lost} (median): truncation or lost products"
        return (Explanation("", words, kind="observation"),)
    return ()
