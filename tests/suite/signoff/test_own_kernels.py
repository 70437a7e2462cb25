"""Ways to get a wrong kernel signed, each tried: not SIGNED, or SIGNED with what it rests on in the decision itself.

Here: declared limits and kernels of one's own, from the command line as well.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tests.support.signed import CONTRACT, EXAMPLES, GEMM, KERNELS, NORM, QUANT, TARGET, ops
from validators.__main__ import main
from validators.records.evidence import Limit as Away
from validators.records.record import Record, Status
from validators.records.store import load
from validators.signoff import claims, facts
from validators.signoff import html as signoff_html
from validators.signoff.decision import decide, under_policy
from validators.signoff.json import to_dict
from validators.signoff.limits import Limit, Limits
from validators.signoff.policy import Policy, Requirement
from validators.signoff.ruling import rule
from validators.signoff.text import markdown

# ---- the two sign-offs of the table, from the command line


def test_an_evaluation_at_thirty_points_on_made_up_questions_leaves_nightly_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """26 of 300 answers lost, which is -8.7 points, with a margin of 30: PARITY, and no evidence for a claim."""
    from evals.__main__ import main as evals
    from evals.gsm8k import store
    from tests.support.eval_arms import BASELINE, CANDIDATE, two_arms

    kernel = {NORM: "aiter_hip/add_rmsnorm_quant"}
    made_up = {"questions": 300, "data": "other:mine.jsonl", "data_sha256": "cd" * 32}
    for name, header, samples in zip(
        "ab", (BASELINE, dataclasses.replace(CANDIDATE, kernels=kernel)), two_arms(300, 280, 26, 0), strict=True
    ):
        store.write(tmp_path / name, dataclasses.replace(header, **made_up), samples)  # type: ignore[arg-type]
    runs, records = [str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "r")
    assert evals(["gsm8k", "compare", *runs, "--margin", "30", "--records", records]) == 0
    (found,) = load(records)
    assert found.status is Status.PASSED
    claim = str(EXAMPLES / "glm47-aiter-gfx950.toml")
    assert main(["signoff", records, "--claim", claim, "--policy", "nightly", "--out", str(tmp_path / "out")]) == 3
    assert capsys.readouterr().out.splitlines()[-1].startswith("written: ")
    written = json.loads((tmp_path / "out" / "signoff.json").read_text())
    (cell,) = [c for c in written["rulings"][0]["cells"] if c["stage"] == "parity"]
    assert cell["state"] == "UNTESTED"
    for words in (
        "margin 30 points (asked: at most 1.5)",
        "300 questions (asked: at least 1,319)",
        "question set other:mine.jsonl, sha256 cdcdcdcdcdcd (asked: embedded or gsm8k-test)",
        "an unknown architecture (asked: gfx950)",
    ):
        assert words in cell["why"][0]
    assert "margin 30 points" in (tmp_path / "out" / "signoff.md").read_text()


def test_a_walk_of_one_layer_with_a_margin_of_five_leaves_merge_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = claims.from_file(EXAMPLES / "glm47-emulated-gfx950.toml")
    kernels = [word for op in (NORM, QUANT, GEMM) for word in ("--kernel", f"{op}={target.kernels[op][0]}")]
    weak = ["--layers", "1", "--noise-margin", "5", "--tokens", "64", "--records", str(tmp_path / "r")]
    assert main(["layers", "--model", "glm-tiny", *kernels, *weak]) == 0
    assert {r.status for r in load(tmp_path / "r")} == {Status.PASSED}
    claim = str(EXAMPLES / "glm47-emulated-gfx950.toml")
    assert main(["signoff", str(tmp_path / "r"), "--claim", claim, "--policy", "merge", "--out", str(tmp_path)]) == 3
    printed = capsys.readouterr().out
    assert "layers (weaker than the policy asks: layer 0 of 4 (asked: all), margin 5 (asked: at most 0.5)" in printed
    cells = json.loads((tmp_path / "signoff.json").read_text())["rulings"][0]["cells"]
    assert {c["state"] for c in cells if c["stage"] == "layers"} == {"UNTESTED"}
    assert "layer 0 of 4" in (tmp_path / "signoff.md").read_text()


# ---- limits, and kernels of one's own


def limited(r: Record, reason: str, feature: str = "") -> Record:
    said = (reason,)
    return dataclasses.replace(
        r, status=Status.UNSUPPORTED, reasons=said, comparisons=(), checks=(), limit=Away("declared", feature)
    )


def test_lanes_that_are_declared_away_are_in_the_decision_with_the_models_shapes() -> None:
    """One case of each lane PASSED; every other one is declared away."""
    easy = {(r.op, r.lane): r.case for r in reversed(ops("default"))}
    chosen = Policy("merge", "", (Requirement("ops"),))
    target = dataclasses.replace(TARGET, kernels={NORM: KERNELS[NORM]})
    records = [r if easy[r.op, r.lane] == r.case else limited(r, "n % 16 == 0") for r in ops("default") if r.op == NORM]
    ruling = rule(target, chosen, records, "records")
    assert ruling.decision.startswith("SIGNED within declared limits: n % 16 == 0")
    decided = under_policy(records, chosen, [target])
    assert decided.decision == ruling.decision
    declared = f"demo/norm does not offer {len(records) - 5} of {len(records)} cases of {NORM}"
    assert declared in markdown(decided)
    assert any(declared in text for text in to_dict(decided)["rulings"][0]["facts"]["limits"])
    pytest.importorskip("jinja2", reason="the page needs jinja2, which is optional")
    page = signoff_html.page(decided)
    assert "within declared limits: n % 16 == 0" in page
    assert declared in page


def test_shapes_of_the_model_that_limits_hide_are_in_the_decision() -> None:
    hidden = Limits("k", NORM, 9, 4, (Limit("n <= 8192", 4, ()),), (), ("n = 12288",), 7, machine=2)
    assert facts.limit_words([hidden]) == [
        "within declared limits: n <= 8192",
        "which hide 1 of the model's own shapes (n = 12288)",
        "without 2 cases that the machine cannot hold",
    ]
    many = [dataclasses.replace(hidden, kernel=f"k{i}") for i in range(4)]
    assert facts.limit_words(many)[0] == "within the declared limits of 4 kernels"


def test_features_that_are_not_offered_are_named_in_short() -> None:
    words = 'the kernel does not offer "{}" (its attribute supports, or the default)'
    records = [
        limited(r, words.format("fp16"), "fp16")
        if "-fp16-" in r.case
        else limited(r, words.format("gemma"), "gemma")
        if "-gemma" in r.case
        else r
        for r in ops("default")
        if r.op == NORM
    ]
    chosen = Policy("merge", "", (Requirement("ops"),))
    ruling = rule(dataclasses.replace(TARGET, kernels={NORM: KERNELS[NORM]}), chosen, records, "records")
    assert ruling.decision == "SIGNED within declared limits: no fp16, gain 1 + weight"
    assert decide(records).decision == "SIGNED at default depth, within declared limits: no fp16, gain 1 + weight"


def test_an_own_kernel_is_signed_by_doing_what_the_sign_off_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As ``merge``, at smoke depth. No step may be refused, as ``golden propose`` refuses a kernel of one's own."""
    from golden.__main__ import main as golden

    monkeypatch.chdir(tmp_path)
    Path("k.py").write_text(KERNEL.rpartition("quant.contract")[0])
    Path("beside.py").write_text("def rule(t):\n    return t\n")
    Path("own.toml").write_text(
        'name = "own"\n[[require]]\nstage = "ops"\ndepth = "smoke"\n[[require]]\nstage = "goldens"\n'
        '[[require]]\nstage = "layers"\nlayers = "all"\nmargin = 0.5\ntokens = 64\n'
    )
    run = ["run", "--kernel", f"{QUANT}=k.py:quant", "--contract", CONTRACT, "--depth", "smoke"]
    assert main([*run, "--records", "r"]) == 0
    sign = ["signoff", "r", "--claim", "k.py:quant", "--contract", CONTRACT, "--policy", "own.toml", "--out", "out"]
    capsys.readouterr()
    assert main(sign) == 3
    printed = capsys.readouterr().out
    assert "No golden is asked of k.py:quant" in printed
    steps = [line.split()[2:] for line in printed.splitlines() if line.startswith("      python -m ")]
    assert [words[:2] for words in steps] == [["validators", "layers"]]
    for program, *words in steps:
        assert {"validators": main, "golden": golden}[program](words) == 0
    assert main(sign) == 0
    found = json.loads(Path("out/signoff.json").read_text())
    assert found["outcome"] == "SIGNED"
    assert "within declared limits: no " in found["decision"]


