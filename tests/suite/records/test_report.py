"""Reports: the text of a failure is asserted line by line, because it is what an engineer acts on."""

from __future__ import annotations

import dataclasses
import math

import pytest

from tests.support.made import CASE, comparison, failed, record
from validators.records import text as report
from validators.records.provenance import Provenance
from validators.records.record import Check, Explanation, Status

FAILED_REPORT = f"""\
FAILED scale: 510 of 512 rows outside their admissible set, worst 1892x
  kernel  demo/fused    case  {CASE}
  lane          adversarial    contract vllm (declared)
  non-finite    got 2 NaN, 0 Inf    not admissible there 2    missing 1
  where         all in row 9
  err/budget    p50 0.26  p99 0.78  max 1892  (all 512 judged); worst among admissible 0.91
  index    exact         admissible                 got           bits      |err|   budget   ratio  ulp        reduction  scale    store
  (9, 0)   0.0123456789  [0.012345678, 0.01234568]  0.0246913578  3cca4588  0.0123  6.5e-06  1892x  1.311e+05  3e-06      1.5e-06  -
  (10, 0)  0.5           0.5                        NaN           7fc00000  NaN     0        inf    3          -          -        2e-07
  ulp steps     <=-5: 1   -1: 12   0: 500   >=5: 510
  strength      97.3 % of judged elements had exactly one admissible value
  also failed   codes: 40 of 512 elements outside their admissible set, worst 1892x
  check failed  joint: row maximum: 510 rows do not decode to 448
  explained by  scale-halved: every violation vanishes if the scale is halved
  identified    eager: 0 violations
                vllm: 550 violations
  provenance    commit abc1234def (clean)  torch 2.13.0  python 3.11.7  2026-08-25T10:00:00+00:00
                device cpu  arch cpu  a CPU  triton 3.9.0  1.50 s
  reproduce     python -m validators run --kernel add_rmsnorm_quant=demo/fused --case {CASE} --device cpu"""  # noqa: E501


def test_failure_report_line_by_line() -> None:
    assert report.failure_report(failed()).split("\n") == FAILED_REPORT.split("\n")


def test_one_line() -> None:
    assert report.one_line(failed()) == f"{FAILED_REPORT.splitlines()[0]}  [demo/fused {CASE}]"
    assert report.one_line(record()) == f"PASSED  [demo/fused {CASE}]"


@pytest.mark.parametrize(
    ("worst", "words"),
    [
        (math.inf, "worst beyond any budget"),
        (math.nan, "worst not comparable"),
        (1.0000001, "worst just over 1x"),
        (12.34, "worst 12.3x"),
        (1892.3, "worst 1892x"),
    ],
)
def test_headline_of_an_extreme_ratio(worst: float, words: str) -> None:
    bad = failed(comparisons=(comparison("codes", violations=3, worst_use=worst, worst=()),))
    assert report.headline(bad) == f"FAILED codes: 3 of 512 elements outside their admissible set, {words}"


def test_headline_where_one_value_is_admissible_says_how_far_off() -> None:
    bad = failed(comparisons=(comparison("codes", violations=3, worst_use=math.inf),))
    assert report.headline(bad).endswith("outside their admissible set, worst 131,072 ulp away")


@pytest.mark.parametrize("status", [s for s in Status if s is not Status.PASSED])
def test_every_status_says_why(status: Status) -> None:
    bad = record(status, comparisons=(), checks=(), reasons=("the kernel\ndid not return",))
    assert report.headline(bad) == f"{status.value}: the kernel did not return"
    assert report.failure_report(bad).split("\n")[0] == report.headline(bad)
    silent = record(status, comparisons=(), checks=())
    assert report.headline(silent) == f"{status.value}: no reason was recorded"


def test_a_check_that_failed_alone_is_the_headline() -> None:
    check = Check("run to run", False, "codes differ in 12 elements", "determinism")
    bad = record(Status.NONDETERMINISTIC, checks=(check,), reasons=("run to run: codes differ",))
    assert report.headline(bad) == "NONDETERMINISTIC run to run: codes differ in 12 elements"


def test_other_reasons_are_not_lost() -> None:
    text = report.failure_report(failed(reasons=(*failed().reasons, "the stored residual was truncated")))
    assert "  reason        the stored residual was truncated" in text.split("\n")
    assert text.count("510 of 512 rows outside") == 1


def test_what_a_dying_worker_printed_is_shown() -> None:
    printed = "\n".join(f"line {i}" for i in range(9))
    text = report.failure_report(record(Status.ERROR, reasons=("died",), provenance=Provenance(worker_output=printed)))
    assert "  printed       line 6" in text.split("\n")
    assert text.count("line ") == 3


