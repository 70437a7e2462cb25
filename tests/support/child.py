"""``python -m MODULE`` and ``python -c CODE`` in a process of their own that has imported this project already.

A process that starts with the interpreter imports torch first, for 1.0 s of one core; half of the suite's time went
there. ``validators.process.nursery`` forks one in milliseconds. A test of what an interpreter itself does (an import
that must not happen, a variable that a library reads when it is loaded) starts one all the same.
"""

from __future__ import annotations

import functools
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import evals.__main__
import golden.__main__
import validators.__main__
import validators.isolate
from validators.process.nursery import Nursery

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 600.0
IMPORTED = (evals.__main__, golden.__main__, validators.__main__, validators.isolate)


def python(
    *words: str, cwd: Path = ROOT, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What ``python WORDS`` gives in the folder ``cwd``; ``environment`` is all of it (default: this process's own)."""
    asked = {"words": words, "cwd": str(cwd), "environment": dict(os.environ if environment is None else environment)}
    with tempfile.TemporaryFile() as request, tempfile.TemporaryFile() as shown, tempfile.TemporaryFile() as said:
        request.write(json.dumps(asked).encode())
        request.seek(0)
        child = _nursery(os.getpid()).start(shown.fileno(), [said.fileno(), request.fileno()])
        try:
            code = child.wait(LIMIT_S)
        finally:
            child.kill()
        texts = []
        for file in (shown, said):
            file.seek(0)
            texts.append(file.read().decode())
    return subprocess.CompletedProcess(["python", *words], code, *texts)


@functools.cache
def _nursery(_: int) -> Nursery:
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV_"))}
    return Nursery("tests.support.child:answer", {**own, "OMP_NUM_THREADS": "1"})


def answer(_: int, said: int, request: int) -> None:
    """In the child: do what the request says."""
    os.dup2(said, 2)
    with open(request, "rb") as file:
        asked = json.load(file)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    option, target, *arguments = asked["words"]
    sys.path[0] = ""
    if option == "-m":
        sys.argv = [target, *arguments]
        sys.modules.pop(f"{target}.__main__", None)
        runpy.run_module(target, run_name="__main__", alter_sys=True)
    else:
        sys.argv = ["-c", *arguments]
        exec(compile(target, "<string>", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})
