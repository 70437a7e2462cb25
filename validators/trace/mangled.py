"""Mangled names of kernels (``_ZN5aiter24add_rmsnorm_quant_kernelIDF16bDB8_...``): the name and its template arguments.

``torch.profiler`` demangles with the C++ runtime that it was built with, which does not know newer types: bfloat16
(``DF16b``) and the 8-bit integer in which AMD's compilers hold FP8 codes (``DB8_``). Names with these types stay
mangled in a trace, and they are the ones whose types say whether a norm quantizes.

Follows the Itanium C++ ABI, "External Names". Strict: what the grammar below does not describe is not guessed; then the
arguments that were read up to there are all that is given. The parameters of the function are not read. Standard
library only.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

CUT = "…"
"""Represents template arguments that were not read: the name is cut, or holds what is not understood."""

_BUILTIN = {
    "v": "void",
    "w": "wchar_t",
    "b": "bool",
    "c": "char",
    "a": "signed char",
    "h": "unsigned char",
    "s": "short",
    "t": "unsigned short",
    "i": "int",
    "j": "unsigned int",
    "l": "long",
    "m": "unsigned long",
    "x": "long long",
    "y": "unsigned long long",
    "n": "__int128",
    "o": "unsigned __int128",
    "f": "float",
    "d": "double",
    "e": "long double",
    "g": "__float128",
    "z": "...",
}
_BUILTIN_D = {
    "Dd": "decimal64",
    "De": "decimal128",
    "Df": "decimal32",
    "Dh": "half",
    "Di": "char32_t",
    "Ds": "char16_t",
    "Du": "char8_t",
    "Da": "auto",
    "Dc": "decltype(auto)",
    "Dn": "std::nullptr_t",
}
_STANDARD = {
    "St": "std",
    "Sa": "std::allocator",
    "Sb": "std::basic_string",
    "Ss": "std::string",
    "Si": "std::istream",
    "So": "std::ostream",
    "Sd": "std::iostream",
}
_SUFFIX = {"j": "u", "l": "l", "m": "ul", "x": "ll", "y": "ull", "i": ""}
_DEEPEST = 100
"""Nesting beyond any real name; a made-up one must not end in a RecursionError."""


@dataclass(frozen=True)
class Mangled:
    """name: of the function, with its namespaces. arguments: its template arguments; the last is ``CUT`` where not all
    could be read."""

    name: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.name}<{', '.join(self.arguments)}>" if self.arguments else self.name


class _UnknownError(ValueError):
    """The grammar does not go on here: the text is cut, or of a kind that is not read."""


def demangle(text: str) -> Mangled | None:
    """The function that ``text`` names; None where it is no mangled name, or its name itself is not understood.

    Whether ``DB8_`` and vendor types (``u6__bf16``) may be referred to later (``S1_``) differs between the ABI's text
    and clang, so the name is read both ways, and only what both agree on is given.
    """
    found = [_Parser(text, vendor).function() for vendor in (True, False)]
    a, b = found
    if a is None or b is None or a.name != b.name:
        return None
    if a == b:
        return a
    same = 0
    while same < min(len(a.arguments), len(b.arguments)) and a.arguments[same] == b.arguments[same]:
        same += 1
    agreed = a.arguments[:same]
    return Mangled(a.name, agreed if agreed and agreed[-1] == CUT else (*agreed, CUT))


class _Parser:
    def __init__(self, text: str, vendor: bool) -> None:
        # Tools that shorten a name put dots behind it; none is part of the mangling, but the suffix of a clone is.
        self.text, self.vendor = re.split(r"\.|…", text, maxsplit=1)[0], vendor
        self.at, self.depth = 0, 0
        self.known: list[str] = []
        self.arguments: list[str] = []
        self.functions: dict[str, int] = {}
        self.name_so_far = ""

    # ---- reading

    def peek(self, count: int = 1) -> str:
        return self.text[self.at : self.at + count]

    def take(self, wanted: str) -> bool:
        found = self.text.startswith(wanted, self.at)
        self.at += len(wanted) * found
        return found

    def want(self, wanted: str) -> None:
        if not self.take(wanted):
            raise _UnknownError(f"{wanted} at {self.at}")

    def pattern(self, expression: str) -> str:
        found = re.compile(expression).match(self.text, self.at)
        if found is None:
            raise _UnknownError(f"{expression} at {self.at}")
        self.at = found.end()
        return found[0]

    # ---- grammar

    def function(self) -> Mangled | None:
        """encoding ::= name, and parameters that are not read."""
        if not self.take("_Z"):
            return None
        try:
            self.take("L")
            self.name_so_far, self.arguments = self.name()
        except _UnknownError:
            # Read as far as the template arguments: those that are complete are kept.
            if not self.name_so_far:
                return None
            return Mangled(self.name_so_far, (*self.arguments, CUT))
        return Mangled(self.name_so_far, tuple(self.arguments))

    def name(self, outermost: bool = True) -> tuple[str, list[str]]:
        """name ::= nested-name | unscoped-name [template-args]; (name without its last arguments, these arguments)."""
        if self.take("N"):
            return self.nested(outermost)
        standard = self.take("St")
        text = ("std::" if standard else "") + self.source()
        if self.peek() != "I":
            return text, []
        self.known.append(text)
        return text, self.template_arguments(text if outermost else "")

    def nested(self, outermost: bool) -> tuple[str, list[str]]:
        self.pattern("[rVK]*[RO]?")
        text, arguments, fresh = "", list[str](), True
        while not self.take("E"):
            if self.peek() == "I":
                if not text or arguments:
                    raise _UnknownError("arguments of nothing")
                arguments = self.template_arguments(text if outermost else "")
                fresh = True
            else:
                text, arguments = _joined(text, arguments), []
                if self.peek() == "S" and not text:
                    text, fresh = self.substitution(), False
                else:
                    part = self.unnamed() if self.peek() == "U" else self.source()
                    text, fresh = f"{text}::{part}" if text else part, True
            # Every prefix can be referred to, the whole name only as a type: type() adds it.
            if fresh and self.peek() != "E":
                self.known.append(_joined(text, arguments))
        if not text:
            raise _UnknownError("an empty name")
        return text, arguments

    def source(self) -> str:
        """source-name ::= length and identifier; abi-tags after it."""
        self.take("L")
        length = int(self.pattern("[1-9][0-9]{0,4}"))
        text = self.text[self.at : self.at + length]
        if len(text) < length or not re.fullmatch(r"[A-Za-z_$][\w$]*", text):
            raise _UnknownError(f"an identifier at {self.at}")
        self.at += length
        text = "(anonymous namespace)" if text.startswith("_GLOBAL__N") else text
        while self.take("B"):
            text += f"[abi:{self.source()}]"
        return text

    def unnamed(self) -> str:
        if self.take("Ut"):
            return f"{{unnamed type#{self.pattern('[0-9]*_')[:-1] or 0}}}"
        self.want("Ul")
        parameters = []
        while not self.take("E"):
            parameters.append(self.type())
        self.pattern("[0-9]*_")
        return f"{{lambda({', '.join(p for p in parameters if p != 'void')})}}"

    def substitution(self) -> str:
        for short, text in _STANDARD.items():
            if self.take(short):
                return text
        self.want("S")
        digits = self.pattern("[0-9A-Z]*_")[:-1]
        index = int(digits, 36) + 1 if digits else 0
        if index >= len(self.known):
            raise _UnknownError(f"S{digits}_ refers to nothing")
        return self.known[index]

    def template_arguments(self, of: str = "") -> list[str]:
        """template-args ::= I arguments E. of: the function's name where these are its own, kept if the rest fails."""
        self.want("I")
        found: list[str] = []
        if of:
            self.name_so_far, self.arguments = of, found
        while not self.take("E"):
            argument = self.argument()
            # At the end of a text that is cut, S1_ may have been S1_I...E, and a length another length.
            if self.at >= len(self.text):
                raise _UnknownError("the name is cut")
            # An empty pack is no argument.
            found += [argument] if argument else []
        return found

    def argument(self) -> str:
        if self.peek() == "L":
            return self.literal()
        if self.peek() == "J":
            with self.deeper():
                return self.pack()
        return self.type()

    def pack(self) -> str:
        self.want("J")
        pack = []
        while not self.take("E"):
            pack.append(self.argument())
        return ", ".join(filter(None, pack))

    @contextlib.contextmanager
    def deeper(self) -> Iterator[None]:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise _UnknownError("too deep")
        yield
        self.depth -= 1

    def literal(self) -> str:
        """expr-primary ::= L type value E."""
        self.want("L")
        kind = self.peek()
        spelled = self.type()
        value = self.pattern("n?[0-9a-f]*")
        self.want("E")
        value = f"-{value[1:]}" if value.startswith("n") else value
        if kind == "b":
            return {"0": "false", "1": "true"}.get(value, f"(bool){value}")
        return f"{value}{_SUFFIX[kind]}" if kind in _SUFFIX else f"({spelled}){value}"

    def type(self) -> str:
        with self.deeper():
            return self._type()

    def _type(self) -> str:
        first, two = self.peek(), self.peek(2)
        if first in _BUILTIN and first:
            self.at += 1
            return _BUILTIN[first]
        if first == "D":
            return self.newer()
        if first == "S" and two != "St":
            text = self.substitution()
            return self.known_with_arguments(text)
        if qualifiers := self.pattern("r?V?K?"):
            inner = self.type()
            words = {"r": "restrict", "V": "volatile", "K": "const"}
            return self.know(" ".join((inner, *(words[q] for q in qualifiers))))
        for letter, mark in (("P", "*"), ("R", "&"), ("O", "&&")):
            if self.take(letter):
                inner = self.type()
                # A pointer to a function: the mark comes before its parameters.
                at = self.functions.get(inner)
                return self.know(inner + mark if at is None else f"{inner[:at]}({mark}){inner[at:]}")
        if self.take("u"):
            text = self.source()
            return self.know(text) if self.vendor else text
        if self.take("A"):
            size = self.pattern("[0-9]*_")[:-1]
            return self.know(f"{self.type()} [{size}]")
        if self.take("F"):
            return self.function_type()
        if first == "N" or first.isdigit() or two == "St":
            name, arguments = self.name(outermost=False)
            return self.know(_joined(name, arguments))
        raise _UnknownError(f"a type at {self.at}")

    def newer(self) -> str:
        """Types that begin with D."""
        if self.peek(2) in _BUILTIN_D:
            self.at += 2
            return _BUILTIN_D[self.text[self.at - 2 : self.at]]
        if self.take("DF"):
            bits = self.pattern("[0-9]+[bx_]")
            return {"b": f"__bf{bits[:-1]}", "x": f"_Float{bits}", "_": f"_Float{bits[:-1]}"}[bits[-1]]
        for letters, sign in (("DB", ""), ("DU", "unsigned ")):
            if self.take(letters):
                text = f"{sign}_BitInt({self.pattern('[0-9]+_')[:-1]})"
                return self.know(text) if self.vendor else text
        if self.take("Dv"):
            count = self.pattern("[0-9]+_")[:-1]
            return self.know(f"{self.type()} __vector({count})")
        if self.take("Dp"):
            return self.know(f"{self.type()}...")
        raise _UnknownError(f"a type at {self.at}")

    def function_type(self) -> str:
        self.take("Y")
        parts = []
        while not self.take("E"):
            parts.append(self.type())
        if not parts:
            raise _UnknownError("a function without a result")
        text = f"{parts[0]} ({', '.join(p for p in parts[1:] if p != 'void')})"
        self.functions[text] = len(parts[0]) + 1
        return self.know(text)

    def known_with_arguments(self, text: str) -> str:
        if self.peek() != "I":
            return text
        return self.know(_joined(text, self.template_arguments()))

    def know(self, text: str) -> str:
        self.known.append(text)
        return text


def _joined(name: str, arguments: list[str]) -> str:
    return f"{name}<{', '.join(arguments)}>" if arguments else name
