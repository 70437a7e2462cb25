"""Claims under policies: what signs, what is missing and how to fill it, waivers, versions, and several machines."""

from __future__ import annotations

import dataclasses
import datetime
import json
from pathlib import Path

import pytest

from tests.support.made import record
from validators.__main__ import main
from validators.records.evidence import Golden
from validators.records.provenance import Provenance
from validators.records.record import Check, Explanation, Record, Status
from validators.records.store import Sink
from validators.signoff import claims, depths, policy
from validators.signoff import decision as signoff
from validators.signoff import json as signoff_json
from validators.signoff import text as signoff_text
from validators.signoff.claims import ClaimError, Target
from validators.signoff.decision import SignoffError, signoff_directory, under_policy
from validators.signoff.policy import Policy, Requirement, Waiver
from validators.signoff.ruling import Ruling, rule

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "docs" / "examples" / "claims"
NORM, QUANT, GEMM = "add_rmsnorm_quant", "per_token_quant", "ptpc_gemm"
KERNELS = {NORM: ("demo/norm",), QUANT: ("demo/quant",), GEMM: ("demo/gemm",)}
TARGET = Target("the demo path", "cpu", KERNELS)
SMOKE = Policy("smoke", "", (Requirement("ops", depth="smoke"),))
EVERY = Policy(
    "every", "", tuple(Requirement(s, depth="smoke") if s == "ops" else Requirement(s) for s in policy.STAGES)
)
LATER = datetime.date(2999, 1, 1)


def made(op: str, case: str, lane: str, status: Status = Status.PASSED, **changes: object) -> Record:
    return record(status, **{"op": op, "case": case, "lane": lane, "kernel": KERNELS[op][0], **changes})


def ops(depth: str = "smoke", **changes: object) -> list[Record]:
    """A PASSED record of every case of a depth."""
    return [
        made(op, case, lane, **changes)
        for op in KERNELS
        for lane, cases in depths.lanes(op, depth, "e4m3fn").items()
        for case in cases
    ]


def whole(lane: str, status: Status = Status.PASSED, **changes: object) -> Record:
    op = {"parity": "gsm8k_parity"}.get(lane, lane)
    fields: dict[str, object] = {
        "op": op,
        "lane": lane,
        "case": f"{lane}-1",
        "kernel": "demo/norm",
        "comparisons": (),
        "checks": (Check("accuracy", status is Status.PASSED, "as before", "statistical"),),
    }
    return record(status, **{**fields, **changes})


def path() -> list[Record]:
    """Every stage of the demo path, PASSED."""
    layers = [made(op, f"layers-glm-tiny-l00-{op}", "layers") for op in KERNELS]
    layers.append(made(NORM, "layers-glm-tiny-trajectory", "layers"))
    goldens = [made(op, f"{op}-golden", "goldens", golden=Golden("", "UNCHANGED")) for op in KERNELS]
    return [*ops(), *layers, *goldens, whole("parity"), whole("trace")]


def ruled(records: list[Record], chosen: Policy = EVERY, target: Target = TARGET) -> Ruling:
    return rule(target, chosen, records, "records")


def test_every_cell_passed_is_signed() -> None:
    ruling = ruled(path())
    assert (ruling.decision, ruling.reasons, ruling.steps) == ("SIGNED", (), ())
    assert {cell.state for cell in ruling.cells} == {"PASSED"}


@pytest.mark.parametrize("stage", policy.STAGES)
def test_a_stage_that_nobody_ran_is_untested_with_a_command(stage: str) -> None:
    left = [r for r in path() if (r.lane if r.lane in policy.STAGES else "ops") != stage]
    ruling = ruled(left)
    assert (ruling.decision, ruling.reasons) == ("UNTESTED", (f"UNTESTED: {stage}.",))
    words = {"ops": "validators run --op", "goldens": "golden check", "parity": "evals parity"}
    commands = [c for step in ruling.steps for c in step.commands]
    assert any(words.get(stage, f"validators {stage}") in c for c in commands)
    assert len(ruling.steps) == (3 if stage == "ops" else 1)


