"""What the pages state is what the code has: links, tables, constants, exit statuses, the example."""

from __future__ import annotations

import re

import pytest

from evals.stats import logit_gates, token_gates
from reference import budgets
from reference.contract import GEMM_CONTRACTS, NORM_QUANT_CONTRACTS
from tests.support.made import record
from tests.support.pages import PAGES, ROOT, blocks, read, samples
from validators.commands.cli import exit_of
from validators.judge.statistics import FALSE_ALARM, azuma_lambda
from validators.kernels.plugin import DEFAULT_SUPPORTS
from validators.layers.verdict import CONFIDENCE, MARGIN
from validators.process.guard import Exit
from validators.records.record import Status
from validators.records.verdict import MISTRUSTED_SHARE
from validators.signoff import stages
from validators.words import DEPTHS, LANES, OPS


def test_the_readme_shows_the_example_as_it_is() -> None:
    [shown] = blocks(read("README.md"), "python")
    source = read("docs/examples/my_kernel.py")
    assert source.split('"""\n', 1)[1].strip() == shown.strip()
    changed = set(read("docs/examples/broken_kernel.py").splitlines()) - set(source.splitlines())
    # The module's docstring, the count of whole vectors, and the maximum over them: one defect.
    assert len(changed) == 3, changed


def slug(heading: str) -> str:
    """A heading's anchor as GitHub forms it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("name", PAGES)
def test_relative_links_and_paths_in_code_exist(name: str) -> None:
    text = re.sub(r"^```.*?^```$", "", read(name), flags=re.MULTILINE | re.DOTALL)
    here = (ROOT / name).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (here / path).resolve() if path else ROOT / name
        assert file.exists(), f"{name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), f"{name} links to {target}"
    for path in re.findall(r"`((?:reference|validators|tests|golden|docs|\.ci|\.github)/[\w./-]+\.\w+)`", text):
        assert (ROOT / path).exists(), f"{name} speaks of {path}"


def test_the_glossary_has_every_word_of_the_closed_lists() -> None:
    rows = re.findall(r"^\| ([^|]+?) \|", read("docs/glossary.md"), re.MULTILINE)
    lists = [f"`{op}`" for op in OPS], [f"{lane} lane" for lane in LANES], [f"{depth} depth" for depth in DEPTHS]
    wanted = [*(word for words in lists for word in words), *(status.value for status in Status)]
    assert not [word for word in wanted if word not in rows]
    assert len(set(rows)) == len(rows)


def test_the_readme_fits_and_says_what_is_not_tested() -> None:
    text = read("README.md")
    assert len(text.splitlines()) <= 120
    for status in Status:
        assert f"| {status.value} |" in text
    assert "No kernel has been run on AMD hardware yet" in text


def test_the_stated_exit_statuses_are_those_of_the_code() -> None:
    """The guide's table is ``Exit``; the README's column is what records of each status amount to."""
    guide = read("docs/reading-a-verdict.md").split("## Exit statuses")[1].split("\n## ")[0]
    assert [int(row) for row in re.findall(r"^\| (\d+) \|", guide, re.MULTILINE)] == sorted(Exit)
    stated = dict(re.findall(r"^\| ([A-Z]+) \|[^|]*\| (\d+) \|$", read("README.md"), re.MULTILINE))
    assert set(stated) == {status.value for status in Status}
    for status in Status:
        records = [record(status=Status.PASSED), record(status=status, reasons=("it is so",))]
        assert int(stated[status.value]) == exit_of(records), status
    for words, outcome in (("SIGNED", Exit.YES), ("NOT SIGNED", Exit.NO), ("UNTESTED", Exit.NO_DECISION)):
        assert re.search(rf"[ ,]{words} \({outcome.value}\)", read("README.md")), words


def test_every_contract_is_in_the_guide() -> None:
    listed = read("docs/your-kernel.md").split("## Contracts")[1]
    for name in (*NORM_QUANT_CONTRACTS, *GEMM_CONTRACTS):
        assert f"`{name}`" in listed, name


def test_the_supports_table_is_the_protocol() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (True|False)\b", read("docs/your-kernel.md"), re.MULTILINE)
    assert rows == [(key, str(value)) for key, value in DEFAULT_SUPPORTS.items()]


def test_the_stated_policies_are_those_of_the_code() -> None:
    text = read("docs/derivations.md")
    for name, value in (
        ("`MISTRUSTED_SHARE`", MISTRUSTED_SHARE),
        ("`FALSE_ALARM`", FALSE_ALARM),
        ("`MARGIN` of layers", MARGIN),
        ("`CONFIDENCE` of layers", CONFIDENCE),
        ("`NOISE_LIMIT`", token_gates.NOISE_LIMIT),
        ("`MEAN_NOISE_LIMIT`", token_gates.MEAN_NOISE_LIMIT),
        ("`REBATCH_FACTOR`", logit_gates.REBATCH_FACTOR),
        ("`MEAN_MARGIN`", token_gates.MEAN_MARGIN),
    ):
        assert f"| {name} | {value:g} |" in text
    assert f"A sign-off walks {stages.LAYERS_TOKENS} tokens" in text


def test_the_constants_of_the_derivations_are_those_of_the_code() -> None:
    text = read("docs/derivations.md")
    for c in NORM_QUANT_CONTRACTS.values():
        rms = budgets.rms_budget(c, 5120)
        rounded = c.round_after_normalize or c.round_after_weight
        scale = rms + budgets.multiply_budget(c, gemma=False) + budgets.scale_step_budget(c, c.qmax("e4m3fn"))
        last = "by the grid of T" if rounded else f"{scale.total_u:g}"
        assert f"| `{c.name}` | {c.reduction.depth(5120)} | {rms.total_u:g} | {last} |" in text
        codes = [budgets.code_budget(c, c.qmax(fp8), gemma=False).total_u for fp8 in ("e4m3fn", "e4m3fnuz")]
        row = f"| `{c.name}` | {codes[0]:g} | {codes[1]:g} |"
        assert (row in text) != rounded, row
    for k in (512, 5120, 12288):
        alpha, beta = budgets.unknown_unit_budget(k)
        assert f"| {k} | {budgets.fp32_sum_budget(k):.2e} | {alpha:.2e} | {beta:.2e} |" in text
    assert f"> {budgets.UNKNOWN_ASSUMPTION}" in text
    assert f"The false-alarm probability is {FALSE_ALARM:g}, so λ = {azuma_lambda():.2f}" in text


def test_the_guide_explains_the_first_line_of_the_sample() -> None:
    [(_, sample)] = samples(read("README.md"))
    assert f"`{sample.splitlines()[0]}`" in read("docs/reading-a-verdict.md")
