"""Cost of a verdict against what people do today, in one run, on one device.

``python -m tests.benchmarks.cost --device cpu`` times, for 4096 x 5120 bf16: the full comparison of all three
outputs with their admissible sets; an eager fp32 reference plus ``torch.testing.assert_close`` of the three outputs
(codes compared as floats); and the whole ``validate``, the kernel's own calls subtracted. Each is repeated; the
least of its times counts. Peak extra memory: beyond what inputs and outputs hold.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Sequence

import torch

from reference.contract import NORM_QUANT_CONTRACTS
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.recipe import ADD
from validators.cases.tensors import NormQuantInputs, NormQuantOutputs
from validators.judge.compare import compare
from validators.judge.gpu.survey import survey_on
from validators.kernels import emulated
from validators.kernels.kernel import Kernel
from validators.run import validate

SHAPE = (4096, 5120)


def eager_reference(inputs: NormQuantInputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(codes as floats, scale, residual_out): what a kernel's own test computes, whole tensors in fp32."""
    assert inputs.residual is not None
    total = inputs.x.float() + inputs.residual.float()
    y = total * torch.rsqrt(total.pow(2).mean(-1, keepdim=True) + inputs.eps) * inputs.weight.float()
    qmax = torch.finfo(inputs.fp8_dtype).max
    scale = y.abs().amax(-1, keepdim=True).clamp(min=1e-10) / qmax
    codes = (y / scale).clamp(-qmax, qmax).to(inputs.fp8_dtype)
    return codes.float(), scale, total.to(inputs.x.dtype)


def todays_check(inputs: NormQuantInputs, outputs: NormQuantOutputs) -> bool:
    """Reference and ``assert_close`` on every output; whether it passes does not matter to its cost."""
    codes, scale, residual = eager_reference(inputs)
    assert outputs.residual_out is not None
    passed = True
    for got, want in ((outputs.codes.float(), codes), (outputs.scale, scale), (outputs.residual_out, residual)):
        try:
            torch.testing.assert_close(got, want)
        except AssertionError:
            passed = False
    return passed


def least_seconds(call: Callable[[], object], repeats: int, device: str) -> float:
    """The least of ``repeats`` times of the call, in seconds."""
    times = []
    for _ in range(repeats):
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def peak_extra_bytes(call: Callable[[], object], device: str) -> int:
    """Peak memory of the call beyond what was held before; on a CPU by the resident set, so call the largest last."""
    if device.startswith("cuda"):
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return int(torch.cuda.max_memory_allocated() - held)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024


def measure(contract_name: str, device: str, repeats: int, shape: tuple[int, int] = SHAPE) -> dict[str, object]:
    """The numbers of one contract: seconds of each, ratios, bytes."""
    contract = NORM_QUANT_CONTRACTS[contract_name]
    case = Case(ADD, *shape, "gaussian")
    inputs = build(case, device=device)
    outputs = emulated.execute(inputs, None, contract)
    assert isinstance(inputs, NormQuantInputs)
    assert isinstance(outputs, NormQuantOutputs)
    # Order matters on a CPU: the resident set only ever grows.
    survey = survey_on(device)
    compare(inputs, outputs, contract, survey=survey)  # compiles, and holds the survey against the plain judgement
    memory = peak_extra_bytes(lambda: compare(inputs, outputs, contract, survey=survey), device)
    memory_today = peak_extra_bytes(lambda: todays_check(inputs, outputs), device)
    verdict = least_seconds(lambda: compare(inputs, outputs, contract, survey=survey), repeats, device)
    today = least_seconds(lambda: todays_check(inputs, outputs), repeats, device)
    calls: list[float] = []

    def timed(given: object, buffers: object) -> object:
        start = time.perf_counter()
        found = emulated.execute(given, buffers, contract)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        calls.append(time.perf_counter() - start)
        return found

    kernel = Kernel("cost/emulated", ADD, contract_name, timed, in_place=True, emulated=True)  # type: ignore[arg-type]
    totals, statuses = [], set()
    for _ in range(repeats):
        calls.clear()
        start = time.perf_counter()
        record = validate(kernel, case, device=device)
        totals.append(time.perf_counter() - start - sum(calls))
        # A record that ended early would make the ratio look good.
        statuses.add(f"{record.status.value} {'; '.join(record.reasons)}".strip())
    found = compare(inputs, outputs, contract, survey=survey)
    return {
        "contract": contract_name,
        "device": device,
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if device.startswith("cuda") else None,
        "threads": torch.get_num_threads(),
        "shape": list(shape),
        "compare_s": verdict,
        "assert_close_s": today,
        "compare_ratio": verdict / today,
        "validate_s": min(totals),
        "validate_ratio": min(totals) / today,
        "compare_extra_mib": memory / 2**20,
        "assert_close_extra_mib": memory_today / 2**20,
        "violations": sum(c.violations for c in found),
        "statuses": sorted(statuses),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if the legitimate kernel was not admitted."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.cost", description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, help="CPU threads of torch")
    parser.add_argument("--contract", action="append", choices=list(NORM_QUANT_CONTRACTS))
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    results = [measure(name, options.device, options.repeats) for name in options.contract or ["aiter-hip-gfx950"]]
    for numbers in results:
        print(json.dumps({k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in numbers.items()}))
    return int(any(numbers["violations"] or numbers["statuses"] != ["PASSED"] for numbers in results))


if __name__ == "__main__":
    raise SystemExit(main())
