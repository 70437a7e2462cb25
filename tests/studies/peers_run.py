"""Peers on the same bench: what each public acceptance criterion catches of the zoo, compared with this suite.

``python -m tests.studies.peers_run`` runs every defect and eight correct kernels of each op on (a) inputs as a
criterion's own test draws them and (b) the smoke cases of this suite, shows the outputs to every criterion of
``tests.studies.peers`` and to this suite, and prints the table; ``--write`` puts it into docs/power.md and
docs/power.svg.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from reference.contract import get_contract
from reference.formats import encode, format_of, round_fp32
from tests import zoo
from tests.benchmarks.legitimate import emulated_claimants, gemm_claimants, native_claimants
from tests.benchmarks.power import CAUGHT, suite_cases, try_defect
from tests.studies import peers, peers_seen
from tests.studies.peers import ADD, GEMM, QUANT, Criterion
from tests.studies.peers_pages import OPS_SHORT, Row, markdown, picture
from validators.calls.buffers import make_buffers
from validators.calls.call import Claim
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.recipes import lane_of
from validators.cases.tensors import GemmInputs, Inputs, NormQuantInputs, Outputs, QuantInputs
from validators.kernels.kernel import Kernel
from validators.records.record import Status
from validators.records.verdict import decide
from validators.run import judge, validate

ROOT = Path(__file__).resolve().parents[2]
SETS, WHOLE = "this suite, admissible sets", "this suite, whole pipeline"
SUITE = "suite"
BELOW_FLOORS = ("magnitude_ladder",)
"""Recipes with rows smaller than the floor of some contract."""
ROWS_OF_OWN = 64
OWN_WIDTHS = ((512, torch.float8_e4m3fn), (5120, torch.float8_e4m3fn), (512, torch.float8_e4m3fnuz))
OWN_GEMMS = (
    (torch.float8_e4m3fn, torch.bfloat16, False),
    (torch.float8_e4m3fn, torch.bfloat16, True),
    (torch.float8_e4m3fn, torch.float16, False),
    (torch.float8_e4m3fnuz, torch.bfloat16, False),
)
GEMM_COLUMNS, GEMM_K, INTEGER_LIMIT = 64, 512, 4

# Executions of the contract that the defects break first, then other correct kernels.
LEGITIMATE = {
    ADD: (
        "aiter-hip-gfx950/tree",
        "aiter-hip-gfx950/chunks-fma",
        "aiter-hip-gfx950/tree+reciprocal-up",
        "aiter-hip-gfx950/chunks-fma+hardware",
        "aiter-triton/tree",
        "vllm/tree",
        "torch-compile/tree",
        "unfused/tree",
    ),
    QUANT: (
        "aiter-hip-gfx950/tree",
        "aiter-hip-gfx950/tree+reciprocal-up",
        "aiter-hip-gfx950/tree+reciprocal-down",
        "aiter-triton/tree",
        "aiter-triton/tree+scale-ulp-up",
        "vllm/tree",
        "torch-compile/tree",
        "eager/tree",
    ),
    GEMM: (
        "fp32/block-128+token_first",
        "fp32/block-32+channel_first",
        "fp32/block-512+product_first",
        "fp32/serial+token_first",
        "fp32/serial+product_first",
        "unknown/token_first",
        "unknown/product_first",
        "torch_native/scaled_mm (ptpc_gemm)",
    ),
}


class BenchError(ValueError):
    """A criterion, defect or correct kernel that the bench does not have; its message is one sentence."""


@dataclass(frozen=True)
class Bed:
    """One set of inputs. case: the suite's case that it is, or None. h: product before quantization, if known."""

    inputs: Any
    case: Case | None = None
    h: torch.Tensor | None = None

    @property
    def plain(self) -> bool:
        """Do correct kernels agree on what to do here? Not on special values, on floors, on e4m3fnuz's largest code."""
        fp8 = self.inputs.a.dtype if isinstance(self.inputs, GemmInputs) else self.inputs.fp8_dtype
        if self.case is not None and (lane_of(self.case) == "special" or self.case.recipe in BELOW_FLOORS):
            return False
        return fp8 == torch.float8_e4m3fn


@dataclass(frozen=True)
class Subject:
    """A kernel on the bench: a defect of the zoo, the clean kernel or a correct one."""

    name: str
    kernel: Kernel


