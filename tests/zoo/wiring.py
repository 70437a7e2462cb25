"""Wiring defects: a model path with one method wrong, as serving engines have had it wrong. The kernels are right."""

from __future__ import annotations

from dataclasses import dataclass

from tests.zoo import paths
from tests.zoo.paths import AT
from validators.layers.path import KernelPath


@dataclass(frozen=True)
class WiringDefect:
    """id: ``W04``. name: slug. path: the wrong wiring. layer, step: where the walk must place it first.

    real_report: ``owner/repo#number`` of a real bug of this kind, or "". tokens, tp: the walk that shows it.
    """

    id: str
    name: str
    path: type[KernelPath]
    layer: int
    step: str
    summary: str
    real_report: str = ""
    tokens: int = 16
    tp: int = 1


_NAMES = {
    "W01": ("quantized-twice",),
    "W02": ("unfused-path",),
    "W03": ("outputs-exchanged",),
    "W04": ("first residual",),
    "W05": ("first residual",),
    "W06": ("weight-plus-one",),
    "W07": ("token-scale-along-columns",),
    "W08": ("scale-of-an-earlier-call",),
    "W09": ("other-ranks-weight-scale",),
    "W10": ("weight-shuffled-twice",),
    "W11": ("weight-scale-doubled",),
    "W12": ("products-lost",),
    "W13": ("products-lost",),
    "W14": ("other-ranks-token-scale",),
    "W15": ("residual-kept",),
    "W16": ("sum-not-rounded",),
    # Codes reach 448, so quantizing them again gives the same codes with a scale of 1: one defect in two dresses.
    "W17": ("token-scale-dropped", "quantized-twice"),
    "W18": ("normed-again",),
    # It ends in an exception of its own, which says where.
    "W19": ("the step raised",),
    "W20": ("first residual",),
    "W21": ("first residual",),
    "W22": ("stale-residual",),
    "W23": ("layer-before",),
    "W24": ("layer-before",),
    "W25": ("bias-lost",),
    "W26": ("bias-twice",),
    "W27": ("unfused-path",),
}


def accepted_names(defect: WiringDefect) -> tuple[str, ...]:
    """How the first explanation, or the reason where there is none, may begin: the defect in the walk's words."""
    return _NAMES[defect.id]


