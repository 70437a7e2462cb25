"""``tokens``: gold solutions through a model on several kernels, token by token."""

from __future__ import annotations

import argparse

from evals.commands import token_record
from evals.errors import EvalError
from evals.model.arms import PRESETS
from evals.offline import models, token_table
from evals.offline.questions import SYNTHETIC, gold_solutions
from evals.offline.token_table import Settings
from validators.commands import options as shared
from validators.commands.plan import devices
from validators.process.guard import Exit
from validators.records import files


def add_options(parser: argparse.ArgumentParser) -> None:
    shared.add(parser, "--model", "tiny-glm, smollm2, a .gguf file or a checkpoint folder", default="tiny-glm")
    shared.add(parser, "--data", "or 'synthetic'")
    shared.add(parser, "--any-data")
    shared.add(parser, "--questions", "gold solutions scored", default=64)
    shared.add(parser, "--baseline", f"presets: {', '.join(PRESETS)}", default="unfused")
    parser.add_argument(
        "--arm", action="append", metavar="ARM", help="arm under test (may be repeated; default: fused)"
    )
    parser.add_argument(
        "--yardstick-arm",
        default="bf16-norms",
        metavar="ARM",
        help=f"the higher-precision arm: {' or '.join(token_table.YARDSTICKS)} (default: bf16-norms)",
    )
    parser.add_argument("--batch", type=int, default=8, metavar="ROWS", help="rows per batch (default: 8)")
    shared.add(parser, "--seed", "the permutation", default=0)
    shared.add_device(parser, "cpu")
    shared.add(parser, "--json", "the rows, and all that repeats them")


def command(options: argparse.Namespace) -> int:
    """Prints the table; NO if an arm under test is judged so, else NO_DECISION if one is open."""
    if options.questions < 2 or options.batch < 1:
        raise EvalError("--questions needs at least 2 and --batch at least 1")
    if options.data == "":
        raise EvalError("--data names nothing")
    devices(options.device)
    if options.json:
        files.check_json(options.json)
    model = models.load(options.model, options.device)
    data = options.data or (SYNTHETIC if options.model == models.DEFAULT_MODEL else None)
    gold = gold_solutions(
        data, options.questions, options.seed, encode=model.encode, end=model.end, any_data=options.any_data
    )
    specs = options.arm or ["fused"]
    settings = Settings(
        baseline=options.baseline,
        yardstick=options.yardstick_arm,
        device=options.device,
        batch=options.batch,
        seed=options.seed,
        show=not options.quiet,
    )
    table = token_table.table(model.decoder, gold.solutions, specs, settings)
    stats = table.rows[0].stats
    record = token_record.contents(options, specs, model, gold, table) if options.json else {}
    verdicts = [row.ok for row in table.rows]
    status = Exit.NO if False in verdicts else Exit.NO_DECISION if None in verdicts else Exit.YES
    if options.json == files.STDOUT:
        token_record.write(options.json, record)
        return status
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
        token_record.write(options.json, record)
    return status
