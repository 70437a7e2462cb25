"""The table and the picture of ``tests.studies.peers_run``: pure functions of its rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

OPS_SHORT = {"add_rmsnorm_quant": "norm", "per_token_quant": "quant", "ptpc_gemm": "gemm"}


@dataclass
class Side:
    """What a criterion did on one kind of inputs.

    defects: ids seen. caught: those rejected on any input. apart: those rejected on an input on which the clean kernel
    is accepted. correct, alarms: correct kernels seen, and rejected, as "op name". same: correct ones of the contract
    that the defects break.
    """

    defects: list[str] = field(default_factory=list)
    caught: list[str] = field(default_factory=list)
    apart: list[str] = field(default_factory=list)
    correct: list[str] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)

    @property
    def seen(self) -> int:
        """Number of defects seen."""
        return len(self.defects)

    @property
    def missed(self) -> list[str]:
        """Defects that no input tells apart from the clean kernel."""
        return [identity for identity in self.defects if identity not in self.apart]

    def note(self, identity: str, rejected: set[int], clean: set[int]) -> None:
        """Record a defect that was rejected on the inputs ``rejected``, the clean kernel on ``clean``."""
        self.defects.append(identity)
        if rejected:
            self.caught.append(identity)
        if rejected - clean:
            self.apart.append(identity)

    def alarm(self, name: str, rejected: bool, same: bool) -> None:
        """Record a correct kernel, ``same`` if its contract is the one that the defects break."""
        self.correct.append(name)
        if same:
            self.same.append(name)
        if rejected:
            self.alarms.append(name)

    def cells(self) -> str:
        """Three cells of the table."""
        if not self.defects:
            return "| | "
        same = sum(name in self.same for name in self.alarms)
        return (
            f"{len(self.caught)} | {len(self.apart)} | {same} of {len(self.same)}, "
            f"{len(self.alarms) - same} of {len(self.correct) - len(self.same)} "
        )


@dataclass
class Row:
    """One criterion: its ops, its kind of inputs, the rounding points of its reference, and what it did.

    deeper: defects that smoke depth misses and default depth catches; measured for this suite alone.
    """

    name: str
    ops: tuple[str, ...]
    data: str
    style: str
    own: Side = field(default_factory=Side)
    suite: Side = field(default_factory=Side)
    deeper: list[str] = field(default_factory=list)

    def own_or_suite(self, suite: bool) -> Side:
        """The side that inputs belong to."""
        return self.suite if suite else self.own

    @property
    def label(self) -> str:
        """Name and ops."""
        return f"{self.name} ({', '.join(OPS_SHORT[op] for op in self.ops)})"

    @property
    def ours(self) -> bool:
        """Is it a row of this suite?"""
        return self.name.startswith("this suite")


def headline(rows: Sequence[Row]) -> list[str]:
    """For each op a sentence with the numbers that matter, computed from the rows."""
    found = []
    for op, short in OPS_SHORT.items():
        whole = next((r for r in rows if r.ours and r.ops == (op,) and not r.own.defects), None)
        if whole is None:
            continue
        zoo = set(whole.suite.defects)
        score: dict[str, int] = {}
        total = 0
        for row in rows:
            if row.ours or op not in row.ops:
                continue
            total += 1
            if not any(alarm.startswith(f"{short} ") for alarm in (*row.own.alarms, *row.suite.alarms)):
                score[row.name] = len(zoo & set(row.suite.apart))
        best = max(score, key=score.__getitem__, default="")
        deeper = f", and {' '.join(whole.deeper)} at default depth" if whole.deeper else ""
        found.append(
            f"`{op}`: this suite catches {len(whole.suite.apart)} of {len(zoo)} defects at smoke depth{deeper}, and "
            f"rejects {len(whole.suite.alarms)} of {len(whole.suite.correct)} correct kernels. {len(score)} of {total} "
            f"rows of published criteria reject no correct kernel. The best of these, {best}, tells "
            f"{score.get(best, 0)} of {len(zoo)} defects from a correct kernel on this suite's inputs."
        )
    return found


BEFORE = """\
# Detection power compared with published criteria

Written by `python -m tests.studies.peers_run --write`. All numbers are measured; none is typed by hand. The
[glossary](glossary.md) explains the words.

{headline}

![share of defects told apart, by criterion](power.svg)

Every defect of the zoo ([tests/zoo](../tests/zoo/__init__.py)) and eight correct kernels of each op run on two kinds
of inputs. The outputs are judged by each published acceptance criterion
([tests/studies/peers.py](../tests/studies/peers.py)).