def _quantized(values: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    fp8 = format_of(dtype)
    scale = round_fp32(values.double().abs().amax(1, keepdim=True) / fp8.max)
    return encode(values.double() / scale, fp8).view(dtype), scale.float()


def own_beds(op: str, data: str) -> Iterator[Bed]:
    """Inputs as the criteria's own tests draw them, of kind ``data``; see ``tests.studies.peers.Criterion``."""
    draw = torch.Generator().manual_seed(0)
    if op == GEMM:
        for fp8, out, with_bias in OWN_GEMMS:
            shapes = ((ROWS_OF_OWN, GEMM_K), (GEMM_COLUMNS, GEMM_K))
            if data == "integers":
                a, b = (
                    torch.randint(-INTEGER_LIMIT, INTEGER_LIMIT + 1, shape, generator=draw).double() for shape in shapes
                )
                codes = [(encode(v, format_of(fp8)).view(fp8), torch.ones(len(v), 1)) for v in (a, b)]
            else:
                a, b = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes)
                codes = [_quantized(a, fp8), _quantized(b, fp8)]
            bias = torch.randn(GEMM_COLUMNS, generator=draw).to(out) if with_bias else None
            if bias is not None and data == "integers":
                bias = bias.round()
            yield Bed(GemmInputs(*codes[0], *codes[1], bias, out), h=a @ b.T)
        return
    for n, fp8 in OWN_WIDTHS:
        x, r = (torch.randn(ROWS_OF_OWN, n, generator=draw).bfloat16() for _ in range(2))
        gain = torch.randn(n, generator=draw)
        weight = (gain if data == "randn" else 1.0 + 0.1 * gain).bfloat16()
        yield Bed(QuantInputs(x, fp8) if op == QUANT else NormQuantInputs(x, r, weight, 1e-5, fp8))


@lru_cache(maxsize=32)
def beds(op: str, data: str) -> tuple[Bed, ...]:
    """The inputs of a kind, or of this suite's smoke cases in both FP8 formats for ``SUITE``."""
    if data != SUITE:
        return tuple(own_beds(op, data))
    return tuple(Bed(build(case), case) for case in suite_cases(op, "smoke"))


@lru_cache(maxsize=4096)
def _reference(op: str, data: str, index: int, style: peers.Style) -> peers_seen.Rows | peers_seen.Product:
    bed = beds(op, data)[index]
    if isinstance(bed.inputs, GemmInputs):
        return peers_seen.reference_product(bed.inputs, bed.h)
    return peers_seen.reference_rows(bed.inputs, style)


def call(kernel: Kernel, bed: Bed) -> Outputs | None:
    """The kernel's outputs in fresh memory of zeros; None where it raises. Inputs that it overwrites are restored."""
    before = {name: value.clone() for name, value in vars(bed.inputs).items() if isinstance(value, torch.Tensor)}
    try:
        return kernel.call(bed.inputs, make_buffers(bed.inputs, poison=0).outputs)
    except Exception:
        return None
    finally:
        for name, value in before.items():
            getattr(bed.inputs, name).copy_(value)


def accepted(outputs: Outputs, criterion: Criterion, op: str, data: str, index: int) -> bool:
    """Does the criterion accept these outputs of inputs ``beds(op, data)[index]``?"""
    reference = _reference(op, data, index, criterion.style)
    if op == GEMM:
        return criterion.accept(peers.ProductSeen(outputs, reference))  # type: ignore[arg-type]
    seen = peers.RowsSeen(beds(op, data)[index].inputs, outputs, reference)  # type: ignore[arg-type]
    return criterion.accept(seen)  # type: ignore[arg-type]


def admitted(outputs: Outputs, kernel: Kernel, bed: Bed) -> bool:
    """Does this suite find every value inside the admissible sets of the declared contract? No call is repeated."""
    claim = Claim(bed.inputs, outputs)
    comparisons, checks = judge(claim, get_contract(kernel.op, str(kernel.contract)))
    return decide(comparisons, checks)[0] not in CAUGHT


Rejections = dict[tuple[str, str], set[int]]
"""(criterion, kind of inputs) -> indices of the inputs on which it rejects."""


def rejections(
    subject: Subject, chosen: Sequence[Criterion], *, plain: bool = False, enough: Rejections | None = None
) -> Rejections:
    """What every criterion and ``SETS`` reject. plain: show the criteria only inputs on which correct
    kernels do not differ by design.

    enough: rejections of the clean kernel; a pair with one more than these needs no further input.
    """
    op, found = subject.kernel.op, {}
    kinds = dict.fromkeys(("randn", *(c.data for c in chosen), SUITE))
    for data in kinds:
        wanted = [c for c in chosen if op in c.ops and data in (c.data, SUITE)]
        for c in wanted:
            found[c.name, data] = set[int]()
        if data in ("randn", SUITE):
            found[SETS, data] = set[int]()
        elif not wanted:
            continue
        for index, bed in enumerate(beds(op, data)):
            if bed.case is not None and subject.kernel.unsupported(bed.case):
                continue
            open_ = [c for c in wanted if enough is None or not found[c.name, data] - enough[c.name, data]]
            if plain and not bed.plain:
                open_ = []
            judged = data in ("randn", SUITE) and not (enough is not None and found[SETS, data])
            if not open_ and not judged:
                continue
            outputs = call(subject.kernel, bed)
            for c in open_:
                if outputs is None or not accepted(outputs, c, op, data, index):
                    found[c.name, data].add(index)
            if judged and (outputs is None or not admitted(outputs, subject.kernel, bed)):
                found[SETS, data].add(index)
    return found


