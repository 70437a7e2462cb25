"""How outputs of ``ptpc_gemm`` are explained: a changed field, another contract or unit, known defects, facts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import cast

import torch
from torch import Tensor

from reference.contract import GEMM_CONTRACTS, GemmContract
from reference.formats import bytes_of, round_to, ulp
from reference.ptpc_gemm import GemmTruth, is_emulated, operand, truth_of
from validators.cases.tensors import GemmInputs, GemmOutputs
from validators.explain import nearby
from validators.explain.element_gemm import gemm_lines
from validators.explain.gemm import HYPOTHESES, GemmHypothesis, GemmScene, shufflable, sums
from validators.explain.op import Asked, Diagnosis, ExplainOp
from validators.explain.scoring import Candidate, Evidence, Masks, ranked
from validators.explain.search import change_sentence, named_change, preset_sentence
from validators.explain.units import followed, match_shares, sentences
from validators.records.record import Explanation
from validators.records.wording import MOST, percent_low, vanishes

PROBE_ROWS = 256
SAMPLE_ROWS, SAMPLE_COLS = 64, 256
UNIT_ROWS, UNIT_COLS = 16, 64
TILE_N, TILE_K = 16, 32
"""Tile of the pre-shuffled weight layout (aiter's ``shuffle_weight`` with layout (16, 16)): 16 rows of two halves of 16 bytes."""


class _Sample:
    """Rows and columns of a GEMM, int64, with what the kernel gave there, float64 [m, n]."""

    def __init__(self, inputs: GemmInputs, outputs: GemmOutputs, rows: Tensor, cols: Tensor) -> None:
        self.inputs, self.rows, self.cols = inputs, rows, cols
        self.got = outputs.out[rows][:, cols].double()

    def truth(self, contract: GemmContract) -> GemmTruth:
        return truth_of(self.inputs, contract, self.rows, self.cols)

    def outside(self, contract: GemmContract) -> Tensor:
        """Outputs that the contract does not admit, bool [m, n]."""
        return ~self.truth(contract).admits(self.got)

    def fits(self, contract: GemmContract) -> bool:
        return not bool(self.outside(contract).any())


def _spread(count: int, most: int, first: Tensor) -> Tensor:
    """Up to ``most`` of ``count`` rows or columns: some of ``first``, the two ends, evenly spread ones."""
    even = torch.linspace(0, count - 1, min(count, most), device=first.device).long()
    chosen = torch.cat((first[: most // 2], torch.tensor([count - 1, 0], device=first.device), even))
    return torch.tensor(list(dict.fromkeys(chosen.tolist()))[:most], device=first.device)


def _sample(inputs: GemmInputs, outputs: GemmOutputs, contract: GemmContract) -> _Sample:
    """Violating rows and columns first."""
    m, n = outputs.out.shape
    none = torch.zeros(0, dtype=torch.int64, device=outputs.out.device)
    probe = _Sample(inputs, outputs, _spread(m, PROBE_ROWS, none), _spread(n, SAMPLE_COLS, none))
    bad = probe.outside(contract)
    rows, cols = probe.rows[bad.any(dim=1)], probe.cols[bad.any(dim=0)]
    return _Sample(inputs, outputs, _spread(m, SAMPLE_ROWS, rows), _spread(n, SAMPLE_COLS, cols))


def _diagnose(asked: Asked) -> Diagnosis:
    inputs, outputs, contract = asked.inputs, asked.outputs, asked.contract
    sample = _sample(inputs, outputs, contract)
    truth, bad = sample.truth(contract), sample.outside(contract)
    if not bool(bad.any()):
        return Diagnosis(())
    changes = nearby.changes(contract, nearby.alternatives(contract, inputs), 1)
    near = next((change for change in changes if sample.fits(cast(GemmContract, change.contract))), None)
    first = [] if near is None else [_change_words(near) or change_sentence(near)]
    # "unknown" admits nearly everything at long K, so it explains nothing.
    others = [c for name, c in GEMM_CONTRACTS.items() if name not in (contract.name, "unknown")]
    follows = [preset_sentence(other) for other in others if near is None and sample.fits(other)]
    if not (near or follows) and is_emulated(contract):
        # Another interval, split-K or unit than the presets name. Positive data shows it; on other data many agree.
        shares = match_shares(inputs, outputs, rows=sample.rows[:UNIT_ROWS], cols=sample.cols[:UNIT_COLS])
        follows += followed(shares)
    scene = GemmScene.of(inputs, sample.rows, sample.cols)
    known = ranked(Evidence({"out": bad}, asked.failing), _candidates(scene, sample.got, truth))
    # Beside a defect that explains all, one that explains most is wrong about the rest.
    known = [defect for defect in known if defect.share == 1.0] or known
    more = (*_weight_tile(scene, sample.got, bad), *_bias_direction(sample.got, truth.value, bad))
    return Diagnosis((*first, *follows, *known, *more), nearby.title(near.contract) if near else None)


def _change_words(change: nearby.Change) -> Explanation | None:
    """The name and sentence of a changed field that is a known defect."""
    known = {
        "after_store": ("bias-after-store", "the bias is added after the store"),
        "operands": ("operands-scaled-first", "the scales multiply the operands before the sum"),
    }
    (value,) = change.fields.values()
    return named_change(change, *known[str(value)]) if str(value) in known else None


def _candidates(scene: GemmScene, got: Tensor, truth: GemmTruth) -> Iterator[Candidate]:
    """A defect meets an output that is within the contract's own error of its value, or rounds as it does."""
    for h in HYPOTHESES:
        if h.needs(scene):
            value = h.value(scene)
            error = truth.error * (value.abs() / truth.value.abs()).nan_to_num(1.0, 1.0).clamp(min=1.0)
            close = _close(scene, got, value, h, error)
            compatible: Callable[[], Masks] = partial(dict, out=close | _within(scene, got, value, error))
            yield Candidate(h.slug, h.sentence, {"out": close}, compatible, rounding=h.loose)


def _close(scene: GemmScene, got: Tensor, value: Tensor, h: GemmHypothesis, error: Tensor) -> Tensor:
    both_nan = got.isnan() & value.isnan()
    if h.loose:
        return _within(scene, got, value, torch.zeros_like(error)) | both_nan
    near = (got - value).abs() <= 0.5 * ulp(value, scene.out_format)
    return _within(scene, got, value, error) | near | both_nan


def _within(scene: GemmScene, got: Tensor, value: Tensor, error: Tensor) -> Tensor:
    """Which outputs are the store of a value that is off by at most ``error``."""
    low, high = (round_to(value + sign * error, scene.out_format) for sign in (-1, 1))
    return (got >= low) & (got <= high)


def _weight_tile(scene: GemmScene, got: Tensor, bad: Tensor) -> tuple[Explanation, ...]:
    """Is one 16 x 32 tile of the weight read in the other layout? Only where all violations are in 16 such columns."""
    tiles = torch.unique(scene.cols[bad.any(dim=0)] // TILE_N)
    if len(tiles) != 1 or not shufflable(scene):
        return ()
    first = int(tiles[0]) * TILE_N
    mine = (scene.cols // TILE_N == tiles[0]).nonzero().flatten()
    raw = bytes_of(scene.inputs.b)[first : first + TILE_N]
    total = sums(scene)[:, mine]
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
            near = (got[:, mine] - value).abs() <= ulp(value, scene.out_format)
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


def _without_effect(contract: GemmContract, inputs: GemmInputs) -> set[str]:
    known = contract.accumulator not in ("fp32", "unknown")
    without = {"scaling"} if known else {"splits", "scale_order"}
    return without | (set() if inputs.bias is not None else {"bias"})


def _units(inputs: GemmInputs, outputs: GemmOutputs) -> tuple[str, ...]:
    return sentences(match_shares(inputs, outputs))


EXPLAIN = ExplainOp(
    diagnose=_diagnose,
    # Positive data tells units apart best: on zero-mean data promoted partial sums are often exact.
    cases=(("gaussian", {"n": 128, "k": 1024}), ("positive_mean", {"n": 128, "k": 1024})),
    without_effect=_without_effect,
    lines=gemm_lines,
    units=_units,
    changes=False,
)