def test_a_whole_machine_with_an_own_kernel_is_not_told_to_propose_its_goldens() -> None:
    target = dataclasses.replace(TARGET, kernels={QUANT: ("k.py:quant", "demo/quant")}, one_path=False)
    ruling = rule(target, Policy("merge", "", (Requirement("goldens"),)), [], "records")
    commands = [command for step in ruling.steps for command in step.commands]
    assert commands
    assert not [command for command in commands if "k.py" in command]


KERNEL = """import torch
from beside import rule


def quant(x, fp8_dtype):
    top = torch.finfo(fp8_dtype).max
    y = x.float()
    scale = y.abs().amax(dim=-1, keepdim=True).clamp(min=1e-10) * (1.0 / top)
    return rule(y * (1.0 / scale)).clamp(-top, top).to(fp8_dtype), scale


quant.contract = "aiter-hip-gfx950"
"""


def test_a_file_beside_the_kernel_that_is_edited_between_lanes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("k.py").write_text(KERNEL)
    Path("beside.py").write_text("def rule(t):\n    return t\n")
    run = ["run", "--kernel", f"{QUANT}=k.py:quant", "--depth", "smoke", "--records", "r", "--lane"]
    main([*run, "shapes"])
    first = [r for r in load("r") if r.status is not Status.UNTESTED]
    digests = {r.provenance.kernel_source and r.provenance.kernel_source.sha256 for r in first}
    assert len(digests) == 1
    assert first[0].provenance.kernel_source is not None
    assert set(first[0].provenance.kernel_source.files) == {"k.py", "beside.py"}
    Path("beside.py").write_text("def rule(t):\n    return t + 0\n")
    main([*run, "model"])
    assert len({r.provenance.kernel_source and r.provenance.kernel_source.sha256 for r in load("r")}) == 2
    capsys.readouterr()
    assert main(["signoff", "r"]) == 1
    assert "come from 2 versions of its source" in capsys.readouterr().out
