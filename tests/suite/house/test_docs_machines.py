"""What the documentation says of machines that are not here: the way to SIGNED is complete, the cron line speaks.

The commands themselves are run by ``test_docs`` as far as a CPU can; here it is held that nothing is missing from them.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.support.pages import ROOT, commands, read
from validators.commands import machine
from validators.signoff import claims, policy
from validators.signoff.ruling import rule

CLAIM = "docs/examples/claims/glm47-aiter-gfx950.toml"


def _plain(command: str) -> list[str]:
    """A command's words without the places and reasons that a person chooses."""
    words = shlex.split(command)
    chosen = ("--records", "--out", "--why")
    kept = [w for i, w in enumerate(words) if w not in chosen and (i == 0 or words[i - 1] not in chosen)]
    return [w for w in kept if not w.startswith(("signoff/", "records/", "proposal"))]


def test_the_recipe_fills_every_cell_of_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the sign-off asks for is in the page, or is what ``machine`` runs: so the recipe can end SIGNED."""
    monkeypatch.setattr(machine, "_architecture", lambda device: "gfx950")
    target, merge = claims.from_file(ROOT / CLAIM), policy.load("merge")
    ran = [["python", *stage.command] for stage in machine.of_claim(target, merge, "cuda", "r") if stage.command]
    shown = [_plain(command.text) for command in commands(read("docs/rocm.md"))]
    steps = rule(target, merge, [], "r").steps
    asked = [text for step in steps for text in step.commands]
    assert len(asked) > 6
    for text in asked:
        assert _plain(text) in [*shown, *(_plain(shlex.join(words)) for words in ran)], text
    assert any(
        command.text.startswith(f"python -m validators machine --claim {CLAIM}")
        for command in commands(read("docs/rocm.md"))
    )


def test_the_recipe_goes_in_order_and_gh_runs_on_the_host() -> None:
    order = [
        "docker run",
        "python3 .ci/environment.py",
        "python -m validators machine",
        "python -m golden propose",
        "python -m golden accept",
        "python -m golden check",
        "python3 -m sglang.launch_server",
        "python3 -m sglang.test.send_one --profile",
        "find ",
        "python -m validators trace",
        "python -m validators signoff",
        "exit",
        "gh pr comment",
    ]
    texts = [command.text for command in commands(read("docs/rocm.md"))]
    places = [next(i for i, text in enumerate(texts) if text.startswith(start)) for start in order]
    assert places == sorted(places)
    image = texts[0].split()[-2]
    assert re.fullmatch(r"lmsysorg/sglang:v\S+-rocm\d+-mi35x", image), "an image that carries aiter"


def test_each_time_is_said_once() -> None:
    """The README alone says how long a command takes; two pages would soon say two times."""
    others = ["Makefile", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
    said = [
        f"{name}: {line}"
        for name in others
        for line in read(name).splitlines()
        if re.search(r"make (test|signoff)|validators machine", line) and re.search(r"\bminutes?\b", line)
    ]
    assert not said
    assert re.search(r"the first takes about \w+ minutes and the second about \w+", read("README.md"))


# ---- the cron line


def _cron_line() -> str:
    """The command that checks the goldens every night."""
    lines = [line for line in read("docs/nightly.md").splitlines() if re.match(r"\d+ \d+ \* \* \*", line)]
    # cron itself turns \% into %, since a bare one would end the command.
    assert not [line for line in lines if re.search(r"(?<!\\)%", line)]
    [line] = [line for line in lines if "golden check" in line]
    return line.split(maxsplit=5)[5].replace("\\%", "%")


def _program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with the checkout, and in bin the programs that the line calls; each succeeds and says its name."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "fp8-signoff").mkdir()
    _program(tmp_path / "bin", "git", "echo git pulled")
    _program(tmp_path / "bin", "python3", 'echo "ran $*"')
    _program(tmp_path / "bin", "mail", 'cat > "$HOME/mailed.txt"')
    return tmp_path


def _night(home: Path) -> str | None:
    """One night; the text of the mail, or None where none was sent."""
    (home / "mailed.txt").unlink(missing_ok=True)
    environment = {**os.environ, "HOME": str(home), "PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["/bin/sh", "-c", _cron_line()], cwd=home, env=environment, check=False, capture_output=True)
    mailed = home / "mailed.txt"
    return mailed.read_text() if mailed.exists() else None


def test_a_good_night_sends_nothing(home: Path) -> None:
    assert _night(home) is None
    said = (home / "nightly.txt").read_text().splitlines()
    assert said[0] == "git pulled"
    assert said[1] == "ran -m golden verify"
    assert re.fullmatch(r"ran -m golden check --device cuda --records \S+/nightly/\d{4}-\d\d-\d\d .*", said[2])


@pytest.mark.parametrize("first", [True, False], ids=["first night", "later night"])
def test_a_pull_that_fails_is_what_the_mail_says(home: Path, first: bool) -> None:
    if not first:
        assert _night(home) is None
    _program(home / "bin", "git", "echo no route to the host >&2; exit 1")
    assert _night(home) == "no route to the host\n"


def test_goldens_that_drift_are_what_the_mail_says(home: Path) -> None:
    _program(home / "bin", "python3", 'case "$*" in *check*) echo DRIFTED; exit 1;; esac')
    assert _night(home) == "git pulled\nDRIFTED\n"


def test_a_folder_that_cannot_be_made_is_what_the_mail_says(home: Path) -> None:
    (home / "nightly").write_text("a file in the way")
    mailed = _night(home)
    assert mailed is not None
    assert "nightly" in mailed