def test_one_missing_lane_is_named_with_its_command() -> None:
    ruling = ruled([r for r in path() if not (r.op == NORM and r.lane == "model")])
    assert ruling.reasons == ("UNTESTED: ops of demo/norm (model).",)
    (step,) = ruling.steps
    assert step.commands == (
        "python -m validators run --op add_rmsnorm_quant --kernel demo/norm --lane model --depth smoke --device cpu "
        "--records records",
    )


def test_one_case_less_than_the_depth_has_is_untested() -> None:
    first = ops()[0]
    ruling = ruled(ops()[1:], SMOKE)
    assert ruling.decision == "UNTESTED"
    (cell,) = ruling.untested
    assert (cell.kernel, cell.lane) == (first.kernel, first.lane)
    assert first.case in cell.why[0]


def test_a_deeper_run_is_enough_and_a_shallower_one_is_not() -> None:
    assert ruled(ops("default"), SMOKE).decision == "SIGNED"
    deep = Policy("deep", "", (Requirement("ops", depth="deep"),))
    assert ruled(ops("default"), deep).decision == "UNTESTED"


@pytest.mark.parametrize("status", [Status.FAILED, Status.NONDETERMINISTIC, Status.MISTRUSTED, Status.ERROR])
def test_one_bad_record_in_any_stage_is_not_signed(status: Status) -> None:
    for bad in (
        made(NORM, "add_rmsnorm_quant-one-more", "random", status, reasons=("because",)),
        made(GEMM, "layers-glm-tiny-l01", "layers", status, reasons=("because",)),
        whole("parity", status, case="parity-2", reasons=("because",)),
        whole("trace", status, case="trace-2", reasons=("because",)),
    ):
        ruling = ruled([*path(), bad])
        assert ruling.decision == "NOT SIGNED"
        (reason,) = ruling.reasons
        assert status.value in reason
        assert "because" in reason


def test_a_failure_of_a_stage_that_is_not_required_counts_too() -> None:
    ruling = ruled([*ops(), whole("parity", Status.FAILED, reasons=("worse",))], SMOKE)
    assert ruling.decision == "NOT SIGNED"


def test_many_failures_of_one_cause_are_one_reason_that_names_it() -> None:
    def broken(r: Record) -> Record:
        why = (Explanation("tail-not-in-amax", "every violation vanishes if the tail is left out", 1.0),)
        return dataclasses.replace(r, status=Status.FAILED, reasons=("scale: wrong",), explanations=why)

    records = [broken(r) if r.op == NORM else r for r in path()]
    (reason,) = ruled(records).reasons
    cases = sum(r.op == NORM for r in records)
    assert reason.startswith(f"add_rmsnorm_quant of demo/norm: FAILED in {cases} of {cases} cases (ops: random, ")
    assert "All explained by tail-not-in-amax: every violation vanishes if the tail is left out." in reason


def test_a_regression_is_quoted_as_the_evaluation_says_it() -> None:
    said = "REGRESSION: fused against unfused: accuracy: 91 % -> 80 %."
    worse = whole("parity", Status.FAILED, case="parity-tiny-glm-n1319-margin1.5-s0", reasons=(said,))
    (reason,) = ruled([r for r in path() if r.lane != "parity"] + [worse]).reasons
    assert reason == (
        "parity of demo/norm: FAILED in 1 of 1 cases (parity). First parity-tiny-glm-n1319-margin1.5-s0: " + said
    )


def test_drifted_goldens_wait_for_a_person() -> None:
    drift = made(
        NORM,
        "g",
        "goldens",
        golden=Golden("", "DRIFTED"),
        checks=(Check("golden", None, "codes: 3 elements differ", "determinism"),),
    )
    ruling = ruled([*path(), drift])
    assert ruling.decision == "NOT SIGNED"
    assert ruling.reasons[0].startswith(f"goldens of {NORM} of demo/norm: 1 DRIFTED, 1 unchanged. First g: ")
    assert "codes: 3 elements differ" in ruling.reasons[0]


def test_goldens_of_another_cpu_and_a_walk_without_its_end_show_nothing() -> None:
    def other_isa(r: Record) -> Record:
        return dataclasses.replace(r, golden=Golden("", "UNTESTED")) if r.lane == "goldens" else r

    assert ruled([other_isa(r) for r in path()]).reasons == ("UNTESTED: goldens.",)
    ruling = ruled([r for r in path() if not r.case.endswith("-trajectory")])
    assert ruling.reasons == ("UNTESTED: layers (the error against depth was not judged).",)
    assert ruling.untested[0].why == ("the error against depth was not judged",)


