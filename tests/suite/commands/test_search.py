"""The command ``search``: what it finds, records, prints and how it ends. Kernels are fast stand-ins but for one."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.suite.search.test_reduce import judge_of
from validators.__main__ import main
from validators.cases.case import Case
from validators.commands import search
from validators.errors import UsageError
from validators.process.guard import Exit
from validators.records.record import Record, Status
from validators.records.store import load
from validators.search import hunt as hunt_module
from validators.search.hunt import Hunt
from validators.search.reduce import Finding

NORM = "add_rmsnorm_quant=emulated/aiter-hip-gfx950"
PLANTED = """
import torch


def quantize(x, fp8_dtype):
    qmax = torch.finfo(fp8_dtype).max
    amax = x.float().abs().amax(dim=-1, keepdim=True).clamp(min=1e-10)
    if x.shape[-1] > 640 and x.dtype == torch.float16:
        amax = amax * 2
    scale = amax * (1.0 / qmax)
    return (x.float() * (1.0 / scale)).clamp(-qmax, qmax).to(fp8_dtype), scale


quantize.contract = "aiter-hip-gfx950"
"""


class Stand:
    """A worker whose kernel is a predicate."""

    def __init__(self, judge: Callable[[Case], Record]) -> None:
        self.judge, self.killed = judge, False
        self.asked: list[Case] = []

    def validate(self, case: Case, *, explain: bool = True) -> Record:
        self.asked.append(case)
        return self.judge(case)

    def kill(self) -> None:
        self.killed = True

    def close(self) -> None: ...


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Stand]]:
    """stand(fails, cases=N, ...) makes every worker one whose kernel fails there, and time end after N cases in all;
    returns the workers, as they are made."""

    def use(fails: Callable[[Case], bool], *, cases: int = 300, **settings) -> list[Stand]:
        made: list[Stand] = []

        def more(hunt: Hunt) -> bool:
            return not hunt._stop.is_set() and sum(len(worker.asked) for worker in made) < cases

        def worker(*_: object, **__: object) -> Stand:
            made.append(Stand(judge_of(fails, **settings)))
            return made[-1]

        monkeypatch.setattr(search, "Worker", worker)
        monkeypatch.setattr(Hunt, "_more", more)
        return made

    return use


def run(folder: Path, *words: str) -> int:
    return main(["search", "--kernel", NORM, "--device", "cpu", "--minutes", "60", "--records", str(folder), *words])


def test_a_planted_defect_of_two_conditions_is_found_and_reduced(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A real kernel in a worker process; the case id reproduces the failure."""
    (tmp_path / "mine.py").write_text(PLANTED)
    kernel, folder = f"per_token_quant={tmp_path / 'mine.py'}:quantize", tmp_path / "records"
    words = ["--kernel", kernel, "--device", "cpu"]
    assert main(["search", *words, "--minutes", "5", "--first", "--records", str(folder)]) == Exit.NO
    out = capfd.readouterr().out
    assert "fails only with n > 640 and fp16: n = 641 fails, n = 640 passes; bf16 passes" in out
    assert "1 different failure\n" in out
    found = json.loads((folder / "search.json").read_text())["findings"][0]
    assert found["case"].startswith("per_token_quant-m1-n641-fp16-")
    assert f"reproduce: {found['reproduce']}" in out
    assert f"--case {found['case']}" in found["reproduce"]
    assert main(["run", *words, "--case", found["case"], "--records", str(tmp_path / "again")]) == Exit.NO
    assert {record.case for record in load(folder)} == {found["case"], found["first"]}


