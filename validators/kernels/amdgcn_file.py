"""A kernel of one's own as assembly text, with a launch file that maps its arguments: ``--kernel my_kernel.toml``.

The text is what ``hipcc -S --cuda-device-only``, ``--save-temps`` or a ROCm server's Triton cache (``NAME.amdgcn``,
beside it ``NAME.json``) leaves. The launch file is TOML::

    text = "my_kernel.s"
    op = "add_rmsnorm_quant"
    contract = "aiter-triton"
    arguments = ["x", "residual", "weight", "codes", "scale", "residual_out", "x_stride", "residual_stride", "n", "eps"]
    grid = ["m", 1, 1]
    block = [512, 1, 1]
    lds = 2048
    takes = { dtype = ["bf16"], residual = [true] }

``kernel`` names one of several kernels of the text. An argument, and a number of ``grid``, is a tensor of the op, a
number, "null", or an expression of m, n, k, eps, NAME_stride, numbers and ``+ - * // ( )``. ``block`` and ``lds`` are
taken from the JSON where there is one. ``takes`` limits the fields of a case to a list of values, or a number to
``{ max = 1024, multiple_of = 16 }``; what it does not name is not limited.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import importlib
import json
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from validators import arch, words
from validators.amdgcn.launch import Machine, Value
from validators.amdgcn.policies import Policy
from validators.amdgcn.text import read_program
from validators.cases.case import Case
from validators.cases.tensors import Inputs, Outputs, named_tensors
from validators.kernels.amdgcn import Compiled, Seen, as_value, checks_of, chosen_of, counted, needs_a_target, run_grid
from validators.kernels.kernel import Kernel, KernelError
from validators.records.provenance import Source

_KEYS = ("text", "kernel", "op", "contract", "arguments", "grid", "block", "lds", "takes")
_RANGE = {"max", "multiple_of"}
_NEEDED = ("text", "op", "arguments", "grid")
_LIMITS = tuple(
    field.name for field in dataclasses.fields(Case) if field.name not in ("op", "recipe", "seed", "layout")
)


@dataclasses.dataclass(frozen=True)
class Launch:
    """A launch file that was read. arguments, grid: expressions as written. takes: field of a case -> its values."""

    path: Path
    op: str
    contract: str | None
    compiled: Compiled
    arguments: tuple[object, ...]
    grid: tuple[object, ...]
    takes: Mapping[str, Any]


def load(name: str, op: str | None = None) -> Kernel:
    """The kernel of the launch file ``name``; raises KernelError or TextError with one sentence."""
    launch = read(Path(name))
    if op not in (None, launch.op):
        raise KernelError(f"{name} is a kernel of {launch.op}, not of {op}")
    return Kernel(
        name=name,
        op=launch.op,
        contract=launch.contract,
        call=needs_a_target,
        in_place=True,
        emulated=True,
        unavailable=_unavailable,
        notes="machine code, interpreted on a CPU; no hardware has run it",
        source=lambda: Source(launch.compiled.sha256, {launch.compiled.machine.program.where: launch.compiled.sha256}),
        for_device=functools.partial(_for_device, launch),
    )


def _unavailable(device: str) -> str | None:
    if device.partition(":")[0] == arch.INTERPRETED:
        return None
    return f"is interpreted: --device {' or '.join(arch.INTERPRETED_DEVICES)}"


def read(path: Path) -> Launch:
    """Read a launch file and its text."""
    given = _toml(path)
    unknown = sorted(set(given) - set(_KEYS))
    missing = [key for key in _NEEDED if key not in given]
    if unknown or missing:
        said = f"has unknown keys: {', '.join(unknown)}" if unknown else f"lacks {', '.join(missing)}"
        raise KernelError(f"{path} {said}; known: {', '.join(_KEYS)}")
    if given["op"] not in words.OPS:
        raise KernelError(f"{path}: unknown op {given['op']!r}; known: {', '.join(words.OPS)}")
    text = path.parent / str(given["text"])
    beside = _json(text.with_suffix(".json"))
    program = read_program(text, given.get("kernel"))
    block = given.get("block", [64 * int(beside["num_warps"]), 1, 1] if "num_warps" in beside else None)
    if not isinstance(block, list) or len(block) != 3 or len(given["grid"]) != 3:
        raise KernelError(f"{path}: grid and block are three numbers each")
    lds = int(given.get("lds", beside.get("shared", program.meta.lds)))
    digest = hashlib.sha256(text.read_bytes()).hexdigest()
    compiled = Compiled(Machine(program), (int(block[0]), int(block[1]), int(block[2])), lds, digest[:16])
    wanted, found = len(program.meta.explicit), len(given["arguments"])
    if found > wanted or (found < wanted and not beside):
        raise KernelError(f"{path} maps {found} arguments, and {program.name} takes {wanted}")
    takes = given.get("takes", {})
    shapes = [v for v in takes.values() if not isinstance(v, list) and (not isinstance(v, dict) or set(v) - _RANGE)]
    if shapes:
        raise KernelError(f"{path}: takes {shapes[0]!r} is no list and no range of max and multiple_of")
    if wrong := sorted(set(takes) - set(_LIMITS)):
        raise KernelError(f"{path}: takes {wrong[0]!r} is no field of a case; known: {', '.join(_LIMITS)}")
    return Launch(
        path, given["op"], given.get("contract"), compiled, tuple(given["arguments"]), tuple(given["grid"]), takes
    )


def _toml(path: Path) -> dict[str, Any]:
    try:
        library = importlib.import_module("tomllib")
    except ModuleNotFoundError:
        try:
            library = importlib.import_module("tomli")
        except ModuleNotFoundError:
            raise KernelError(f"{path} cannot be read: Python 3.10 needs the package tomli") from None
    try:
        found: dict[str, Any] = library.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KernelError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _for_device(launch: Launch, device: str) -> dict[str, Any]:
    target, seen = arch.architecture(device), Seen()
    own = launch.compiled.machine.program.target

    def unsupported(case: Case) -> str | None:
        if own != target:
            return f"the text is for {own}, and the device is {device}"
        if case.fp8 != (native := words.native_fp8(target)):
            return f"{target} converts to {native} only"
        for name, values in launch.takes.items():
            if words_of_limit := _beyond(getattr(case, name), values):
                return f"{launch.path} takes {name} {words_of_limit} only"
        return None

    return {
        "call": counted(seen, functools.partial(_call, launch, seen)),
        "unsupported": unsupported,
        "chosen": functools.partial(chosen_of, target, seen),
        "interpreted": True,
        "observed": lambda: checks_of(seen),
        "readings": lambda: {p.name: _reading(launch, p) for p in seen.open_readings()},
    }


def _reading(launch: Launch, policy: Policy) -> Callable[[Any, Any], Any]:
    seen = Seen(policy)
    return counted(seen, functools.partial(_call, launch, seen))


def _beyond(value: Any, allowed: Any) -> str:
    """The limit in words where ``value`` is beyond it; else empty."""
    if isinstance(allowed, dict):
        top, unit = int(allowed.get("max", value)), int(allowed.get("multiple_of", 1))
        return "" if value <= top and value % unit == 0 else f"up to {top}, multiples of {unit}"
    return "" if value in allowed else " or ".join(map(str, allowed))


def _call(launch: Launch, seen: Seen, inputs: Inputs, buffers: Outputs) -> Outputs:
    known = _names(inputs)
    outputs = named_tensors(buffers)
    values: list[Value] = []
    for written in launch.arguments:
        tensor = outputs.get(str(written), known.get(str(written)))
        if written == "null" or (tensor is None and str(written) in (*vars(inputs), *vars(buffers))):
            values.append(None)
        elif hasattr(tensor, "untyped_storage"):
            values.append(as_value(str(written), tensor, str(written) in outputs))
        else:
            values.append(_number(written, known, launch.path))
    grid = [int(_number(part, known, launch.path)) for part in launch.grid]
    if min(grid) > 0:
        run_grid(launch.compiled, values, (grid[0], grid[1], grid[2]), seen)
    return buffers


def _names(inputs: Inputs) -> dict[str, Any]:
    """What an expression may name: the fields of the inputs, m, n, k and the row strides."""
    found: dict[str, Any] = dict(vars(inputs))
    shape = inputs.shape
    if inputs.op == "ptpc_gemm":
        found |= dict(zip("mnk", shape, strict=False))
    else:
        found |= {"m": inputs.row_count, "n": inputs.width}
    for name, tensor in named_tensors(inputs).items():
        found[f"{name}_stride"] = tensor.stride(-2) if tensor.dim() > 1 else tensor.stride(0)
    return found


_OPERATORS: dict[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


def _number(written: object, known: Mapping[str, Any], path: Path) -> int | float:
    """The value of an expression of a launch file; KernelError for anything else."""
    if isinstance(written, int | float):
        return written

    def of(node: ast.AST) -> int | float:
        if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            return node.value
        if isinstance(node, ast.Name) and isinstance(known.get(node.id), int | float):
            value: int | float = known[node.id]
            return value
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            result: int | float = _OPERATORS[type(node.op)](of(node.left), of(node.right))
            return result
        raise KernelError(f"{path}: {written!r} names no tensor and no number of this op")

    try:
        return of(ast.parse(str(written), mode="eval").body)
    except (SyntaxError, ZeroDivisionError) as error:
        raise KernelError(f"{path}: {written!r} is no expression") from error