def test_goldens_that_belong_to_another_cpu_do_not_stand_in_the_way_where_others_are_unchanged() -> None:
    elsewhere = [
        made(op, f"{op}-other", "goldens", golden=Golden("", state))
        for op, state in zip(KERNELS, ("UNTESTED", "MISSING", "UNTESTED"), strict=True)
    ]
    ruling = ruled([*path(), *elsewhere])
    assert (ruling.decision, ruling.reasons) == ("SIGNED", ())
    [cell] = [c for c in ruling.cells if c.stage == "goldens" and c.op == NORM]
    assert cell.counts == {"UNCHANGED": 1, "UNTESTED": 1}


HOSTILE = "<script>alert(1)</script>|`x`\n## SIGNED @everyone"


def test_a_claim_cannot_write_markup() -> None:
    signoff_html = pytest.importorskip("validators.signoff.html")
    pytest.importorskip("jinja2", reason="the page needs jinja2, which is optional")
    target = dataclasses.replace(TARGET, name=HOSTILE, about=HOSTILE, contracts={NORM: HOSTILE})
    chosen = dataclasses.replace(EVERY, name=HOSTILE, about=HOSTILE, waivers=(Waiver(HOSTILE, HOSTILE, LATER, "ops"),))
    decided = under_policy(ops(contract=HOSTILE)[1:], chosen, [target])
    assert "<script>alert" not in signoff_html.page(decided)
    text = signoff_text.markdown(decided)
    prose = "\n".join(line for line in text.split("\n") if not line.startswith("    "))  # commands are code
    assert "<script" not in prose
    assert "@everyone" not in prose
    assert "\n## SIGNED" not in text


def test_a_truth_that_moved_stands_in_the_way_of_everybody() -> None:
    moved = record(
        Status.FAILED,
        op="goldens",
        lane="goldens",
        kernel="golden/reference",
        arch="any",
        case="r",
        reasons=("other float64 values",),
    )
    ruling = ruled([*path(), moved])
    assert ruling.decision == "NOT SIGNED"
    assert "golden/reference" in ruling.reasons[0]


def test_contradicting_machines_are_shown() -> None:
    first = ops()[0]
    other = dataclasses.replace(
        first, status=Status.FAILED, reasons=("scale: wrong",), provenance=Provenance(commit="fff", host="other")
    )
    ruling = ruled([*path(), other])
    assert ruling.decision == "NOT SIGNED"
    (clash,) = [r for r in ruling.reasons if r.startswith("Contradiction")]
    assert first.case in clash
    assert "commit fff on other" in clash


def test_contract_architecture_and_version_must_be_those_of_the_claim() -> None:
    for records, words in (
        (ops(contract="eager"), "judged under contract eager, and the claim says vllm"),
        (ops(provenance=Provenance(torch="2.11.0")), "with torch 2.11.0, and the claim says 2.13.*"),
        (ops(provenance=Provenance()), "without the version of torch"),
    ):
        target = dataclasses.replace(TARGET, contracts=dict.fromkeys(KERNELS, "vllm"), versions={"torch": "2.13.*"})
        ruling = ruled(records, SMOKE, target)
        assert ruling.decision == "UNTESTED"
        assert ruling.records == ()
        assert any(words in why for why, _ in ruling.excluded)
    assert ruled(ops(arch="gfx942"), SMOKE).decision == "UNTESTED"
    matching = dataclasses.replace(TARGET, contracts=dict.fromkeys(KERNELS, "vllm"), versions={"torch": "2.13.*"})
    assert ruled(ops(), SMOKE, matching).decision == "SIGNED"


def test_a_crash_before_the_contract_was_known_counts() -> None:
    target = dataclasses.replace(TARGET, contracts=dict.fromkeys(KERNELS, "vllm"))
    crash = made(NORM, "x", "random", Status.ERROR, contract=None, arch="unknown", reasons=("died",))
    assert ruled([*ops(), crash], SMOKE, target).decision == "NOT SIGNED"


