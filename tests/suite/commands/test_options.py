"""One notation and one meaning for each option: a walk through all parsers, pytest's options and the page."""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

import conftest
from tests.support.walk import COMMANDS, Command, words_of
from validators.commands.options import SHARED
from validators.errors import UsageError
from validators.records.command_line import command_line, name_of, names_by_op, split_op

pytest_plugins = ("tests.support.place",)

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "command-line.md"
GROUPS = ("validators", "golden", "evals")
META = ("metavar", "type")


class _Pytest:
    """What ``pytest_addoption`` adds, as an argparse parser would have it."""

    def __init__(self) -> None:
        self.parser = argparse.ArgumentParser(add_help=False)

    def getgroup(self, *_: str) -> _Pytest:
        return self

    def addoption(self, name: str, **settings: Any) -> None:
        self.parser.add_argument(name, **settings)


def _by_option() -> dict[str, dict[str, argparse.Action]]:
    """option -> command -> what its parser says of it."""
    found: dict[str, dict[str, argparse.Action]] = defaultdict(dict)
    own = _Pytest()
    conftest.pytest_addoption(own)  # type: ignore[arg-type]
    for name, parser in [*((of.id, of.parser) for of in COMMANDS), ("pytest", own.parser)]:
        for action in parser._actions:
            for option in action.option_strings:
                if option not in ("-h", "--help"):
                    found[option][name] = action
    return found


OPTIONS = _by_option()


@pytest.mark.parametrize("option", sorted(OPTIONS))
def test_an_option_means_the_same_in_every_command(option: str) -> None:
    said = {command: tuple(getattr(action, key) for key in META) for command, action in OPTIONS[option].items()}
    assert len(set(said.values())) == 1, said
    meanings = {command: (action.help or "").split(" (")[0] for command, action in OPTIONS[option].items()}
    assert len(set(meanings.values())) == 1, f"write {option} into SHARED: {meanings}"
    assert all(meanings.values()), f"{option} says nothing in --help"


@pytest.mark.parametrize("option", sorted(SHARED))
def test_a_shared_option_is_taken_from_the_table(option: str) -> None:
    assert len(OPTIONS[option]) > 1 or option in ("--time-limit",), f"only {list(OPTIONS[option])} has {option}"
    for action in OPTIONS[option].values():
        assert (action.help or "").startswith(SHARED[option].meaning)
        assert (action.metavar or "") == SHARED[option].metavar


def test_the_page_shows_the_table() -> None:
    rows = re.findall(r"^\| `(--[a-z0-9-]+)(?: ([^`]+))?` \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    shown = {name: (metavar.replace("\\|", "|"), meaning) for name, metavar, meaning in rows}
    assert shown == {name: (option.metavar, option.meaning) for name, option in SHARED.items()}


def test_closed_lists_are_shown_by_help() -> None:
    """A value that is refused with "known: a, b" is of a list, which ``--help`` shows."""
    walked = 0
    for option, commands in OPTIONS.items():
        for command, action in commands.items():
            if not callable(action.type) or action.type in (int, float):
                continue
            known = ""
            try:
                action.type("nonsense")
            except argparse.ArgumentTypeError as refused:
                known = str(refused).partition("known: ")[2]
            if known and option != "--device":
                assert action.metavar == known.replace(", ", "|"), (command, option)
                walked += 1
    assert walked > 10


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("emulated/fp32", (None, "emulated/fp32")),
        ("ptpc_gemm=emulated/fp32", ("ptpc_gemm", "emulated/fp32")),
        ("file.py:f", (None, "file.py:f")),
        ("a=b/file.py:f", "unknown op 'a'"),
        ("folder/a=b.py:f", (None, "folder/a=b.py:f")),
        ("add_rmsnorm_quant=folder/a=b.py:f", ("add_rmsnorm_quant", "folder/a=b.py:f")),
        ("norm=emulated/fp32", "unknown op 'norm'"),
        ("=emulated/fp32", "unknown op ''"),
        ("ptpc_gemm=", "names no kernel"),
        ("", "names no kernel"),
    ],
)
def test_the_notation(text: str, parts: tuple[str | None, str] | str) -> None:
    if isinstance(parts, tuple):
        assert split_op(text) == parts
    else:
        with pytest.raises(UsageError, match=parts):
            split_op(text)


