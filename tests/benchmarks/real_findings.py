"""What real kernels do outside of the limits that their adapters declare, and with rows of zeros.

``python -m tests.benchmarks.real_findings [--out FILE]`` calls the kernels of vLLM and sglang-kernel directly, prints
one sentence a finding and writes the numbers, one JSON line each. docs/real-kernels.md says where the libraries come
from.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reference.formats import bytes_of
from validators.calls.call import settle
from validators.cases import tensors
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.kernels.kernel import Kernel
from validators.kernels.registry import find_kernel

QUANTIZERS = ("vllm/dynamic_per_token_scaled_fp8_quant", "sgl_kernel/sgl_per_token_quant_fp8")
GEMMS = ("vllm/cutlass_scaled_mm", "sgl_kernel/fp8_scaled_mm")
ROWWISE = ("vllm/rms_norm_dynamic_per_token_quant", QUANTIZERS[0])
KERNELS = (ROWWISE[0], *QUANTIZERS, *GEMMS)
STRIDED = Case("ptpc_gemm", 33, 160, "gaussian", k=528, layout="strided")
"""The strided case of the default depth: gaps of 48 bytes behind each row of a and of 112 behind each of b, all NaN."""
SMALL = {
    "add_rmsnorm_quant": Case("add_rmsnorm_quant", 4, 512, "gaussian"),
    "per_token_quant": Case("per_token_quant", 4, 512, "gaussian"),
    "ptpc_gemm": Case("ptpc_gemm", 4, 256, "gaussian", k=512),
}
BLOCK_ROWS = 16
"""sglang-kernel takes its kernel of one warp per row from this many rows per streaming multiprocessor up."""
ZERO_ROW, ZERO_WIDTH = 3, 512

Line = dict[str, Any]


def padded_rows(kernel: Kernel, device: str) -> Iterator[Line]:
    """A GEMM on operands whose rows have gaps, against the same values in packed rows.

    outputs: of the call. right: equal, bit for bit, to the call on packed rows with the same values. as_packed: equal
    to the call on what a kernel reads that takes the rows with gaps as packed; NaN equals NaN.
    """
    strided = build(STRIDED, device)
    assert isinstance(strided, tensors.GemmInputs)
    packed = dataclasses.replace(strided, a=_dense(strided.a), b=_dense(strided.b))
    wanted = _product(kernel, packed)
    for operands in ("a", "b", "ab"):
        given = dataclasses.replace(packed, **{name: getattr(strided, name) for name in operands})
        read: dict[str, Any] = {name: _misread(getattr(strided, name)) for name in operands}
        misread = dataclasses.replace(packed, **read)
        named = " and ".join(operands)
        line: Line = {"finding": "padded rows", "kernel": kernel.name, "case": STRIDED.id, "padded": named}
        try:
            out = _product(kernel, given)
        except RuntimeError as error:
            yield {**line, "raised": _first_line(error)}
            continue
        yield {
            **line,
            "outputs": out.numel(),
            "right": _equal(out, wanted),
            "as_packed": _equal(out, _product(kernel, misread)),
            "nan": int(out.isnan().sum()),
        }


def sliced_batches(kernel: Kernel, device: str) -> Iterator[Line]:
    """A slice of three dimensions, whose batches are not row after row, against the same values in packed rows.

    rows: of the call. right: equal to the call on packed rows in every code and in the scale. as_one_stride: equal to
    the call on what a kernel reads that takes the stride of the rows for all batches.
    """
    sliced = build(Case(kernel.op, 34, 1024, "gaussian", layout="3dstrided"), device)
    assert isinstance(sliced, tensors.NormQuantInputs | tensors.QuantInputs)
    stride = sliced.x.stride(-2)
    # The first row of a batch comes one row too early for each batch before it: inside the storage.
    misread = sliced.x.as_strided((34, 1024), (stride, 1)).contiguous()
    line: Line = {"finding": "sliced batches", "kernel": kernel.name, "shape": list(sliced.x.shape)}
    wanted = _rows(kernel, _with_rows(sliced, sliced.x.reshape(34, 1024)))
    try:
        got = _rows(kernel, sliced)
    except RuntimeError as error:
        yield {**line, "raised": _first_line(error)}
        return
    same = [int((got == other).all(dim=1).sum()) for other in (wanted, _rows(kernel, _with_rows(sliced, misread)))]
    yield {**line, "rows": 34, "right": same[0], "as_one_stride": same[1]}


def no_rows(kernel: Kernel, device: str) -> Iterator[Line]:
    """m = 0: whether the call returns, or what it raises."""
    inputs = _first_rows(build(SMALL[kernel.op], device), 0)
    line: Line = {"finding": "no rows", "kernel": kernel.name}
    try:
        kernel.call(inputs, tensors.GemmOutputs(torch.empty(0)))
        _settle(device)
    except RuntimeError as error:
        yield {**line, "raised": _first_line(error)}
    else:
        yield {**line, "raised": None}


def zero_rows(kernel: Kernel, device: str) -> Iterator[Line]:
    """One row of zeros in batches on both sides of sglang-kernel's choice between its two kernels."""
    edge = BLOCK_ROWS * (torch.cuda.get_device_properties(0).multi_processor_count if device != "cpu" else 1)
    for m in (BLOCK_ROWS, edge - 1, edge, 4 * edge):
        x = torch.randn(m, ZERO_WIDTH, generator=torch.Generator().manual_seed(m)).bfloat16()
        x[ZERO_ROW] = 0.0
        out = kernel.call(tensors.QuantInputs(x.to(device), torch.float8_e4m3fn), tensors.GemmOutputs(torch.empty(0)))
        assert isinstance(out, tensors.QuantOutputs)
        _settle(device)
        codes = torch.unique(bytes_of(out.codes)[ZERO_ROW]).tolist()
        named = [f"0x{code:02x}" for code in codes]
        scale = float(out.scale.reshape(-1)[ZERO_ROW])
        yield {"finding": "row of zeros", "kernel": kernel.name, "m": m, "scale": scale, "codes": named}


