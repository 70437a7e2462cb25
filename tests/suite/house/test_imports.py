"""Who imports whom, and no tolerance literals: the source tree is parsed, and the rules are shown to bite.

The independence of the float64 reference and the kernels, and of both from the policy, is what a verdict rests on;
it would be lost by one convenient import.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = ("reference", "validators", "golden", "evals", "tests")
OURS = FOLDERS
HEAVY = ("aiter", "vllm", "triton", "flashinfer", "sgl_kernel", "sglang", "torchao", "compressed_tensors")


def _inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def imports(tree: ast.AST) -> Iterator[tuple[int, str, bool]]:
    """(line, absolute module, at module level) of every import that runs; imports for the type checker do not."""

    def visit(node: ast.AST, top: bool) -> Iterator[tuple[int, str, bool]]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.orelse:
                yield from visit(child, top)
            return
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # "from validators import kernels" imports validators.kernels: both names count.
            yield from ((node.lineno, f"{node.module or ''}.{alias.name}", top) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            named = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
            yield from ((node.lineno, name, top) for name in named if isinstance(name, str))
        inner = top and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for below in ast.iter_child_nodes(node):
            yield from visit(below, inner)

    yield from visit(tree, True)


USES: dict[str, tuple[str, ...]] = {
    "reference": (),
    "validators.errors": (),
    "validators.words": (),
    "validators.toolchain": (),
    "validators.tensor_file": ("validators.errors",),
    "validators.arch": ("validators.toolchain",),
    "validators.amdgcn": (),
    "validators.records": ("validators.words",),
    "validators.process": ("validators.records",),
    "validators.cases": ("validators.words",),
    "validators.kernels": (
        "reference.contract",
        "reference.notation",
        "validators.words",
        "validators.toolchain",
        "validators.arch",
        "validators.records",
        "validators.process",
        "validators.cases",
        "validators.amdgcn",
    ),
    "validators.judge": (
        "reference",
        "validators.words",
        "validators.arch",
        "validators.records",
        "validators.cases",
    ),
    "validators.calls": (
        "validators.words",
        "validators.arch",
        "validators.records",
        "validators.process",
        "validators.cases",
        "validators.kernels.kernel",
        "validators.judge.where",
    ),
    "validators.explain": (
        "reference",
        "validators.words",
        "validators.arch",
        "validators.records",
        "validators.process",
        "validators.cases",
        "validators.kernels",
        "validators.judge",
        "validators.calls",
    ),
    "validators.signoff": ("validators.words", "validators.records", "validators.process", "validators.cases"),
    "validators.trace": ("validators.words", "validators.records", "validators.process"),
    "validators.run": (
        "reference",
        "validators.words",
        "validators.arch",
        "validators.records",
        "validators.process",
        "validators.cases",
        "validators.kernels",
        "validators.judge",
        "validators.calls",
        "validators.explain",
    ),
    "validators.layers": (
        "reference",
        "validators.words",
        "validators.arch",
        "validators.records",
        "validators.process",
        "validators.cases",
        "validators.kernels",
        "validators.judge",
        "validators.calls",
        "validators.explain",
        "validators.run",
        "validators.tensor_file",
    ),
    "validators.isolate": (
        "validators.words",
        "validators.arch",
        "validators.records",
        "validators.process",
        "validators.cases",
        "validators.kernels",
        "validators.calls",
        "validators.run",
    ),
    "validators.search": ("validators.words", "validators.records", "validators.cases", "validators.signoff.factors"),
    "validators.commands": ("reference", "validators"),
    "validators.__main__": ("validators",),
    "golden": (
        "reference",
        "validators.words",
        "validators.arch",
        "validators.records",
        "validators.process",
        "validators.cases",
        "validators.kernels",
        "validators.judge",
        "validators.calls",
        "validators.run",
        "validators.isolate",
        "validators.commands",
    ),
    "evals.errors": ("validators.errors",),
    "evals.gsm8k": ("evals.errors", "validators.records", "validators.process"),
    "evals.stats": ("evals.errors", "evals.gsm8k"),
    "evals.model": (
        "evals.errors",
        "evals.gsm8k",
        "validators.words",
        "validators.arch",
        "validators.records",
        "validators.process",
        "validators.cases",
        "validators.kernels",
        "validators.calls",
        "validators.tensor_file",
    ),
    "evals.offline": (
        "evals.errors",
        "evals.gsm8k",
        "evals.stats",
        "evals.model",
        "validators.records",
        "validators.process",
    ),
    "evals.studies": ("evals", "validators.records", "validators.process"),
    "evals.commands": (
        "evals",
        "validators.words",
        "validators.arch",
        "validators.records",
        "validators.process",
        "validators.cases",
        "validators.kernels",
        "validators.commands",
    ),
    "evals.__main__": ("evals", "validators.records", "validators.process", "validators.commands"),
    "conftest": ("reference", "validators", "golden"),
    "tests": ("reference", "validators", "golden", "evals", "tests", "conftest"),
}
"""Which of our folders each folder may import; itself always. What is not listed is not allowed."""

CONTRACTS_OF_AN_OP = tuple(
    f"reference.{file.stem}.{name}"
    for file in (ROOT / "validators" / "cases" / "ops").glob("[a-z]*.py")
    for name in ("CONTRACTS", f"{file.stem.title().replace('_', '')}Contract")
)
"""What a kernel may import of an op's own module of ``reference``: its contracts, never its arithmetic."""