def test_emulated_kernels_sign_in_emulation_only() -> None:
    assert ruled(ops(emulated=True), SMOKE).decision == "SIGNED in emulation only"


# ---- waivers


def _with(*waivers: Waiver) -> Policy:
    return dataclasses.replace(EVERY, waivers=waivers)


def test_a_waiver_covers_its_cells_and_is_named() -> None:
    waiver = Waiver("jane", "no serving machine until then", LATER, stage="trace")
    ruling = ruled([r for r in path() if r.lane != "trace"], _with(waiver))
    assert ruling.decision == "SIGNED with 1 waiver"
    assert ruling.waived == ("1 cell waived until 2999-01-01 by jane: no serving machine until then",)
    failing = [r for r in path() if r.lane != "trace"] + [whole("trace", Status.FAILED, reasons=("no",))]
    assert ruled(failing, _with(waiver)).decision == "SIGNED with 1 waiver"
    assert ruled(failing, _with(dataclasses.replace(waiver, stage="parity"))).decision == "NOT SIGNED"


def test_a_waiver_that_matches_nothing_is_an_error() -> None:
    waiver = Waiver("jane", "why", LATER, stage="trace")
    with pytest.raises(SignoffError, match="waiver 'jane' of policy every matches nothing"):
        under_policy(path(), _with(waiver), [TARGET])


POLICY = """name = "own"
[[require]]
stage = "ops"
depth = "smoke"
"""


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ("[[waive]]\nname='j'\nreason='r'\nuntil=2000-01-01\nstage='ops'", "waiver 'j' .* ended on 2000-01-01"),
        ("[[waive]]\nname='j'\nreason='r'\nstage='ops'", "must say 'until' as a date"),
        ("[[waive]]\nname='j'\nuntil=2999-01-01\nstage='ops'", "must say its 'reason'"),
        ("[[waive]]\nname='j'\nreason='r'\nuntil=2999-01-01", "would waive everything"),
        ("[[waive]]\nname='j'\nreason='r'\nuntil=2999-01-01\nstagee='ops'", "'stagee', which means nothing there"),
        ("[[require]]\nstage='opps'", "stage of .* is 'opps'; known: ops, layers"),
        ("[[require]]\nstage='layers'\ndepth='deep'", "only 'ops' can have it"),
        ("[[require]]\nstage='ops'\nlanes=['easy']", "lanes of .* is 'easy'"),
        ("[[require]\n", "is no TOML"),
    ],
)
def test_a_policy_that_makes_no_sense_is_one_sentence(tmp_path: Path, more: str, sentence: str) -> None:
    (tmp_path / "own.toml").write_text(POLICY + more)
    with pytest.raises(ClaimError, match=sentence):
        policy.load(str(tmp_path / "own.toml"))


def test_the_policies_of_the_repository_are_whole() -> None:
    names = sorted(p.stem for p in policy.FOLDER.glob("*.toml"))
    assert names == ["machine", "merge", "nightly", "smoke"]
    for name in names:
        found = policy.load(name)
        assert found.name == name
        assert found.about.endswith(".")
        assert not found.waivers
    assert {r.stage for r in policy.load("nightly").require} == {"ops", "layers", "goldens", "parity"}
    assert [r.depth for r in policy.load("nightly").require if r.stage == "ops"] == ["deep"]
    assert [r.arch for r in policy.load("merge").require if r.stage == "trace"] == [("gfx*",)]
    with pytest.raises(ClaimError, match="neither a policy"):
        policy.load("lenient")


# ---- claims


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.toml")), ids=lambda p: p.stem)
def test_the_example_claims_name_kernels_that_exist(file: Path) -> None:
    from reference.contract import get_contract
    from validators.kernels.registry import all_kernels

    target = claims.from_file(file)
    known = {(k.op, k.name) for k in all_kernels()}
    for op, (name,) in target.kernels.items():
        assert (op, name) in known
        get_contract(op, target.contracts[op])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "must say its 'name'"),
        ("name='x'\narch='cpu'\n[kernels]\nnorm='k'", "names op 'norm'; known: add_rmsnorm_quant"),
        ("name='x'\narch='cpu'\n[kernels]", "names no kernel"),
        ("name='x'\narch='cpu'\n[kernels]\nptpc_gemm='k'\n[contracts]\nper_token_quant='c'", "and no kernel"),
        ("name='x'\narch='cpu'\nkernel='k'", "'kernel', which means nothing there"),
    ],
)
def test_a_claim_that_makes_no_sense_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "claim.toml").write_text(text)
    with pytest.raises(ClaimError, match=sentence):
        claims.from_file(tmp_path / "claim.toml")


