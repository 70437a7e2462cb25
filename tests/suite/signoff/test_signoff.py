"""Sign-off: what signs, what does not, and that silence, doubles and contradictions never help a claim."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.support.made import CASE, comparison, failed, lanes_passed, record
from validators.errors import NoDecision
from validators.records.provenance import Provenance
from validators.records.record import Check, Record, Status
from validators.records.store import Sink, StoreError
from validators.signoff import depths
from validators.signoff import html as signoff_html
from validators.signoff.decision import SignoffError, decide, signoff_directory
from validators.signoff.json import to_dict
from validators.signoff.text import markdown
from validators.signoff.write import write

ROOT = Path(__file__).resolve().parents[3]
WHOSE = "add_rmsnorm_quant of demo/fused"
BAD = (Status.FAILED, Status.NONDETERMINISTIC, Status.MISTRUSTED, Status.ERROR)


def _extra(status: Status, **changes: object) -> Record:
    """One more case in the random lane."""
    return record(status, **{"reasons": ("because",), "case": CASE + "9", "lane": "random", **changes})


def test_every_lane_passed_is_signed() -> None:
    decided = decide(lanes_passed())
    assert (decided.outcome, decided.decision, decided.exit_code) == ("SIGNED", "SIGNED on 5 chosen cases only", 0)
    (claim,) = decided.claims
    assert (claim.kernel, claim.op, claim.contract, claim.arch) == ("demo/fused", "add_rmsnorm_quant", "vllm", "cpu")
    assert claim.reasons == ()
    assert claim.untested == ()


@pytest.mark.parametrize("status", BAD)
def test_one_bad_case_among_many_is_not_signed(status: Status) -> None:
    decided = decide([*lanes_passed(), _extra(status)])
    assert decided.decision == "NOT SIGNED"
    assert decided.exit_code == (4 if status is Status.ERROR else 1)
    (reason,) = decided.claims[0].reasons
    assert reason == f"{WHOSE}: {status.value} in 1 of 6 cases (ops: random). First {CASE}9: {status.value}: because."


def test_error_with_a_failure_beside_it_exits_1() -> None:
    assert decide([*lanes_passed(), _extra(Status.ERROR), _extra(Status.FAILED)]).exit_code == 1


def test_unsupported_needs_a_reason() -> None:
    assert decide([*lanes_passed(), _extra(Status.UNSUPPORTED, comparisons=())]).outcome == "SIGNED"
    for reasons in ((), ("  ",)):
        decided = decide([*lanes_passed(), _extra(Status.UNSUPPORTED, reasons=reasons, comparisons=())])
        assert decided.claims[0].reasons == (
            f"ops random of demo/fused: 1 cases UNSUPPORTED without a reason, first {CASE}9.",
        )


def test_a_lane_of_unsupported_cases_is_no_evidence() -> None:
    records = [r for r in lanes_passed() if r.lane != "random"] + [_extra(Status.UNSUPPORTED, comparisons=())]
    assert decide(records).claims[0].reasons == ("ops random of demo/fused: no case PASSED (1 UNSUPPORTED): because.",)


@pytest.mark.parametrize("lane", depths.lanes("add_rmsnorm_quant", "default", "e4m3fn"))
def test_a_missing_lane_is_untested_with_its_command(lane: str) -> None:
    decided = decide([r for r in lanes_passed() if r.lane != lane], records_dir="my records")
    claim = decided.claims[0]
    assert (decided.decision, decided.exit_code) == ("NOT SIGNED", 1)
    assert claim.reasons == (f"UNTESTED: ops of demo/fused ({lane}).",)
    command = f"python -m validators run --kernel add_rmsnorm_quant=demo/fused --lane {lane} --device cpu"
    (step,) = claim.untested
    assert (step.stage, step.subject, step.lanes, step.every) == ("ops", "demo/fused", (lane,), False)
    assert (step.covers, step.commands) == (f"ops, demo/fused: {lane}", (f"{command} --records 'my records'",))
    (told,) = to_dict(decided)["claims"][0]["untested"]
    assert (told["stage"], told["subject"], told["lanes"]) == ("ops", "demo/fused", [lane])


def test_the_command_repeats_contract_and_types() -> None:
    case = CASE.replace("bf16-e4m3fn", "fp16-e4m3fnuz")
    claim = decide([record(case=case, contract_from="given")]).claims[0]
    assert "--contract vllm --dtype fp16 --fp8 e4m3fnuz" in claim.untested[0].commands[0]


def test_records_of_status_untested_do_not_count_as_run() -> None:
    records = [r for r in lanes_passed() if r.lane != "random"] + [_extra(Status.UNTESTED)]
    assert decide(records).claims[0].reasons == ("UNTESTED: ops of demo/fused (random).",)
    assert decide([*lanes_passed(), _extra(Status.UNTESTED)]).claims[0].reasons == (
        "UNTESTED: ops of demo/fused (random).",
    )


def test_fake_records_never_count() -> None:
    with pytest.raises(SignoffError, match="all 5 records come from test doubles"):
        decide(lanes_passed(fake=True))
    real = [r for r in lanes_passed() if r.lane != "model"]
    decided = decide([*real, *lanes_passed(fake=True)])
    assert decided.claims[0].reasons == ("UNTESTED: ops of demo/fused (model).",)
    assert decided.ignored == ("5 records of test doubles were ignored.",)
    # Nor can a double's failure take a real kernel's signature.
    assert decide([*lanes_passed(), _extra(Status.FAILED, fake=True)]).outcome == "SIGNED"


def test_emulated_is_marked() -> None:
    emulated = decide(lanes_passed(emulated=True))
    assert emulated.decision == emulated.claims[0].decision == "SIGNED in emulation only, on 5 chosen cases only"
    assert emulated.exit_code == 0
    both = decide([*lanes_passed(emulated=True), *lanes_passed(kernel="real/fused")])
    assert both.decision == "SIGNED within what each claim names"
    assert [c.decision for c in both.claims] == [
        "SIGNED in emulation only, on 5 chosen cases only",
        "SIGNED on 5 chosen cases only",
    ]


@pytest.mark.parametrize("status", BAD)
@pytest.mark.parametrize("later", ["good", "bad"])
def test_contradicting_records_are_shown_and_not_signed(status: Status, later: str) -> None:
    good = lanes_passed()
    bad = record(status, reasons=("because",), lane="random", case=good[0].case, provenance=Provenance("fffff00000aa"))
    decided = decide([bad, *good] if later == "good" else [*good, bad])
    assert decided.decision == "NOT SIGNED"
    (contradiction,) = [r for r in decided.claims[0].reasons if r.startswith("Contradiction")]
    assert good[0].case in contradiction
    assert f"PASSED in 1 records (commit abc1234def) and {status.value} in 1 (commit fffff00000)" in contradiction


def test_the_same_case_against_two_contracts_is_two_claims_and_no_contradiction() -> None:
    decided = decide([*lanes_passed(), *lanes_passed(contract="eager"), failed(contract="eager", lane="random")])
    assert [(c.contract, c.signed) for c in decided.claims] == [("vllm", True), ("eager", False)]
    assert decided.decision == "NOT SIGNED"


def test_archs_are_claims_of_their_own() -> None:
    decided = decide([*lanes_passed(), *[r for r in lanes_passed(arch="gfx942") if r.lane != "model"]])
    assert [(c.arch, c.signed) for c in decided.claims] == [("cpu", True), ("gfx942", False)]


@pytest.mark.parametrize("lost", [{"contract": None}, {"arch": "unknown"}, {"contract": None, "arch": ""}])
def test_a_crash_before_contract_or_arch_was_known_counts_against_the_claim(lost: dict[str, str | None]) -> None:
    decided = decide([*lanes_passed(), _extra(Status.ERROR, **lost)])
    assert len(decided.claims) == 1
    assert decided.decision == "NOT SIGNED"
    other = decide([*lanes_passed(), _extra(Status.ERROR, kernel="another/kernel", **lost)])
    assert [c.signed for c in other.claims] == [True, False]


def test_without_any_contract_nothing_is_signed() -> None:
    (claim,) = decide(lanes_passed(contract=None, contract_from="identified")).claims
    assert claim.contract == "not identified"
    assert claim.reasons[0].endswith("says PASSED and names no contract that it was held to.")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"comparisons": (comparison("codes", violations=3),)}, "holds 3 violations of codes"),
        ({"checks": (Check("guards", False, "overwritten"),)}, "holds a check that failed (guards)"),
        ({"comparisons": (), "checks": ()}, "holds nothing that was judged"),
    ],
)
def test_a_record_that_says_passed_while_its_numbers_do_not(changes: dict[str, object], words: str) -> None:
    decided = decide([*lanes_passed(), _extra(Status.PASSED, **changes)])
    assert decided.claims[0].reasons == (
        f"{WHOSE}: PASSED against its own record in 1 of 6 cases (ops: random). "
        f"The record of {CASE}9 says PASSED and {words}.",
    )
    assert len(decided.claims[0].failing) == 1


def test_caveats_do_not_change_the_decision() -> None:
    mixed = [
        dataclasses.replace(r, provenance=Provenance(f"{i % 2}" * 12, i == 0, torch=f"2.{9 + i % 2}.0"))
        for i, r in enumerate(lanes_passed())
    ]
    decided = decide(mixed)
    assert decided.outcome == "SIGNED"
    assert decided.claims[0].caveats == (
        "The records come from 2 commits: 0000000000, 1111111111.",
        "1 of 5 records were made with sources that differ from their commit.",
        "The records come from 2 versions of torch: 2.10.0, 2.9.0.",
    )


def test_no_records_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NoDecision, match="holds no records"):
        signoff_directory(tmp_path)
    with pytest.raises(SignoffError, match="no records"):
        decide([])
    with pytest.raises(StoreError):
        signoff_directory(tmp_path / "absent")


def test_required_lanes_are_the_lanes_that_have_recipes() -> None:
    from validators.cases.recipes import recipe_info, recipe_names
    from validators.records.text import lane_order
    from validators.words import OPS

    for op in OPS:
        lanes = depths.lanes(op, "default", "e4m3fn")
        assert lane_order(lanes) == lane_order(recipe_info(name, op).lane for name in recipe_names(op))


def test_signoff_runs_without_torch_and_kernels(tmp_path: Path) -> None:
    with Sink(tmp_path) as sink:
        for r in lanes_passed():
            sink.write(r)
    code = (
        "import sys; sys.modules['torch'] = None; from validators.signoff import decision as s; "
        "from validators.signoff.write import write\n"
        f"d = s.signoff_directory({str(tmp_path)!r}); write(d, {str(tmp_path / 'out')!r}); print(d.outcome)\n"
        "assert not [m for m in sys.modules if m.startswith(('validators.kernels', 'validators.judge.compare'))]"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "SIGNED"), done.stderr


# ---- what is written

HOSTILE = "<script>alert('1')</script>|`x`\n## SIGNED @everyone [a](b)"


class _Page(HTMLParser):
    """Checks nesting and collects what the tests ask about."""

    void = ("meta", "br", "link", "img", "input", "hr", "wbr", "rect", "line")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.headings: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self.open and self.open[-1] == "h1":
            self.headings["h1"] = data.strip()


def _page(records: list[Record]) -> tuple[str, _Page]:
    pytest.importorskip("jinja2", reason="the page needs jinja2, which is optional")
    text = signoff_html.page(decide(records))
    page = _Page()
    page.feed(text)
    page.close()
    assert page.open == []
    return text, page


@pytest.mark.parametrize(
    "records", [lanes_passed(), [failed()], lanes_passed(emulated=True)], ids=["signed", "failed", "emulated"]
)
def test_page_says_the_decision_first(records: list[Record]) -> None:
    text, page = _page(records)
    decided = decide(records)
    assert page.headings["h1"] == decided.outcome
    assert decided.decision in " ".join("".join(page.text).split())
    assert text.index("<h1>") < text.index("<table ")


def test_page_is_self_contained() -> None:
    _, page = _page([failed(), *lanes_passed()])
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "img", "object", "embed")
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
        assert not [name for name in attributes if name.startswith("on")]
    assert [a for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert [a for t, a in page.tags if t == "meta" and a.get("name") == "viewport"]


def test_page_shows_every_failing_record_with_report_and_copyable_command() -> None:
    text, page = _page([failed(), *lanes_passed()])
    details = [a for t, a in page.tags if t == "details" and a.get("class") == "record"]
    copies = [a["data-copy"] for t, a in page.tags if t == "button"]
    assert len(details) == 1
    reproduce = f"python -m validators run --kernel add_rmsnorm_quant=demo/fused --case {CASE} --device cpu"
    assert copies[-1] == reproduce
    assert "every violation vanishes if the scale is halved" in text
    assert "svg" in {t for t, _ in page.tags}
    labels = [a["aria-label"] or "" for t, a in page.tags if t == "svg"]
    assert any("beyond 1: 1" in label for label in labels)


def test_page_is_capped_and_says_so() -> None:
    many = [failed(case=f"{CASE}{i}") for i in range(signoff_html.MOST_FAILING + 7)]
    text, page = _page(many)
    assert len([a for _, a in page.tags if a.get("class") == "record"]) == signoff_html.MOST_FAILING
    assert "And 7 more, in signoff.json." in text


def test_page_escapes_what_a_kernel_calls_itself() -> None:
    hostile = [
        failed(kernel=HOSTILE, reasons=(HOSTILE,), contract=HOSTILE, arch=HOSTILE, lane=HOSTILE, reproduce=HOSTILE)
    ]
    text, page = _page(hostile)
    assert "<script>alert" not in text
    assert [t for t, _ in page.tags if t == "script"] == ["script"]
    assert "alert('1')" in "".join(page.text)


def test_markdown_escapes_what_a_kernel_calls_itself() -> None:
    text = markdown(decide([record(kernel=HOSTILE, contract=HOSTILE, arch=HOSTILE), failed(kernel=HOSTILE)]))
    assert text.startswith("## NOT SIGNED\n")
    prose = [line for line in text.split("\n") if not line.startswith("    ")]
    assert [line for line in prose if line.startswith("#")] == ["## NOT SIGNED"]
    assert not [line for line in prose if "<script" in line and "`" not in line]
    table = [line for line in prose if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in table[:1] + table[2:]}) == 1


def test_markdown_fits_a_comment() -> None:
    records = [failed(kernel=f"k/{i}", reasons=("r" * 500,)) for i in range(400)]
    text = markdown(decide(records))
    assert len(text) < 65_536
    assert text.endswith("signoff.json has the rest.\n")


def test_files_written(tmp_path: Path) -> None:
    pytest.importorskip("jinja2", reason="the page needs jinja2, which is optional")
    with Sink(tmp_path) as sink:
        sink.write(failed())
    decided = signoff_directory(tmp_path)
    assert [p.name for p in write(decided, tmp_path / "out")] == ["signoff.json", "signoff.md", "signoff.html"]
    found = json.loads((tmp_path / "out" / "signoff.json").read_text())
    assert (found["schema"], found["decision"], found["exit_code"]) == (2, "NOT SIGNED", 1)
    assert found["claims"][0]["lanes"]["adversarial"] == {"FAILED": 1}
    assert found["claims"][0]["failing"] == [{"case": CASE, "status": "FAILED"}]
    assert len(found["files"][0]["sha256"]) == 64


def test_cut_record_file_is_named_beside_the_decision(tmp_path: Path) -> None:
    with Sink(tmp_path) as sink:
        for r in lanes_passed():
            sink.write(r)
        path = sink.path
    assert path is not None
    path.write_bytes(path.read_bytes() + b'{"status": "FAI')
    said: list[str] = []
    decided = signoff_directory(tmp_path, warn=said.append)
    assert decided.warnings == tuple(said)
    assert f"{path}:6 was cut" in said[0]
    assert "was cut" in markdown(decided)


def test_without_jinja2_the_decision_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    (tmp_path / "signoff.html").write_text("a page of an earlier decision")
    said: list[str] = []
    paths = write(decide(lanes_passed()), tmp_path, warn=said.append)
    assert [p.name for p in paths] == ["signoff.json", "signoff.md"]
    assert not (tmp_path / "signoff.html").exists()
    assert said == ["signoff.html needs jinja2, which is not installed; install it with: python -m pip install jinja2"]
    with pytest.raises(SignoffError, match="pip install jinja2"):
        write(decide(lanes_passed()), tmp_path)


def test_unwritable_output_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SignoffError, match="cannot write"):
        write(decide(lanes_passed()), tmp_path / "file")


def test_budget_bars() -> None:
    bars = signoff_html.use_bars([0.0, 0.05, 0.999, 1.0, 1.0000001, float("nan"), float("inf")])
    assert [b.count for b in bars] == [2, 0, 0, 0, 0, 0, 0, 0, 0, 2, 3]
    assert [b.alarm for b in bars] == [False] * 10 + [True]
    assert not signoff_html.use_bars([0.5])[-1].alarm


def test_step_bars_add_up_in_order() -> None:
    bars = signoff_html.step_bars([{"0": 10, ">=5": 1}, {"-1": 2, "0": 5, "<=-5": 0}])
    assert [(b.label, b.count) for b in bars] == [("<=-5", 0), ("-1", 2), ("0", 15), (">=5", 1)]
    assert max(b.height for b in bars) == 1.0
