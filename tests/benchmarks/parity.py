"""The embedded parity run on many seeds and on defects: ``python -m tests.benchmarks.parity --seeds 20``.

Each seed is another set of held-out problems. The legitimate fused path must pass every gate on all of them, and each
defect must be refused. One JSON line per run; exit code 1 if one of them came out otherwise. ``--tokens-only`` leaves
the answers out: the gates of the token level decide.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from evals.model.arms import make_arm
from evals.model.decoder import Decoder
from evals.offline import parity
from evals.offline.models import DEFAULT_MODEL, load_embedded
from evals.offline.questions import embedded_questions
from evals.stats import logit_gates, token_gates
from evals.stats.criterion import Verdict, find_criterion, verdict_of
from tests.evals.defects import DEFECTS, arm


def settings(options: argparse.Namespace) -> parity.Settings:
    return parity.Settings(device=options.device, token_questions=options.token_questions)


def run(model: Decoder, candidate: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One run of both arms, as ``python -m evals parity`` does it, in numbers."""
    began = time.monotonic()
    baseline, tested = make_arm("unfused", options.device), make_arm(candidate, options.device)
    asked = embedded_questions(options.questions, seed)
    verdict = parity.judge(model, baseline, tested, asked, find_criterion("non-inferiority"), settings(options))
    return {
        "candidate": candidate.rpartition(":")[2],
        "seed": seed,
        "verdict": verdict.verdict.value,
        "baseline": verdict.table.baseline,
        "candidate_right": verdict.table.candidate,
        "lost": verdict.table.lost,
        "gained": verdict.table.gained,
        "questions": verdict.table.count,
        "refused": [gate.name for gate in verdict.gates if gate.decides and gate.ok is False],
        "open": [gate.name for gate in verdict.gates if gate.decides and gate.ok is None],
        "sentences": {gate.name: gate.sentence for gate in verdict.gates},
        "seconds": round(time.monotonic() - began, 1),
    }


def token_run(model: Decoder, candidate: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The token level of one run alone; its verdict is REGRESSION, INCONCLUSIVE or PARITY by its gates."""
    began = time.monotonic()
    arms = parity.Arms(*(make_arm(spec, options.device) for spec in ("unfused", candidate, "bf16-norms")))
    asked = embedded_questions(options.questions, seed)
    pairs = parity.token_level(model, arms, asked, settings(options))
    found = token_gates.gates(pairs.token_level, seed=seed)
    gates = [*(logit_gates.only_reported(gate) for gate in found), *logit_gates.gates(pairs, seed)]
    return {
        "candidate": candidate.rpartition(":")[2],
        "seed": seed,
        "tokens_only": True,
        "verdict": verdict_of(tuple(gates)).value,
        "refused": [gate.name for gate in gates if gate.decides and gate.ok is False],
        "open": [gate.name for gate in gates if gate.decides and gate.ok is None],
        "sentences": {gate.name: gate.sentence for gate in gates},
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--questions", type=int, default=1319)
    parser.add_argument("--token-questions", type=int, default=400)
    parser.add_argument("--defects", default=",".join(DEFECTS), help="names, or nothing")
    parser.add_argument("--tokens-only", action="store_true", help="leave the answers out")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="JSON lines")
    options = parser.parse_args()
    model = load_embedded(DEFAULT_MODEL, options.device)
    wanted = [("fused", seed, True) for seed in range(options.first_seed, options.first_seed + options.seeds)]
    wanted = [(arm(name), 0, False) for name in options.defects.split(",") if name] + wanted
    wrong = 0
    for candidate, seed, legitimate in wanted:
        made = (token_run if options.tokens_only else run)(model, candidate, seed, options)
        as_wanted = made["verdict"] == (Verdict.PARITY if legitimate else Verdict.REGRESSION).value
        wrong += not as_wanted
        print("ok   " if as_wanted else "WRONG", {k: v for k, v in made.items() if k != "sentences"}, flush=True)
        if options.out:
            with options.out.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(made) + "\n")
    print(f"{len(wanted) - wrong} of {len(wanted)} as they must be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
