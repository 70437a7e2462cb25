"""``python -m validators layers``: a model layer by layer, fused against unfused against float64.

Every op of the kernels is judged by its admissible set on the activations and weights that it meets in the model,
and the two paths run freely beside the float64 model. Exit codes: 0 everything PASSED; 1 something FAILED or is
MISTRUSTED; 2 bad usage, or a path stopped with an ERROR.
"""

from __future__ import annotations

import argparse
import os
import resource
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import torch

from reference.contract import Contract, GemmContract, NormQuantContract, get_contract
from validators.cases.case import Case
from validators.errors import UserError
from validators.explain.identify import choose_contract
from validators.kernels.kernel import KernelError
from validators.kernels.registry import find_kernel
from validators.layers import presets
from validators.layers.checkpoint import Checkpoint
from validators.layers.checkpoint_check import listed
from validators.layers.checkpoint_write import write_checkpoint
from validators.layers.path import KernelPath, Kernels, shapes_unsupported
from validators.layers.picture import error_against_depth
from validators.layers.result import Contracts, Judged, Result
from validators.layers.timing import Clock
from validators.layers.tp import ALL_REDUCE, Group, check_split
from validators.layers.verdict import MARGIN, TOKENS, records
from validators.layers.walk import Walk
from validators.process.guard import guarded
from validators.records import store
from validators.records.evidence import WalkEvidence
from validators.records.files import check_file, new_folder, write_whole
from validators.records.record import Record, Status
from validators.words import OPS

DEFAULT_QUANT = "emulated/aiter-hip-gfx950"


class LayersError(UserError):
    """Options that do not describe a walk; one sentence."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise LayersError(f"{message}; see {self.prog} --help")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    known = ", ".join(presets.PRESETS)
    parser.add_argument("--model", required=True, help=f"{known}, or the directory of a compressed-tensors checkpoint")
    parser.add_argument("--kernel-norm", required=True, help="kernel of add_rmsnorm_quant")
    parser.add_argument("--kernel-gemm", required=True, help="kernel of ptpc_gemm")
    parser.add_argument("--kernel-quant", help="kernel of per_token_quant (default: the norm kernel's namesake)")
    parser.add_argument(
        "--contract",
        action="append",
        default=[],
        metavar="OP=NAME",
        help="hold the kernel of an op to this contract (may be repeated)",
    )
    parser.add_argument("--layers", help="0-LAST (default: all)")
    parser.add_argument("--tokens", type=int, default=TOKENS, help=f"length of the one sequence (default: {TOKENS})")
    parser.add_argument("--tp", type=int, default=1, help="tensor-parallel ranks, simulated; torchrun makes them real")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--seed", type=int, default=0, help="of the prompt and of synthetic weights")
    parser.add_argument("--margin", type=float, default=MARGIN, help=f"loss allowed to the fused path ({MARGIN})")
    parser.add_argument("--judge-unfused", action="store_true", help="judge the unfused path's linears too")
    parser.add_argument("--timings", action="store_true", help="print where the time goes, by phase")
    parser.add_argument("--records", help="directory for the records (default: records/<UTC time>)")
    parser.add_argument("--picture", help="file for the picture of error against depth (default: layers.svg there)")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse ``argv`` (without the command's name) and walk; returns the exit code. Bad input is one sentence."""
    return guarded(
        "validators",
        lambda: command(_parse(argv)),
        interrupted="a walk is recorded at its end, so nothing of this one is",
    )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="python -m validators layers", description=__doc__)
    add_options(parser)
    return parser.parse_args(argv)


