"""Waivers, policies and claims: what they may say, and one sentence for what makes no sense."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tests.support.signed import (
    EVERY,
    EXAMPLES,
    LATER,
    NORM,
    TARGET,
    made,
    ops,
    path,
    ruled,
    whole,
)
from validators.records.record import Status
from validators.signoff import claims, depths, policy
from validators.signoff.claims import ClaimError
from validators.signoff.decision import SignoffError, under_policy
from validators.signoff.policy import Policy, Waiver
from validators.words import FP8_FORMATS, native_fp8

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
    for native in FP8_FORMATS:
        assert written == table(native)


def test_the_formats_of_architectures_are_stated_once() -> None:
    found = {arch: native_fp8(arch) for arch in ("cpu", "sm_90", "gfx940", "gfx942", "gfx943", "gfx950")}
    assert [arch for arch, fp8 in found.items() if fp8 == "e4m3fnuz"] == ["gfx940", "gfx942"]
