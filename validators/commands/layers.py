"""A model layer by layer: fused against unfused against float64.

Every op of the kernels is judged by its admissible set on the activations and weights that it meets in the model,
and the two paths run freely next to the float64 model.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from reference.glm4_moe import Config
from validators.commands import cli, options, plan
from validators.layers import presets
from validators.layers.build import (
    LayersError,
    find_contracts,
    find_kernels,
    given_contracts,
    open_model,
    peak_bytes,
    walk,
)
from validators.layers.checkpoint import Checkpoint
from validators.layers.checkpoint_check import listed
from validators.layers.path import Kernels, shapes_unsupported
from validators.layers.picture import error_against_depth
from validators.layers.result import Judged, Result
from validators.layers.timing import Clock
from validators.layers.tp import ALL_REDUCE, Group, check_split
from validators.layers.verdict import MARGIN, TOKENS, records
from validators.process.guard import Exit
from validators.records import store
from validators.records.command_line import command_line
from validators.records.evidence import WalkEvidence
from validators.records.files import check_file, new_folder, write_whole
from validators.records.record import Record, Status
from validators.records.text import one_line

INTERRUPTED = "a walk is recorded at its end, so nothing of this one is"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    known = ", ".join(presets.PRESETS)
    options.add(parser, "--model", f"{known}, or the directory of a compressed-tensors checkpoint", required=True)
    options.add(
        parser,
        "--kernel",
        "the norm's and the GEMM's are needed",
        "default of the quantizer: the norm kernel's namesake",
        several=True,
        required=True,
    )
    options.add(parser, "--contract", several=True)
    options.add(parser, "--layers", "default: all")
    parser.add_argument(
        "--tokens", type=int, default=TOKENS, metavar="N", help=f"length of the one sequence (default: {TOKENS})"
    )
    parser.add_argument(
        "--tp", type=int, default=1, metavar="N", help="tensor-parallel ranks, simulated; torchrun makes them real"
    )
    options.add_device(parser, "cpu")
    options.add(parser, "--seed", "the prompt and synthetic weights", default=0)
    parser.add_argument(
        "--noise-margin",
        type=float,
        default=MARGIN,
        metavar="SHARE",
        help=f"by how much the fused path's error may exceed the unfused path's (default: {MARGIN:g})",
    )
    parser.add_argument("--judge-unfused", action="store_true", help="judge the unfused path's linears too")
    parser.add_argument("--timings", action="store_true", help="print where the time goes, by phase")
    options.add_records(parser, default=options.NEW_RECORDS)
    parser.add_argument(
        "--picture", metavar="FILE", help="file for the picture of error against depth (default: layers.svg there)"
    )


def command(parsed: argparse.Namespace) -> Exit:
    """Walk, record, print; the exit status is that of the records."""
    group = _group(parsed)
    here = os.environ.get("LOCAL_RANK", "0")
    device = f"cuda:{here}" if group.real and parsed.device.startswith("cuda") else parsed.device
    plan.devices(device)
    given = given_contracts(parsed.contract)
    kernels = find_kernels(parsed.kernel, device)
    first = not group.real or group.local == (0,)
    with tempfile.TemporaryDirectory(prefix="glm-tiny-") as scratch:
        source = open_model(parsed.model, device, parsed.seed, Path(scratch))
        layers = _layers(parsed.layers, source.config.layers)
        _check_walk(parsed.tokens, kernels, source.config, group)
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
            say=_say if first and not parsed.quiet else _silent,
            clock=clock,
            unjudged=plain,
        )
        for line in clock.lines(len(result.depths)) if first else []:
            print(line)
        if group.real:
            _collect(result)
    if sink is None:
        return Exit.YES
    about = _about(parsed.tokens, source.quant_format, group, result)
    made = records(
        result,
        kernels,
        contracts,
        model=Path(parsed.model).name,
        margin=parsed.noise_margin,
        device=device,
        reproduce=_reproduce(parsed),
        origin=origin,
        peak_bytes=peak_bytes(device),
        of=source.config.layers,
        about=about,
    )
    _write(sink, made)
    return _told(made, result, parsed, directory, device)


def _told(made: list[Record], result: Result, parsed: argparse.Namespace, directory: Path, device: str) -> Exit:
    """The picture and what is printed of a walk that has been recorded."""
    picture = _picture(result, parsed, directory)
    if parsed.verbose:
        for record in made:
            print(one_line(record))
    _print_end(made, result, directory, picture, peak_bytes(device), parsed.quiet)
    return cli.exit_of(made)


def _check_walk(tokens: int, kernels: Kernels, config: Config, group: Group) -> None:
    """Raise LayersError for a walk that cannot be made, before its first layer."""
    if tokens < 1:
        raise LayersError(f"--tokens {tokens} is no length of a sequence")
    check_split(config, group.size)
    if reason := shapes_unsupported(kernels, config, tokens, group.size):
        raise LayersError(reason)


def _about(tokens: int, quant_format: str, group: Group, result: Result) -> WalkEvidence:
    """How much the walk shows, for its records."""
    return WalkEvidence(
        tokens=tokens,
        quant_format=quant_format,
        tp=group.size,
        all_reduce=ALL_REDUCE,
        real_ranks=group.real,
        stream=result.digest,
    )


def _write(sink: store.Sink, made: Sequence[Record]) -> None:
    with sink:
        for record in made:
            sink.write(record)


def _group(parsed: argparse.Namespace) -> Group:
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Group.simulated(parsed.tp) if parsed.tp >= 1 else Group(parsed.tp)
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
    every: list[list[Judged]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(every, result.judged)
    # Norms are replicated and judged by every rank, so that a bad copy cannot hide behind a good one.
    result.judged = [j for rows in every for j in rows]
    dist.destroy_process_group()


def _layers(wanted: int | None, known: int) -> int:
    if wanted is not None and not 0 < wanted <= known:
        raise LayersError(f"--layers {wanted} is no number of layers from 1 to the model's {known}")
    return wanted or known


def _reproduce(parsed: argparse.Namespace) -> str:
    return command_line(
        "validators",
        "layers",
        model=parsed.model,
        kernel=parsed.kernel,
        layers=parsed.layers,
        tokens=parsed.tokens,
        tp=parsed.tp if parsed.tp > 1 else None,
        seed=parsed.seed or None,
        device=None if parsed.device == "cpu" else parsed.device,
        noise_margin=None if parsed.noise_margin == MARGIN else parsed.noise_margin,
        contract=parsed.contract,
        judge_unfused=parsed.judge_unfused,
    )


def _picture(result: Result, parsed: argparse.Namespace, directory: Path) -> Path | None:
    medians = {arm: [float(d.error[arm].median()) for d in result.depths] for arm in ("fused", "unfused")}
    if not result.depths or not any(v > 0 for values in medians.values() for v in values):
        return None
    where = Path(parsed.picture) if parsed.picture else directory / "layers.svg"
    title = f"{Path(parsed.model).name}: median relative error of the hidden state, {parsed.tokens} tokens"
    write_whole(where, error_against_depth(title, [d.layer for d in result.depths], medians))
    return where


def _print_end(
    made: Sequence[Record], result: Result, directory: Path, picture: Path | None, peak: int, quiet: bool
) -> None:
    *ops, whole = made
    passed = sum(j.status is Status.PASSED for j in result.judged)
    for record in [r for r in ops if r.status is not Status.PASSED][:5]:
        print(f"{record.status.value} {record.kernel} {record.case}: {'; '.join(record.reasons)}")
    for check in [] if quiet else whole.checks:
        print(f"{check.name}: {check.detail}")
    print(f"{whole.status.value} trajectory{': ' if whole.reasons else ''}{'; '.join(whole.reasons)}")
    print(
        f"{passed} of {len(result.judged)} ops of {len(result.depths)} layers PASSED in {result.seconds:.1f} s, "
        f"peak memory {peak / 2**30:.2f} GiB; records in {directory}{f', picture {picture}' if picture else ''}"
    )


def _say(line: str) -> None:
    # A walk takes minutes: a line that waits in a buffer is no progress.
    print(line, flush=True)


def _silent(line: str) -> None:
    return None
