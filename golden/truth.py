"""Goldens of the reference: a change of torch or BLAS cannot move the truth unnoticed.

For every contract of a case's op, the float64 values and the admissible sets. What is a rounded value or a member of
a set (stored residuals, kinds of rows, ends of scales, codes and outputs, and the exact GEMM sums) has to have the same
bits; float64 values whose sum may be taken in another order have to agree within ``SUM_ORDER``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from golden.store import GoldenError, Output, Tensor
from golden.tensors import from_stored
from reference.add_rmsnorm_quant import NormTruth, norm_truth
from reference.contract import Contract, GemmContract, NormQuantContract, presets
from reference.formats import encode, format_of
from reference.per_token_quant import QuantTruth, quant_truth
from reference.ptpc_gemm import operand, truth_of
from reference.setting import Setting
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.tensors import GemmInputs, Inputs, NormQuantInputs, QuantInputs
from validators.judge.sets import oracle_of

WIDEST = 78
"""Columns of a reference case; see ``SUM_ORDER``."""
SUM_ORDER = 1e-14
"""Relative difference that float64 values may have. Two orders of a sum of n non-negative terms differ by at most
2 (n - 1) 2**-53 relative; the square root in rms halves that, and the six operations around it add 2**-53 each twice:
(n - 1 + 12) 2**-53 <= 9.9e-15 for n <= ``WIDEST``."""
MAGNITUDE_SLACK = 2.0**-10
"""``GemmTruth.magnitude`` is declared as an upper bound of sum|a*b| within this; it is summed in fp32, so its own bits
follow the BLAS. The golden is the exact sum, and the bound has to hold."""

_CLOSE = ("rms", "p_max", "scale", "value")
_NO_CODE = 0


def compute(case: Case) -> dict[str, torch.Tensor]:
    """``<contract>/<what>`` -> tensor, on the CPU.

    Norms, per row: rms, p_max, scale, scale_low, scale_high float64, kind int8. Per element: residual (the stored one,
    fp32), codes_low and codes_high uint8, ends of the admissible codes for the nominal scale (0 in rows that are not
    judged). Of sets that the oracle gives: codes_low and codes_high likewise, and unspecified uint8, which is 1 where
    every code is admissible. GEMMs, [m, n] float64: sum (exact), magnitude (exact), value, low, high; and
    declared_magnitude, which is compared with magnitude and not stored. Raises GoldenError where the reference raises.
    """
    inputs = build(case)
    try:
        return _values(inputs)
    except Exception as error:
        # A reference that cannot be computed any more has moved, and the other goldens are still to be checked.
        raise GoldenError(f"the reference raised {type(error).__name__}: {' '.join(str(error).split())}") from error


def _values(inputs: Inputs) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        table: Mapping[str, Contract] = presets(inputs.op)
        values_of: Callable[[Any, Any], dict[str, torch.Tensor]] = _VALUES.get(inputs.op, _by_sets)
        values = {name: values_of(inputs, contract) for name, contract in table.items()}
        return {f"{name}/{what}": value for name, found in values.items() for what, value in found.items()}


def _norm(inputs: NormQuantInputs, contract: NormQuantContract) -> dict[str, torch.Tensor]:
    truth = norm_truth(inputs.x, inputs.residual, inputs.weight, Setting.of(inputs, contract))
    residual = {} if truth.residuals is None else {"residual": truth.residuals.stored.float()}
    return {"rms": truth.rms, "p_max": truth.p_max, **_scales_and_codes(truth), **residual}


def _quant(inputs: QuantInputs, contract: NormQuantContract) -> dict[str, torch.Tensor]:
    return _scales_and_codes(quant_truth(inputs.x, Setting.of(inputs, contract)))


def _scales_and_codes(truth: NormTruth | QuantTruth) -> dict[str, torch.Tensor]:
    """Codes of the rows that are judged by an interval, by the nominal scale."""
    scales, n = truth.scale, truth.setting.n
    row, col = scales.regular[:, None].expand(-1, n).nonzero().unbind(1)
    sets = truth.codes(row, col, scales.nominal[row])
    found = {"scale": scales.nominal, "scale_low": scales.low, "scale_high": scales.high, "kind": scales.kind}
    for name, t in (("codes_low", sets.low), ("codes_high", sets.high)):
        found[name] = torch.full((len(scales.kind), n), _NO_CODE, dtype=torch.uint8)
        found[name][row, col] = sets.encoded(t)
    return found


def _gemm(inputs: GemmInputs, contract: GemmContract) -> dict[str, torch.Tensor]:
    fp8 = format_of(inputs.a.dtype)
    truth = truth_of(inputs, contract, slice(None), slice(None))
    return {
        "sum": truth.accumulator,
        "magnitude": operand(inputs.a, fp8).abs() @ operand(inputs.b, fp8).abs().T,
        "declared_magnitude": truth.magnitude,
        "value": truth.value,
        "low": truth.low,
        "high": truth.high,
    }


def _by_sets(inputs: Any, contract: Contract) -> dict[str, torch.Tensor]:
    """Of an op whose oracle gives the sets: the ends of every output, FP8 ones as codes."""
    found = {}
    sets = oracle_of(inputs.op).sets(inputs, contract, slice(None))
    for name, (_, dtype) in inputs.expected().items():
        for end in ("low", "high"):
            values = getattr(sets[name], end)
            found[f"{name}_{end}"] = encode(values, format_of(dtype)) if dtype.itemsize == 1 else values
        found["unspecified" if name == "codes" else f"{name}_unspecified"] = sets[name].open.to(torch.uint8)
    return found


_VALUES: dict[str, Callable[[Any, Any], dict[str, torch.Tensor]]] = {
    "add_rmsnorm_quant": _norm,
    "per_token_quant": _quant,
    "ptpc_gemm": _gemm,
}
"""By op; an op that is not listed has the sets that its oracle gives."""


def stored_part(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a golden holds of ``compute``'s values."""
    return {name: value for name, value in values.items() if not name.endswith("/declared_magnitude")}