PARTS: tuple[tuple[Callable[[Kernel, str], Iterator[Line]], tuple[str, ...]], ...] = (
    (padded_rows, GEMMS),
    (sliced_batches, ROWWISE),
    (zero_rows, QUANTIZERS),
    (no_rows, KERNELS),
)


def sentence(line: Line) -> str:
    """A finding in words."""
    kernel = line["kernel"]
    if line["finding"] == "row of zeros":
        codes = ", ".join(line["codes"])
        return f"{kernel}, a row of zeros among {line['m']:,} rows: scale {line['scale']:g}, codes {codes}"
    what = f"rows of {line['padded']} with gaps" if line["finding"] == "padded rows" else line["finding"]
    if line.get("raised"):
        return f"{kernel}, {what}: raises {line['raised']}"
    if line["finding"] == "no rows":
        return f"{kernel}, {what}: returns"
    if line["finding"] == "sliced batches":
        right, one = line["right"], line["as_one_stride"]
        return f"{kernel}, {what}: {right} of {line['rows']} rows right; {one} as if all batches had one row stride"
    total, right, packed = line["outputs"], line["right"], line["as_packed"]
    return f"{kernel}, {what}: {right:,} of {total:,} outputs right; {packed:,} as if the rows were packed"


def _dense(codes: Tensor) -> Tensor:
    return bytes_of(codes).contiguous().view(codes.dtype)


def _misread(codes: Tensor) -> Tensor:
    """What a kernel reads that takes the rows to be side by side."""
    raw = bytes_of(codes)
    return raw.as_strided(raw.shape, (raw.shape[1], 1)).clone().view(codes.dtype)


def _product(kernel: Kernel, inputs: tensors.GemmInputs) -> Tensor:
    out = kernel.call(inputs, tensors.GemmOutputs(torch.empty(0)))
    assert isinstance(out, tensors.GemmOutputs)
    _settle(out.out.device.type)
    return out.out


def _rows(kernel: Kernel, inputs: tensors.Inputs) -> Tensor:
    """Bytes of the codes and of the scale of each row, [M, N + 4]."""
    out = kernel.call(inputs, tensors.GemmOutputs(torch.empty(0)))
    assert isinstance(out, tensors.NormQuantOutputs | tensors.QuantOutputs)
    _settle(out.codes.device.type)
    codes = bytes_of(out.codes).reshape(-1, out.codes.shape[-1])
    return torch.cat((codes, out.scale.reshape(-1, 1).contiguous().view(torch.uint8)), dim=1)


def _with_rows(inputs: tensors.NormQuantInputs | tensors.QuantInputs, x: Tensor) -> tensors.Inputs:
    """``inputs`` with x [M, N], and the residual as its rows."""
    if isinstance(inputs, tensors.NormQuantInputs) and inputs.residual is not None:
        return dataclasses.replace(inputs, x=x, residual=inputs.residual.reshape(x.shape))
    return dataclasses.replace(inputs, x=x)


def _equal(left: Tensor, right: Tensor) -> int:
    return int(((left == right) | (left.isnan() & right.isnan())).sum())


def _first_rows(inputs: tensors.Inputs, m: int) -> tensors.Inputs:
    if isinstance(inputs, tensors.GemmInputs):
        return dataclasses.replace(inputs, a=inputs.a[:m], a_scale=inputs.a_scale[:m])
    if isinstance(inputs, tensors.NormQuantInputs) and inputs.residual is not None:
        return dataclasses.replace(inputs, x=inputs.x[:m], residual=inputs.residual[:m])
    assert isinstance(inputs, tensors.NormQuantInputs | tensors.QuantInputs)
    return dataclasses.replace(inputs, x=inputs.x[:m])


def _settle(device: str) -> None:
    """A GPU's faults come to light here and not at the call."""
    settle(torch.device(device))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0]


def main(argv: Sequence[str] | None = None) -> int:
    """See the module's docstring. 2 where a kernel cannot run here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--kernel", action="append", choices=KERNELS, help="may be repeated (default: all)")
    parser.add_argument("--out", type=Path, help="file for the JSON lines")
    parsed = parser.parse_args(argv)
    lines, missing = [], {}
    for part, names in PARTS:
        for name in [n for n in names if n in (parsed.kernel or KERNELS)]:
            kernel = find_kernel(name)
            if reason := kernel.unavailable(parsed.device):
                missing[name] = reason
                continue
            about = {"versions": dict(kernel.versions()), "device": _device(parsed.device), "date": _today()}
            for line in part(kernel, parsed.device):
                print(sentence(line), flush=True)
                lines.append({**line, **about})
                if parsed.out:
                    parsed.out.write_text("".join(json.dumps(x) + "\n" for x in lines), encoding="utf-8")
    for name, reason in missing.items():
        print(f"{name} cannot run here: {reason}", file=sys.stderr)
    return 2 if missing or not lines else 0


def _device(device: str) -> str:
    return "cpu" if device == "cpu" else torch.cuda.get_device_name(device)


def _today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()


if __name__ == "__main__":
    sys.exit(main())
