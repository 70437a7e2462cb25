"""The environment script on an interpreter that is itself a virtual environment, as in AMD's images.

Everything is real but the packages: nested environments, .pth files, an editable install. ``torch`` and ``aiter`` are
one line of Python each, so nothing is downloaded and nothing is imported that costs time.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / ".ci" / "environment.py"
CREATE = "import sys, environment; from pathlib import Path; environment._create(Path(sys.argv[1]), pip=False)"
ASK = "import torch, aiter, other; print(torch.__version__, aiter.__file__, other.NAME)"


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"


def _packages(python: Path) -> Path:
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    done = subprocess.run([python, "-c", where], capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())


def _package(folder: Path, name: str, text: str) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(text + "\n", encoding="utf-8")
    return folder


def _image(folder: Path) -> Path:
    """A Python such as AMD's images have: a virtual environment with a torch, and two editable packages.

    aiter is installed as ``editable_mode=compat`` does it (a path in a .pth file), the other as setuptools does it
    today (a .pth file that imports a finder).
    """
    venv.create(folder / "outer", with_pip=False, symlinks=True)
    python = _python(folder / "outer")
    packages = _packages(python)
    _package(packages, "torch", "__version__ = '2.9.0a0+git1234567'")
    aiter = _package(folder / "sgl-workspace" / "aiter", "aiter", "")
    (packages / "__editable__.amd_aiter.pth").write_text(f"{aiter}\n", encoding="utf-8")
    other = _package(folder / "elsewhere", "other", "NAME = 'found'")
    (packages / "__editable___other_finder.py").write_text(
        f"import sys\ndef install():\n    sys.path.append({str(other)!r})\n", encoding="utf-8"
    )
    (packages / "__editable__.other.pth").write_text(
        "import __editable___other_finder; __editable___other_finder.install()\n", encoding="utf-8"
    )
    return python


def _create(python: Path, directory: Path) -> Path:
    subprocess.run([python, "-c", CREATE, directory], cwd=SCRIPT.parent, check=True, capture_output=True, text=True)
    return _python(directory)


def _ask(python: Path, folder: Path) -> list[str]:
    done = subprocess.run([python, "-c", ASK], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_an_editable_package_of_an_outer_virtual_environment_is_found(tmp_path: Path) -> None:
    outer = _image(tmp_path)
    wanted = ["2.9.0a0+git1234567", str(tmp_path / "sgl-workspace" / "aiter" / "aiter" / "__init__.py"), "found"]
    assert _ask(outer, tmp_path) == wanted
    inner = _create(outer, tmp_path / "inner")
    assert _ask(inner, tmp_path) == wanted
    # From within that one again, as where somebody has activated .venv before "make".
    assert _ask(_create(inner, tmp_path / "innermost"), tmp_path) == wanted
    # What the script once wrote, a plain path, finds the torch and loses the editable packages.
    [link] = _packages(inner).glob("*outer-environment.pth")
    link.write_text(f"{_packages(outer)}\n", encoding="utf-8")
    lost = subprocess.run([inner, "-c", ASK], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "No module named 'aiter'" in lost.stderr


def test_without_a_torch_nothing_of_the_outer_environment_is_shared(tmp_path: Path) -> None:
    venv.create(tmp_path / "outer", with_pip=False, symlinks=True)
    outer = _python(tmp_path / "outer")
    if subprocess.run([outer, "-c", "import torch"], capture_output=True, check=False).returncode == 0:
        pytest.skip("the interpreter beneath this test has a torch of its own, so every environment of it has one")
    _package(_packages(outer), "other", "NAME = 'found'")
    inner = _create(outer, tmp_path / "inner")
    done = subprocess.run([inner, "-c", "import other"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "No module named 'other'" in done.stderr


@pytest.mark.parametrize(
    ("version", "taken"),
    [
        ("2.9.0a0+git1c57644", True),
        ("2.9.0.dev20250801+rocm6.4", True),
        ("2.9.1+rocm7.2", True),
        ("2.9.0", True),
        ("2.11.0+rocm10.0.0", True),
        ("2.8.0", False),
        ("2.8.0.dev20250601", False),
    ],
)
def test_the_floor_of_torch_takes_the_builds_that_images_carry(version: str, taken: bool) -> None:
    requirements = pytest.importorskip("packaging.requirements", reason="needs the package packaging")
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import environment
    finally:
        sys.path.remove(str(SCRIPT.parent))
    [needed] = [r for r in map(requirements.Requirement, environment._requirements([])) if r.name == "torch"]
    assert needed.specifier.contains(version, prereleases=True) == taken