def test_the_claim_of_a_kernel_is_found_in_the_records() -> None:
    target = claims.of_kernel("demo/norm", ops(), contract="vllm")
    assert (target.arch, target.kernels, target.contracts) == ("cpu", {NORM: ("demo/norm",)}, {NORM: "vllm"})
    with pytest.raises(ClaimError, match="neither a claim's file nor a kernel"):
        claims.of_kernel("demo/absent", ops())
    with pytest.raises(ClaimError, match="cpu and gfx950; say --arch"):
        claims.of_kernel("demo/norm", [*ops(), *ops(arch="gfx950")])


def test_a_machine_is_every_kernel_that_ran_there() -> None:
    records = [*ops(), *ops(arch="sm_90"), made(NORM, "x", "goldens", Status.UNTESTED, arch="gfx950")]
    assert [t.arch for t in claims.of_machines(records)] == ["cpu", "sm_90"]


def test_the_table_of_depths_is_the_suite() -> None:
    from tests.benchmarks.depths import table

    written = json.loads(depths.TABLE.read_text())
    for native in depths.FP8_FORMATS:
        assert written == table(native)


def test_native_formats_are_those_of_the_adapters() -> None:
    from validators.arch import native_fp8

    for arch in ("cpu", "sm_90", "gfx940", "gfx942", "gfx950"):
        assert depths.native_fp8(arch) == native_fp8(arch)


# ---- the command


def _write(directory: Path, records: list[Record]) -> Path:
    with Sink(directory) as sink:
        for r in records:
            sink.write(r)
    return directory


