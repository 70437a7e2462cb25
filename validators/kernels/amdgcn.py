"""Kernels judged as machine code of gfx942 and gfx950, interpreted on a CPU: ``--device amdgcn:gfx942``.

Triton compiles for AMD GPUs where there is none: the assembly text that it writes is what ``validators.amdgcn`` runs.
What is judged is what the compiler made of the source (rounding points, masks, layouts, mode bits, stores), not the
silicon: result bits of the transcendental units and timing are not known. The records of these kernels say
``emulated``, and a sign-off never counts them as hardware.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from validators import arch, words
from validators.amdgcn.launch import Machine, Trace, Value
from validators.amdgcn.memory import Tensor
from validators.amdgcn.policies import NEAREST, Policy, readings
from validators.amdgcn.text import parse_program
from validators.cases.case import Case
from validators.cases.tensors import NormQuantInputs, NormQuantOutputs
from validators.kernels import aiter_triton, triton_own
from validators.kernels.kernel import Kernel, KernelError
from validators.records.record import Check

_TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float8_e4m3fnuz: "*fp8e4b8",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.float64: "*fp64",
    torch.uint8: "*u8",
    torch.int8: "*i8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
_POISONS = (0xA5, 0x5A)
"""Registers and LDS hold another byte in every other call, so that what depends on them differs from run to run."""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A kernel for one set of types and hints. block: threads of a workgroup; lds: its bytes of local memory."""

    machine: Machine
    block: tuple[int, int, int]
    lds: int
    sha256: str


@dataclasses.dataclass
class Seen:
    """What the launches of one validation showed. last: of the newest call. findings, touched: of all.

    policy: how what the documents leave open is read.
    """

    policy: Policy = NEAREST
    calls: int = 0
    last: Trace | None = None
    findings: dict[str, str] = dataclasses.field(default_factory=dict)
    touched: set[str] = dataclasses.field(default_factory=set)

    def open_readings(self) -> tuple[Policy, ...]:
        """The other policies that these launches touched."""
        return readings(self.touched)


def _storage(name: str, tensor: torch.Tensor, *, writable: bool) -> Tensor:
    """The whole memory behind a tensor, so that a store into its guard bytes is seen as what it is."""
    whole = torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
    start = tensor.data_ptr() - whole.data_ptr()
    return Tensor(name, whole.numpy(), start, whole.data_ptr(), writable)


def _hints(value: object) -> list[list[object]]:
    """What Triton's launcher tells the compiler about an argument."""
    if isinstance(value, torch.Tensor):
        found: list[list[object]] = [["tt.divisibility", 16]] if value.data_ptr() % 16 == 0 else []
        small = value.untyped_storage().size() <= 2**31 - 1
        return [*found, ["tt.pointer_range", 32]] if small else found
    return [["tt.divisibility", 16]] if isinstance(value, int) and value % 16 == 0 else []


def signature_of(arguments: Mapping[str, object], constants: Mapping[str, object]) -> tuple[Any, ...]:
    """(name, type, hints, constant) of every parameter, as Triton's launcher would specialise them; hashable."""
    found: list[tuple[str, str, tuple[tuple[object, ...], ...], object]] = []
    for name, value in {**arguments, **constants}.items():
        if name in constants or value is None or (isinstance(value, int) and value == 1):
            found.append((name, "constexpr", (), value))
            continue
        if isinstance(value, torch.Tensor):
            if value.dtype not in _TYPES:
                raise KernelError(f"a tensor of {value.dtype} is no argument of an interpreted launch")
            kind = _TYPES[value.dtype]
        else:
            kind = "fp32" if isinstance(value, float) else "i32" if -(2**31) <= int(value) < 2**31 else "i64"  # type: ignore[call-overload]
        found.append((name, kind, tuple(tuple(hint) for hint in _hints(value)), None))
    return tuple(found)