def test_a_stack_is_shown_by_its_innermost_calls() -> None:
    stack = [f'  File "mine.py", line {i} in call_{i}' for i in range(9)]
    printed = [
        "Fatal Python error: Floating point exception",
        "",
        "Current thread 0x1 (most recent call first):",
        *stack,
    ]
    printed += ["", "Extension modules: numpy (total: 1)"]
    text = report.failure_report(
        record(Status.ERROR, reasons=("died",), provenance=Provenance(worker_output="\n".join(printed)))
    )
    assert '  printed       File "mine.py", line 0 in call_0' in text.split("\n")
    assert "call_2" in text
    assert not any(words in text for words in ("call_3", "Extension"))


def test_two_runs_that_differ_are_in_the_headline_of_a_failure() -> None:
    unstable = Check("run to run", False, "two runs differ: 1 of 4 elements of scale differ", "determinism")
    varying = Check("batch invariance", False, "row 0 alone", "invariance")
    bad = dataclasses.replace(
        failed(),
        checks=(unstable, varying),
        explanations=(Explanation("batch invariance", "row 0 alone", kind="check"),),
    )
    assert report.headline(bad).endswith("; and two runs differ")
    assert report.failure_report(bad).count("batch invariance: row 0 alone") == 1


def test_report_is_bounded_and_one_record_cannot_break_its_layout() -> None:
    many = tuple(f"reason {i}\x1b[2J\nFAILED fake line" for i in range(50))
    checks = tuple(Check(f"check {i}", False, "x" * 1000) for i in range(50))
    element = dataclasses.replace(comparison(violations=1).worst[0], terms={f"term{i}": 1.0 for i in range(30)})
    outputs = tuple(comparison(f"out{i}", violations=5, worst=(element,) * 30) for i in range(20))
    bad = failed(
        reasons=many,
        checks=checks,
        comparisons=outputs,
        explanations=tuple(Explanation("", text) for text in many),
        identified=many,
        kernel="a\nb",
        provenance=Provenance(worker_output="\n".join(many), kernel_versions={f"lib{i}": "1" for i in range(99)}),
    )
    lines = report.failure_report(bad).split("\n")
    assert len(lines) <= report.MAX_LINES
    assert lines[0].startswith("FAILED out0: 5 of 512 elements")
    assert sum(line.startswith("FAILED") for line in lines) == 1
    assert "\x1b" not in "\n".join(lines)
    assert max(map(len, lines[:-1])) <= 220


def test_reproduce_prefers_the_recorded_command_and_quotes_a_built_one() -> None:
    assert report.reproduce_line(failed(reproduce="python -m validators run --x")) == "python -m validators run --x"
    built = report.reproduce_line(record(kernel="my file.py:f; rm", contract_from="given"))
    assert "--kernel 'add_rmsnorm_quant=my file.py:f; rm'" in built
    assert built.endswith("--contract vllm")


def test_report_is_a_pure_function_of_the_record() -> None:
    bad = failed()
    before = dataclasses.asdict(bad)
    assert report.failure_report(bad) == report.failure_report(bad)
    assert repr(dataclasses.asdict(bad)) == repr(before)


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (972, 1000, "97.2 %"),
        (1000, 1000, "100 %"),
        (0, 7, "0 %"),
        (0, 0, "0 %"),
        (999_999, 1_000_000, "over 99.9 %"),
        (1, 1_000_000, "under 0.1 %"),
    ],
)
def test_share_is_100_or_0_only_when_true(part: int, whole: int, text: str) -> None:
    assert report.share(part, whole) == text


def test_strength_sentence() -> None:
    sharp = record(comparisons=(comparison(judged=1000, single=972, unspecified=24),))
    assert report.strength_sentence([sharp]) == (
        "97.2 % of 1,000 judged elements had exactly one admissible value; 24 more are unspecified by the contract"
    )
    assert report.strength_sentence([]) == "no element was judged"


def test_summary_table_plain() -> None:
    records = [
        record(lane="random"),
        record(lane="random"),
        failed(lane="exact"),
        record(Status.UNSUPPORTED, lane="special", kernel="z/other", emulated=True, reasons=("fp16 only",)),
    ]
    assert report.summary_table(records, terminal=False).split("\n") == [
        "kernel                     exact     random    special",
        "demo/fused on cpu          1 FAILED  2 PASSED  -",
        "z/other on cpu (emulated)  -         -         1 UNSUPPORTED",
        "4 records: 2 PASSED, 1 FAILED, 1 UNSUPPORTED",
    ]


def test_summary_table_on_a_terminal_shows_markup_as_text() -> None:
    pytest.importorskip("rich", reason="rich draws the table on a terminal and is optional")
    text = report.summary_table([record(kernel="[red]k[/red]")], terminal=True)
    assert "[red]k[/red]" in text
    assert "┃" in text
    assert "1 record: 1 PASSED" in text


def test_summary_table_without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "rich.console", None)
    plain = report.summary_table([record()], terminal=False)
    assert report.summary_table([record()], terminal=True) == plain
