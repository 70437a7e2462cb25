"""Assembly text into instructions, labels, kernel descriptors and metadata.

What a compiler writes around the code (sections of debug data, ``.cfi_*``, comments) is passed over; an instruction,
operand or modifier that is not understood is a ``TextError`` when its kernel is taken from the file, with the line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from validators.amdgcn.errors import TextError
from validators.amdgcn.metadata import KernelMeta, read_metadata
from validators.amdgcn.operands import Operand, parse_operand, split_top

TARGETS = ("gfx942", "gfx950")
_TARGET = re.compile(r'\.amdgcn_target\s+"amdgcn-amd-amdhsa-(?:unknown)?-?(gfx\w+)[^"]*"')
_LABEL = re.compile(r"([.A-Za-z_$][\w.$@]*):")
_INSTRUCTION = re.compile(r"(?:v|s|ds|buffer|global|flat|scratch)_\w+")
_FLAGS = ("offen", "idxen", "glc", "slc", "nt", "sc0", "sc1", "lds", "clamp", "gds", "tfe")


@dataclass(frozen=True)
class Instruction:
    """One line of code. mods: modifiers by name, a flag's value is "". loc: ``file.py:61`` of the nearest ``.loc``."""

    mnemonic: str
    operands: tuple[Operand, ...]
    mods: Mapping[str, str]
    text: str
    line: int
    loc: str = ""


@dataclass(frozen=True)
class Program:
    """A kernel's code and how it is launched. where: of the text, for sentences. labels: name -> index."""

    name: str
    target: str
    where: str
    instructions: tuple[Instruction, ...]
    labels: Mapping[str, int]
    descriptor: Mapping[str, int]
    meta: KernelMeta

    def place(self, index: int) -> str:
        """File, line and instruction, for a sentence."""
        found = self.instructions[index]
        source = f" ({found.loc})" if found.loc else ""
        return f"{self.where}:{found.line}: {found.text}{source}"


@dataclass
class _File:
    """What one pass over the lines collects."""

    target: str = ""
    code: list[tuple[int, str, str]] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    functions: list[str] = field(default_factory=list)
    descriptors: dict[str, dict[str, int]] = field(default_factory=dict)
    metadata: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)


def read_program(path: str | Path, kernel: str | None = None) -> Program:
    """The kernel of the file ``path``; raises TextError where it cannot be read."""
    return parse_program(_content(path), kernel, where=str(path))


def kernel_names(path: str | Path) -> list[str]:
    """Every kernel of the file ``path``; TextError where there is none."""
    names = list(_collect(_content(path), str(path)).descriptors)
    if not names:
        raise TextError(f"{path} has no kernel: no .amdhsa_kernel is in it")
    return names


def _content(path: str | Path) -> str:
    try:
        return Path(path).read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        raise TextError(f"{path} cannot be read: {error.strerror}") from error


def parse_program(content: str, kernel: str | None = None, *, where: str = "text") -> Program:
    """The kernel named ``kernel`` (may be None where there is only one) of an assembly text."""
    read = _collect(content, where)
    if read.target not in TARGETS:
        named = f"is for {read.target}" if read.target else "names no .amdgcn_target"
        raise TextError(f"{where} {named}; known: {', '.join(TARGETS)}")
    names = list(read.descriptors)
    if kernel is None and len(names) == 1:
        kernel = names[0]
    if kernel not in read.descriptors or kernel not in read.labels:
        raise TextError(f"{where} has no kernel {kernel or 'chosen'}; it has: {', '.join(names) or 'none'}")
    metas = read_metadata(read.metadata, where)
    if kernel not in metas:
        raise TextError(f"{where} ends before the .amdgpu_metadata of {kernel}; the text is truncated")
    start = read.labels[kernel]
    later = [read.labels[f] for f in read.functions if f in read.labels and read.labels[f] > start]
    stop = min(later, default=len(read.code))
    instructions = tuple(_instruction(*item, where) for item in read.code[start:stop])
    if not instructions:
        raise TextError(f"{where}: kernel {kernel} has no instructions")
    labels = {name: at - start for name, at in read.labels.items() if start <= at < stop}
    return Program(kernel, read.target, where, instructions, labels, read.descriptors[kernel], metas[kernel])