def command(parsed: argparse.Namespace) -> int:
    """Walk, record, print; returns the exit code. Raises UserError with one sentence."""
    group = _group(parsed)
    here = os.environ.get("LOCAL_RANK", "0")
    device = f"cuda:{here}" if group.real and parsed.device.startswith("cuda") else parsed.device
    _check_device(device)
    given = given_contracts(parsed.contract)
    kernels = find_kernels(parsed.kernel_norm, parsed.kernel_quant, parsed.kernel_gemm, device)
    first = not group.real or group.local == (0,)
    with tempfile.TemporaryDirectory(prefix="glm-tiny-") as scratch:
        source = open_model(parsed.model, device, parsed.seed, Path(scratch))
        layers = _layers(parsed.layers, source.config.layers)
        if parsed.tokens < 1:
            raise LayersError(f"--tokens {parsed.tokens} is no length of a sequence")
        check_split(source.config, group.size)
        if reason := shapes_unsupported(kernels, source.config, parsed.tokens, group.size):
            raise LayersError(reason)
        plain = source.check(layers) if isinstance(source, Checkpoint) else []
        contracts, origin = find_contracts(kernels, device, given)
        # The walk takes minutes, so a place that cannot be written is found before it.
        directory = Path(parsed.records or new_folder("records")) if first else Path()
        sink = store.Sink(directory) if first else None
        if parsed.picture and first:
            check_file(parsed.picture)
        if plain and first:
            _say(f"not quantized in the checkpoint, so walked in bf16 and not judged: {listed(plain)}")
        clock = Clock(device, parsed.timings)
        result = walk(
            source,
            kernels,
            contracts,
            layers=layers,
            tokens=parsed.tokens,
            group=group,
            seed=parsed.seed,
            judge_unfused=parsed.judge_unfused,
            say=_say if first else _silent,
            clock=clock,
            unjudged=plain,
        )
        for line in clock.lines(len(result.depths)) if first else []:
            print(line)
        if group.real:
            _collect(result)
    if sink is None:
        return 0
    command_line = f"python -m validators layers {shlex.join(_arguments(parsed))}"
    made = records(
        result,
        kernels,
        contracts,
        model=Path(parsed.model).name,
        margin=parsed.margin,
        device=device,
        reproduce=command_line,
        origin=origin,
        peak_bytes=peak_bytes(device),
        of=source.config.layers,
        about=WalkEvidence(
            tokens=parsed.tokens,
            quant_format=source.quant_format,
            tp=group.size,
            all_reduce=ALL_REDUCE,
            real_ranks=group.real,
            stream=result.digest,
        ),
    )
    with sink:
        for record in made:
            sink.write(record)
    picture = _picture(result, parsed, directory)
    _print_end(made, result, directory, picture, peak_bytes(device))
    return exit_code(made)


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


def find_kernels(norm: str, quant: str | None, gemm: str, device: str) -> Kernels:
    """The three kernels; raises KernelError or LayersError with one sentence."""
    if quant is None:
        try:
            quant = find_kernel(norm, "per_token_quant").name
        except KernelError:
            quant = DEFAULT_QUANT
    named = {"add_rmsnorm_quant": norm, "per_token_quant": quant, "ptpc_gemm": gemm}
    found = {op: find_kernel(name, op) for op, name in named.items()}
    for kernel in found.values():
        if reason := kernel.unavailable(device.split(":")[0]):
            raise LayersError(f"{kernel.name} cannot run on {device}: {reason}")
    return Kernels(found["add_rmsnorm_quant"], found["per_token_quant"], found["ptpc_gemm"])


def given_contracts(texts: Sequence[str]) -> dict[str, str]:
    """op -> contract of ``--contract OP=NAME``; raises LayersError with one sentence."""
    found = {}
    for text in texts:
        op, equals, name = text.partition("=")
        if op not in OPS or not equals:
            raise LayersError(f"--contract {text!r} is not OP=NAME; ops: {', '.join(OPS)}")
        try:
            get_contract(op, name)
        except KeyError as error:
            raise LayersError(str(error.args[0])) from None
        found[op] = name
    return found


def find_contracts(
    kernels: Kernels, device: str, given: Mapping[str, str] | None = None
) -> tuple[Contracts, dict[str, str]]:
    """The contracts that were given by op, else declared, else identified, and op -> where it comes from."""
    chosen: dict[str, Contract] = {}
    origin = {}
    for kernel in (kernels.norm, kernels.quant, kernels.gemm):
        like = Case(kernel.op, 8, 256, "layers", k=256 if kernel.op == "ptpc_gemm" else 0)
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
    norm, quant, gemm = (chosen[op] for op in ("add_rmsnorm_quant", "per_token_quant", "ptpc_gemm"))
    assert isinstance(norm, NormQuantContract)
    assert isinstance(quant, NormQuantContract)
    assert isinstance(gemm, GemmContract)
    return Contracts(norm, quant, gemm), origin


def exit_code(made: Sequence[Record]) -> int:
    """See the module's docstring."""
    statuses = {r.status for r in made}
    if statuses & {Status.FAILED, Status.MISTRUSTED, Status.NONDETERMINISTIC}:
        return 1
    return 0 if statuses == {Status.PASSED} else 2