def legitimate(op: str) -> list[Subject]:
    """The eight correct kernels of ``op``; raises BenchError for one that is not there."""
    known = {c.name: c for c in (*emulated_claimants(), *gemm_claimants(), *native_claimants())}
    found = []
    for name in LEGITIMATE[op]:
        if name not in known or op not in known[name].ops:
            raise BenchError(f"no correct kernel {name!r} for op {op}")
        claimant = known[name]

        def run(inputs: Inputs, buffers: Outputs, inner: Callable[[Inputs], Outputs] = claimant.call) -> Outputs:
            return inner(inputs)

        kernel = Kernel(name, op, claimant.contract.name, run, unsupported=claimant.unsupported)
        found.append(Subject(name, kernel))
    return found


def _false_alarms(subject: Subject) -> bool:
    cases = suite_cases(subject.kernel.op, "smoke")
    return any(validate(subject.kernel, case).status in (*CAUGHT, Status.ERROR) for case in cases)


def measure(
    names: Sequence[str] | None = None,
    defects: Sequence[str] | None = None,
    *,
    alarms: bool = True,
    whole: bool = True,
    echo: bool = False,
) -> list[Row]:
    """A row for every criterion, then this suite's. names, defects: only these; alarms: run the correct kernels too.

    Raises BenchError for a name that is none.
    """
    chosen = [c for c in peers.criteria() if names is None or c.name in names]
    # No published criterion is about the other ops.
    zoo_defects = [d for d in zoo.all_defects() if d.op in LEGITIMATE]
    subjects = [Subject(d.id, d.kernel) for d in zoo_defects if defects is None or d.id in defects]
    for asked, known in ((names, chosen), (defects, subjects)):
        missing = set(asked or ()) - {entry.name for entry in known}
        if missing:
            raise BenchError(f"the bench has no {sorted(missing)[0]!r}")
    rows = {c.name: Row(c.name, c.ops, c.data, c.style) for c in chosen}
    for op in dict.fromkeys(s.kernel.op for s in subjects):
        rows[f"{SETS} {op}"] = Row(SETS, (op,), "randn", "contract")
        if whole:
            rows[f"{WHOLE} {op}"] = Row(WHOLE, (op,), "", "contract")
        clean = rejections(Subject("clean", zoo.clean_kernel(op)), chosen)
        for subject in (s for s in subjects if s.kernel.op == op):
            start = time.perf_counter()
            found = rejections(subject, chosen, enough=clean)
            for (name, data), indices in found.items():
                row = rows[f"{name} {op}" if name == SETS else name]
                row.own_or_suite(data == SUITE).note(subject.name, indices, clean[name, data])
            if whole:
                defect = zoo.find_defect(subject.name)
                caught = try_defect(defect, suite_cases(op, "smoke")).caught
                rows[f"{WHOLE} {op}"].suite.note(subject.name, {0} if caught else set(), set())
                if not caught and try_defect(defect, suite_cases(op, "default")).caught:
                    rows[f"{WHOLE} {op}"].deeper.append(subject.name)
            if echo:
                print(f"{subject.name:5} {time.perf_counter() - start:5.2f} s", flush=True)
        for subject in legitimate(op) if alarms else ():
            same = subject.kernel.contract == zoo.clean_kernel(op).contract
            for (name, data), indices in rejections(subject, chosen, plain=True).items():
                row = rows[f"{name} {op}" if name == SETS else name]
                row.own_or_suite(data == SUITE).alarm(f"{OPS_SHORT[op]} {subject.name}", bool(indices), same)
            if whole:
                rows[f"{WHOLE} {op}"].suite.alarm(f"{OPS_SHORT[op]} {subject.name}", _false_alarms(subject), same)
            if echo:
                print(subject.name, flush=True)
    return [row for row in rows.values() if row.suite.seen]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 if this suite misses a defect at default depth as well, or rejects a correct kernel."""
    parser = argparse.ArgumentParser(prog="python -m tests.studies.peers_run", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/power.md and docs/power.svg")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    torch.set_num_threads(1)
    rows = measure(echo=True)
    text = markdown(rows)
    print(text)
    print(f"{time.perf_counter() - start:.0f} s")
    if options.write:
        (ROOT / "docs/power.md").write_text(text, encoding="utf-8")
        (ROOT / "docs/power.svg").write_text(picture(rows), encoding="utf-8")
    ours = [row for row in rows if row.name == WHOLE]
    return 1 if any(row.suite.alarms or set(row.suite.missed) - set(row.deeper) for row in ours) else 0


if __name__ == "__main__":
    raise SystemExit(main())