def _collect(content: str, where: str) -> _File:
    read, section, inside, loc = _File(), ".text", "", ""
    for number, whole in enumerate(content.splitlines(), start=1):
        if inside == "metadata":
            if whole.strip() == ".end_amdgpu_metadata":
                inside = ""
            else:
                read.metadata.append(whole)
            continue
        line = re.split(r";|//", whole, maxsplit=1)[0].strip() if '"' not in whole else whole.strip()
        if not line:
            continue
        if inside:
            inside = _descriptor_line(read, inside, line, f"{where}:{number}")
            continue
        if found := _LABEL.match(line):
            read.labels.setdefault(found[1], len(read.code))
            line = line[found.end() :].strip()
        if line.startswith("."):
            section, inside, loc = _directive(read, line, section, loc)
        elif line and section.startswith(".text"):
            read.code.append((number, line, loc))
    if inside:
        raise TextError(f"{where} ends inside a block; the text is truncated")
    return read


def _directive(read: _File, line: str, section: str, loc: str) -> tuple[str, str, str]:
    """(section, block that begins here, source line) after a directive."""
    word, _, rest = line.partition(" ") if " " in line else line.partition("\t")
    rest = rest.strip()
    word, _, more = word.partition("\t")
    rest = f"{more} {rest}".strip()
    if word == ".text":
        return ".text", "", loc
    if word in (".section", ".data", ".rodata", ".bss"):
        return rest.split(",")[0] if word == ".section" else word, "", loc
    if word == ".amdgpu_metadata":
        return section, "metadata", loc
    if word == ".amdhsa_kernel":
        read.descriptors[rest] = {}
        return section, rest, loc
    if found := _TARGET.match(line):
        read.target = found[1]
    elif word == ".type" and rest.endswith("@function"):
        read.functions.append(rest.split(",")[0].strip())
    elif word == ".file" and (names := re.findall(r'"([^"]*)"', rest)):
        read.files[rest.split()[0]] = names[-1]
    elif word == ".loc" and section.startswith(".text"):
        parts = rest.split()
        loc = f"{read.files.get(parts[0], '?')}:{parts[1]}" if parts[1] != "0" else ""
    return section, "", loc


def _descriptor_line(read: _File, kernel: str, line: str, place: str) -> str:
    if line == ".end_amdhsa_kernel":
        return ""
    word, *values = line.split()
    try:
        read.descriptors[kernel][word.removeprefix(".amdhsa_")] = int(values[0], 0)
    except (IndexError, ValueError):
        # An expression of symbols, as newer compilers write it: only what the launch needs has to be a number.
        if word.startswith(".amdhsa_") and values:
            return kernel
        raise TextError(f"{place}: {line!r} is no line of a kernel descriptor") from None
    return kernel


_UNPARSED = ("s_waitcnt", "s_setreg_imm32_b32", "s_setreg_b32", "s_getreg_b32")


def _instruction(number: int, line: str, loc: str, where: str) -> Instruction:
    mnemonic, _, rest = line.replace("\t", " ").partition(" ")
    place = f"{where}:{number}"
    if not _INSTRUCTION.fullmatch(mnemonic):
        raise TextError(f"{place}: {line!r} is no instruction of this machine")
    text = " ".join(line.split())
    if mnemonic == "s_waitcnt":
        return Instruction(mnemonic, (), {"wait": rest.strip()}, text, number, loc)
    operands: list[Operand] = []
    mods: dict[str, str] = {}
    pieces = split_top(rest.strip(), ",")
    for at, piece in enumerate(pieces):
        words = split_top(piece, " ")
        operand = parse_operand(words[0]) if words else None
        if operand is None or (len(words) > 1 and at < len(pieces) - 1):
            raise TextError(f"{place}: operand {piece!r} of {mnemonic} is not understood")
        operands.append(operand)
        mods.update(_modifiers(words[1:], place))
    return Instruction(mnemonic, tuple(operands), mods, text, number, loc)


def _modifiers(words: Sequence[str], place: str) -> dict[str, str]:
    found = {}
    for word in words:
        name, colon, value = word.partition(":")
        if not colon and name not in _FLAGS and not name.startswith("row_"):
            raise TextError(f"{place}: modifier {word!r} is not understood")
        found[name] = value
    return found