def triton_text(
    function: Any, target: str, signature: tuple[Any, ...], options: Mapping[str, object]
) -> tuple[str, str, int]:
    """(assembly text, kernel's name, bytes of LDS) of a ``@triton.jit`` function, or KernelError."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(function.arg_names)
    by_name = {name: (kind, hints, constant) for name, kind, hints, constant in signature}
    constants = {(names.index(name),): entry[2] for name, entry in by_name.items() if entry[0] == "constexpr"}
    attributes = {(names.index(n),): [list(h) for h in entry[1]] for n, entry in by_name.items() if entry[1]}
    source = ASTSource(function, {name: by_name[name][0] for name in names}, constants, attributes)
    try:
        compiled = triton.compile(source, target=GPUTarget("hip", target, 64), options=dict(options))
    except Exception as error:
        said = " ".join(str(error).split())
        raise KernelError(f"Triton does not compile {function.__name__} for {target}: {said[:300]}") from error
    return str(compiled.asm["amdgcn"]), str(compiled.metadata.name), int(compiled.metadata.shared)


def from_text(text: str, name: str, warps: int, lds: int, where: str) -> Compiled:
    """A kernel of an assembly text."""
    digest = hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()
    return Compiled(Machine(parse_program(text, name, where=where)), (64 * warps, 1, 1), lds, digest[:16])


def compile_triton(function: Any, target: str, signature: tuple[Any, ...], warps: int) -> Compiled:
    """Machine code of a ``@triton.jit`` function for ``target``."""
    text, name, lds = triton_text(function, target, signature, {"num_warps": warps})
    return from_text(text, name, warps, lds, f"{name}.{target}")


@functools.lru_cache(maxsize=256)
def _own(target: str, signature: tuple[Any, ...], warps: int) -> Compiled:
    return compile_triton(triton_own.kernel_function(), target, signature, warps)


def run_grid(compiled: Compiled, arguments: list[Value], grid: tuple[int, int, int], seen: Seen) -> None:
    """Launch on a grid of workgroups; what showed is kept in ``seen``."""
    # The two pointers at the end are Triton's own: scratch memory that these kernels do not use.
    missing = len(compiled.machine.program.meta.explicit) - len(arguments)
    seen.last = compiled.machine.launch(
        [*arguments, *[None] * missing],
        grid,
        compiled.block,
        lds=compiled.lds,
        policy=seen.policy,
        poison=_POISONS[(seen.calls - 1) % 2],
        checked=seen.calls % 2 == 1,
    )
    seen.touched |= seen.last.touched
    for kind, sentence in seen.last.findings.items():
        seen.findings.setdefault(kind, sentence)


def launch_values(
    inputs: NormQuantInputs, buffers: NormQuantOutputs
) -> tuple[dict[str, object], dict[str, object], tuple[str, ...]]:
    """(arguments, compile-time parameters, names of the outputs) of this project's Triton kernel."""
    n = inputs.x.shape[-1]
    x = inputs.x.view(-1, n)
    residual = None if inputs.residual is None else inputs.residual.view(-1, n)
    outputs = {"codes_ptr": buffers.codes, "scale_ptr": buffers.scale, "residual_out_ptr": buffers.residual_out}
    arguments: dict[str, object] = {
        "x_ptr": x,
        "residual_ptr": residual,
        "weight_ptr": inputs.weight,
        **outputs,
        "x_stride": x.stride(0),
        "residual_stride": 0 if residual is None else residual.stride(0),
        "n": n,
        "eps": float(inputs.eps),
    }
    return arguments, triton_own.constants(inputs), tuple(outputs)


Compile = Callable[[str, tuple[Any, ...], int], Compiled]


def _add_rmsnorm_quant(
    compiled_for: Compile, target: str, seen: Seen, inputs: NormQuantInputs, buffers: NormQuantOutputs
) -> NormQuantOutputs:
    arguments, constants, outputs = launch_values(inputs, buffers)
    programs = inputs.row_count
    if programs:
        signature = signature_of(arguments, constants)
        compiled = compiled_for(target, signature, triton_own.WARPS)
        given = {name: arguments[name] for name, kind, _, _ in signature if kind != "constexpr"}
        values = [as_value(name, value, name in outputs) for name, value in given.items()]
        run_grid(compiled, values, (programs, 1, 1), seen)
    return NormQuantOutputs(buffers.codes, buffers.scale, None if inputs.residual is None else buffers.residual_out)


_PROCESSORS = {"gfx942": 304, "gfx950": 256}
"""Compute units of an MI300X and an MI355X: aiter starts at most so many programs."""
_AITER_WARPS = 4
"""Triton's own default, which aiter's launches leave as it is."""


@functools.lru_cache(maxsize=512)
def _aiter(function: Any, target: str, signature: tuple[Any, ...]) -> Compiled:
    return compile_triton(function, target, signature, _AITER_WARPS)


def _aiter_add_rmsnorm_quant(
    target: str, seen: Seen, inputs: NormQuantInputs, buffers: NormQuantOutputs
) -> NormQuantOutputs:
    if inputs.row_count:
        function = aiter_triton.kernel_for(inputs)
        values = aiter_triton.values_of(function, inputs, buffers, _PROCESSORS[target])
        fixed = [p.name for p in function.params if p.is_constexpr]
        signature = signature_of(
            {name: value for name, value in values.items() if name not in fixed}, {name: values[name] for name in fixed}
        )
        outputs = ("output_ptr", "res_out_ptr", "y_scale_ptr", "aux_ptr")
        by_name = {name: kind for name, kind, _, _ in signature}
        given = [
            as_value(name, values[name], name in outputs) for name in function.arg_names if by_name[name] != "constexpr"
        ]
        programs = min(inputs.row_count, _PROCESSORS[target])
        run_grid(_aiter(function, target, signature), given, (programs, 1, 1), seen)
    return NormQuantOutputs(buffers.codes, buffers.scale, None if inputs.residual is None else buffers.residual_out)


