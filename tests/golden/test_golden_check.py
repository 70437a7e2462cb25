"""Propose, accept, check: drift is told from defects, and nothing gets in that no contract allows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from golden import kernel as one
from golden import sets
from golden.check import check, select
from golden.commit import Entry, commit
from golden.outcome import Outcome, State, exit_code
from golden.propose import accept, propose, truth_entry
from golden.store import GoldenError, Row, Store, read
from reference.contract import NORM_QUANT_CONTRACTS
from tests.support.variants import legitimate_variants
from tests.zoo import emulated
from validators.cases.tensors import Inputs, NormQuantOutputs, Outputs
from validators.kernels import registry
from validators.kernels.kernel import Kernel
from validators.records.record import Status

NAME = "emulated/aiter-triton"
CONTRACT = NORM_QUANT_CONTRACTS["aiter-triton"]
GAUSSIAN = f"add_rmsnorm_quant-m24-n528-bf16-e4m3fn-gaussian_gain-s0@{NAME}@cpu"
MODEL = f"add_rmsnorm_quant-m16-n5120-bf16-e4m3fn-model-s0@{NAME}@cpu"
TOKENS = f"per_token_quant-m24-n528-bf16-e4m3fn-gaussian-s0@{NAME}@cpu"
REGISTRY = registry.all_kernels

Change = Callable[[Kernel], Kernel]


def _silent(sentence: str) -> None:
    raise AssertionError(f"nothing should be left out: {sentence}")


@pytest.fixture(scope="module")
def proposal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden") / "proposal"
    ids = propose(folder, device="cpu", kernels=[NAME], say=_silent)
    assert len(ids) == 12
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, proposal: Path) -> Store:
    root = tmp_path_factory.mktemp("golden") / "store"
    result = accept(root, proposal, why="first")
    assert (len(result.changed), result.unchanged, result.refused) == (12, [], [])
    return read(root)


@pytest.fixture
def replace_kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[[Change], None]:
    """Put another kernel in the place of ``NAME`` of both ops."""

    def put(change: Change) -> None:
        changed = [change(k) if k.name == NAME else k for k in REGISTRY()]
        for module in (registry, sets):
            monkeypatch.setattr(module, "all_kernels", lambda: changed)

    return put


def _calling(call: Callable[..., Outputs]) -> Change:
    return lambda kernel: dataclasses.replace(kernel, call=call)


def _variant(name: str) -> Callable[..., Outputs]:
    return emulated.make(CONTRACT, next(v for v in legitimate_variants(CONTRACT.name) if v.name == name))


def _one_code_up(inputs: Inputs, buffers: Outputs) -> Outputs:
    """A defect: the code of element (5, 7) is one step too large in magnitude."""
    outputs = emulated.make(CONTRACT)(inputs, buffers)
    outputs.codes.view(torch.uint8).view(-1, outputs.codes.shape[-1])[5, 7] += 1
    return outputs


def _check(store: Store, golden: str) -> Outcome:
    return next(check(store, select(store, ids=[golden])))


# ---- check


def test_the_same_kernel_is_unchanged(store: Store) -> None:
    outcomes = list(check(store, select(store)))
    assert {o.state for o in outcomes} == {State.UNCHANGED}
    assert exit_code(outcomes) == 0
    record = outcomes[0].record
    assert record is not None
    assert (record.status, record.emulated, record.contract) == (Status.PASSED, True, "aiter-triton")
    assert record.checks[-1].name == "golden"
    assert record.checks[-1].ok is True


def test_another_order_of_summation_drifts_and_is_admissible(
    store: Store, replace_kernel: Callable[[Change], None]
) -> None:
    replace_kernel(_calling(_variant("chunks-fma+all-up")))
    outcome = _check(store, GAUSSIAN)
    assert outcome.state is State.DRIFTED
    assert outcome.record is not None
    assert outcome.record.status is Status.PASSED
    assert outcome.record.checks[-1].ok is None
    assert exit_code([outcome]) == 1
    scale = next(d for d in outcome.drifts if d.output == "scale")
    assert 0 < scale.differing <= scale.elements == 24
    assert scale.rows == scale.differing
    assert sum(scale.ulp_histogram.values()) == scale.differing
    assert "0" not in scale.ulp_histogram
    assert f"scale: {scale.differing} of 24 elements differ" in outcome.sentence


def test_a_defect_fails(store: Store, replace_kernel: Callable[[Change], None]) -> None:
    replace_kernel(_calling(_one_code_up))
    outcome = _check(store, GAUSSIAN)
    assert outcome.state is State.FAILED
    assert outcome.record is not None
    assert outcome.record.status is Status.FAILED
    assert "codes: 1 of 12,672 elements differ; row 5, column 7; steps of the format from the golden: " in (
        outcome.sentence
    )


def test_accepted_bits_that_the_contract_no_longer_allows_fail(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge is under test as well: tightening a contract must not leave old bits looking right."""
    tighter = dataclasses.replace(CONTRACT, norm_input="unrounded")
    monkeypatch.setattr(one, "get_contract", lambda op, name: tighter)
    outcome = _check(store, GAUSSIAN)
    assert outcome.state is State.FAILED
    assert outcome.drifts == ()
    assert outcome.sentence.startswith("the accepted bits, but: FAILED: ")


