"""Kernels that misbehave on purpose, in the plugin protocol: what the pipeline must survive and name.

Each function computes (or refuses to compute) ``add_rmsnorm_quant``:
x [M, N] bf16, residual like x or None, weight [N], eps, fp8_dtype -> (codes [M, N], scale [M, 1], residual_out).
"""

from __future__ import annotations

import os
import signal
import sys
import time

import torch

Returned = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def honest(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, fp8_dtype: torch.dtype
) -> Returned:
    """What the others deviate from: the eager form, right enough to be judged."""
    total = x if residual is None else x + residual
    z = total.float()
    h = (z * torch.rsqrt(z.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
    y = (h * weight).float()
    top = torch.finfo(fp8_dtype).max
    scale = y.abs().amax(-1, keepdim=True).clamp(min=1e-12) / top
    codes = (y / scale).clamp(-top, top).to(fp8_dtype)
    return codes, scale, None if residual is None else total


honest.contract = "eager"  # type: ignore[attr-defined]


def compiles_for_long(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, fp8_dtype: torch.dtype
) -> Returned:
    """As a library that compiles at its first call: the first takes seconds, and all others none."""
    global _compiled
    if not _compiled:
        time.sleep(float(os.environ["COMPILES_FOR_S"]))
    _compiled = True
    return honest(x, residual, weight, eps, fp8_dtype)


_compiled = False
compiles_for_long.contract = "eager"  # type: ignore[attr-defined]
compiles_for_long.compiles = True  # type: ignore[attr-defined]
compiles_for_long.unsupported = lambda case: "no two rows" if case.m == 2 else None  # type: ignore[attr-defined]


def wrong_shape(x, residual, weight, eps, fp8_dtype):  # type: ignore[no-untyped-def]
    codes, scale, residual_out = honest(x, residual, weight, eps, fp8_dtype)
    return codes, scale.flatten(), residual_out


def wrong_dtype(x, residual, weight, eps, fp8_dtype):  # type: ignore[no-untyped-def]
    codes, scale, residual_out = honest(x, residual, weight, eps, fp8_dtype)
    return codes, scale.to(x.dtype), residual_out


def returns_none(x, residual, weight, eps, fp8_dtype):  # type: ignore[no-untyped-def]
    return None


def raises(x, residual, weight, eps, fp8_dtype):  # type: ignore[no-untyped-def]
    raise ValueError("the tile size does not divide the row")


def nan_everywhere(x, residual, weight, eps, fp8_dtype):  # type: ignore[no-untyped-def]
    codes, scale, _ = honest(x, residual, weight, eps, fp8_dtype)
    codes.view(torch.uint8).fill_(0x7F)
    return codes, torch.full_like(scale, float("nan")), None if residual is None else torch.full_like(x, float("nan"))


def views_of_inputs(x, residual, weight, eps, fp8_dtype):  # type: ignore[no-untyped-def]
    codes, scale, _ = honest(x, residual, weight, eps, fp8_dtype)
    residual.add_(x)
    return codes, scale, residual.view(residual.shape)


def mutates_input(x, residual, weight, eps, fp8_dtype):  # type: ignore[no-untyped-def]
    outputs = honest(x, residual, weight, eps, fp8_dtype)
    x[-1, -1] += 1
    return outputs


def never_returns(x, residual, weight, eps, fp8_dtype):  # type: ignore[no-untyped-def]
    while True:
        time.sleep(0.05)


def segfaults(x, residual, weight, eps, fp8_dtype):  # type: ignore[no-untyped-def]
    import ctypes

    ctypes.string_at(0)


def exits_at_once(x, residual, weight, eps, fp8_dtype):  # type: ignore[no-untyped-def]
    os._exit(7)


def calls_sys_exit(x, residual, weight, eps, fp8_dtype):  # type: ignore[no-untyped-def]
    sys.exit(3)


def killed(x, residual, weight, eps, fp8_dtype):  # type: ignore[no-untyped-def]
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def noisy(x, residual, weight, eps, fp8_dtype):  # type: ignore[no-untyped-def]
    for stream in (1, 2):
        os.write(stream, b"\x00\x80 noise from the kernel\n" * 2000)
    return honest(x, residual, weight, eps, fp8_dtype)


def hangs_on_five_rows(x, residual, weight, eps, fp8_dtype):  # type: ignore[no-untyped-def]
    if x.shape[0] == 5:
        never_returns(x, residual, weight, eps, fp8_dtype)
    return honest(x, residual, weight, eps, fp8_dtype)


IN_TURN = (
    honest,
    noisy,
    wrong_shape,
    wrong_dtype,
    returns_none,
    raises,
    nan_everywhere,
    views_of_inputs,
    mutates_input,
)
"""Those that return or raise: one worker can serve them all."""


def in_turn(x, residual, weight, eps, fp8_dtype):  # type: ignore[no-untyped-def]
    """A batch of 2 + i rows is given to ``IN_TURN[i]``."""
    return IN_TURN[x.shape[0] - 2](x, residual, weight, eps, fp8_dtype)


_ENDING = (never_returns, segfaults, exits_at_once, calls_sys_exit, killed, hangs_on_five_rows)
for _function in (*IN_TURN, *_ENDING, in_turn):
    vars(_function)["contract"] = "eager"