def test_the_story_of_gfx950(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever was run elsewhere, the claim about an MI355X is UNTESTED, and says what to run there."""
    here = _write(tmp_path / "cpu", path())
    claim = str(EXAMPLES / "glm47-aiter-gfx950.toml")
    assert main(["signoff", str(here), "--claim", claim, "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().out
    assert printed.startswith("UNTESTED\n")
    assert "UNTESTED: ops; layers; goldens; trace." in printed
    assert "on an MI350X or MI355X:" in printed
    for kernel in ("aiter_hip/add_rmsnorm_quant", "aiter_hip/per_token_quant_hip", "aiter_hip/gemm_a8w8_bpreshuffle"):
        assert f"--kernel {kernel} --device cuda --records records/gfx950" in printed
    assert "golden propose --device cuda" in printed
    assert "validators trace trace.json.gz --layers 92 --kernel aiter_hip/add_rmsnorm_quant" in printed
    assert main(["signoff", "--claim", claim]) == 2
    assert capsys.readouterr().out.startswith("UNTESTED\n")


def test_every_command_for_another_machine_is_one_that_exists() -> None:
    from validators.__main__ import _parser

    ruling = rule(claims.from_file(EXAMPLES / "glm47-aiter-gfx950.toml"), policy.load("merge"), [])
    parsed = 0
    for step in ruling.steps:
        for command in step.commands:
            words = command.split()
            if words[:4] in (["python", "-m", "validators", "run"], ["python", "-m", "validators", "trace"]):
                _parser().parse_args(words[3:])
                parsed += 1
    assert parsed == 4


def test_records_of_two_machines_are_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = [r for r in ops() if r.op == NORM]
    one, two = _write(tmp_path / "a", half), _write(tmp_path / "b", [r for r in ops() if r.op != NORM])
    decided = signoff_directory([one, two], policy=SMOKE, target=lambda records: [TARGET])
    assert decided.decision == "SIGNED"
    assert len(decided.files) == 2
    assert signoff_directory([one], policy=SMOKE, target=lambda records: [TARGET]).decision == "UNTESTED"
    with pytest.raises(SignoffError, match="one record file twice"):
        signoff_directory([one, one])
    assert main(["signoff", str(one), str(two), "--policy", "smoke", "--out", str(tmp_path / "out")]) == 2
    assert "UNTESTED: layers." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--policy", "lenient"], "neither a policy"),
        (["--claim", "absent.toml"], "cannot read absent.toml"),
        (["--claim", "absent/kernel"], "neither a claim's file nor a kernel"),
        (["--arch", "cpu"], "--arch and --contract belong to a claim"),
        (["--version", "torch=2.*"], "--version belongs to a claim or a policy"),
        (["--policy", "smoke", "--version", "torch"], "is not LIBRARY=PATTERN"),
    ],
)
def test_bad_usage_is_one_sentence_and_exits_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    here = _write(tmp_path / "r", ops()[:1])
    assert main(["signoff", str(here), *arguments]) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err


def test_the_json_follows_the_published_schema(tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is in the group 'test' of pyproject.toml")
    schema = json.loads((ROOT / "docs" / "signoff.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    bad = made(NORM, "x", "random", Status.FAILED, reasons=("because",))
    waiver = Waiver("jane", "why", LATER, stage="trace")
    some = under_policy([r for r in path() if r.lane != "trace"], _with(waiver), [TARGET])
    for decided in (
        signoff.decide(path()),
        under_policy(path(), EVERY, [TARGET]),
        under_policy([*path(), bad], EVERY, [TARGET]),
        under_policy([], EVERY, [TARGET]),
        some,
    ):
        jsonschema.validate(signoff_json.to_dict(decided), schema)
    wrong = {**signoff_json.to_dict(some), "decision": "FINE"}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


def test_the_comment_is_short_and_says_what_to_run() -> None:
    text = signoff_text.markdown(under_policy(ops()[1:], EVERY, [TARGET]))
    assert text.startswith("## UNTESTED\n")
    assert len(text) < 5_000
    assert "    python -m evals parity --baseline unfused,quant=demo/quant" in text


def test_the_parity_command_names_the_kernels_of_the_path() -> None:
    ruling = ruled([r for r in path() if r.lane != "parity"])
    assert ruling.steps[0].commands == (
        "python -m evals parity --baseline unfused,quant=demo/quant,gemm=demo/gemm "
        "--candidate fused,norm=demo/norm,quant=demo/quant,gemm=demo/gemm --device cpu --records records",
    )


def test_a_case_without_a_row_fills_no_lane_alone() -> None:
    """Limits may declare away all but m = 0; empty outputs are no evidence of any value."""
    policy = Policy("shapes", "", (Requirement("ops", ops=(QUANT,), lanes=("shapes",), depth="default"),))
    target = Target("one op", "cpu", {QUANT: KERNELS[QUANT]})
    empty = tuple(dataclasses.replace(c, elements=0, judged=0, single=0) for c in made(QUANT, "", "shapes").comparisons)
    cases = depths.lanes(QUANT, "default", "e4m3fn")["shapes"]
    assert any("-m0-" in case for case in cases)

    def records(*judged: str) -> list[Record]:
        return [
            made(QUANT, case, "shapes", comparisons=empty)
            if "-m0-" in case
            else made(QUANT, case, "shapes")
            if case in judged
            else made(QUANT, case, "shapes", Status.UNSUPPORTED, reasons=("no",), comparisons=(), checks=())
            for case in cases
        ]

    found = rule(target, policy, records())
    assert found.decision == "NOT SIGNED"
    assert "only cases without a row PASSED" in found.cells[0].why[0]
    assert rule(target, policy, records(cases[0])).outcome == "SIGNED"
    reasons = signoff.decide(records()).claims[0].reasons
    assert any(
        r.startswith("ops shapes of demo/quant: only cases without a row PASSED (1 PASSED, ") for r in reasons
    ), reasons
    assert not any("without a row" in r for r in signoff.decide(records(cases[0])).claims[0].reasons)


def test_a_contract_of_changed_fields_is_said_to_have_no_source() -> None:
    words = "No source is known for eager+amax_floor=10: a preset but for the fields that are named."
    assert words in rule(TARGET, SMOKE, ops(contract="eager+amax_floor=10")).facts.caveats
    assert not any("No source" in text for text in rule(TARGET, SMOKE, ops(contract="eager")).facts.caveats)
