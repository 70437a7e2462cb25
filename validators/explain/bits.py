"""What the bits of scales and codes show where no contract fits: facts about the outputs, not a guess at the kernel.

Each sentence is a statement that holds for every regular row or element that was looked at, or gives its share.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reference.contract import NormQuantContract
from reference.formats import BF16, FP16, bytes_of, decode, encode, order_key, round_fp32, round_to
from reference.quantize import is_power_of_two
from reference.setting import Setting
from validators.cases.tensors import Inputs, Outputs
from validators.judge.norm import truth_of

LOOKED_AT = 256
"""Rows of a case that are looked at."""
FEWEST = 4
"""Rows that a statement about every scale needs: of fewer, one may well be a bf16 number by chance (1 in 65,536)."""


class Seen(NamedTuple):
    """Regular rows of the scenes together. scale, nominal float64 [m]: got, and the contract's; right: admissible.

    steps int64: how many codes away from the code of y by the kernel's own scale, away from zero positive.
    """

    scale: Tensor
    nominal: Tensor
    right: Tensor
    steps: Tensor


def observations(scenes: Iterable[tuple[Inputs, Outputs]], contract: NormQuantContract) -> tuple[str, ...]:
    """Sentences about scales, then about codes; empty where there is nothing to say."""
    parts = [_look(inputs, outputs, contract) for inputs, outputs in scenes]
    if not parts:
        return ()
    seen = Seen(*(torch.cat(values) for values in zip(*parts, strict=True)))
    if len(seen.scale) < FEWEST:
        return ()
    return (*_about_scales(seen), *_about_codes(seen))


def _look(inputs: Any, outputs: Any, contract: NormQuantContract) -> Seen:
    setting, looked = Setting.of(inputs, contract), slice(LOOKED_AT)
    fmt, qmax = setting.fp8, setting.qmax
    scale = outputs.scale.reshape(-1)[looked].cpu().double()
    codes = bytes_of(outputs.codes).reshape(-1, setting.n)[looked].cpu()
    truth = truth_of(inputs, setting, looked)
    rows, y = truth.scale, truth.y.cpu()
    regular = (rows.kind == 0) & scale.isfinite() & (scale > 0)
    right = rows.admits(scale)
    t = round_fp32(y / scale[:, None]).clamp(-qmax, qmax)[regular]
    want, got = encode(t, fmt), codes[regular]
    finite = ~decode(got, fmt).isnan() & ~t.isnan()
    steps = (order_key(got) - order_key(want)).long() * torch.where(t < 0, -1, 1)
    return Seen(scale[regular], rows.nominal[regular], right[regular], torch.where(finite, steps, 0).flatten())


def _about_scales(seen: Seen) -> list[str]:
    wrong = ~seen.right
    if not bool(wrong.any()):
        return ["every scale is right"]
    found = []
    for words, are, by_chance in (
        ("a power of two", is_power_of_two, is_power_of_two(seen.nominal)),
        ("a bf16 number", lambda v: round_to(v, BF16) == v, None),
        ("an fp16 number", lambda v: round_to(v, FP16) == v, None),
    ):
        chance = are(seen.nominal) if by_chance is None else by_chance
        if bool(are(seen.scale).all()) and not bool(chance.all()):
            low = " (the low half of its bits is zero)" if words == "a bf16 number" else ""
            found.append(f"every scale is {words}{low}")
            break
    ratio = seen.scale / seen.nominal
    off = (ratio - 1.0).abs()[wrong]
    share = f"{int(wrong.sum()):,} of {len(wrong):,} scales are wrong"
    near = 2.0**-8
    if float(off.max()) <= near:
        # Half a step of bf16 at most: the row maximum was found, and the operation after it differs.
        sides = ratio[wrong]
        side = (
            "all too small" if bool((sides < 1).all()) else "all too large" if bool((sides > 1).all()) else "both ways"
        )
        found.append(
            f"amax is right, the quotient is not: {share}, by at most {float(off.max()):.2g} of themselves, {side}"
        )
    elif float(ratio[wrong].max() - ratio[wrong].min()) <= near * float(ratio[wrong].max()):
        found.append(f"{share}, each by the same factor {float(ratio[wrong].median()):.4g}")
    else:
        found.append(share)
    return found


def _about_codes(seen: Seen) -> list[str]:
    off = seen.steps[seen.steps != 0]
    given = "the scale of its row" if bool(seen.right.all()) else "the kernel's own scale of its row"
    if off.numel() == 0:
        return [f"every code follows from {given}"]
    share = f"{off.numel():,} of {seen.steps.numel():,} codes, by {given},"
    if bool((off.abs() == 1).all()):
        if bool((off < 0).all()):
            return [f"{share} are one step off toward zero"]
        if bool((off > 0).all()):
            return [f"{share} are one step off away from zero"]
        return [f"{share} are one step off, both ways"]
    return [f"{share} are off by up to {int(off.abs().max())} steps"]
