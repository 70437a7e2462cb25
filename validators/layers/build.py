"""``python -m validators layers``: a model layer by layer, fused against unfused against float64.

Every op of the kernels is judged by its admissible set on the activations and weights that it meets in the model,
and the two paths run freely next to the float64 model.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch

from reference.contract import Contract, GemmContract, NormQuantContract, get_contract
from validators.cases.case import Case
from validators.cases.op import op_named
from validators.errors import UsageError, UserError
from validators.explain.identify import choose_contract
from validators.kernels import registry
from validators.kernels.kernel import Kernel, KernelError
from validators.kernels.registry import find_kernel
from validators.layers import presets
from validators.layers.checkpoint import Checkpoint
from validators.layers.checkpoint_write import write_checkpoint
from validators.layers.path import KernelPath, Kernels
from validators.layers.result import Contracts, Result
from validators.layers.timing import Clock
from validators.layers.tp import Group
from validators.layers.walk import Walk
from validators.records.command_line import of_op, split_op
from validators.words import FUSED, GEMM, PATH, QUANT

DEFAULT_QUANT = "emulated/aiter-hip-gfx950"


class LayersError(UserError):
    """Options that do not describe a walk; one sentence."""


def walk(
    source: presets.Synthetic | Checkpoint,
    kernels: Kernels,
    contracts: Contracts,
    *,
    layers: int,
    tokens: int,
    group: Group | None = None,
    seed: int = 0,
    judge_unfused: bool = False,
    path: type[KernelPath] = KernelPath,
    say: Callable[[str], None] = lambda line: None,
    clock: Clock | None = None,
    unjudged: Sequence[str] = (),
) -> Result:
    """Walk ``layers`` layers with ``path`` as the fused path's wiring, the right wiring for the unfused one."""
    fused = path(kernels, source.config, source.quant_format)
    unfused = KernelPath(kernels, source.config, source.quant_format, fused=False)
    prompt = presets.prompt(source.config, tokens, seed)
    steps = Walk(
        source,
        fused,
        unfused,
        contracts,
        prompt,
        group=group or Group(),
        judge_unfused=judge_unfused,
        say=say,
        clock=clock,
        unjudged=unjudged,
    )
    return steps.run(layers)


def open_model(name: str, device: str, seed: int, scratch: Path) -> presets.Synthetic | Checkpoint:
    """A preset or a checkpoint directory as a source. ``glm-tiny`` is written to ``scratch`` and streamed from
    there."""
    if name == "glm-tiny":
        return Checkpoint(write_tiny(scratch, seed), device)
    if name in presets.PRESETS:
        return presets.Synthetic(name, presets.PRESETS[name], device, seed)
    if not Path(name).is_dir():
        raise LayersError(f"{name!r} is neither a preset ({', '.join(presets.PRESETS)}) nor a directory")
    source = Checkpoint(name, device)
    if source.not_ptpc:
        raise LayersError(f"{name}: {source.not_ptpc}")
    return source


def write_tiny(directory: Path, seed: int = 0) -> Path:
    """Write the preset ``glm-tiny`` as a compressed-tensors FP8 checkpoint; returns its directory."""
    source = presets.Synthetic("glm-tiny", presets.GLM_TINY, seed=seed)
    return write_checkpoint(source, directory / "glm-tiny", vocab=source.config.vocab)


def find_kernels(texts: Sequence[str], device: str) -> Kernels:
    """The three kernels of ``[OP=]NAME``, the quantizer by default the norm kernel's namesake.

    A name alone gives way to ``OP=NAME``. Raises UsageError, KernelError or LayersError with one sentence.
    """
    found: dict[str, Kernel] = {}
    for text in sorted(texts, key=lambda text: split_op(text)[0] is None):
        for kernel in registry.find_kernels(text, PATH):
            other = found.setdefault(kernel.op, kernel)
            outranked = of_op(kernel.op, other.name) in texts and text == kernel.name
            if other.name != kernel.name and not outranked:
                raise LayersError(f"{other.name} and {kernel.name} both compute {kernel.op}; say which with OP=NAME")
    for op in (FUSED, GEMM):
        if op not in found:
            raise LayersError(f"the walk needs a kernel of {op}: --kernel {op}=NAME")
    if QUANT not in found:
        try:
            found[QUANT] = find_kernel(found[FUSED].name, QUANT)
        except KernelError:
            found[QUANT] = find_kernel(DEFAULT_QUANT, QUANT)
    for kernel in found.values():
        if reason := kernel.unavailable(device.split(":")[0]):
            raise LayersError(f"{kernel.name} cannot run on {device}: {reason}")
    return Kernels(found[FUSED], found[QUANT], found[GEMM])


def given_contracts(texts: Sequence[str]) -> dict[str, str]:
    """op -> contract of ``--contract [OP=]NAME``, NAME alone of every op that has it; UsageError with one sentence."""
    found: dict[str, str] = {}
    for text in sorted(texts, key=lambda text: split_op(text, "contract")[0] is None):
        said, name = split_op(text, "contract")
        errors = []
        for op in [said] if said else PATH:
            try:
                get_contract(op, name)
                found.setdefault(op, name)
            except KeyError as error:
                errors.append(str(error.args[0]))
        if len(errors) == (1 if said else len(PATH)):
            raise UsageError(errors[0])
    return found


def find_contracts(
    kernels: Kernels, device: str, given: Mapping[str, str] | None = None
) -> tuple[Contracts, dict[str, str]]:
    """The contracts that were given by op, else declared, else identified, and op -> where it comes from."""
    chosen: dict[str, Contract] = {}
    origin = {}
    for kernel in (kernels.norm, kernels.quant, kernels.gemm):
        like = Case(kernel.op, 8, 256, "layers", k=256 if op_named(kernel.op).inner else 0)
        try:
            contract, where, _ = choose_contract(kernel, like, (given or {}).get(kernel.op), device)
        except Exception as error:
            # Identification calls the user's own code, which may raise anything.
            text = " ".join(str(error).split())[:300] or "without a message"
            raise LayersError(
                f"{kernel.name} declares no contract, and identifying one stopped: {type(error).__name__}: {text}"
            ) from error
        if contract is None:
            raise LayersError(f"{kernel.name} declares no contract and its outputs fit none; see: validators identify")
        chosen[kernel.op], origin[kernel.op] = contract, where
    norm, quant = (cast(NormQuantContract, chosen[op]) for op in (FUSED, QUANT))
    return Contracts(norm, quant, cast(GemmContract, chosen[GEMM])), origin


def peak_bytes(device: str) -> int:
    """Most memory that this process used so far: of the GPU where it walks there, else resident."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts KiB, macOS bytes.
    return most if sys.platform == "darwin" else most * 1024
