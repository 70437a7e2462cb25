"""The user's own kernel: ``path/to/file.py:function`` or ``module:function``.

The parameter names are the protocol, and they say which op it is::

    f(x, residual, weight, eps, fp8_dtype) -> (codes, scale, residual_out or None)      add_rmsnorm_quant
    f(out, input, residual_in, residual_out, scale, weight, epsilon)                    the same, in place
    f(x, fp8_dtype) -> (codes, scale)                                                   per_token_quant
    f(a, a_scale, b, b_scale, bias, out_dtype) -> out [M, N], with b (N, K)             ptpc_gemm
    f(<fields of the op's inputs>) -> <its outputs>                                     any other op

Further parameters need defaults. One named ``gemma`` or ``gemma_norm`` is passed True in gemma cases. Six
attributes of the function may say more: ``contract`` (name of the declared preset; without it the
contract is identified from the outputs), ``devices`` (of "cpu" and "cuda"; both by default),
``supports``, a dict that overrides DEFAULT_SUPPORTS (an in-place function has no form without a residual),
``unsupported``, which takes a Case and returns a sentence where the case is outside the kernel's limits, else None,
``compiles``: True where the first call compiles for minutes, so that it is made once outside the time limits, and
``deterministic``: False where two runs may give other bits by design, so that each is judged value by value.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from reference.contract import get_contract
from validators import arch
from validators.cases.case import Case
from validators.cases.op import op_named
from validators.cases.tensors import Inputs, NormQuantInputs, NormQuantOutputs, Outputs
from validators.kernels import amdgcn_launch, source
from validators.kernels.kernel import Kernel, KernelError
from validators.kernels.plugin_words import COPY_RESIDUAL, clipped, in_residual, result_words, what_to_wrap
from validators.records.provenance import Source
from validators.words import OPS

DEFAULT_SUPPORTS: dict[str, bool] = {
    "3d": False,
    "strided": False,
    "3dstrided": False,
    "fp16": True,
    "fnuz": True,
    "bias": True,
    "fp32_gamma": True,
    "gemma": False,
    "residual_none": True,
}
_GEMMA_PARAMETERS = ("gemma", "gemma_norm")


@dataclass(frozen=True)
class _Protocol:
    op: str
    parameters: tuple[str, ...]
    in_place: bool = False


_IN_PLACE = {"add_rmsnorm_quant": ("out", "input", "residual_in", "residual_out", "scale", "weight", "epsilon")}
"""Parameters of the form that writes in place, by op."""


def _protocols() -> tuple[_Protocol, ...]:
    """Of each op the form that returns, whose parameters are the fields of its inputs, then the one in place."""
    found: list[_Protocol] = []
    for op in OPS:
        required = [f.name for f in dataclasses.fields(op_named(op).inputs) if f.default is dataclasses.MISSING]
        found.append(_Protocol(op, tuple(required)))
        if op in _IN_PLACE:
            found.append(_Protocol(op, _IN_PLACE[op], in_place=True))
    return tuple(found)


_PROTOCOLS = _protocols()

_MOST_NAMED = 6
"""Functions of a file that a sentence names."""


def load(spec: str, op: str | None = None) -> Kernel:
    """The kernel that ``spec`` names, under the name ``spec``.

    Raises KernelError with one sentence if it cannot be found, imported or called as the protocol
    says, or if it computes another op than ``op``.
    """
    where, _, name = spec.rpartition(":")
    if not where or not name:
        raise KernelError(f"{spec!r} names no kernel; expected path/to/file.py:function or module:function")
    module = _from_file(spec, where) if where.endswith(".py") else _from_module(spec, where)
    function = getattr(module, name, None)
    if function is None:
        own = [k for k, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
        has = f"; it has {', '.join(own[:_MOST_NAMED])}{', ...' if len(own) > _MOST_NAMED else ''}" if own else ""
        raise KernelError(f"{where} has no function {name!r}{has}")
    if not callable(function):
        raise KernelError(f"{spec} is a {type(function).__name__}, not a function")
    protocol = _protocol(spec, function, op)
    if op is not None and op != protocol.op:
        raise KernelError(f"{spec} computes {protocol.op} by its parameter names, not {op}")
    gemma = next((p for p in _GEMMA_PARAMETERS if p in inspect.signature(function).parameters), None)
    supports = _supports(spec, function, protocol, gemma)
    call: Callable[[Inputs, Outputs], Outputs] = functools.partial(
        _call_in_place if protocol.in_place else _call, function, gemma
    )
    limits = functools.partial(_unsupported, supports, _own_limits(spec, function))
    return Kernel(
        name=spec,
        op=protocol.op,
        contract=_contract(spec, function, protocol.op),
        call=call,
        in_place=protocol.in_place,
        unavailable=functools.partial(_unavailable, spec, _devices(spec, function)),
        unsupported=limits,
        versions=functools.partial(arch.versions, "triton"),
        options={"supports": supports},
        # A file that imports aiter calls a library that compiles at the first call.
        compiles=_flag(spec, function, "compiles", "aiter" in sys.modules),
        deterministic=_flag(spec, function, "deterministic", True),
        source=functools.partial(_same, _source(where)),
        lacks=functools.partial(_missing, supports),
        for_device=functools.partial(amdgcn_launch.on_device, call, limits),
    )


def _source(where: str) -> Source | None:
    """Read when the kernel is loaded: what is edited later was not run."""
    return source.of_file(Path(where).expanduser()) if where.endswith(".py") else source.of_module(where)


def _from_file(spec: str, where: str) -> ModuleType:
    path = Path(where).expanduser().resolve()
    if not path.is_file():
        raise KernelError(f"{spec}: there is no file {where}")
    return _execute(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=32)
def _execute(path: Path, modified_ns: int) -> ModuleType:
    """The module at ``path``, executed once for each version of the file on disk."""
    spec = importlib.util.spec_from_file_location(f"kernel_under_test_{path.stem}_{modified_ns}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses, pickling and just-in-time compilers look the module up by name.
    sys.modules[spec.name] = module
    try:
        with _importable(path.parent):
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise KernelError(f"importing {path} raised {type(error).__name__}: {error}") from error
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Modules in the folder of the user's file can be imported from it, as if it were run as a script."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _from_module(spec: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is not None and (where == error.name or where.startswith(f"{error.name}.")):
            raise KernelError(f"{spec}: there is no module {where} (a file needs its .py)") from error
        raise KernelError(f"importing {where} raised {type(error).__name__}: {error}") from error
    except (Exception, SystemExit) as error:
        raise KernelError(f"importing {where} raised {type(error).__name__}: {error}") from error


def _protocol(spec: str, function: Callable[..., object], op: str | None) -> _Protocol:
    wrapping = what_to_wrap(function, [(p.op, p.parameters) for p in _PROTOCOLS], op)
    if wrapping is not None:
        raise KernelError(f"{spec} is {wrapping}")
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise KernelError(f"{spec} has no signature that Python can read; wrap it in a def") from error
    required = [
        p.name for p in parameters.values() if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    for protocol in _PROTOCOLS:
        # A default on a protocol parameter is fine (bias=None); an extra one without a default is not.
        if set(protocol.parameters) <= set(parameters) and set(required) <= set(protocol.parameters):
            by_position = [p for p in protocol.parameters if parameters[p].kind is inspect.Parameter.POSITIONAL_ONLY]
            if by_position:
                raise KernelError(f"{spec} takes {', '.join(by_position)} by position only; they are passed by name")
            return protocol
    known = "; ".join(f"({', '.join(p.parameters)})" for p in _PROTOCOLS)
    raise KernelError(f"{spec} takes ({', '.join(parameters)}), which is none of the known forms: {known}")


def _contract(spec: str, function: Callable[..., object], op: str) -> str | None:
    name = getattr(function, "contract", None)
    if name is None:
        return None
    try:
        get_contract(op, name)
    except (KeyError, TypeError) as error:
        raise KernelError(f"{spec} declares an {error.args[0]}") from error
    return str(name)


def _supports(spec: str, function: Callable[..., object], protocol: _Protocol, gemma: str | None) -> dict[str, bool]:
    declared = getattr(function, "supports", {})
    if not isinstance(declared, Mapping) or not all(isinstance(value, bool) for value in declared.values()):
        raise KernelError(f"{spec}.supports must be a dict of True and False, keys {', '.join(DEFAULT_SUPPORTS)}")
    unknown = [str(key) for key in declared if key not in DEFAULT_SUPPORTS]
    if unknown:
        raise KernelError(
            f"{spec}.supports has unknown keys {', '.join(unknown)}; known: {', '.join(DEFAULT_SUPPORTS)}"
        )
    supports = {**DEFAULT_SUPPORTS, "residual_none": not protocol.in_place, **declared}
    if "3dstrided" not in declared:
        # Who takes both takes their combination, unless it says otherwise.
        supports["3dstrided"] = supports["3d"] and supports["strided"]
    if supports["gemma"] and op_named(protocol.op).norm and gemma is None:
        raise KernelError(f"{spec}.supports says gemma, but no parameter is named {' or '.join(_GEMMA_PARAMETERS)}")
    return supports


def _devices(spec: str, function: Callable[..., object]) -> tuple[str, ...]:
    devices = getattr(function, "devices", ("cpu", "cuda"))
    if isinstance(devices, str) or not set(devices) <= {"cpu", "cuda", arch.INTERPRETED} or not devices:
        raise KernelError(f'{spec}.devices must be a tuple of "cpu", "cuda" and "amdgcn", not {devices!r}')
    return tuple(devices)


def _flag(spec: str, function: Callable[..., object], name: str, default: bool) -> bool:
    declared = getattr(function, name, default)
    if not isinstance(declared, bool):
        raise KernelError(f"{spec}.{name} must be True or False, not {declared!r}")
    return declared


def _unavailable(spec: str, devices: tuple[str, ...], device: str) -> str | None:
    kind = device.partition(":")[0]
    if kind not in devices:
        return f"{spec} says that it runs on {', '.join(devices)}, not on {device}"
    if kind == arch.INTERPRETED:
        return arch.no_triton(interpreted=False)
    return None if kind == "cpu" else arch.no_gpu(device)


def _own_limits(spec: str, function: Callable[..., object]) -> Callable[[Case], str | None] | None:
    """The function's attribute ``unsupported``, checked at each call: it raises KernelError with one sentence."""
    declared = getattr(function, "unsupported", None)
    if declared is None:
        return None
    form = "it takes a case and returns a sentence, or None where the kernel offers the case"
    if not callable(declared):
        raise KernelError(f"{spec}.unsupported is {clipped(declared)}, not a function: {form}")

    def checked(case: Case) -> str | None:
        try:
            reason = declared(case)
        except Exception as error:
            # ``unsupported`` is the user's own code, which may raise anything.
            raise KernelError(
                f"{spec}.unsupported raised {type(error).__name__} for {case.id}: {clipped(error)}; {form}"
            ) from error
        # "case.n % 16 and ..." and "case.n > 8192 and ..." give 0 and False where the kernel offers the case.
        if reason is None or (isinstance(reason, (bool, int)) and not reason):
            return None
        if not isinstance(reason, str) or not reason.strip():
            raise KernelError(f"{spec}.unsupported returned {clipped(reason)!r} for {case.id}; {form}")
        return " ".join(reason.split())

    return checked