WITHOUT_TORCH = (
    "validators.words",
    "validators.records",
    "validators.process",
    "validators.signoff",
    "validators.trace",
)
"""Folders that must run where torch is not installed: a sign-off is made elsewhere, and later."""


def _folder(module: str) -> str:
    """The entry of USES that ``module`` belongs to: the longest prefix."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if (name := ".".join(parts[:length])) in USES:
            return name
    return ""


def _module(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _outside(path: str, folder: str, name: str, top: bool) -> str:
    """Why ``path`` may not import the library ``name``; empty if it may."""
    root, tests = name.split(".")[0], folder == "tests"
    if root == "pytest" and not tests and path != "conftest.py":
        return "only tests/ and conftest.py import pytest"
    if folder == "reference" and root not in (*sys.stdlib_module_names, "torch", "numpy", "__future__"):
        return "reference imports only torch, numpy, the standard library and itself"
    if root in HEAVY and not tests:
        allowed = ("validators.kernels", "validators.judge.gpu") if root == "triton" else ("validators.kernels",)
        if not any(_inside(_module(path), package) for package in allowed) and path != "validators/toolchain.py":
            return f"{' and '.join(allowed)} alone import {root}"
        if top:
            return f"{root} is imported inside functions, so that a machine without it can list the kernels"
    if root == "torch" and folder in WITHOUT_TORCH and top:
        return f"{folder} runs where torch is not installed"
    if folder == "validators.amdgcn" and root not in (*sys.stdlib_module_names, "numpy", "__future__"):
        return "the interpreter imports numpy, the standard library and itself"
    judges = folder in ("evals.stats", "evals.gsm8k") and path != "evals/gsm8k/client.py"
    if judges and top and root in ("torch", "transformers", "datasets", "httpx", "scipy"):
        return f"{root} is not needed to judge two runs"
    return ""


def _forbidden(path: str, name: str, top: bool) -> str:
    """Why the file ``path`` (relative) may not import module ``name``; empty if it may."""
    folder = _folder(_module(path))
    if name.split(".")[0] not in (*OURS, "conftest"):
        return _outside(path, folder, name, top)
    if not folder:
        return "the folder has no rule"
    if name == "validators.errors" or name.startswith("validators.errors."):
        return "reference knows no user" if folder == "reference" else ""
    if path == "golden/store.py" and not _inside(name, "golden.store"):
        return "golden.store imports nothing of ours but the errors"
    if _inside(name, folder) or any(_inside(name, used) for used in USES[folder]):
        return ""
    if folder == "validators.kernels" and name.startswith(CONTRACTS_OF_AN_OP):
        return ""
    # "from validators import arch" names the package as well; what counts is the module in it.
    if name in ("validators", "evals") or any(_inside(used, name) for used in USES[folder]):
        return ""
    return f"{folder} uses only {', '.join(USES[folder]) or 'itself'}"


TOLERANCES = ("rtol", "atol", "tol", "rel_tol", "abs_tol", "tolerance")
CLOSE = ("allclose", "isclose", "assert_close", "assert_allclose", "approx")


def _numeric(node: ast.AST | None) -> bool:
    """A number written out, its sign and powers included (1e-3, -1, 2**-8); zero is equality and no tolerance."""
    if node is None or any(isinstance(n, ast.Name | ast.Call | ast.Attribute) for n in ast.walk(node)):
        return False
    values = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
    return any(isinstance(v, int | float) and not isinstance(v, bool) and v != 0 for v in values)


def tolerances(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, words) of every numeric tolerance: keyword, assignment, default or dict entry, and every is-close call."""
    for node in ast.walk(tree):
        pairs: list[tuple[str, ast.AST | None, int]] = []
        if isinstance(node, ast.Call):
            pairs += [(k.arg or "", k.value, node.lineno) for k in node.keywords]
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in CLOSE:
                yield node.lineno, f"{name}() has default tolerances"
        elif isinstance(node, ast.Assign):
            pairs += [(ast.unparse(target), node.value, node.lineno) for target in node.targets]
        elif isinstance(node, ast.AnnAssign):
            pairs.append((ast.unparse(node.target), node.value, node.lineno))
        elif isinstance(node, ast.arguments):
            positional = [*node.posonlyargs, *node.args]
            with_default = positional[len(positional) - len(node.defaults) :]
            pairs += [(a.arg, d, a.lineno) for a, d in zip(with_default, node.defaults, strict=True)]
            pairs += [(a.arg, d, a.lineno) for a, d in zip(node.kwonlyargs, node.kw_defaults, strict=True)]
        elif isinstance(node, ast.Dict):
            pairs += [
                (str(key.value), value, node.lineno)
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant)
            ]
        for name, value, line in pairs:
            if name.split(".")[-1].lower() in TOLERANCES and _numeric(value):
                yield line, f"{name} = {ast.unparse(value)}"  # type: ignore[arg-type]