def as_value(name: str, value: Any, writable: bool) -> Value:
    """An argument for the interpreter: tensors by the memory behind them."""
    if isinstance(value, torch.Tensor):
        return _storage(name.removesuffix("_ptr"), value, writable=writable)
    found: Value = value
    return found


def chosen_of(target: str, seen: Seen, case: Case) -> Mapping[str, str]:
    """For the record: how the case was interpreted."""
    if seen.last is None:
        return {}
    ran, count = seen.last.coverage
    return {
        "interpreter": "amdgcn, on a CPU",
        "target": target,
        "policy": seen.last.policy.name,
        "other policies": " ".join(policy.name for policy in seen.open_readings()),
        "instructions executed": f"{ran} of {count}",
        "operations": " ".join(seen.last.operations),
    }


def checks_of(seen: Seen) -> tuple[Check, ...]:
    """What the machine code did that no value shows."""
    if seen.last is None:
        return ()
    found = seen.findings
    words = "; ".join(f"{kind}: {sentence}" for kind, sentence in found.items())
    looked = "no race, no read of unwritten local memory, no byte written by two workgroups, every wait in place"
    return (Check("machine code", not found, words or looked),)


def interpreted_only(device: str) -> str | None:
    """One sentence why an interpreted Triton kernel cannot run on ``device``, or None."""
    if device.partition(":")[0] != arch.INTERPRETED:
        return f"is interpreted: --device {' or '.join(arch.INTERPRETED_DEVICES)}"
    return arch.no_triton(interpreted=False)


def on_target(device: str, unsupported: Callable[[Case], str | None], call: Any) -> dict[str, Any]:
    """What of a kernel depends on the device ``amdgcn:TARGET``."""
    target, seen = arch.architecture(device), Seen()
    native = words.native_fp8(target)

    def limits(case: Case) -> str | None:
        if case.fp8 != native:
            return f"{target} converts to {native} only"
        return unsupported(case)

    return {
        "call": counted(seen, functools.partial(call, target, seen)),
        "unsupported": limits,
        "chosen": functools.partial(chosen_of, target, seen),
        "interpreted": True,
        "observed": lambda: checks_of(seen),
        "readings": lambda: {p.name: _reading(p, call, target) for p in seen.open_readings()},
    }


def counted(seen: Seen, call: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """``call``, each of whose calls is counted: registers hold another poison in every other one."""

    def counting(inputs: Any, buffers: Any) -> Any:
        seen.calls += 1
        return call(inputs, buffers)

    return counting


def _reading(policy: Policy, call: Any, target: str) -> Callable[[Any, Any], Any]:
    seen = Seen(policy)
    return counted(seen, functools.partial(call, target, seen))


def needs_a_target(inputs: object, buffers: object) -> Any:
    """The call of a kernel that has not been placed on a device."""
    raise KernelError(f"a device is needed: {' or '.join(arch.INTERPRETED_DEVICES)}")


def own_kernel(compiled_for: Compile = _own, unavailable: Callable[[str], str | None] = interpreted_only) -> Kernel:
    """This project's Triton kernel; ``compiled_for`` gives its machine code for a target and a signature."""
    call = functools.partial(_add_rmsnorm_quant, compiled_for)
    return Kernel(
        name="amdgcn/triton/add_rmsnorm_quant",
        op="add_rmsnorm_quant",
        contract="aiter-triton",
        call=needs_a_target,
        in_place=True,
        emulated=True,
        unavailable=unavailable,
        unsupported=triton_own.unsupported,
        versions=functools.partial(arch.versions, "triton"),
        options={"num_warps": triton_own.WARPS},
        notes="machine code, interpreted on a CPU; no hardware has run it",
        for_device=lambda device: on_target(device, triton_own.unsupported, call),
    )


def _aiter_unavailable(device: str) -> str | None:
    return interpreted_only(device) or aiter_triton.missing_file()


def _aiter_kernel() -> Kernel:
    return Kernel(
        name="amdgcn/aiter_triton/add_rmsnorm_quant",
        op="add_rmsnorm_quant",
        contract="aiter-triton",
        call=needs_a_target,
        in_place=True,
        emulated=True,
        unavailable=_aiter_unavailable,
        unsupported=aiter_triton.unsupported,
        versions=aiter_triton.versions,
        options={"num_warps": _AITER_WARPS},
        notes="aiter's own kernels as machine code, interpreted on a CPU; no hardware has run it",
        for_device=lambda device: on_target(device, aiter_triton.unsupported, _aiter_add_rmsnorm_quant),
    )


def kernels() -> list[Kernel]:
    """This project's Triton kernel and aiter's, compiled for gfx942 or gfx950."""
    return [own_kernel(), _aiter_kernel()]