- **Own inputs**: random normal bf16, 64 x 512 and 64 x 5120 (GEMM: 64 x 64, K = 512), weights as in the column
  `data`, both FP8 formats. The criteria's own tests have more and larger shapes of this kind.
- **Suite inputs**: the smoke cases of this suite in both FP8 formats. A criterion gains from better inputs.
- **Caught**: the criterion rejects the defect on at least one input.
- **Told apart**: it rejects the defect on an input on which it accepts the corresponding correct kernel.
  A criterion that rejects everything catches everything, and tells nothing apart.
- **False alarms**: correct kernels rejected on at least one input. The first number is over executions of the
  contract that the defects break. The second is over kernels that round at other places, as real ones do. The
  criteria are not shown e4m3fnuz, the special lane and rows below floors, where correct kernels differ by design.
  This suite is shown all of them.

If a source leaves something open, it is settled in favour of the criterion. References have the floor that the
kernel declares, NaN equals NaN, and rows with NaN or Inf among the inputs are left out. References are fp32
PyTorch; a GEMM's is exact and rounded once. The column `reference` gives their rounding points: `fp32` rounds
nothing to bf16, `eager` normalizes the stored sum and rounds the norm, `vllm` rounds the norm before and after the
weight. A criterion of the last two kinds is listed again with an fp32 reference, which is the arithmetic of the zoo.

Output memory starts as zeros, and a kernel is called once, as in the published tests. So the criteria cannot see
what only poisoned memory, guards or a second call would show. The rows `admissible sets` cannot see it either,
because they judge the same outputs. `whole pipeline` is what `python -m validators run` does.

| criterion | data | reference | defects | own: caught | told apart | false alarms \
| suite: caught | told apart | false alarms |
|---|---|---|---|---|---|---|---|---|---|
"""
BETWEEN = """
## What each criterion does not tell apart from a correct kernel

| criterion | missed on own inputs | missed on suite inputs | false alarms on suite inputs |
|---|---|---|---|
"""


def markdown(rows: Sequence[Row]) -> str:
    """docs/power.md."""
    parts = [BEFORE.format(headline="\n".join(f"- {sentence}" for sentence in headline(rows)))]
    for row in rows:
        name = f"**{row.label}**" if row.ours else row.label
        cells = f"{row.own.cells()}| {row.suite.cells()}"
        parts.append(f"| {name} | {row.data} | {row.style} | {row.suite.seen} | {cells}|\n")
    parts.append(BETWEEN)
    for row in rows:
        own = " ".join(row.own.missed) if row.own.defects else "not measured"
        parts.append(f"| {row.label} | {own} | {' '.join(row.suite.missed)} | {', '.join(row.suite.alarms)} |\n")
    return "".join(parts)


WIDTH, LEFT, BAR, LINE, TOP = 900, 300, 440, 22, 72
STYLE = "text{font:12px sans-serif;fill:#222}.s{font-size:11px;fill:#555}.t{font-size:15px;font-weight:bold}"


def picture(rows: Sequence[Row]) -> str:
    """docs/power.svg: for each row the share told apart on own (light) and suite inputs (dark), and false alarms."""
    height = TOP + LINE * len(rows) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}">',
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        '<text x="12" y="22" class="t">Defects told apart from a correct kernel, and correct kernels rejected</text>',
        '<text x="12" y="42" class="s">upper bar: inputs of the criterion\'s own kind; lower bar: smoke cases of this '
        "suite; red: correct kernels rejected on these</text>",
    ]
    for percent in (0, 25, 50, 75, 100):
        x = LEFT + BAR * percent / 100
        parts.append(f'<line x1="{x:g}" y1="{TOP - 8}" x2="{x:g}" y2="{height - 8}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:g}" y="{TOP - 10}" class="s" text-anchor="middle">{percent} %</text>')
    for index, row in enumerate(rows):
        y = TOP + LINE * index
        dark, light = ("#1a7f37", "#8fd19e") if row.ours else ("#3b6ea5", "#b5cde6")
        parts.append(f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(row.label)}</text>')
        for side, offset, colour in ((row.own, 2, light), (row.suite, 10, dark)):
            if side.seen:
                width = BAR * len(side.apart) / side.seen
                parts.append(f'<rect x="{LEFT}" y="{y + offset}" width="{width:.1f}" height="7" fill="{colour}"/>')
        side = row.suite
        if side.correct:
            colour = "#c62828" if side.alarms else "#555"
            parts.append(
                f'<text x="{LEFT + BAR + 18}" y="{y + 13}" style="fill:{colour}">{len(side.alarms)} of '
                f"{len(side.correct)} rejected</text>"
            )
    return "\n".join([*parts, "</svg>"]) + "\n"
