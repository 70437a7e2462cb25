"""``import``: another harness's samples as a run directory."""

from __future__ import annotations

import argparse
from pathlib import Path

from evals.errors import EvalError
from evals.gsm8k import importers, store
from validators.commands import cli

READERS = {"lm-eval": importers.lm_eval, "sgl-eval": importers.sgl_eval}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("harness", **cli.closed("harness", tuple(READERS), help="whose file it is"))
    parser.add_argument("file", help="samples_*.jsonl, output-rs*.jsonl, or a folder that holds them")
    parser.add_argument("--out", required=True, metavar="RUN", help="run directory to write")
    parser.add_argument("--name", help="what this arm is called (default: the run directory's name)")
    parser.add_argument("--model", default="unknown", help="the model that answered; the files do not say")
    parser.add_argument("--kernel", metavar="NAME", help="kernel of add_rmsnorm_quant that it was served with")


def command(options: argparse.Namespace) -> int:
    arm = options.name or options.out.rstrip("/").rsplit("/", 1)[-1]
    kernels = {"add_rmsnorm_quant": options.kernel} if options.kernel else {}
    found = READERS[options.harness](options.file, arm=arm, model=options.model, kernels=kernels)
    if (Path(options.out) / store.HEADER).exists():
        raise EvalError(f"{options.out} holds a run already; take a new directory")
    store.write(options.out, found.header, found.samples)
    failed = sum(s.error is not None for s in found.samples)
    answers = f"{len(found.samples) - failed:,} answers and {failed:,} errors"
    print(f"{answers} to {found.header.questions:,} questions in {options.out}")
    if failed:
        print("an empty completion may be a failed request: a comparison counts each for the candidate and against it")
    return 0
