"""Goldens of the reference: a change of torch or BLAS cannot move the truth unnoticed.

For every contract of a case's op, the float64 values and the admissible sets. What is a rounded value or a member of
a set (stored residuals, kinds of rows, ends of scales, codes and outputs, and the exact GEMM sums) has to have the same
bits; float64 values whose sum may be taken in another order have to agree within ``SUM_ORDER``.
"""

from __future__ import annotations

import torch

from golden.store import GoldenError, Output, Tensor
from golden.tensors import from_stored
from reference.add_rmsnorm_quant import code_t_bounds, norm_truth, order, quant_truth
from reference.contract import GEMM_CONTRACTS, NORM_QUANT_CONTRACTS, NormQuantContract
from reference.formats import FloatFormat, encode, format_of
from reference.ptpc_gemm import emulated_truth, gemm_truth, is_emulated, operand
from reference.quantize import Row, t_bounds
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.tensors import GemmInputs, Inputs, NormQuantInputs, QuantInputs

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
    judged). GEMMs, [m, n] float64: sum (exact), magnitude (exact), value, low, high; and declared_magnitude, which is
    compared with magnitude and not stored. Raises GoldenError where the reference raises.
    """
    inputs = build(case)
    try:
        return _values(inputs)
    except Exception as error:
        # A reference that cannot be computed any more has moved, and the other goldens are still to be checked.
        raise GoldenError(f"the reference raised {type(error).__name__}: {' '.join(str(error).split())}") from error


def _values(inputs: Inputs) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        if isinstance(inputs, GemmInputs):
            return _gemm(inputs)
        found: dict[str, torch.Tensor] = {}
        for contract in NORM_QUANT_CONTRACTS.values():
            if isinstance(inputs, NormQuantInputs):
                values = _norm(inputs, contract)
            else:
                assert isinstance(inputs, QuantInputs)
                values = _quant(inputs, contract)
            found.update({f"{contract.name}/{name}": value for name, value in values.items()})
        return found


def _norm(inputs: NormQuantInputs, contract: NormQuantContract) -> dict[str, torch.Tensor]:
    fp8, storage = format_of(inputs.fp8_dtype), format_of(inputs.x.dtype)
    truth = norm_truth(inputs.x, inputs.residual, inputs.weight, inputs.eps, contract, fp8.name, gemma=inputs.gemma)
    row, col = _judged(truth.scale.kind, inputs.x.shape[1])
    _, low, high = code_t_bounds(
        truth, row, col, truth.scale.nominal[row], contract, contract.qmax(fp8.name), storage, gemma=inputs.gemma
    )
    codes = _codes(row, col, low, high, inputs.x.shape, fp8, contract)
    residual = {} if truth.residual is None else {"residual": truth.residual.float()}
    return {
        "rms": truth.rms,
        "p_max": truth.p_max,
        "scale": truth.scale.nominal,
        "scale_low": truth.scale.low,
        "scale_high": truth.scale.high,
        "kind": truth.scale.kind,
        **codes,
        **residual,
    }


def _quant(inputs: QuantInputs, contract: NormQuantContract) -> dict[str, torch.Tensor]:
    fp8 = format_of(inputs.fp8_dtype)
    x = inputs.x.float()
    storage = format_of(inputs.x.dtype)
    truth = quant_truth(x, contract, fp8.name, storage)
    row, col = _judged(truth.kind, x.shape[1])
    y, scale = x[row, col].double(), truth.nominal[row]
    low, high = t_bounds(y.abs(), y.abs(), scale, scale, contract, storage)
    _, low, high = order(low, low, high, torch.where(torch.signbit(y), -1.0, 1.0).double())
    return {
        "scale": truth.nominal,
        "scale_low": truth.low,
        "scale_high": truth.high,
        "kind": truth.kind,
        **_codes(row, col, low, high, x.shape, fp8, contract),
    }


def _judged(kind: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of every element of the rows whose codes are judged by an interval."""
    judged = (kind == int(Row.NORMAL)) | (kind == int(Row.FLOORED))
    row, col = judged[:, None].expand(-1, n).nonzero().unbind(1)
    return row, col


def _codes(
    row: torch.Tensor,
    col: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    shape: torch.Size,
    fp8: FloatFormat,
    contract: NormQuantContract,
) -> dict[str, torch.Tensor]:
    found = {}
    for name, t in (("codes_low", low), ("codes_high", high)):
        codes = torch.full(shape, _NO_CODE, dtype=torch.uint8)
        codes[row, col] = encode(t, fp8, contract.overflow)
        found[name] = codes
    return found


def _gemm(inputs: GemmInputs) -> dict[str, torch.Tensor]:
    fp8 = format_of(inputs.a.dtype)
    a, b = operand(inputs.a, fp8), operand(inputs.b, fp8)
    exact_magnitude = a.abs() @ b.abs().T
    scales = inputs.a_scale.reshape(-1), inputs.b_scale.reshape(-1)
    found = {}
    for contract in GEMM_CONTRACTS.values():
        rest = *scales, inputs.bias, format_of(inputs.out_dtype), contract
        truth = emulated_truth(inputs.a, inputs.b, fp8, *rest) if is_emulated(contract) else gemm_truth(a, b, *rest)
        values = {
            "sum": truth.accumulator,
            "magnitude": exact_magnitude,
            "declared_magnitude": truth.magnitude,
            "value": truth.value,
            "low": truth.low,
            "high": truth.high,
        }
        found.update({f"{contract.name}/{name}": value for name, value in values.items()})
    return found


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
