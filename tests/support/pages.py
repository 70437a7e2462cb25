"""The pages of the documentation, and the commands and samples that they show."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OURS = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/reading-a-verdict.md",
    "docs/derivations.md",
    "docs/your-kernel.md",
    "docs/rocm.md",
    "docs/amdgcn.md",
    "docs/parity.md",
    "docs/sign-off.md",
    "docs/layers.md",
    "docs/evals-server.md",
    "docs/tiny-glm.md",
    "docs/nightly.md",
    "docs/real-kernels.md",
    "docs/results.md",
    "docs/glossary.md",
    "docs/command-line.md",
)
PAGES = tuple(
    path.relative_to(ROOT).as_posix()
    for path in (
        *sorted(ROOT.glob("*.md")),
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "evals").rglob("*.md")),
    )
)
"""Every page for people. Those in ``docs/records`` are what a run wrote."""


@dataclass(frozen=True)
class Command:
    """One documented command, continuation lines joined, with the output shown below it."""

    text: str
    shown: str


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, *languages: str) -> Iterator[str]:
    """Contents of the fenced blocks in one of the languages."""
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if found[1] in languages:
            yield found[2]


def commands(text: str) -> list[Command]:
    """Every ``$ command`` of the console and bash blocks, in order."""
    found = []
    for block in blocks(text, "console", "bash"):
        for part in re.split(r"^\$ ", block.replace("\\\n", " "), flags=re.MULTILINE)[1:]:
            line, _, shown = part.partition("\n")
            found.append(Command(" ".join(line.split()), shown))
    return found


def samples(text: str) -> Iterator[tuple[str, str]]:
    """(command, text block) of every sample that is marked as a command's output."""
    yield from re.findall(r"<!-- sample of: (.*?) -->\n```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