def _wrong(path: str, source: str) -> list[str]:
    tree = ast.parse(source)
    found = []
    for line, name, top in imports(tree):
        reason = _forbidden(path, name, top)
        if reason:
            found.append(f"{path}:{line} imports {name}: {reason}")
    if path.startswith(("reference/", "validators/", "golden/")) and path != "reference/budgets.py":
        where = "a budget is derived in reference/budgets.py"
        found += [f"{path}:{line} {words}: {where}" for line, words in tolerances(tree)]
    if not path.startswith(("validators/kernels/", "tests/")):
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.compile", "torch._scaled_mm"):
                found.append(f"{path}:{node.lineno} {ast.unparse(node)}: validators.kernels alone calls it")
    return found


def _sources() -> list[str]:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    return sorted(str(path.relative_to(ROOT)) for path in [*files, ROOT / "conftest.py"])


@pytest.mark.parametrize("path", _sources())
def test_the_source_keeps_the_rules(path: str) -> None:
    wrong = _wrong(path, (ROOT / path).read_text(encoding="utf-8"))
    assert not wrong, "\n".join(wrong)


def test_all_five_folders_are_walked() -> None:
    walked = {path.split("/")[0] for path in _sources()}
    assert {"reference", "validators", "tests", "conftest.py"} <= walked
    assert {folder for folder in FOLDERS if any((ROOT / folder).rglob("*.py"))} <= walked


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("reference/a.py", "from validators.records.record import Check"),
        ("reference/a.py", "def f():\n    import scipy"),
        ("validators/judge/compare.py", "from validators import kernels"),
        ("validators/records/verdict.py", "def f():\n    from validators.kernels.kernel import find_kernel"),
        ("validators/calls/integrity.py", "import importlib\nimportlib.import_module('validators.kernels.vllm')"),
        ("validators/records/text.py", "import validators.kernels.kernel"),
        ("validators/signoff/decision.py", "import torch"),
        ("validators/run.py", "def f():\n    import aiter"),
        ("validators/kernels/vllm.py", "import vllm"),
        ("validators/kernels/vllm.py", "try:\n    import triton\nexcept ImportError:\n    pass"),
        ("validators/kernels/emulated.py", "from reference import formats"),
        ("validators/kernels/emulated_gemm.py", "from reference.formats import encode"),
        ("validators/cases/recipes.py", "from reference.formats import decode"),
        ("evals/stats/parity.py", "from reference.contract import get_contract"),
        ("evals/stats/parity.py", "from validators.judge.compare import compare"),
        ("evals/stats/parity.py", "from evals.model.decoder import Decoder"),
        ("evals/gsm8k/store.py", "from validators.run import validate"),
        ("validators/signoff/text.py", "from validators.run import validate"),
        ("validators/records/store.py", "import torch"),
        ("validators/cases/shapes.py", "from validators.judge import compare"),
        ("validators/calls/buffers.py", "from reference import formats"),
        ("validators/explain/element.py", "from validators.signoff import limits"),
        ("reference/a.py", "from validators.errors import UserError"),
        ("validators/amdgcn/floats.py", "import torch"),
        ("validators/amdgcn/floats.py", "from reference.formats import encode"),
        ("validators/attic.py", "from validators.run import validate"),
        ("evals/stats/paired.py", "import scipy.stats"),
        ("evals/gsm8k/data.py", "import datasets"),
        ("golden/store.py", "from validators.cases.case import Case"),
        ("validators/run.py", "import pytest"),
        ("validators/run.py", "from tests.zoo import DEFECTS"),
        ("validators/judge/compare.py", "x = close(a, b, rtol=1e-3)"),
        ("reference/a.py", "RTOL = 2**-8"),
        ("golden/check.py", "def f(a, *, atol: float = 0.5): ..."),
        ("validators/judge/compare.py", "LIMITS = {'rtol': 1e-2}"),
        ("validators/judge/compare.py", "torch.allclose(a, b)"),
        ("validators/run.py", "torch.compile(f)"),
    ],
)
def test_a_planted_violation_is_found(path: str, source: str) -> None:
    assert len(_wrong(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("reference/a.py", "import math\nimport torch\nimport numpy\nfrom reference.contract import Reduction"),
        ("validators/calls/invariance.py", "if TYPE_CHECKING:\n    from validators.kernels.kernel import Kernel"),
        ("validators/judge/compare.py", "if TYPE_CHECKING:\n    from validators.kernels.kernel import Kernel"),
        ("validators/kernels/vllm.py", "def f():\n    import vllm._C"),
        ("validators/kernels/emulated.py", "from reference.contract import NormQuantContract"),
        ("evals/stats/parity.py", "from evals.stats.paired import tango"),
        ("evals/gsm8k/data.py", "def f():\n    import datasets"),
        ("evals/commands/record.py", "from validators.records.record import Record"),
        ("evals/model/inprocess.py", "from validators.kernels.kernel import find_kernel"),
        ("reference/budgets.py", "rtol = 2**-24"),
        ("validators/judge/compare.py", "f(rtol=0)\ng(tol=budget)"),
        ("tests/suite/a.py", "import pytest\nfrom tests.zoo import DEFECTS"),
    ],
)
def test_what_is_allowed_is_not_reported(path: str, source: str) -> None:
    assert _wrong(path, source) == []


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_signoff_runs_where_torch_is_not_installed() -> None:
    """Indirect imports count as well: the module is imported with torch and its kind made unimportable."""
    blocked = "import sys\nfor name in ('torch', 'triton', 'aiter', 'vllm', 'reference'): sys.modules[name] = None\n"
    done = _python(blocked + "import validators.signoff.decision, validators.records.store, validators.records.text")
    assert done.returncode == 0, done.stderr


def test_listing_the_kernels_imports_no_kernel_library() -> None:
    code = (
        "import sys\nfrom validators.kernels.registry import all_kernels\n"
        f"assert all_kernels()\nprint(*(name for name in {HEAVY!r} if name in sys.modules))"
    )
    done = _python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
