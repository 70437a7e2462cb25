"""``import``: another harness's samples as a run directory."""

from __future__ import annotations

import argparse
from pathlib import Path

from evals.errors import EvalError
from evals.gsm8k import importers, store
from validators.commands import options as shared
from validators.process.guard import Exit
from validators.records.command_line import names_by_op

READERS = {"lm-eval": importers.lm_eval, "sgl-eval": importers.sgl_eval}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("harness", **shared.closed("harness", tuple(READERS), help="whose file it is"))
    parser.add_argument("file", help="samples_*.jsonl, output-rs*.jsonl, or a folder that holds them")
    shared.add(parser, "--out", "a run", required=True)
    shared.add(parser, "--name", "default: the run directory's name")
    shared.add(parser, "--model", "that answered; the files do not say", default="unknown")
    shared.add(parser, "--kernel", "that it was served with; NAME alone is of add_rmsnorm_quant", several=True)


def command(options: argparse.Namespace) -> int:
    arm = options.name or options.out.rstrip("/").rsplit("/", 1)[-1]
    kernels = names_by_op(options.kernel)
    found = READERS[options.harness](options.file, arm=arm, model=options.model, kernels=kernels)
    if (Path(options.out) / store.HEADER).exists():
        raise EvalError(f"{options.out} holds a run already; take a new directory")
    store.write(options.out, found.header, found.samples)
    failed = sum(s.error is not None for s in found.samples)
    answers = f"{len(found.samples) - failed:,} answers and {failed:,} errors"
    print(f"{answers} to {found.header.questions:,} questions in {options.out}")
    for sample in found.samples if options.verbose else []:
        print(f"{sample.question}: {sample.error or 'answered'}")
    if failed and not options.quiet:
        print("an empty completion may be a failed request: a comparison counts each for the candidate and against it")
    return Exit.YES