def test_a_name_alone_is_of_the_only_op() -> None:
    assert name_of(None, "ptpc_gemm") is None
    assert name_of("x", "ptpc_gemm") == name_of("ptpc_gemm=x", "ptpc_gemm") == "x"
    with pytest.raises(UsageError, match="is a kernel of per_token_quant"):
        name_of("per_token_quant=x", "ptpc_gemm")
    assert names_by_op(["x", "ptpc_gemm=y"]) == {"add_rmsnorm_quant": "x", "ptpc_gemm": "y"}
    with pytest.raises(UsageError, match="two kernels of add_rmsnorm_quant: x and y"):
        names_by_op(["x", "add_rmsnorm_quant=y"])


def test_a_command_line_is_built_in_one_way() -> None:
    line = command_line("evals", "gsm8k compare", "a b", margin=1.50, kernel=["x", "y"], any_model=True, json=None)
    assert line == "python -m evals gsm8k compare 'a b' --margin 1.5 --kernel x --kernel y --any-model"


def test_no_other_place_spells_a_command_that_is_to_be_run_again() -> None:
    """``"python", "-m"`` as words of a list, or an f-string with options, stand in ``command_line`` alone."""
    pattern = re.compile(r'"python", "-m"|f["\']python -m (validators|golden|evals)')
    found = [
        path.relative_to(ROOT).as_posix()
        for folder in ("validators", "golden", "evals")
        for path in (ROOT / folder).rglob("*.py")
        if pattern.search(path.read_text(encoding="utf-8"))
    ]
    assert set(found) <= {"validators/records/command_line.py", "validators/commands/cli.py"}, found


def test_no_exit_status_is_written_by_hand() -> None:
    """``Exit`` is the table; a command, a group or pytest's wiring writes no number of its own."""
    files = [ROOT / "conftest.py", *(ROOT / f"{group}/__main__.py" for group in GROUPS)]
    files += [path for group in GROUPS for path in (ROOT / group / "commands").glob("*.py")]
    pattern = re.compile(r"^\s+return \d+$|exit\(\d|SystemExit\(\d", re.MULTILINE)
    assert len(files) > 30
    assert [path.name for path in files if pattern.search(path.read_text(encoding="utf-8"))] == []


ONE_LINE = ("golden verify", "evals import")
"""Commands whose usual output is the decision."""
FAILING = ("validators wheel show", "validators wheel slim")
"""What ``VALID`` gives them is no wheel."""
SLOW = ("validators machine", "golden propose", "golden accept", "evals gsm8k run", "evals parity", "evals tokens")
"""Minutes, or a server: what they do with the options is seen in their source alone."""


@pytest.mark.parametrize("of", COMMANDS, ids=lambda of: of.id)
def test_every_command_has_quiet_and_verbose(of: Command) -> None:
    """``--verbose`` is also answered for all of them in one place, ``cli``."""
    assert {"--quiet", "--verbose"} <= {option for action in of.parser._actions for option in action.option_strings}


@pytest.mark.parametrize("of", [of for of in COMMANDS if of.id not in SLOW], ids=lambda of: of.id)
def test_quiet_prints_less_and_verbose_more(
    of: Command, place: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str], elsewhere: None
) -> None:
    shown: dict[str, Any] = {}
    for option in ("", "--quiet", "--verbose"):
        words = words_of(of, {**place, "new": str(tmp_path / f"new{option}")})
        capfd.readouterr()
        of.main([*of.start, *words, *([option] if option else [])])
        shown[option] = capfd.readouterr()
    usual, quiet, verbose = (len(shown[option].out) for option in ("", "--quiet", "--verbose"))
    # Times differ from run to run by a digit or two.
    assert quiet <= usual + 9
    assert usual <= verbose + 9
    assert quiet < usual or of.id in (*ONE_LINE, *FAILING), shown
    assert f"{' '.join(of.start)}: exit status " in shown["--verbose"].err or of.id in FAILING, shown