def test_a_kernel_that_declares_another_contract_needs_acceptance(
    store: Store, replace_kernel: Callable[[Change], None]
) -> None:
    replace_kernel(lambda kernel: dataclasses.replace(kernel, contract="vllm"))
    outcome = _check(store, GAUSSIAN)
    assert outcome.state is State.DRIFTED
    assert "accepted under contract aiter-triton, and the kernel declares vllm now" in outcome.sentence


def test_a_kernel_that_raises_fails(store: Store, replace_kernel: Callable[[Change], None]) -> None:
    def broken(inputs: Inputs, buffers: Outputs) -> Outputs:
        raise RuntimeError("out of registers")

    replace_kernel(_calling(broken))
    outcome = _check(store, TOKENS)
    assert (outcome.state, outcome.sentence) == (
        State.FAILED,
        "the kernel raised RuntimeError: out of registers",
    )
    assert outcome.record is not None
    assert outcome.record.status is Status.ERROR


def test_a_kernel_that_no_longer_offers_the_case_fails(store: Store, replace_kernel: Callable[[Change], None]) -> None:
    replace_kernel(lambda kernel: dataclasses.replace(kernel, unsupported=lambda case: "narrow rows only"))
    outcome = _check(store, TOKENS)
    assert (outcome.state, outcome.sentence) == (State.FAILED, "the kernel no longer offers it: narrow rows only")


def test_a_drift_outside_the_sampled_rows_shows_in_the_digest(
    store: Store, replace_kernel: Callable[[Change], None]
) -> None:
    def another_scale(inputs: Inputs, buffers: Outputs) -> Outputs:
        outputs = emulated.make(CONTRACT)(inputs, buffers)
        assert isinstance(outputs, NormQuantOutputs)
        # Row 1 is none of the stored rows; its residual is bit-exact, so this also has to fail.
        assert outputs.residual_out is not None
        outputs.residual_out[1, 3] += 1
        return outputs

    assert store.rows[MODEL].outputs["residual_out"].rows == (0, 5, 10, 15)
    replace_kernel(_calling(another_scale))
    outcome = _check(store, MODEL)
    assert outcome.state is State.FAILED
    assert "residual_out: its digest differs, but no element of the sampled rows does" in outcome.sentence


def test_another_input_generator_is_named(store: Store) -> None:
    row = dataclasses.replace(store.rows[TOKENS], inputs="0" * 64)
    changed = dataclasses.replace(store, rows={**store.rows, TOKENS: row})
    outcome = _check(changed, TOKENS)
    assert outcome.state is State.FAILED
    assert "the input generator makes other bits" in outcome.sentence


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"arch": "gfx950"}, "needs gfx950, which this machine has not"),
        ({"kernel": "aiter_hip/add_rmsnorm_quant_of_yesterday"}, "no kernel aiter_hip/add_rmsnorm_quant_of_yesterday"),
        ({"kernel": "vllm/rms_norm_dynamic_per_token_quant", "op": "per_token_quant"}, "no kernel vllm/"),
    ],
)
def test_a_kernel_or_machine_that_is_not_here_is_missing_with_a_sentence(
    store: Store, changes: dict[str, str], sentence: str
) -> None:
    row = dataclasses.replace(store.rows[GAUSSIAN], **changes)  # type: ignore[arg-type]
    changed = dataclasses.replace(store, rows={**store.rows, GAUSSIAN: row})
    outcome = _check(changed, GAUSSIAN)
    assert outcome.state is State.MISSING
    assert sentence in outcome.sentence
    assert outcome.record is not None
    assert outcome.record.status is Status.UNTESTED
    assert exit_code([outcome]) == 3
    assert exit_code([outcome, _check(store, TOKENS)]) == 0


def test_an_unavailable_kernel_is_missing_with_its_own_sentence(
    store: Store, replace_kernel: Callable[[Change], None]
) -> None:
    replace_kernel(lambda kernel: dataclasses.replace(kernel, unavailable=lambda device: "its library is not here"))
    assert _check(store, GAUSSIAN).sentence == "its library is not here"


