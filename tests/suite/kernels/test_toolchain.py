"""What a record says of the toolchain: ROCm, hipcc, aiter's commit, the GEMM library; from where images keep them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from validators import arch, toolchain
from validators.cases.case import Case
from validators.kernels import aiter_hip
from validators.kernels.kernel import Kernel
from validators.kernels.registry import find_kernel
from validators.run import validate

HIPCC = """#!/bin/sh
echo "HIP version: 7.2.26015-fc0010cf6a"
echo "AMD clang version 22.0.0git (https://somewhere roc-7.2.0)"
"""


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    for function in (toolchain.rocm, toolchain.hipcc, toolchain.commit_of, toolchain._digest):
        function.cache_clear()
    yield
    for function in (toolchain.rocm, toolchain.hipcc, toolchain.commit_of, toolchain._digest):
        function.cache_clear()


@pytest.fixture
def rocm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as /opt/rocm is, and a torch that says it is built for ROCm."""
    root = tmp_path / "rocm"
    (root / ".info").mkdir(parents=True)
    (root / ".info" / "version").write_text("7.2.0-43\n")
    (root / "bin").mkdir()
    (root / "bin" / "hipcc").write_text(HIPCC)
    (root / "bin" / "hipcc").chmod(0o755)
    monkeypatch.setenv("ROCM_PATH", str(root))
    monkeypatch.setattr(torch.version, "hip", "7.2.26015")
    return root


def test_versions_name_rocm_and_its_compiler(rocm: Path) -> None:
    found = arch.versions()
    assert (found["hip"], found["rocm"], found["hipcc"]) == ("7.2.26015", "7.2.0-43", "7.2.26015-fc0010cf6a")


def test_what_is_not_there_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROCM_PATH", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch.version, "hip", "7.2.26015")
    assert not {"rocm", "hipcc"} & set(arch.versions())


def _git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=x", "-c", "user.email=x@y")
    done = subprocess.run(["git", *who, "-C", folder, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_commit_of_an_editable_checkout_and_whether_it_was_changed(tmp_path: Path) -> None:
    package = tmp_path / "aiter" / "aiter"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    _git(tmp_path / "aiter", "init", "-q")
    _git(tmp_path / "aiter", "add", "-A")
    _git(tmp_path / "aiter", "commit", "-qm", "x")
    head = _git(tmp_path / "aiter", "rev-parse", "HEAD")
    (package / "built.so").write_text("what was compiled at the first call is no change of the source")
    assert toolchain.commit_of("no-such-distribution", str(package)) == head[:12]
    toolchain.commit_of.cache_clear()
    (package / "__init__.py").write_text("changed = True\n")
    assert toolchain.commit_of("no-such-distribution", str(package)) == head[:12] + "+changes"
    # A virtual environment inside a checkout of something else says nothing about the library.
    deep = tmp_path / "aiter" / ".venv" / "lib" / "site-packages" / "other"
    deep.mkdir(parents=True)
    assert toolchain.commit_of("no-such-distribution", str(deep)) == ""


@pytest.mark.parametrize(
    ("version", "direct", "commit"),
    [
        ("0.1.5.dev12+ge4048607a", "", "e4048607a"),
        ("0.1.22", '{"vcs_info": {"vcs": "git", "commit_id": "c16d44b93a0123456789"}, "url": "x"}', "c16d44b93a01"),
        ("0.1.22", "not JSON", ""),
        ("0.1.22", "[]", ""),
        ("0.1.22", "", ""),
    ],
)
def test_the_commit_of_a_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, direct: str, commit: str
) -> None:
    folder = tmp_path / f"some_library-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: some-library\nVersion: {version}\n")
    if direct:
        (folder / "direct_url.json").write_text(direct)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert toolchain.commit_of("some-library", "") == commit


@pytest.fixture
def tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, int, int], dict[str, object]]:
    """aiter's module of GEMMs with a tuned table; rows by (m, n, k)."""
    rows: dict[tuple[int, int, int], dict[str, object]] = {}
    (tmp_path / "a8w8_bpreshuffle_tuned_gemm.csv").write_text("cu_num,M,N,K\n")
    ops = ModuleType("aiter.ops.gemm_op_a8w8")
    named = str(tmp_path / "a8w8_bpreshuffle_tuned_gemm.csv")
    ops.AITER_CONFIGS = SimpleNamespace(  # type: ignore[attr-defined]
        AITER_CONFIG_GEMM_A8W8_BPRESHUFFLE_FILE=named
    )
    ops.get_GEMM_config_with_quant_type = (  # type: ignore[attr-defined]
        lambda m, n, k, dtype, file: rows.get((m, n, k))
    )
    for name in ("aiter", "aiter.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "aiter.ops.gemm_op_a8w8", ops)
    return rows


def test_the_gemm_library_is_that_of_the_tuned_table(tuned: dict[tuple[int, int, int], dict[str, object]]) -> None:
    tuned[16, 512, 256] = {"libtype": "cktile", "kernelName": "flatmm_16x64", "splitK": 0, "us": 3.5}
    case = Case("ptpc_gemm", 16, 512, "gaussian", k=256)
    found = aiter_hip._gemm_chosen("AITER_CONFIG_GEMM_A8W8_BPRESHUFFLE_FILE", case)
    assert (found["gemm library"], found["gemm kernel"], found["splitK"]) == ("cktile", "flatmm_16x64", "0")
    assert found["tuned table"].startswith("a8w8_bpreshuffle_tuned_gemm.csv ")
    other = Case("ptpc_gemm", 17, 512, "gaussian", k=256)
    found = aiter_hip._gemm_chosen("AITER_CONFIG_GEMM_A8W8_BPRESHUFFLE_FILE", other)
    assert found["gemm library"] == "ck (shape not in the tuned table)"
    # Another aiter, without such a table: nothing is said, and nothing fails.
    assert aiter_hip._gemm_chosen("AITER_CONFIG_NEWS_FILE", case) == {}


def test_what_a_library_chose_is_in_the_record() -> None:
    import dataclasses

    real = find_kernel("emulated/fp32", "ptpc_gemm")
    kernel: Kernel = dataclasses.replace(real, chosen=lambda case: {"gemm library": "ck"})
    case = Case("ptpc_gemm", 4, 64, "gaussian", k=64)
    assert validate(kernel, case).provenance.chosen == {"gemm library": "ck"}
    assert validate(real, case).provenance.chosen == {}
