"""The zoo of defects: every known way for a fused FP8 kernel to be wrong, as an executable kernel.

A defect is the emulated kernel with one or two stages replaced, or with another arithmetic than the one
that it declares. Whatever the suite lets through here, it would let through in a real kernel.
``norm``, ``quant`` and ``gemm`` hold the lists; this module holds what they share. ``paths`` holds
models whose kernels are right and whose wiring is wrong; ``wiring`` lists them.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from reference.contract import GEMM_CONTRACTS, NORM_QUANT_CONTRACTS
from tests.zoo import wiring
from validators.cases.case import Case
from validators.cases.suite import cases_for
from validators.cases.tensors import Inputs, Outputs
from validators.kernels import emulated, emulated_gemm
from validators.kernels.kernel import Kernel
from validators.words import FP8_FORMATS, OPS

NORM_CONTRACT = "aiter-hip-gfx950"
GEMM_CONTRACT = "fp32"
W = TypeVar("W")


_OTHER_OPS = [op for op in OPS if (Path(__file__).parent / f"{op}.py").is_file()]
"""Ops whose defects are in a file of this folder with their name."""


class ZooError(ValueError):
    """A defect or a guard that does not exist; its message is one sentence."""


@dataclass(frozen=True)
class Defect:
    """A named way to be wrong.

    id: ``N04``; N norm, Q quantization, G GEMM. name: slug. kernel: in place, declares the contract that
    it breaks. reveals: ids of cases that show it. real_report: ``owner/repo#number`` of a real bug of
    this kind, or "" if it is derived. summary: one sentence.
    """

    id: str
    name: str
    op: str
    kernel: Kernel
    reveals: tuple[str, ...]
    real_report: str
    summary: str


def norm_case(recipe: str, m: int = 64, n: int = 512, **options: object) -> str:
    """Id of an ``add_rmsnorm_quant`` case."""
    return Case("add_rmsnorm_quant", m, n, recipe, **options).id  # type: ignore[arg-type]


def quant_case(recipe: str, m: int = 64, n: int = 512, **options: object) -> str:
    """Id of a ``per_token_quant`` case."""
    return Case("per_token_quant", m, n, recipe, **options).id  # type: ignore[arg-type]


def gemm_case(recipe: str, m: int = 64, n: int = 64, k: int = 256, **options: object) -> str:
    """Id of a ``ptpc_gemm`` case."""
    return Case("ptpc_gemm", m, n, recipe, k=k, **options).id  # type: ignore[arg-type]


def norm_quant_defect(
    identity: str,
    name: str,
    summary: str,
    *reveals: str,
    report: str = "",
    executes: Mapping[str, object] | None = None,
    **stages: emulated.Stage,
) -> Defect:
    """A defect of the op of its cases: stages replaced, or contract fields ``executes`` other than declared."""
    op = Case.parse(reveals[0]).op
    if {Case.parse(text).op for text in reveals} != {op}:
        raise ZooError(f"defect {identity} has cases of several ops; a kernel has one")
    executed = NORM_QUANT_CONTRACTS[NORM_CONTRACT].replace(**(executes or {}))

    def call(inputs: Inputs, buffers: Outputs) -> Outputs:
        return emulated.execute(inputs, buffers, executed, stages=stages)

    kernel = Kernel(f"defect/{identity}-{name}", op, NORM_CONTRACT, call, in_place=True, emulated=True, notes=summary)
    return Defect(identity, name, op, kernel, reveals, report, summary)


def gemm_defect(
    identity: str, name: str, summary: str, *reveals: str, report: str = "", **stages: emulated_gemm.GemmStage
) -> Defect:
    """A defect of ``ptpc_gemm``: stages replaced. It writes into its buffers."""

    def call(inputs: Inputs, buffers: Outputs) -> Outputs:
        return emulated_gemm.execute(inputs, buffers, GEMM_CONTRACTS[GEMM_CONTRACT], stages=stages)

    kernel = Kernel(
        f"defect/{identity}-{name}", "ptpc_gemm", GEMM_CONTRACT, call, in_place=True, emulated=True, notes=summary
    )
    return Defect(identity, name, "ptpc_gemm", kernel, reveals, report, summary)


def first(stage: Callable[[W], None], then: Callable[[W], None]) -> Callable[[W], None]:
    """The stage ``stage`` followed by ``then``."""

    def both(w: W) -> None:
        stage(w)
        then(w)

    return both


def lanes_lost(width: int) -> Callable[[Tensor], Tensor]:
    """Columns that the upper half of each 64-lane wave holds when a lane loads ``width`` neighbours, as zeros."""

    def drop(values: Tensor) -> Tensor:
        column = torch.arange(values.shape[-1], device=values.device)
        return torch.where((column // width) % 64 >= 32, 0.0, values)

    return drop


def clean_kernel(op: str) -> Kernel:
    """The emulated kernel that a defect of ``op`` departs from; it writes in place too."""
    if op == "ptpc_gemm":

        def call(inputs: Inputs, buffers: Outputs) -> Outputs:
            return emulated_gemm.execute(inputs, buffers, GEMM_CONTRACTS[GEMM_CONTRACT])

        return Kernel("clean/ptpc_gemm", op, GEMM_CONTRACT, call, in_place=True, emulated=True)
    if op in _OTHER_OPS:
        kernel: Kernel = importlib.import_module(f"tests.zoo.{op}").clean_kernel()
        return kernel
    if op not in emulated.STAGES:
        raise ZooError(f"unknown op {op!r}; known: {', '.join(emulated.STAGES)}, ptpc_gemm")
    contract = NORM_QUANT_CONTRACTS[NORM_CONTRACT]
    return Kernel(f"clean/{op}", op, NORM_CONTRACT, emulated.make(contract), in_place=True, emulated=True)


_Shape = tuple[int, int, int]


def _shape(inputs: Inputs) -> _Shape:
    m, n, k = inputs.shape if inputs.op == "ptpc_gemm" else (inputs.row_count, inputs.width, 0)
    return m, n, k


# Name: (does the defect show for (m, n, k) and the number of earlier calls?, smallest change of them that it shows at)
_GUARDS: dict[str, tuple[Callable[[_Shape, int], bool], Callable[[_Shape], _Shape]]] = {
    "m>256": (lambda s, calls: s[0] > 256, lambda s: (max(s[0], 259), *s[1:])),
    "n%8": (lambda s, calls: s[1] % 8 != 0, lambda s: (s[0], s[1] if s[1] % 8 else s[1] + 4, s[2])),
    "m odd": (lambda s, calls: s[0] % 2 == 1, lambda s: (s[0] | 1, *s[1:])),
    "second call": (lambda s, calls: calls > 0, lambda s: s),
    # Of a GEMM alone: the others have no k.
    "k%128": (lambda s, calls: s[2] % 128 != 0, lambda s: (s[0], s[1], s[2] if s[2] % 128 else s[2] + 64)),
    # The defect's values in one block of 128 columns, the clean kernel's in the others.
    "one block": (lambda s, calls: True, lambda s: s),
}
GUARDS = tuple(_GUARDS)
BLOCK = 128

VECTOR_WIDTH, VECTOR_FIRST = 5120, 616
# Limits of shapes. A defect behind one of them shows on shapes that few cases have, so it is tried on those that the
# default suite has, and not on its own. Name: (ops, does the defect show for (m, n, k)?)
_SHAPE_GUARDS: dict[str, tuple[tuple[str, ...], Callable[[_Shape], bool]]] = {
    "n>6144": (("add_rmsnorm_quant", "per_token_quant"), lambda s: s[1] > 6144),
    "n>10240": (("add_rmsnorm_quant", "per_token_quant"), lambda s: s[1] > 10240),
    "m>65535": (OPS, lambda s: s[0] > 65535),
    "m=1": (OPS, lambda s: s[0] == 1),
    # Only rows whose largest input is in one vector of 8 columns, at the model's hidden width.
    "one vector": (("add_rmsnorm_quant", "per_token_quant"), lambda s: s[0] > 0 and s[1] == VECTOR_WIDTH),
    "model's decode": (("ptpc_gemm",), lambda s: s[0] == 1 and s[1] >= 1792 and s[2] >= 1536),
    "model's prefill": (("ptpc_gemm",), lambda s: s[0] > 16 and s[1] >= 1792 and s[2] >= 1536),
}
SHAPE_GUARDS = tuple(_SHAPE_GUARDS)


def _one_vector(inputs: Inputs, clean: Outputs, wrong: Outputs) -> None:
    """Rows of ``wrong`` into ``clean`` where the largest of |x + residual| is in the columns of one vector."""
    total = inputs.leading.float()
    residual = getattr(inputs, "residual", None)
    total = total if residual is None else total + residual.float()
    peak = total.reshape(-1, total.shape[-1]).abs().nan_to_num(0.0, posinf=0.0).argmax(dim=1)
    rows = (peak >= VECTOR_FIRST) & (peak < VECTOR_FIRST + 8)
    for field in dataclasses.fields(clean):
        right, bad = getattr(clean, field.name), getattr(wrong, field.name)
        if right is not None:
            size = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[right.element_size()]
            right.view(size).view(len(rows), -1)[rows] = bad.view(size).view(len(rows), -1)[rows]


def _suite_cases(op: str, shows: Callable[[_Shape], bool]) -> tuple[str, ...]:
    """Ids of the default suite's cases with such a shape, in the other FP8 format as well; the smallest first."""
    found = {c.id: c for fp8 in FP8_FORMATS for c in cases_for(op, fp8=fp8) if shows((c.m, c.n, c.k))}
    return tuple(sorted(found, key=lambda text: found[text].m * found[text].n * max(1, found[text].k)))