@pytest.mark.parametrize(
    ("here", "words"),
    [
        ({"isa": "VSX"}, "belong to VSX with torch "),
        ({"library": "torch 2.9.1, MKL 2024.2, oneDNN 3.7.1 on GenuineIntel"}, "with torch 2.9.1, MKL 2024.2, oneDNN"),
    ],
)
def test_other_bits_on_another_isa_or_library_are_untested_and_defects_still_fail(
    store: Store, replace_kernel: Callable[[Change], None], here: dict[str, str], words: str
) -> None:
    mine: dict[str, Any] = {"isa": sets.this_isa(), "library": sets.this_library()}
    row = dataclasses.replace(store.rows[GAUSSIAN], **{**mine, **here})
    changed = dataclasses.replace(store, rows={**store.rows, GAUSSIAN: row})
    assert _check(changed, GAUSSIAN).state is State.UNCHANGED
    replace_kernel(_calling(_variant("chunks-fma+all-up")))
    outcome = _check(changed, GAUSSIAN)
    assert outcome.state is State.UNTESTED
    assert outcome.sentence.startswith("its bits belong to ")
    assert words in outcome.sentence
    assert "; admissible, but " in outcome.sentence
    same = dataclasses.replace(store.rows[GAUSSIAN], **mine)
    assert _check(dataclasses.replace(store, rows={**store.rows, GAUSSIAN: same}), GAUSSIAN).state is State.DRIFTED
    replace_kernel(_calling(_one_code_up))
    assert _check(changed, GAUSSIAN).state is State.FAILED


def test_the_library_is_named_with_its_version_and_the_maker_of_the_cpu() -> None:
    assert sets.this_library().startswith(f"torch {torch.__version__.partition('+')[0]}")
    assert " on " in sets.this_library()
    assert sets.library_of("torch_native/scaled_mm", "sm_90") is None
    assert sets.library_of("emulated/unknown", "cpu") is None
    inductor = sets.library_of("inductor/per_token_quant", "cpu")
    assert inductor is not None
    assert inductor.startswith(f"{sets.this_library()}, ")


# ---- propose and accept


def _proposed(folder: Path, rows: dict[str, Row], tensors: dict[str, dict[str, object]]) -> Path:
    commit(folder, [Entry(row, tensors[name]) for name, row in rows.items()])  # type: ignore[arg-type]
    return folder


def _bytes(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_a_proposal_changes_nothing_and_gets_a_folder_of_its_own(store: Store, tmp_path: Path) -> None:
    before = _bytes(store.root)
    propose(tmp_path / "new", device="cpu", kernels=[NAME])
    assert _bytes(store.root) == before
    with pytest.raises(GoldenError, match="is not empty"):
        propose(tmp_path / "new", device="cpu", kernels=[NAME])


def test_accepting_again_changes_nothing(store: Store, proposal: Path) -> None:
    before = _bytes(store.root)
    result = accept(store.root, proposal, why="again")
    assert (result.changed, len(result.unchanged), result.refused) == ([], 12, [])
    assert _bytes(store.root) == before


def test_a_proposal_is_whole_and_the_store_keeps_rows_of_what_is_large(store: Store, proposal: Path) -> None:
    proposed, kept = read(proposal), store.tensors[MODEL]
    assert proposed.tensors[MODEL]["codes"].shape == (16, 5120)
    assert kept["codes"].shape == (4, 5120)
    assert store.rows[MODEL].outputs["codes"].sha256 == proposed.rows[MODEL].outputs["codes"].sha256
    assert proposed.tensors[TOKENS] == store.tensors[TOKENS]


def test_drift_is_accepted_with_a_reason_and_history(
    store: Store, proposal: Path, tmp_path: Path, replace_kernel: Callable[[Change], None]
) -> None:
    root = tmp_path / "store"
    accept(root, proposal, why="first")
    replace_kernel(_calling(_variant("chunks-fma+all-up")))
    propose(tmp_path / "drifted", device="cpu", kernels=[NAME])
    result = accept(root, tmp_path / "drifted", why="the compiler fuses now", only=[GAUSSIAN])
    assert result.changed == [GAUSSIAN]
    row = read(root).rows[GAUSSIAN]
    assert (row.reason, [old["reason"] for old in row.history]) == ("the compiler fuses now", ["first"])
    assert _check(read(root), GAUSSIAN).state is State.UNCHANGED


def test_outputs_that_no_contract_allows_are_refused_and_the_others_go_in(
    tmp_path: Path, replace_kernel: Callable[[Change], None]
) -> None:
    def wrong_norm(kernel: Kernel) -> Kernel:
        return dataclasses.replace(kernel, call=_one_code_up) if kernel.op == "add_rmsnorm_quant" else kernel

    replace_kernel(wrong_norm)
    said: list[str] = []
    propose(tmp_path / "bad", device="cpu", kernels=[NAME], say=said.append)
    assert any("so accept will refuse it" in sentence for sentence in said)
    result = accept(tmp_path / "store", tmp_path / "bad", why="please")
    assert len(result.changed) == 5
    assert len(result.refused) == 7
    assert any(
        sentence.startswith(f"{GAUSSIAN}: refused, FAILED under contract aiter-triton: codes: 1 of 12,672")
        for sentence in result.refused
    )
    assert {row.op for row in read(tmp_path / "store").rows.values()} == {"per_token_quant"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"fake": True}, "its library is a test double"),
        ({"kernel": "nobody/knows"}, "there is no kernel nobody/knows"),
        ({"contract": "vllm"}, "made under contract vllm, and the kernel declares aiter-triton"),
        ({"inputs": "0" * 64}, "its inputs have other bits here"),
        ({"id": f"{TOKENS}2"}, "not marked golden"),
        ({"kind": "inputs", "id": TOKENS}, "no such case is marked golden"),
    ],
)
def test_what_is_no_golden_is_refused(
    proposal: Path, tmp_path: Path, changes: dict[str, object], sentence: str
) -> None:
    given = read(proposal)
    row = dataclasses.replace(given.rows[TOKENS], **changes)  # type: ignore[arg-type]
    folder = _proposed(tmp_path / "p", {TOKENS: row}, {TOKENS: dict(given.tensors[TOKENS])})
    result = accept(tmp_path / "store", folder, why="please")
    assert result.changed == []
    assert len(result.refused) == 1
    assert sentence in result.refused[0]
    assert not (tmp_path / "store").exists()