def differences(outputs: dict[str, Output], stored: dict[str, Tensor], now: dict[str, torch.Tensor]) -> list[str]:
    """One sentence for every value of a reference golden that has moved."""
    found = []
    current = stored_part(now)
    for name in sorted({*outputs, *current}):
        if name not in current or name not in outputs:
            found.append(f"{name} is {'new' if name in current else 'no longer computed'}")
            continue
        before, after = from_stored(stored[name], outputs[name].dtype), current[name]
        if before.shape != after.shape or before.dtype != after.dtype:
            found.append(f"{name} is {after.dtype} {list(after.shape)} and was {before.dtype} {list(before.shape)}")
            continue
        wrong = _moved(before, after, exact=name.split("/")[-1] not in _CLOSE)
        if bool(wrong.any()):
            at = tuple(wrong.nonzero()[0].tolist())
            found.append(
                f"{name}: {int(wrong.sum()):,} of {wrong.numel():,} values moved, the first at {at} "
                f"from {before[at].item()!r} to {after[at].item()!r}"
            )
    for name, declared in now.items():
        if name.endswith("/declared_magnitude"):
            exact = now[name.replace("declared_", "")]
            out = (declared < exact) | (declared > exact * (1 + MAGNITUDE_SLACK))
            if bool(out.any()):
                found.append(f"{name}: {int(out.sum()):,} values are no upper bound within 2**-10 of sum|a*b|")
    return found


def _moved(before: torch.Tensor, after: torch.Tensor, *, exact: bool) -> torch.Tensor:
    """Which values moved. NaN stays NaN and an infinity stays itself, whatever their bits are."""
    same = (before == after) | (before.isnan() & after.isnan())
    if exact:
        return ~same | (torch.signbit(before) != torch.signbit(after)) & ~before.isnan()
    close = (before - after).abs() <= SUM_ORDER * torch.maximum(before.abs(), after.abs())
    return ~(same | (close & before.isfinite() & after.isfinite()))
