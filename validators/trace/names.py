"""What a kernel's name says: a readable form, and its role (fused, norm, quant, gemm).

The name of aiter's fused kernels is no evidence by itself: one template, ``add_rmsnorm_quant_kernel<In, Out, ...>``,
also serves the plain ``add_rmsnorm``, and so do those that join the all-reduce to the norm
(``allreduce_fusion_kernel_1stage<T, Out, ranks>``). They quantize only where their output type is another than their
input type. Inductor names a kernel after the operations in it: a norm is a mean of squares and a reciprocal root, a
quantizer the largest magnitude and a clamp. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from validators.errors import UserError
from validators.trace.mangled import CUT, demangle


class TraceError(UserError):
    """A file that is no profiler trace, or options that cannot be; the message is one sentence."""


KNOWN_ROLES = ("fused", "norm", "quant", "gemm", "other")

ROLES: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (role, re.compile(pattern, re.IGNORECASE))
    for role, pattern in (
        (
            "fused",
            r"rms_?norm_dynamic_per_token_quant|quant_fused_(add_)?rmsnorm|rmsnorm2d_fwd_with_(add_)?(dynamic|smooth)quant"
            r"|(add_)?rms_?norm_quant|rms_?norm_(fp8_)?(per_token_)?quant|fused_rms_fp8|allreduce_fusion_kernel_\w*mxfp4"
            # CK's norm names its quantizer by an enumeration, of which 0 is "none".
            r"|Rmsnorm2dFusedQuantEnum\)[1-9]",
        ),
        ("norm", r"rms_?norm|layer_?norm"),
        ("quant", r"per_token_\w*quant|scaled_(fp8_)?quant|data_to_per_row_scale|per_token_group_quant|dynamic_quant"),
        ("gemm", r"gemm|^Cijk_|nvjet|cutlass|xmma|wgmma|flatmm|a8w8|_scaled_mm|ck_tile.*Gemm"),
    )
)
"""Role of a kernel by its name, the first that fits."""

_TYPED = re.compile(
    r"(add_rmsnorm_quant_kernel|allreduce_fusion_kernel_(?:1stage|2stage|split)(?:_per_group)?"
    r"|local_device_load_rmsnorm_quant(?:_per_group)?_naive)(?![A-Za-z0-9_])"
)
"""Templates <In, Out, ...> that quantize only where Out is another type than In."""
OTHER_QUANTIZATION = re.compile(r"_per_group|mxfp4|group_quant", re.IGNORECASE)
"""Of a fused kernel: it quantizes in groups of columns, not a row by one scale."""

Taught = Sequence[tuple[str, str]]
"""(role, name as ``matches`` takes it): what the user says of names that are not known here."""


def readable(name: str) -> str:
    """A kernel's name with its template arguments; one that is mangled and not understood stays as it is."""
    found = demangle(name)
    return name if found is None else str(found)


def template_arguments(name: str, after: str = "") -> list[str]:
    """The template arguments of a readable name, in order; empty where there are none. after: of this identifier.

    Where the list does not end, the last is ``…``: what comes before it is complete.
    """
    start = name.find("<", name.find(after) + len(after) if after else 0)
    if start < 0 or (after and start != name.find(after) + len(after)):
        return []
    found: list[str] = []
    depth, current = 0, ""
    for character in name[start + 1 :]:
        depth += {"<": 1, "(": 1, ">": -1, ")": -1}.get(character, 0)
        if depth < 0:
            return [*found, current.strip()]
        if character == "," and depth == 0:
            found.append(current.strip())
            current = ""
        else:
            current += character
    return [*found, CUT]


def role_of(name: str, taught: Taught = ()) -> str:
    """fused, norm, quant, gemm or other; ``unclear`` for aiter's templates where their types are not in the name."""
    for role, wanted in taught:
        if matches(wanted, name):
            return role
    if typed := _TYPED.search(name):
        arguments = template_arguments(name, typed[1])[:2]
        if len(arguments) < 2 or CUT in arguments:
            return "unclear"
        return "fused" if arguments[0] != arguments[1] else "norm"
    if "triton_" in name and "_fused_" in name and (made := _inductor(name)):
        return made
    return next((role for role, pattern in ROLES if pattern.search(name)), "other")


def _inductor(name: str) -> str | None:
    """Of ``triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_0``: the operations, sorted, at most ten of them."""
    after = name.partition("_fused_")[2].lower()

    def has(*operations: str) -> bool:
        return any(re.search(rf"(?<![a-z0-9]){o}(?![a-z0-9])", after) for o in operations)

    # The list may be cut behind its tenth name, so the root is not always there: a mean and a power are.
    normalizes = has("rsqrt", "rms_norm", "layer_norm") or (has("mean") and has("pow"))
    quantizes = has("abs") and has("amax", "max", "aminmax") and has("clamp", "clamp_min", "clamp_max")
    if normalizes:
        return "fused" if quantizes else "norm"
    return "quant" if quantizes else None


def matches(wanted: str, name: str) -> bool:
    """Whether ``name`` contains ``wanted``; ``re:PATTERN`` is a regular expression. Raises TraceError for a bad one."""
    if not wanted.startswith("re:"):
        return wanted in name
    try:
        return re.search(wanted[3:], name) is not None
    except re.error as error:
        raise TraceError(f"{wanted!r} is not a regular expression: {error}.") from None