def test_a_test_double_here_is_refused_too(
    proposal: Path, tmp_path: Path, replace_kernel: Callable[[Change], None]
) -> None:
    replace_kernel(lambda kernel: dataclasses.replace(kernel, fake=True))
    result = accept(tmp_path / "store", proposal, why="please")
    assert (len(result.changed), len(result.refused)) == (0, 12)


def test_sampled_outputs_cannot_be_judged_and_are_refused(store: Store, tmp_path: Path) -> None:
    folder = _proposed(tmp_path / "p", {MODEL: store.rows[MODEL]}, {MODEL: dict(store.tensors[MODEL])})
    assert "not whole" in accept(tmp_path / "store", folder, why="please").refused[0]


def test_an_unstable_kernel_is_not_proposed(tmp_path: Path, replace_kernel: Callable[[Change], None]) -> None:
    calls = iter(range(1000))

    def unstable(inputs: Inputs, buffers: Outputs) -> Outputs:
        return _variant("chunks-fma+all-up")(inputs) if next(calls) % 2 else _variant("tree")(inputs)

    replace_kernel(lambda kernel: dataclasses.replace(kernel, call=unstable, in_place=False))
    said: list[str] = []
    ids = propose(tmp_path / "p", device="cpu", kernels=[NAME], say=said.append)
    assert GAUSSIAN not in ids
    assert any(GAUSSIAN in s and "run to run" in s for s in said)


@pytest.mark.parametrize("kind", ["inputs", "reference"])
def test_a_kind_is_accepted_without_the_kernels_of_the_same_proposal(proposal: Path, tmp_path: Path, kind: str) -> None:
    """New inputs are recorded without the bits that a library gives on this CPU and gave otherwise on another one."""
    given = read(proposal)
    entries = [truth_entry(next(m for m in sets.marked_truth() if m.kind == k)) for k in ("inputs", "reference")]
    rows = {GAUSSIAN: given.rows[GAUSSIAN], **{e.row.id: e.row for e in entries}}
    tensors: dict[str, dict[str, object]] = {GAUSSIAN: dict(given.tensors[GAUSSIAN])}
    tensors |= {e.row.id: dict(e.tensors) for e in entries}
    result = accept(tmp_path / "store", _proposed(tmp_path / "p", rows, tensors), why="a new op", only=[kind])
    assert result.changed == [e.row.id for e in entries if e.row.kind == kind]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"why": " "}, "accept needs a reason"),
        ({"why": "x", "only": ["inductor/per_token_quant"]}, "proposes no golden inductor/per_token_quant"),
    ],
)
def test_accept_says_what_it_lacks(proposal: Path, tmp_path: Path, arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(GoldenError, match=sentence):
        accept(tmp_path / "store", proposal, **arguments)  # type: ignore[arg-type]


def test_a_damaged_proposal_is_refused(proposal: Path, tmp_path: Path) -> None:
    given = read(proposal)
    folder = _proposed(tmp_path / "p", {TOKENS: given.rows[TOKENS]}, {TOKENS: dict(given.tensors[TOKENS])})
    path = folder / str(read(folder).rows[TOKENS].file)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(GoldenError, match=r"other bytes|header"):
        accept(tmp_path / "store", folder, why="please")
    with pytest.raises(GoldenError, match="holds no proposal"):
        accept(tmp_path / "store", tmp_path / "nowhere", why="please")
