"""Make a virtual environment for this checkout: ``python3 .ci/environment.py DIR [GROUP ...]``.

GROUP is a group of pyproject's optional-dependencies (test, report, dev). A PyTorch that this interpreter can import
(ROCm, CUDA or CPU) is used as it is and never replaced; otherwise $TORCH is installed, by default a pinned
``torch==2.13.0``. Where the package index serves CUDA builds and a CPU build is wanted, put PyTorch's CPU index into
$TORCH too: TORCH="torch==2.13.0 --index-url URL". The repository itself is not installed: it runs from its checkout.
"""

from __future__ import annotations

import json
import os
import shlex
import site
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH = "torch==2.13.0"
FIND = "import os, torch; print(os.path.dirname(os.path.dirname(torch.__file__)), torch.__version__)"
PATHS = "import json, sys, sysconfig; print(json.dumps([sysconfig.get_path('purelib'), sys.path]))"


def _torch(python: str | Path) -> tuple[str, str] | None:
    """(folder that holds the package, version) of the torch that ``python`` imports, or None."""
    done = subprocess.run([python, "-c", FIND], capture_output=True, text=True, cwd=os.sep)
    if done.returncode:
        return None
    folder, _, version = done.stdout.strip().rpartition(" ")
    return folder, version


def _create(directory: Path, *, pip: bool = True) -> Path:
    """The environment's interpreter; made on the first call, sharing what this interpreter has if it has a torch."""
    python = directory / "bin" / "python"
    if python.exists():
        return python
    found = _torch(sys.executable)
    options = [*(["--system-site-packages"] if found else []), *([] if pip else ["--without-pip"])]
    command = [sys.executable, "-m", "venv", *options, str(directory)]
    if subprocess.run(command).returncode:
        raise SystemExit(f"{shlex.join(command)} failed; on Debian and Ubuntu: apt-get install python3-venv")
    if found:
        _share(python, found[0])
    return python


def _share(python: Path, torch_folder: str) -> None:
    """Let ``python`` see what this interpreter sees, where ``--system-site-packages`` is not enough.

    Where this interpreter is a virtual environment itself, as in AMD's images, system site-packages are those of the
    interpreter beneath it. A plain path in a .pth file would add the outer folder but not read the .pth files in it,
    and a package that is installed as editable (aiter in SGLang's images) is such a file. ``site.addsitedir`` reads
    them.
    """
    done = subprocess.run([str(python), "-c", PATHS], capture_output=True, text=True, check=True, cwd=os.sep)
    packages, seen = json.loads(done.stdout)
    outer = [*site.getsitepackages(), torch_folder] if sys.prefix != sys.base_prefix else [torch_folder]
    lacking = [folder for folder in dict.fromkeys(outer) if os.path.isdir(folder) and folder not in seen]
    if lacking:
        lines = [f"import site; site.addsitedir({folder!r})\n" for folder in lacking]
        Path(packages, "packages-of-the-outer-environment.pth").write_text("".join(lines), encoding="utf-8")


def _requirements(groups: list[str]) -> list[str]:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10: pip carries the same parser
        from pip._vendor import tomli as tomllib
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    known = project["optional-dependencies"]
    for group in groups:
        if group not in known:
            raise SystemExit(f"unknown group {group!r}; known: {', '.join(known)}")
    return [*project["dependencies"], *(line for group in groups for line in known[group])]


def _install(groups: list[str]) -> None:
    """Runs inside the environment: everything but torch from pyproject, and torch only where there is none."""
    from pip._vendor.packaging.requirements import Requirement

    wanted = [Requirement(line) for line in _requirements(groups)]
    listed = "\n".join([os.environ.get("TORCH", ""), *sorted({str(r) for r in wanted})])
    stamp = Path(sys.prefix, "installed-" + "-".join(groups or ["run"]))
    if stamp.exists() and stamp.read_text(encoding="utf-8") == listed:
        return
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    found = _torch(sys.executable)
    if not found:
        subprocess.run([*pip, *shlex.split(os.environ.get("TORCH") or TORCH)], check=True)
        found = _torch(sys.executable)
    if not found:
        raise SystemExit("torch was installed but cannot be imported")
    [needed] = [r for r in wanted if r.name == "torch"]
    if not needed.specifier.contains(found[1], prereleases=True):
        raise SystemExit(f"torch {found[1]} in {found[0]} is outside {needed}, and is not replaced")
    print(f"torch {found[1]} from {found[0]}", flush=True)
    subprocess.run([*pip, *sorted({str(r) for r in wanted if r.name != "torch"})], check=True)
    stamp.write_text(listed, encoding="utf-8")


def main() -> None:
    if sys.version_info < (3, 10):  # noqa: UP036 (the Python that starts this may be older)
        raise SystemExit(f"Python 3.10 or newer is needed, this is {sys.version.split()[0]}; set PYTHON=python3.11")
    arguments = sys.argv[1:]
    if arguments[:1] == ["--inside"]:
        _install(arguments[1:])
        return
    if not arguments:
        raise SystemExit(__doc__)
    python = _create(Path(arguments[0]).resolve())
    done = subprocess.run([str(python), __file__, "--inside", *arguments[1:]])
    raise SystemExit(done.returncode)


if __name__ == "__main__":
    main()