def peak_bytes(device: str) -> int:
    """Most memory that this process used so far: of the GPU where it walks there, else resident."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts KiB, macOS bytes.
    return most if sys.platform == "darwin" else most * 1024


def _say(line: str) -> None:
    # A walk takes minutes: a line that waits in a buffer is no progress.
    print(line, flush=True)


def _silent(line: str) -> None:
    return None


def _group(parsed: argparse.Namespace) -> Group:
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Group.simulated(parsed.tp) if parsed.tp >= 1 else Group(parsed.tp)
    import torch.distributed as dist

    if not dist.is_initialized():
        if parsed.device.startswith("cuda"):
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if parsed.device.startswith("cuda") else "gloo")
    group = Group.distributed()
    if parsed.tp not in (1, group.size):
        raise LayersError(f"--tp {parsed.tp} does not match the {group.size} processes that were started")
    return group


def _collect(result: Result) -> None:
    """Put what every rank judged into the result of each; a row of rank r was judged by rank r alone or by all
    alike."""
    import torch.distributed as dist

    every: list[list[Judged]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(every, result.judged)
    # Norms are replicated and judged by every rank, so that a bad copy cannot hide behind a good one.
    result.judged = [j for rows in every for j in rows]
    dist.destroy_process_group()


def _check_device(device: str) -> None:
    if device != "cpu" and not device.startswith("cuda"):
        raise LayersError(f"unknown device {device!r}; known: cpu, cuda, cuda:N")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise LayersError(f"there is no device {device} here")


def _layers(text: str | None, known: int) -> int:
    if text is None:
        return known
    first, dash, last = text.partition("-")
    if not (first.isdigit() and (last.isdigit() or not dash)):
        raise LayersError(f"--layers {text!r} is no range such as 0-3")
    if int(first) != 0:
        raise LayersError("a walk starts at layer 0, because a later layer needs the stream of those before it")
    if not int(last or first) < known:
        raise LayersError(f"--layers {text} goes beyond layer {known - 1}, the last")
    return int(last or first) + 1


def _arguments(parsed: argparse.Namespace) -> list[str]:
    given = [
        "--model",
        parsed.model,
        "--kernel-norm",
        parsed.kernel_norm,
        "--kernel-gemm",
        parsed.kernel_gemm,
        *(["--kernel-quant", parsed.kernel_quant] if parsed.kernel_quant else []),
        *(["--layers", parsed.layers] if parsed.layers else []),
        "--tokens",
        str(parsed.tokens),
        *(["--tp", str(parsed.tp)] if parsed.tp > 1 else []),
        *(["--seed", str(parsed.seed)] if parsed.seed else []),
        *([] if parsed.device == "cpu" else ["--device", parsed.device]),
        *([] if parsed.margin == MARGIN else ["--margin", str(parsed.margin)]),
        *(word for text in parsed.contract for word in ("--contract", text)),
        *(["--judge-unfused"] if parsed.judge_unfused else []),
    ]
    return given


def _picture(result: Result, parsed: argparse.Namespace, directory: Path) -> Path | None:
    medians = {arm: [float(d.error[arm].median()) for d in result.depths] for arm in ("fused", "unfused")}
    if not result.depths or not any(v > 0 for values in medians.values() for v in values):
        return None
    where = Path(parsed.picture) if parsed.picture else directory / "layers.svg"
    title = f"{Path(parsed.model).name}: median relative error of the hidden state, {parsed.tokens} tokens"
    write_whole(where, error_against_depth(title, [d.layer for d in result.depths], medians))
    return where


def _print_end(made: Sequence[Record], result: Result, directory: Path, picture: Path | None, peak: int) -> None:
    *ops, whole = made
    passed = sum(j.status is Status.PASSED for j in result.judged)
    for record in [r for r in ops if r.status is not Status.PASSED][:5]:
        print(f"{record.status.value} {record.kernel} {record.case}: {'; '.join(record.reasons)}")
    for check in whole.checks:
        print(f"{check.name}: {check.detail}")
    print(f"{whole.status.value} trajectory{': ' if whole.reasons else ''}{'; '.join(whole.reasons)}")
    print(
        f"{passed} of {len(result.judged)} ops of {len(result.depths)} layers PASSED in {result.seconds:.1f} s, "
        f"peak memory {peak / 2**30:.2f} GiB; records in {directory}{f', picture {picture}' if picture else ''}"
    )


if __name__ == "__main__":
    sys.exit(main())
