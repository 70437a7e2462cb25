"""The recorded goldens: one test per golden, and the store is whole. ``pytest -m golden``."""

from __future__ import annotations

import pytest

from golden.check import DATA, check_row, problems
from golden.outcome import State
from golden.store import GoldenError, Store, read

pytestmark = pytest.mark.golden


def _ids() -> list[str]:
    """Ids in the manifest; none from a damaged one, which ``test_the_store_is_whole`` then reports."""
    try:
        return sorted(read(DATA).rows)
    except GoldenError:
        return []


@pytest.fixture(scope="module")
def store() -> Store:
    return read(DATA)


def test_the_store_is_whole(store: Store) -> None:
    assert problems(store) == []
    assert store.rows


@pytest.mark.parametrize("golden", _ids())
def test_golden(store: Store, golden: str) -> None:
    assert golden in store.tensors, f"golden {golden} is damaged; python -m golden verify names the damage"
    outcome = check_row(store.rows[golden], store.tensors[golden])
    if outcome.state in (State.MISSING, State.UNTESTED):
        pytest.skip(outcome.sentence)
    if outcome.state is not State.UNCHANGED:
        pytest.fail(f"{outcome.state.value} {golden}\n  {outcome.sentence}", pytrace=False)
