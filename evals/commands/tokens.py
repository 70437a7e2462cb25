"""``tokens``: gold solutions through a model on several kernels, token by token."""

from __future__ import annotations

import argparse

from evals.commands import token_record
from evals.errors import EvalError
from evals.offline import models, token_table
from evals.offline.questions import SYNTHETIC, gold_solutions
from evals.offline.token_table import Settings
from validators.commands import cli
from validators.process.guard import Exit
from validators.records import files


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="tiny-glm", help="tiny-glm, smollm2, a .gguf file or a checkpoint folder")
    parser.add_argument("--data", metavar="PATH", help="GSM8K's JSONL file or its folder, or 'synthetic'")
    parser.add_argument("--any-data", action="store_true", help="take questions that are not GSM8K's")
    parser.add_argument("--questions", type=int, default=64, metavar="N", help="gold solutions scored (default: 64)")
    parser.add_argument("--baseline", default="unfused", metavar="ARM")
    parser.add_argument(
        "--arm", action="append", metavar="ARM", help="arm under test (may be repeated; default: fused)"
    )
    parser.add_argument("--yardstick", default="bf16-norms", metavar="ARM", help="bf16-norms or bf16")
    parser.add_argument("--batch", type=int, default=8, metavar="ROWS")
    parser.add_argument("--seed", type=int, default=0, help="of the permutation")
    cli.add_device(parser, "cpu")
    parser.add_argument("--json", metavar="FILE", help="write the rows, and all that repeats them, as JSON")


def command(options: argparse.Namespace) -> int:
    """Prints the table; NO if an arm under test is judged so, else NO_DECISION if one is open."""
    if options.questions < 2 or options.batch < 1:
        raise EvalError("--questions needs at least 2 and --batch at least 1")
    if options.data == "":
        raise EvalError("--data names nothing")
    models.check_device(options.device)
    if options.json:
        files.check_file(options.json)
    model = models.load(options.model, options.device)
    data = options.data or (SYNTHETIC if options.model == models.DEFAULT_MODEL else None)
    gold = gold_solutions(
        data, options.questions, options.seed, encode=model.encode, end=model.end, any_data=options.any_data
    )
    specs = options.arm or ["fused"]
    settings = Settings(
        baseline=options.baseline,
        yardstick=options.yardstick,
        device=options.device,
        batch=options.batch,
        seed=options.seed,
        show=not options.quiet,
    )
    table = token_table.table(model.decoder, gold.solutions, specs, settings)
    stats = table.rows[0].stats
    print(
        f"{model.decoder.name} on {gold.name}: {stats.tokens:,} tokens of {stats.questions:,} gold solutions, "
        f"baseline {options.baseline} on {options.device}\n"
    )
    print(token_table.text(table))
    for row in () if options.quiet else table.rows:
        for gate in row.gates:
            if options.verbose or (gate.decides and gate.ok is not True):
                print(f"{row.arm}: {gate.name}: {gate.sentence}")
    if options.json:
        token_record.write(options.json, token_record.contents(options, specs, model, gold, table))
    verdicts = [row.ok for row in table.rows]
    return Exit.NO if False in verdicts else Exit.NO_DECISION if None in verdicts else Exit.YES
