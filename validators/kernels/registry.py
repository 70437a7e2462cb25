"""The kernels that the suite brings along, and the user's own by its path."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence

from validators import kernels
from validators.kernels import amdgcn_file, plugin
from validators.kernels.kernel import Kernel, KernelError
from validators.process.supervise import watched
from validators.records.command_line import split_op
from validators.words import OPS


def all_kernels() -> list[Kernel]:
    """Every kernel that the suite brings along, available here or not: stand-ins first, then by the provider's name.

    A provider is a module of this folder with a function ``kernels() -> list[Kernel]``. It imports nothing heavy.
    """
    names = sorted(found.name for found in pkgutil.iter_modules(kernels.__path__))
    offers = [getattr(importlib.import_module(f"{kernels.__name__}.{name}"), "kernels", None) for name in names]
    found = [watched(kernel) for offer in offers if callable(offer) for kernel in offer()]
    return sorted(found, key=lambda kernel: not kernel.emulated)


def find_kernel(name: str, op: str | None = None) -> Kernel:
    """The kernel ``name``; ``file.py:function`` or ``module:function`` is the user's own, ``file.toml`` machine code.

    Raises KernelError with one sentence that lists the known names.
    """
    if ":" in name:
        own: Kernel = watched(plugin.load(name, op))
        return own
    if name.endswith(".toml"):
        launched: Kernel = watched(amdgcn_file.load(name, op))
        return launched
    if name.endswith(".py"):
        raise KernelError(f"{name!r} is a file; name the function in it: {name}:FUNCTION")
    brought = all_kernels()
    matches = [k for k in brought if k.name == name and op in (None, k.op)]
    if not matches:
        known = ", ".join(k.name for k in brought if op in (None, k.op))
        raise KernelError(f"unknown kernel {name!r}{f' for op {op}' if op else ''}; known: {known}")
    return matches[0]


def find_kernels(text: str, ops: Sequence[str] = OPS) -> list[Kernel]:
    """The kernels of ``[OP=]NAME``: that of the op, or for NAME alone one for each of ``ops`` that the name computes.

    Raises KernelError or UsageError with one sentence; never returns none.
    """
    op, name = split_op(text)
    if op is not None and op not in ops:
        raise KernelError(f"{text!r} is a kernel of {op}, and here it is one of {' or '.join(ops)}")
    known = op or (ops[0] if len(ops) == 1 else None)
    first = find_kernel(name, known)
    if known is None and ":" not in name and not name.endswith(".toml"):
        found = [kernel for kernel in all_kernels() if kernel.name == name and kernel.op in ops]
    else:
        found = [kernel for kernel in [first] if kernel.op in ops]
    if not found:
        raise KernelError(f"kernel {name!r} computes {first.op}, and here it is one of {' or '.join(ops)}")
    return found
