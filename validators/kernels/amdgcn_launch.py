"""A user's own Triton kernel as machine code: its launches are compiled for the target and interpreted.

The function is called as it is, with tensors on the CPU. ``kernel[grid](...)`` inside it does not reach Triton's
driver: the values are specialised as Triton's launcher does it, compiled for gfx942 or gfx950, and interpreted. The
function says so with one attribute: ``fused.devices = ("amdgcn",)``.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from validators import arch
from validators.cases.case import Case
from validators.cases.tensors import Inputs, Outputs
from validators.kernels.amdgcn import (
    Compiled,
    Seen,
    as_value,
    from_text,
    on_target,
    run_grid,
    signature_of,
    triton_text,
)
from validators.kernels.kernel import KernelError

_WARPS = 4
"""Triton's default."""


def on_device(
    call: Callable[[Inputs, Outputs], Outputs], unsupported: Callable[[Case], str | None], device: str
) -> Mapping[str, Any]:
    """What of a user's kernel changes on an interpreted device; nothing on any other."""
    if device not in arch.INTERPRETED_DEVICES:
        return {}
    found = on_target(device, unsupported, functools.partial(_call, call))
    return {**found, "emulated": True, "notes": "machine code, interpreted on a CPU; no hardware has run it"}


def _call(call: Callable[[Inputs, Outputs], Outputs], target: str, seen: Seen, inputs: Inputs, buffers: Outputs) -> Any:
    with launches_interpreted(target, seen):
        return call(inputs, buffers)


@contextlib.contextmanager
def launches_interpreted(target: str, seen: Seen) -> Iterator[None]:
    """Inside, every ``@triton.jit`` function that is launched is interpreted."""
    from triton.runtime.jit import JITFunction

    before = JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool = False, **named: Any) -> None:
        if not warmup:
            _launch(self, target, seen, args, named, grid)

    JITFunction.run = run
    try:
        yield
    finally:
        JITFunction.run = before


def _launch(function: Any, target: str, seen: Seen, args: tuple[Any, ...], named: dict[str, Any], grid: Any) -> None:
    own = set(function.arg_names)
    options = {"num_warps": _WARPS, **{name: value for name, value in named.items() if name not in own}}
    bound = function.signature.bind(*args, **{name: value for name, value in named.items() if name in own})
    bound.apply_defaults()
    values = dict(bound.arguments)
    fixed = {p.name for p in function.params if p.is_constexpr}
    if any(getattr(p, "do_not_specialize", False) for p in function.params if p.name not in fixed):
        raise KernelError(f"{function.__name__}: do_not_specialize is not implemented for an interpreted launch")
    given = {name: value for name, value in values.items() if name not in fixed}
    signature = signature_of(given, {name: values[name] for name in fixed})
    compiled = _compiled(function, target, signature, tuple(sorted(options.items())))
    shape = grid(values) if callable(grid) else grid
    x, y, z = (*(int(part) for part in shape), 1, 1)[:3]
    arguments = [as_value(name, given[name], True) for name, kind, *_ in signature if kind != "constexpr"]
    if min(x, y, z) > 0:
        run_grid(compiled, arguments, (x, y, z), seen)


@functools.lru_cache(maxsize=512)
def _compiled(function: Any, target: str, signature: tuple[Any, ...], options: tuple[tuple[str, Any], ...]) -> Compiled:
    chosen = dict(options)
    text, name, lds = triton_text(function, target, signature, chosen)
    return from_text(text, name, int(chosen["num_warps"]), lds, f"{name}.{target}")
