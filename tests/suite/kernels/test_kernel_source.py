"""Which source a kernel is: what changes the digest, and what does not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from validators.kernels import source
from validators.kernels.registry import find_kernel
from validators.records.provenance import Source

MAIN = """import torch
import helper
from inner import tools
from inner.deep import one as two


def quant(x, fp8_dtype):
    import lazy
    from torch.utils.cpp_extension import load
    load(name="k", sources=["kernel.cu"])
    open("missing.cu"), "torch/elsewhere.py", "not a file"
"""
FILES = {
    "k.py": MAIN,
    "helper.py": "import chained\n",
    "chained.py": "",
    "lazy.py": "",
    "kernel.cu": "// cuda\n",
    "inner/__init__.py": "",
    "inner/tools.py": "from . import sibling\n",
    "inner/sibling.py": "",
    "inner/deep/__init__.py": "",
    "inner/deep/one.py": "from ..tools import nothing\n",
}
OTHERS = {"unused.py": "x = 1\n", "notes.txt": "", "inner/unused.py": ""}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "mine"
    for name, text in {**FILES, **OTHERS}.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    return place


def _of(path: Path) -> Source:
    found = source.of_file(path)
    assert found is not None
    return found


def test_the_files_are_those_that_it_takes_from_its_folder(folder: Path) -> None:
    found = _of(folder / "k.py")
    assert set(found.files) == set(FILES)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_change_of_any_of_them_is_another_kernel(folder: Path, name: str) -> None:
    before = _of(folder / "k.py").sha256
    (folder / name).write_text(FILES[name] + "\n# changed\n")
    assert _of(folder / "k.py").sha256 != before


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_a_change_of_anything_else_is_not(folder: Path, name: str) -> None:
    before = _of(folder / "k.py").sha256
    (folder / name).write_text("y = 2\n")
    assert _of(folder / "k.py").sha256 == before


def test_the_place_does_not_matter(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert source.of_file(folder / "k.py") == source.of_file(tmp_path / "elsewhere" / "k.py")


def test_nothing_outside_of_the_folder_counts(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.py").write_text("")
    (folder / "k.py").write_text('"../outside.py"\nfrom .. import outside\n')
    found = _of(folder / "k.py")
    assert set(found.files) == {"k.py"}


def test_circles_and_files_that_are_no_python_are_no_matter(folder: Path) -> None:
    (folder / "k.py").write_text("import helper\n")
    (folder / "helper.py").write_text("import k\nthis is no python")
    found = _of(folder / "k.py")
    assert set(found.files) == {"k.py", "helper.py"}
    assert source.of_file(folder / "absent.py") is None


def test_a_module_is_the_part_of_its_package_that_it_takes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "somebodys_package"
    (tmp_path / "stranger.py").write_text("")
    shutil.copytree(folder / "inner", package)
    (package / "deep" / "kernel.py").write_text(
        "import stranger\nimport somebodys_package.tools\nfrom ..tools import sibling\n\n\n"
        "def quant(x, fp8_dtype):\n    return None\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    kernel = find_kernel("somebodys_package.deep.kernel:quant", "per_token_quant")
    found = kernel.source()
    assert found is not None
    assert {f"somebodys_package/{name}" for name in ("deep/kernel.py", "tools.py", "sibling.py")} <= set(found.files)
    assert not [name for name in found.files if "unused" in name or "stranger" in name]


def test_a_kernel_of_the_suite_is_told_by_versions() -> None:
    found = find_kernel("torch_native/eager", "per_token_quant").provenance("cpu")
    assert found.kernel_source is None
    assert "torch" in found.kernel_versions
