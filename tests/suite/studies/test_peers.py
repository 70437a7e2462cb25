"""The bench of peers, in short: this suite's rows keep their recorded counts, and docs/power.md agrees with a rerun."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from tests import zoo
from tests.studies import peers
from tests.studies.peers_pages import Row, markdown, picture
from tests.studies.peers_run import LEGITIMATE, SETS, WHOLE, BenchError, measure
from validators.kernels import registry

ROOT = Path(__file__).resolve().parents[3]
CRITERIA = ("SGL-MATCH", "TE-CPP", "SGL-GFX95")
DEFECTS = ("N04", "N11", "Q05", "Q22", "G08", "G12")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors: threads that wait for each other cost ten times what they save on a shared machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def pages() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Cells of both tables of docs/power.md by label of the row."""
    first, second = (ROOT / "docs/power.md").read_text(encoding="utf-8").split("## What each criterion")

    def rows(text: str) -> dict[str, list[str]]:
        lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:2] == "| "]
        return {cells[0].strip("*"): cells[1:] for cells in lines}

    return rows(first), rows(second)


@functools.cache
def rerun() -> list[Row]:
    return measure(CRITERIA, DEFECTS, alarms=False)


def test_every_criterion_and_every_defect_has_its_place_on_the_page() -> None:
    counts, missed = pages()
    labels = [Row(c.name, c.ops, c.data, c.style).label for c in peers.criteria()]
    assert len(labels) == len(set(labels))
    assert set(labels) <= set(counts)
    for criterion, label in zip(peers.criteria(), labels, strict=True):
        seen = [d for d in zoo.all_defects() if d.op in criterion.ops]
        assert int(counts[label][2]) == len(seen), label
        assert int(counts[label][7]) == len(seen) - len(missed[label][1].split()), label


def test_a_rerun_agrees_with_the_page() -> None:
    missed = pages()[1]
    checked = 0
    for row in rerun():
        for side, cell in ((row.own, missed[row.label][0]), (row.suite, missed[row.label][1])):
            for identity in side.defects:
                assert (identity in cell.split()) == (identity in side.missed), (row.label, identity)
                checked += 1
    assert checked > len(CRITERIA) * len(DEFECTS)


@pytest.mark.parametrize("op", [peers.QUANT, peers.GEMM])
def test_this_suite_catches_what_it_is_recorded_to_catch(op: str) -> None:
    """Its judge alone, without poison, guards or a second call, on every defect of the op, and on correct kernels."""
    if op == peers.GEMM and (reason := registry.find_kernel("torch_native/scaled_mm").unavailable("cpu")):
        pytest.skip(f"one of the eight correct kernels is not here: {reason}")
    [row] = [r for r in measure((), [d.id for d in zoo.all_defects() if d.op == op], whole=False) if r.name == SETS]
    recorded = pages()[0][row.label]
    assert row.own.seen == row.suite.seen == int(recorded[2])
    assert len(row.own.apart) >= int(recorded[4])
    assert len(row.suite.apart) >= int(recorded[7])
    assert row.own.correct
    assert not row.own.alarms + row.suite.alarms


def test_the_whole_pipeline_misses_none_of_a_few() -> None:
    rows = [r for r in rerun() if r.name == WHOLE]
    assert sum(r.suite.seen for r in rows) == len(DEFECTS)
    assert not [r.suite.missed for r in rows if r.suite.missed]


def test_close_multiplies_the_second_argument_and_lets_nan_equal_nan() -> None:
    one, more = torch.tensor([1.0]).double(), torch.tensor([1.5]).double()
    assert peers.close(one, more, 0.34, 0.0)
    assert not peers.close(more, one, 0.34, 0.0)
    nan, inf = torch.tensor([float("nan")]), torch.tensor([float("inf")])
    assert peers.close(nan, nan, 0.0, 0.0)
    assert peers.close(inf, inf, 0.0, 0.0)
    assert not peers.close(one, inf.double(), 0.5, 0.0)
    assert not peers.close(nan, one, 1.0, 1.0)


def test_the_headline_and_the_picture_are_made_of_the_rows() -> None:
    rows = rerun()
    [whole] = [r for r in rows if r.name == WHOLE and r.ops == (peers.GEMM,)]
    assert f"this suite catches {len(whole.suite.apart)} of {whole.suite.seen} defects" in markdown([whole])
    drawn = ElementTree.fromstring(picture(rows))
    texts = [node.text for node in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert [r.label for r in rows] == [text for text in texts if text in {r.label for r in rows}]


def test_the_results_say_what_the_page_says() -> None:
    """The numbers of the results on published criteria are those of the headline of docs/power.md."""
    page = (ROOT / "docs/power.md").read_text(encoding="utf-8")
    results = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    published = [c for c in peers.criteria() if not c.name.endswith(peers.REPAIRED)]
    assert f"{len(published)} published acceptance criteria" in results
    for op in (peers.ADD, peers.QUANT, peers.GEMM):
        found = re.search(rf"^- `{op}`: this suite catches (\d+) of (\d+) .* tells (\d+) of", page, re.MULTILINE)
        assert found
        row = re.search(rf"^\| `{op}` \| (\d+) of (\d+)\b.*\| (\d+) of ", results, re.MULTILINE)
        assert row
        assert row.groups() == found.groups()


def test_an_op_without_a_published_criterion_is_not_on_the_bench() -> None:
    """A run without names takes every defect of the zoo that the bench can compare; the other ops have no criterion."""
    compared = {op for c in peers.criteria() for op in c.ops}
    assert set(LEGITIMATE) == compared
    other = next(d for d in zoo.all_defects() if d.op not in compared)
    with pytest.raises(BenchError, match=other.id):
        measure((), (other.id,))


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(BenchError, match="NO-SUCH"):
        measure(("NO-SUCH",), ("G01",))
    with pytest.raises(BenchError, match="Z99"):
        measure((), ("Z99",))