def _one_block(clean: Outputs, wrong: Outputs) -> None:
    """Columns of the second block of 128, or of the first where there is no second, of ``wrong`` into ``clean``."""
    for field in dataclasses.fields(clean):
        right, bad = getattr(clean, field.name), getattr(wrong, field.name)
        if right is not None and right.shape[-1] > 1:
            first = BLOCK if right.shape[-1] > BLOCK else 0
            size = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[right.element_size()]
            right.view(size)[..., first : first + BLOCK] = bad.view(size)[..., first : first + BLOCK]


def guarded(defect: Defect, guard: str) -> Defect:
    """``defect`` behind a condition of ``GUARDS`` or ``SHAPE_GUARDS``, as real bugs are: elsewhere the kernel is clean.

    The cases that reveal it get the nearest shape that satisfies one of ``GUARDS``; behind one of ``SHAPE_GUARDS`` they
    are those of the default suite. "second call" counts the calls of the returned kernel, so ask for a new one for each
    trial. Raises ZooError for an unknown guard, or for one that does not concern the defect's op.
    """
    if guard not in _GUARDS and guard not in _SHAPE_GUARDS:
        raise ZooError(f"unknown guard {guard!r}; known: {', '.join((*GUARDS, *SHAPE_GUARDS))}")
    if not concerns(guard, defect.op):
        ops = " and ".join(_SHAPE_GUARDS[guard][0]) if guard in _SHAPE_GUARDS else "ptpc_gemm"
        raise ZooError(f"guard {guard!r} belongs to {ops}; {defect.id} is a defect of {defect.op}")
    clean = clean_kernel(defect.op)
    shows = _GUARDS[guard][0] if guard in _GUARDS else lambda shape, calls: _SHAPE_GUARDS[guard][1](shape)
    mixed: Callable[[Inputs, Outputs, Outputs], None] | None = None
    if guard in ("one block", "one vector"):
        mixed = _one_vector if guard == "one vector" else lambda inputs, right, wrong: _one_block(right, wrong)
    calls = 0

    def call(inputs: Inputs, buffers: Outputs) -> Outputs:
        nonlocal calls
        calls += 1
        shown = shows(_shape(inputs), calls - 1)
        if mixed is not None and shown:
            values = {f.name: getattr(buffers, f.name) for f in dataclasses.fields(buffers)}
            own = {name: None if held is None else held.clone() for name, held in values.items()}
            wrong = defect.kernel.call(inputs, type(buffers)(**own))
            right = clean.call(inputs, buffers)
            mixed(inputs, right, wrong)
            return right
        chosen = defect.kernel if shown else clean
        return chosen.call(inputs, buffers)

    if guard in _SHAPE_GUARDS:
        reveals = _suite_cases(defect.op, _SHAPE_GUARDS[guard][1])
    else:
        cases = [Case.parse(text) for text in defect.reveals]
        shaped = [(case, _GUARDS[guard][1]((case.m, case.n, case.k))) for case in cases]
        reveals = tuple(dataclasses.replace(case, m=m, n=n, k=k).id for case, (m, n, k) in shaped)
    slug = f"{defect.name}-when-{guard.replace('%8', '-ragged').replace('>', '-above-').replace(' ', '-')}"
    kernel = dataclasses.replace(defect.kernel, name=f"defect/{defect.id}-{slug}", call=call)
    summary = f"{defect.summary} Only when: {guard}."
    return dataclasses.replace(defect, name=slug, kernel=kernel, reveals=reveals, summary=summary)


