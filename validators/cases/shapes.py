"""Shapes: GLM-4.7 at each tensor-parallel degree, and the boundaries at which kernels change.

Model shapes are those of the GLM-4.7 configuration (hidden 5120, 96 query and 8 KV heads of 128, dense
intermediate 12288, shared expert 1536). Block sizes of aiter's ``add_rmsnorm_quant`` switch at the widths
in ``SWITCHES``.
"""

from __future__ import annotations

from typing import NamedTuple

MODEL = "GLM-4.7"
HIDDEN = 5120
ATTENTION = 12288
"""96 query heads of 128: the width in front of o_proj. The dense layers' intermediate width is the same."""
EXPERT = 1536
"""Intermediate width of an expert, routed or shared."""
TENSOR_PARALLEL = (1, 2, 4, 8)

SWITCHES = (512, 1024, 2048, 4096, 6144, 8192)
"""Row widths at which the elements a thread takes, or the path, change."""

ODD_TAILS = (769, 1000, 1002, 5124, 6136, 8184)
"""Row widths that are odd, or no multiple of 4, of 8, or of a block."""

BOUNDARY_M = (1, 2, 3, 15, 16, 17, 31, 33, 37, 63, 64, 65, 127, 128, 129, 255, 256, 257, 300, 1024)
"""Row counts at both sides of tiles, of wavefronts and of dispatch thresholds."""


def _sides(switch: int) -> tuple[int, ...]:
    # One vector of 8 to each side; at the smallest switch also one element.
    element = (switch - 1, switch + 1) if switch == SWITCHES[0] else ()
    return (switch - 8, switch, switch + 8, *element)


BOUNDARY_N = tuple(sorted({8, 64, HIDDEN, *ODD_TAILS, *(n for switch in SWITCHES for n in _sides(switch))}))
"""Row widths for the norm and quantization ops."""

WIDE_N = (8192, 12288, 16384)
"""Rows wider than the limits that kernels are known to have: 6,144 and 8,192 elements per block, 10,240, and the 12,288
floats of 48 KiB."""


def _growing(low: int, high: int) -> tuple[int, ...]:
    found = [low]
    while found[-1] < high:
        found.append(-(-found[-1] * 3 // 2))
    return tuple(found)


GROWING = _growing(9, 8192)
"""Sizes that grow by a half: whatever range of sizes a mistake is limited to, if its end is a half above its begin or
more, one of them is in it."""

MANY_ROWS = 65_600
"""Rows past 65,535, the most blocks of a grid's second axis."""

PAST_INT32_ROWS = 419_584
"""Rows of HIDDEN elements that are more than 2^31 together."""

PAST_INT32_GEMM = (131_136, 16_384)
"""Rows and columns of a GEMM's output that are more than 2^31 elements together."""

GEMM_BOUNDARY_N = (16, 17, 32, 48, 100, 127, 128, 129, 136, 144, 160, 255, 256, 272)
"""Output widths at both sides of tiles of 16, 128 and 256."""

GEMM_BOUNDARY_K = (16, 32, 48, 64, 96, 112, 128, 144, 176, 250, 256, 384, 512, 528, 1056)
"""Inner sizes at both sides of an instruction (32), a promotion interval (128) and a tile (256)."""


class GemmShape(NamedTuple):
    """One linear layer of the model on one rank: out [m, n] = a [m, k] b [n, k]^T."""

    layer: str
    n: int
    k: int


def glm_gemm_shapes(tp: int) -> tuple[GemmShape, ...]:
    """The PTPC linear layers of GLM-4.7 at tensor-parallel degree ``tp`` (1, 2, 4 or 8); ValueError otherwise.

    qkv, gate_up and the shared expert's first layer split n; o, down and its second layer split k.
    """
    if tp not in TENSOR_PARALLEL:
        raise ValueError(f"tensor-parallel degree {tp} is none of {TENSOR_PARALLEL}")
    return (
        GemmShape("qkv", 14336 // tp, HIDDEN),
        GemmShape("o", HIDDEN, 12288 // tp),
        GemmShape("gate_up", 24576 // tp, HIDDEN),
        GemmShape("down", HIDDEN, 12288 // tp),
        GemmShape("shared_gate_up", 3072 // tp, HIDDEN),
        GemmShape("shared_down", HIDDEN, 1536 // tp),
    )


def _rows_of(widths: set[int]) -> tuple[tuple[int, int], ...]:
    return tuple((n, 0) for n in sorted(widths, reverse=True))


_LINEARS = {(s.n, s.k) for tp in TENSOR_PARALLEL for s in glm_gemm_shapes(tp)}
_SPLIT = {width // tp for width in (ATTENTION, EXPERT) for tp in TENSOR_PARALLEL}
_QUANTIZER = _rows_of({HIDDEN, *_SPLIT})
_MODEL_SHAPES = {
    # In front of qkv, gate_up and the experts, whose input is never split.
    "add_rmsnorm_quant": _rows_of({HIDDEN}),
    "ptpc_gemm": tuple(sorted(_LINEARS, key=lambda s: (-s[0] * s[1], s))),
}


def model_shapes(op: str) -> tuple[tuple[int, int], ...]:
    """(n, k) of every shape of the model that ``op`` meets at any tensor-parallel degree, k = 0 for rows; the largest
    first. An op that is not listed is a quantizer: it is also in front of o and down, whose input is split."""
    return _MODEL_SHAPES.get(op, _QUANTIZER)


def model_widths(op: str) -> tuple[int, ...]:
    """n of ``model_shapes``."""
    return tuple(n for n, _ in model_shapes(op))


MODEL_GEMMS = tuple(dict.fromkeys((s.n, s.k) for s in glm_gemm_shapes(8) if s.layer != "gate_up"))
"""(n, k) of the model's linears at tensor parallel 8, without gate_up, each once."""


def model_inner() -> tuple[int, ...]:
    """Every k of the model's linears at any tensor-parallel degree, the largest first."""
    return tuple(sorted({k for _, k in model_shapes("ptpc_gemm")}, reverse=True))


def boundary_rows(count: int) -> tuple[int, ...]:
    """``count`` row counts that hold every one of ``BOUNDARY_M`` if count allows, largest first."""
    rows = sorted(BOUNDARY_M, reverse=True)
    return tuple(rows[i * len(rows) // count] for i in range(count)) if count >= len(rows) else tuple(rows[:count])