_INPUT, _POST = "input_layernorm", "post_attention_layernorm"
DEFECTS = (
    WiringDefect(
        "W01",
        "quantized-twice",
        paths.QuantizedTwice,
        0,
        "qkv_proj",
        "the codes are quantized as if they were values",
    ),
    WiringDefect(
        "W02", "substring-route", paths.SubstringRoute, 0, _INPUT, "'fp8' in quant_format takes the group scales"
    ),
    WiringDefect(
        "W03",
        "outputs-swapped",
        paths.Swapped,
        1,
        _POST,
        "normed and residual are unpacked in the other order",
        "ROCm/aiter#1522",
    ),
    WiringDefect(
        "W04",
        "first-garbage",
        paths.FirstResidualGarbage,
        0,
        _INPUT,
        "uninitialised memory is the first residual",
        "vllm-project/vllm#41972",
    ),
    WiringDefect(
        "W05",
        "first-normed",
        paths.FirstResidualNormed,
        0,
        _INPUT,
        "the first norm's output becomes the stream",
        "vllm-project/vllm#41972",
    ),
    WiringDefect(
        "W06",
        "arguments-shifted",
        paths.ArgumentsShifted,
        0,
        _INPUT,
        "a group size lands in the flag that adds one to the weight",
        "ROCm/aiter#3872",
    ),
    WiringDefect(
        "W07",
        "scale-along-columns",
        paths.ScaleAlongColumns,
        0,
        "o_proj",
        "a token scale multiplies columns where M == N",
        "vllm-project/compressed-tensors#393",
        tokens=128,
    ),
    WiringDefect("W08", "first-scale-kept", paths.FirstScaleKept, 0, _POST, "every call uses the first call's scale"),
    WiringDefect(
        "W09",
        "rank-0-weight-scales",
        paths.OtherRanksWeightScales,
        0,
        "qkv_proj",
        "rank 1 uses rank 0's weight scales",
        tp=2,
    ),
    WiringDefect(
        "W10",
        "shuffled-again",
        paths.ShuffledAgain,
        AT,
        "qkv_proj",
        "a weight is pre-shuffled once too often",
    ),
    WiringDefect(
        "W11",
        "normalised-twice",
        paths.NormalisedTwice,
        AT,
        "o_proj",
        "a weight's scale is doubled once too often",
    ),
    WiringDefect(
        "W12",
        "bucket-loses-products",
        paths.BucketLosesProducts,
        0,
        "qkv_proj",
        "17 to 32 tokens lose 64 of K",
        tokens=24,
    ),
    WiringDefect(
        "W13",
        "config-of-another-shape",
        paths.ConfigOfAnotherShape,
        0,
        "o_proj",
        "a cached configuration keeps another call's K",
    ),
    WiringDefect(
        "W14",
        "rank-0-token-scales",
        paths.OtherRanksTokenScales,
        0,
        "o_proj",
        "rank 1's codes come with rank 0's scales",
        tp=2,
    ),
    WiringDefect(
        "W15",
        "old-residual",
        paths.OldResidualKept,
        0,
        _POST,
        "the residual's update happened to a copy",
        "pytorch/pytorch#153389",
    ),
    WiringDefect(
        "W16",
        "sum-not-rounded",
        paths.SumNotRounded,
        0,
        _POST,
        "the all-reduce's sum is added before its store",
        "ROCm/aiter#2586",
        tp=2,
    ),
    WiringDefect(
        "W17",
        "scale-dropped",
        paths.ScaleDropped,
        0,
        "qkv_proj",
        "the linear multiplies the codes without the scale",
    ),
    WiringDefect(
        "W18",
        "triple-requantized",
        paths.TripleQuantizedAgain,
        0,
        "qkv_proj",
        "the third of three is quantized again",
    ),
    WiringDefect(
        "W19",
        "triple-as-pair",
        paths.TripleAsPair,
        0,
        "qkv_proj",
        "a tuple of three is unpacked as codes and scale",
    ),
    WiringDefect("W20", "first-doubled", paths.FirstResidualDoubled, 0, _INPUT, "layer 0 adds its input to itself"),
    WiringDefect("W21", "first-lost", paths.FirstResidualLost, 0, _INPUT, "layer 0 keeps no residual stream"),
    WiringDefect(
        "W22",
        "stale-residual",
        paths.StaleResidual,
        AT,
        _INPUT,
        "a norm adds the residual of an earlier norm",
    ),
    WiringDefect(
        "W23",
        "neighbours-weights",
        paths.NeighboursWeights,
        AT,
        _INPUT,
        "a layer uses the weights before it",
    ),
    WiringDefect(
        "W24",
        "neighbours-qkv",
        paths.NeighboursProjection,
        AT,
        "qkv_proj",
        "a projection uses the weights before it",
    ),
    WiringDefect("W25", "bias-lost", paths.BiasLost, AT, "qkv_proj", "the attention bias of a layer is dropped"),
    WiringDefect("W26", "bias-twice", paths.BiasTwice, AT, "qkv_proj", "the attention bias of a layer is added twice"),
    WiringDefect(
        "W27",
        "unfused-fallback",
        paths.UnfusedFallback,
        AT,
        _INPUT,
        "one layer quietly takes the unfused path",
    ),
)
"""The defects, W01 to W16 as the catalogue of real reports numbers them, then further ones."""


def defects() -> list[WiringDefect]:
    """Every wiring defect, in the order of the catalogue."""
    return list(DEFECTS)
