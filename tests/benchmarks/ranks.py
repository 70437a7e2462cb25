"""Do real ranks give the bits of simulated ones? ``python -m tests.benchmarks.ranks --device cuda --tp 2``.

Walks the same layers twice: with ``torchrun`` on ``--tp`` processes (NCCL on GPUs, gloo on a CPU), and with as many
simulated ranks in one process on one device. The digests of hidden state and residual stream at the end must be equal.
Exit codes: 0 equal; 1 not equal; 2 a walk did not end.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from validators.records import store
from validators.records.evidence import WalkEvidence

ROOT = Path(__file__).resolve().parents[2]


def run(command: Sequence[str], seconds: float, threads: str = "1") -> str:
    """Runs the command from the repository's root; "" or one sentence why it did not end."""
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=seconds,
            env={**os.environ, "OMP_NUM_THREADS": threads},
        )
    except subprocess.TimeoutExpired:
        return f"did not end within {seconds:g} s"
    # 1 is a walk that ended and found something; here only its bits matter.
    return "" if done.returncode in (0, 1) else f"exit code {done.returncode}: {' '.join(done.stderr.split())[-600:]}"


EMULATED = ("add_rmsnorm_quant=emulated/aiter-hip-gfx950", "ptpc_gemm=emulated/fp32")


def digests(directory: Path) -> WalkEvidence:
    """What the walk recorded."""
    return store.load(directory)[-1].walk or WalkEvidence()


def main(argv: Sequence[str] | None = None) -> int:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="glm-tiny")
    parser.add_argument("--kernel", action="append", metavar="[OP=]NAME", help="(default: emulated ones)")
    parser.add_argument("--layers", default="4")
    parser.add_argument("--tokens", default="64")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tp", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=300.0, help="limit of each walk")
    parsed = parser.parse_args(argv)
    names = ("model", "layers", "tokens", "tp", "device")
    given = ((f"--{name.replace('_', '-')}", str(getattr(parsed, name))) for name in names)
    kernels = (("--kernel", text) for text in parsed.kernel or EMULATED)
    options = ["layers", *itertools.chain.from_iterable([*kernels, *given])]
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(parsed.tp),
        "-m",
        "validators",
    ]
    with tempfile.TemporaryDirectory(prefix="ranks-") as scratch:
        found = {}
        for name, start in (("real", launcher), ("simulated", [sys.executable, "-m", "validators"])):
            began, where = time.perf_counter(), Path(scratch) / name
            if reason := run([*start, *options, "--records", str(where)], parsed.seconds):
                print(f"NOT COMPARED: the walk on {name} ranks {reason}")
                return 2
            found[name] = digests(where)
            print(f"{name} ranks: {time.perf_counter() - began:.1f} s, {found[name].stream}")
    if not found["real"].real_ranks or found["simulated"].real_ranks:
        print("NOT COMPARED: the two walks did not run as real and as simulated ranks")
        return 2
    one, other = (found[name].stream for name in ("real", "simulated"))
    equal = one == other and bool(one)
    backend = "NCCL" if parsed.device.startswith("cuda") else "gloo"
    print(
        f"{'EQUAL' if equal else 'NOT EQUAL'}: {parsed.tp} processes over {backend} and {parsed.tp} simulated ranks, "
        f"{parsed.model}, {parsed.layers} layers, {parsed.tokens} tokens, hidden state and residual stream bit for bit"
    )
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