def _same(source: Source | None) -> Source | None:
    return source


def _missing(supports: Mapping[str, bool], case: Case) -> str:
    """The key of ``supports`` that the case needs and the kernel does not offer, or ""."""
    wanted = {
        "3d": case.layout == "3d",
        "strided": case.layout == "strided",
        "3dstrided": case.layout == "3dstrided",
        "fp16": case.dtype == "fp16",
        "fnuz": case.fp8 == "e4m3fnuz",
        "bias": case.bias,
        "fp32_gamma": case.gamma == "fp32",
        "gemma": case.gemma,
        "residual_none": not case.residual,
    }
    return next((feature for feature, needed in wanted.items() if needed and not supports[feature]), "")


def _unsupported(
    supports: Mapping[str, bool], own_limits: Callable[[Case], str | None] | None, case: Case
) -> str | None:
    if feature := _missing(supports, case):
        return f'the kernel does not offer "{feature}" (its attribute supports, or the default)'
    return None if own_limits is None else own_limits(case)


def _tensors(result: object, form: str, optional_last: bool = False) -> tuple[Any, ...]:
    """``result`` as a tuple of the shape that ``form`` names; raises KernelError with one sentence."""
    names = form.split(", ")
    if not isinstance(result, (tuple, list)):
        raise KernelError(f"the kernel returned {result_words(result)}, not a tuple ({form})")
    if len(result) != len(names):
        raise KernelError(
            f"the kernel returned {len(result)} values, not the {len(names)} of ({form}): {result_words(result)}"
        )
    for place, (name, value) in enumerate(zip(names, result, strict=True)):
        if value is None and optional_last and place == len(names) - 1:
            continue
        if not isinstance(value, torch.Tensor):
            raise KernelError(f"the kernel returned {result_words(value)} as {name}, not a tensor")
    return tuple(result)


