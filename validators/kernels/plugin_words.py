"""Sentences about a user's own kernel that is no function of the protocol, or returns something else than it says."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import torch

_MOST = 200
_NAMES = {"add_rmsnorm_quant": "fused", "per_token_quant": "quantize", "ptpc_gemm": "gemm"}


def clipped(value: object) -> str:
    """``value`` as text on one line of at most 200 characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= _MOST else f"{text[: _MOST - 1]}…"


def what_to_wrap(
    function: Callable[..., object], forms: Sequence[tuple[str, tuple[str, ...]]], op: str | None
) -> str | None:
    """What ``function`` is where Python cannot read the protocol from it, and the def to write; None if it can.

    forms: (op, parameters) of every form. op: the one that is asked for, if any.
    """
    what = _no_function(function, forms)
    if what is None:
        return None
    first: dict[str, tuple[str, ...]] = {}
    for name, parameters in forms:
        if op in (None, name):
            first.setdefault(name, parameters)
    defs = " or ".join(
        f"def {_NAMES.get(name, name)}({', '.join(names)}): return kernel(...)" for name, names in first.items()
    )
    return f"{what}; parameter names are the protocol, so wrap it in a function that has them: {defs}"


def _no_function(function: Callable[..., object], forms: Sequence[tuple[str, tuple[str, ...]]]) -> str | None:
    kind = type(function)
    if inspect.isclass(function):
        return f"the class {function.__name__}, and calling it makes an object"
    if isinstance(function, torch.nn.Module):
        return f"an nn.Module ({kind.__name__}), whose call takes (*args, **kwargs)"
    if kind.__module__.startswith(("torch._ops", "torch._library")):
        return f"an op of torch.library ({kind.__name__}), whose call takes (*args, **kwargs)"
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    gathers = any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters)
    named = {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    if gathers and not any(set(form) <= named for _, form in forms):
        return f"a function of ({', '.join(str(p) for p in parameters)})"
    return None


def result_words(result: object) -> str:
    """What a kernel returned, whole: ``(a Tensor [4, 64] float8_e4m3fn, None)``."""
    if isinstance(result, torch.Tensor):
        return f"a Tensor [{', '.join(map(str, result.shape))}] {str(result.dtype).removeprefix('torch.')}"
    if isinstance(result, tuple | list):
        return f"({', '.join(map(result_words, result))})"
    return "None" if result is None else f"a {type(result).__name__}"


COPY_RESIDUAL = (
    "if the kernel writes the sum into residual, as vLLM's ops do, give it a copy: "
    "def fused(x, residual, weight, eps, fp8_dtype): residual = residual.clone(); "
    "codes, scale = kernel(x, residual, ...)[:2]; return codes, scale, residual"
)
"""What to do about a kernel of vLLM's convention, where the sum overwrites ``residual``."""


def in_residual(result: object, residual: torch.Tensor) -> str | None:
    """A sentence if ``result`` follows vLLM's convention: (codes, scale) alone, or the memory of ``residual``."""
    if not isinstance(result, tuple | list):
        return None
    if len(result) == 2:
        return f"the kernel returned 2 values, not the 3 of (codes, scale, residual_out): {result_words(result)}"
    third = result[2] if len(result) == 3 else None
    if isinstance(third, torch.Tensor) and third.numel() and _same_memory(third, residual):
        return "residual_out shares memory with the input residual, so one of them was overwritten"
    return None


def _same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.device == other.device and one.data_ptr() == other.data_ptr()