def test_it_goes_on_with_other_failures_and_says_each_once(
    stand: Callable[..., list[Stand]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stand(lambda c: (c.n > 6144 and c.dtype == "fp16") or (c.gemma and not c.residual), cases=1500)
    assert run(tmp_path) == Exit.NO
    out = capfd.readouterr().out
    for sentence in ("fails only with n > 6144 and fp16: ", "fails only with no residual and 1 + weight: "):
        assert out.count(sentence) == 1, out
    assert "2 different failures" in out
    records = load(tmp_path)
    summary = json.loads((tmp_path / "search.json").read_text())
    assert len(summary["findings"]) == 2
    # Every draw that failed, and the two that it was reduced to.
    assert len(records) == summary["statuses"]["FAILED"] + 2
    assert {record.status for record in records} == {Status.FAILED}
    assert all("--minutes" in record.provenance.arguments for record in records)


def test_a_search_without_a_failure_says_what_it_looked_at(
    stand: Callable[..., list[Stand]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stand(lambda case: False)
    assert run(tmp_path) == Exit.YES
    out = capfd.readouterr().out
    assert "no failure was found" in out
    assert "pairs that their size classes and features make" in out
    assert "largest m = " in out
    assert not list(tmp_path.glob("*.jsonl"))
    summary = json.loads((tmp_path / "search.json").read_text())
    assert summary["cases"] == summary["statuses"]["PASSED"] == 300
    assert 0 < len(summary["pairs"]) <= summary["pairs_possible"]


def test_a_kernel_that_offers_nothing_is_no_decision(
    stand: Callable[..., list[Stand]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stand(lambda case: False, offers=lambda case: False)
    assert run(tmp_path) == Exit.NO_DECISION
    assert "no case was judged" in capfd.readouterr().err


def test_an_error_alone_has_the_status_of_errors(
    stand: Callable[..., list[Stand]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stand(lambda case: case.m > 64, status=Status.ERROR)
    assert run(tmp_path, "--first") == Exit.ERROR
    assert "ends in ERROR only with m > 64: m = 65 fails, m = 64 passes" in capfd.readouterr().out


def test_an_interrupt_keeps_what_failed_until_then(
    stand: Callable[..., list[Stand]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = stand(lambda case: case.dtype == "fp16", cases=10_000)
    shown = search._Search._show_progress

    def interrupted(of: search._Search) -> None:
        shown(of)
        if of.findings:
            raise KeyboardInterrupt

    monkeypatch.setattr(search._Search, "_show_progress", interrupted)
    assert run(tmp_path, "--workers", "2") == Exit.INTERRUPTED
    out, err = capfd.readouterr()
    assert err == "validators: interrupted; what failed until then is recorded.\n"
    assert "fails only with fp16: bf16 passes" in out
    assert len(load(tmp_path)) >= 2
    assert len(json.loads((tmp_path / "search.json").read_text())["findings"]) == 1
    assert len(made) == 2
    assert all(worker.killed for worker in made)


def test_a_failure_that_was_not_reduced_is_said(
    stand: Callable[..., list[Stand]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand(lambda case: case.dtype == "fp16")

    def interrupted(of: search._Search) -> None:
        if of.failed:
            raise KeyboardInterrupt

    monkeypatch.setattr(search._Search, "_show_progress", interrupted)
    monkeypatch.setattr(Hunt, "_reduce", lambda *_: None)
    assert run(tmp_path) == Exit.INTERRUPTED
    assert "not reduced: the search ended" in capfd.readouterr().out
    assert len(load(tmp_path)) == len(json.loads((tmp_path / "search.json").read_text())["not_reduced"]) == 1


def test_the_same_seed_asks_about_the_same_cases(stand: Callable[..., list[Stand]], tmp_path: Path) -> None:
    asked = []
    for seed in ("0", "0", "1"):
        made = stand(lambda case: False)
        run(tmp_path / seed, "--seed", seed)
        asked.append([case.id for case in made[0].asked[:50]])
    assert asked[0] == asked[1] != asked[2]


def test_streams_draw_different_cases(stand: Callable[..., list[Stand]], tmp_path: Path) -> None:
    made = stand(lambda case: False)
    run(tmp_path, "--workers", "2")
    one, other = ({case.id for case in worker.asked} for worker in made)
    assert len(one) + len(other) >= 300
    assert len(one & other) < 30


def test_two_searches_in_one_folder_keep_both_summaries(stand: Callable[..., list[Stand]], tmp_path: Path) -> None:
    for seed in ("0", "1"):
        stand(lambda case: False)
        run(tmp_path, "--seed", seed)
    seeds = [json.loads((tmp_path / name).read_text())["seed"] for name in ("search.json", "search-2.json")]
    assert seeds == [0, 1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--minutes", "0"], "0 is not a positive number of minutes"),
        (["--minutes", "-1"], "-1 is not a positive number of minutes"),
        (["--minutes", "inf"], "inf is not a positive number of minutes"),
        (["--minutes", "nan"], "nan is not a positive number of minutes"),
        (["--minutes", "soon"], "'soon' is not a number of minutes"),
        (["--minutes", "1", "--workers", "0"], "--workers must be at least 1"),
        (["--minutes", "1", "--seed", "-1"], "--seed at least 0"),
        ([], "--minutes"),
        (["--minutes", "1", "--kernel", "emulated/fp32"], "one kernel is needed"),
    ],
)
def test_bad_input_is_one_sentence(words: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--kernel", NORM, "--device", "cpu", *words]) == Exit.USAGE
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert said in err


def test_a_kernel_that_cannot_be_loaded_ends_the_search(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It can be here and not in a worker: the file is gone when the worker wants it."""

    class Gone(Stand):
        def validate(self, case: Case, *, explain: bool = True) -> Record:
            raise UsageError("the kernel is gone")

    hunt = Hunt(search._space(_options(), "per_token_quant", "cpu"), lambda: Gone(judge_of(bool)), 60.0)
    with pytest.raises(UsageError, match="the kernel is gone"):
        list(hunt.run())


def test_nothing_is_said_of_a_search_that_never_began(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object, **__: object) -> Stand:
        raise UsageError("the kernel is gone")

    monkeypatch.setattr(search, "Worker", gone)
    assert run(tmp_path) == Exit.USAGE
    out, err = capfd.readouterr()
    assert (out, err) == ("", "validators: the kernel is gone\n")
    assert not list(tmp_path.glob("search*.json"))


def _options():
    return type("Options", (), {"dtype": None, "fp8": None})()


def test_the_device_has_the_usual_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "native_fp8", lambda device: "e4m3fnuz")
    assert search._space(_options(), "per_token_quant", "cuda").fp8s == ("e4m3fnuz", "e4m3fn")


def test_the_reduced_case_has_its_explanation_and_smaller_ones_need_none() -> None:
    asked: list[bool] = []

    class Asked(Stand):
        def validate(self, case: Case, *, explain: bool = True) -> Record:
            asked.append(explain)
            return self.judge(case)

    space = search._space(_options(), "per_token_quant", "cpu")
    hunt = Hunt(space, lambda: Asked(judge_of(lambda case: case.n > 64)), 60.0, first=True)
    [found] = [event for event in hunt.run() if isinstance(event, Finding)]
    assert found.sentence == "fails only with n > 64: n = 65 fails, n = 64 passes"
    assert asked.count(False) == found.calls
    assert asked[-1]


def test_a_case_that_does_not_fail_again_says_so() -> None:
    class Once(Stand):
        def validate(self, case: Case, *, explain: bool = True) -> Record:
            again = explain and case in self.asked
            self.asked.append(case)
            return judge_of(lambda case: not again)(case)

    space = search._space(_options(), "per_token_quant", "cpu")
    hunt = Hunt(space, lambda: Once(judge_of(bool)), 60.0, first=True)
    [found] = [event for event in hunt.run() if isinstance(event, Finding)]
    assert "asked once more it is PASSED" in found.sentence


def test_a_case_that_hangs_is_named_when_the_time_is_up(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hangs(Stand):
        def __init__(self, judge: Callable[[Case], Record]) -> None:
            super().__init__(judge)
            self.released = threading.Event()

        def validate(self, case: Case, *, explain: bool = True) -> Record:
            if self.asked:
                self.released.wait()
            return super().validate(case)

        def kill(self) -> None:
            self.released.set()

    monkeypatch.setattr(search, "Worker", lambda *_, **__: Hangs(judge_of(lambda case: False)))
    monkeypatch.setattr(hunt_module, "GRACE_S", 0.1)
    words = ["--device", "cpu", "--minutes", "0.001", "--records", str(tmp_path)]
    assert main(["search", "--kernel", NORM, *words]) == Exit.YES
    out = capfd.readouterr().out
    assert "1 case: 1 PASSED" in out
    assert f"still running when the time was up, so not judged: {NORM.split('=')[0]}-m" in out


def test_a_long_search_says_how_far_it_is(
    stand: Callable[..., list[Stand]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand(lambda case: False, cases=20)
    monkeypatch.setattr(search, "EVERY_S", 0.0)
    run(tmp_path)
    assert re.search(r"^search: 20 cases in \d+ s of 3600 s, 0 failures$", capfd.readouterr().err, re.MULTILINE)


def test_two_streams_may_find_the_same(tmp_path: Path) -> None:
    """Both say it, and the command prints it once; here both are seen."""
    judge = judge_of(lambda case: True)
    space = search._space(_options(), "per_token_quant", "cpu")
    found = [event for event in Hunt(space, lambda: Stand(judge), 0.2, streams=2).run() if isinstance(event, Finding)]
    assert 1 <= len(found) <= 2
    assert len({finding.key for finding in found}) == 1