def _call(function: Callable[..., object], gemma: str | None, inputs: Inputs, buffers: Outputs) -> Outputs:
    """A call of the form that returns: parameters are fields of the inputs, results are fields of the outputs."""
    given = {f.name: getattr(inputs, f.name) for f in dataclasses.fields(inputs) if f.default is dataclasses.MISSING}
    result = function(**given, **_gemma(gemma, inputs))
    names, expected = [f.name for f in dataclasses.fields(inputs.OUTPUTS)], inputs.expected()
    if len(names) == 1:
        if not isinstance(result, torch.Tensor):
            raise KernelError(f"the kernel returned {result_words(result)}, not the tensor {names[0]} [M, N]")
        return inputs.outputs({names[0]: result})
    residual = given.get("residual")
    if residual is not None and (sentence := in_residual(result, residual)):
        raise KernelError(sentence, COPY_RESIDUAL)
    optional = dataclasses.fields(inputs.OUTPUTS)[-1].default is None
    values = dict(zip(names, _tensors(result, ", ".join(names), optional_last=optional), strict=True))
    missing = [name for name in expected if values[name] is None]
    if missing:
        raise KernelError(f"the kernel returned None as {missing[0]} although there was a residual")
    # Without a residual there is nothing to judge: returning x itself is a common convention.
    return inputs.outputs({name: values[name] for name in expected})


def _call_in_place(
    function: Callable[..., object], gemma: str | None, inputs: NormQuantInputs, buffers: NormQuantOutputs
) -> NormQuantOutputs:
    function(
        out=buffers.codes,
        input=inputs.x,
        residual_in=inputs.residual,
        residual_out=buffers.residual_out,
        scale=buffers.scale,
        weight=inputs.weight,
        epsilon=inputs.eps,
        **_gemma(gemma, inputs),
    )
    return buffers


def _gemma(parameter: str | None, inputs: Inputs) -> dict[str, bool]:
    return {parameter: True} if parameter is not None and getattr(inputs, "gemma", False) else {}