def concerns(guard: str, op: str) -> bool:
    """Whether the guard's condition can hold for ``op``."""
    if guard in _SHAPE_GUARDS:
        return op in _SHAPE_GUARDS[guard][0]
    return guard != "k%128" or op == "ptpc_gemm"


def all_defects() -> list[Defect]:
    """Every defect, in the order of the catalogue."""
    modules = [importlib.import_module(f"tests.zoo.{name}") for name in ("norm", "quant", "gemm", *_OTHER_OPS)]
    return [defect for module in modules for defect in module.defects()]


def wiring_defects() -> list[wiring.WiringDefect]:
    """Every defect of a model's wiring, where the kernels are right; they need a walk, not a case, to show."""
    return wiring.defects()


def catalogue() -> list[tuple[str, str, str]]:
    """(id, name, summary) of every defect of the zoo, kernels first, then wiring."""
    kernels = [(d.id, d.name, d.summary) for d in all_defects()]
    return kernels + [(d.id, d.name, d.summary) for d in wiring_defects()]


def find_defect(identity: str) -> Defect:
    """The defect with that id; raises ZooError with the known ids."""
    found = {defect.id: defect for defect in all_defects()}
    if identity not in found:
        raise ZooError(f"unknown defect {identity!r}; known: {', '.join(found)}")
    return found[identity]
