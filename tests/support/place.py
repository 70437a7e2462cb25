"""Fixtures: where the tests of the commands read and write. No conftest.py, since tests import the one of the root."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.walk import make_place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files that the commands read, by the names that ``walk`` gives them."""
    return make_place(tmp_path_factory.mktemp("walk"))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command writes by default goes to the test's own folder."""
    monkeypatch.chdir(tmp_path)
