"""The ``.amdgpu_metadata`` block: which arguments a kernel takes and where they lie in its kernarg segment."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from validators.amdgcn.errors import TextError


@dataclass(frozen=True)
class Argument:
    """offset, size: bytes. kind: ``.value_kind``, such as global_buffer, by_value or hidden_block_count_x."""

    offset: int
    size: int
    kind: str
    name: str = ""


@dataclass(frozen=True)
class KernelMeta:
    """kernarg_size, lds, scratch: bytes. threads: the most of a workgroup."""

    name: str
    args: tuple[Argument, ...]
    kernarg_size: int
    lds: int
    scratch: int
    threads: int
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def explicit(self) -> tuple[Argument, ...]:
        """The arguments that a launch names, hidden ones left out."""
        return tuple(arg for arg in self.args if not arg.kind.startswith("hidden_"))


_LINE = re.compile(r"^(\s*)(- )?\s*(\.[\w.]+):\s*(.*)$")


def read_metadata(lines: Sequence[str], where: str) -> dict[str, KernelMeta]:
    """Kernels by name, from the YAML that the compilers write: a list of kernels, in each a list of arguments."""
    kernels: list[dict[str, str]] = []
    arguments: list[list[dict[str, str]]] = []
    in_args, kernel_indent, inside = False, -1, False
    for line in lines:
        if line.strip().startswith("amdhsa."):
            inside = line.strip() == "amdhsa.kernels:"
            continue
        found = _LINE.match(line)
        if not inside or not found:
            continue
        indent, dash, name, value = len(found[1]), bool(found[2]), found[3], found[4].strip().strip("'\"")
        if dash and (kernel_indent < 0 or indent == kernel_indent):
            kernel_indent, in_args = indent, False
            kernels.append({})
            arguments.append([])
        if not kernels:
            raise TextError(f"{where}: the metadata lists no kernel before {line.strip()!r}")
        level = indent + (2 if dash else 0)
        if level == kernel_indent + 2:
            in_args = name == ".args"
            kernels[-1][name] = value
        elif in_args:
            if dash:
                arguments[-1].append({})
            arguments[-1][-1][name] = value
    return {k.get(".name", ""): _kernel(k, a, where) for k, a in zip(kernels, arguments, strict=True)}


def _kernel(facts: dict[str, str], arguments: list[dict[str, str]], where: str) -> KernelMeta:
    try:
        args = tuple(
            Argument(int(a[".offset"]), int(a[".size"]), a[".value_kind"], a.get(".name", "")) for a in arguments
        )
        return KernelMeta(
            facts[".name"],
            args,
            int(facts[".kernarg_segment_size"]),
            int(facts[".group_segment_fixed_size"]),
            int(facts[".private_segment_fixed_size"]),
            int(facts[".max_flat_workgroup_size"]),
            facts,
        )
    except (KeyError, ValueError) as error:
        raise TextError(f"{where}: the metadata of {facts.get('.name', 'a kernel')} lacks {error}") from None
