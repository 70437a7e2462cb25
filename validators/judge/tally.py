"""Counts about one output, gathered chunk by chunk; memory stays flat whatever the number of rows is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch

from validators.records.record import Comparison, Element

WORST = 5
STEP_LIMIT = 5
USE_BINS = 4096
NO_BUDGET = 1e100
"""Ranks elements without a budget above every finite ratio; the ranking is all that it is used for."""


class Tally:
    """Accumulates one output's comparison. rows, cols: shape of the output as a matrix."""

    def __init__(self, output: str, rows: int, cols: int) -> None:
        self.output, self.rows, self.cols = output, rows, cols
        self.judged = self.unspecified = self.violations = self.ambiguous = self.wide = 0
        self.row_counts = torch.zeros(rows, dtype=torch.int64)
        self.col_counts = torch.zeros(cols, dtype=torch.int64)
        self.nonfinite = {"got_nan": 0, "got_inf": 0, "unexpected": 0, "missing": 0}
        self.steps: dict[int, int] = {}
        self.worst: list[tuple[float, Element]] = []
        self.worst_use = self.worst_use_passing = 0.0
        self.use_histogram = torch.zeros(USE_BINS + 1, dtype=torch.int64)
        self.observed: dict[str, int] = {}

    def use(self, use: torch.Tensor, violating: torch.Tensor | None) -> None:
        """err/budget of judged elements (any shape, >= 0) and which of them violate (None: none does). Judged elements
        that are never offered count as zero."""
        if use.numel() == 0:
            return
        use = torch.nan_to_num(use.double(), nan=math.inf, posinf=math.inf)
        worst = float(use.max())
        self.worst_use = max(self.worst_use, worst)
        if violating is None:
            self.worst_use_passing = max(self.worst_use_passing, worst)
        elif (passing := use[~violating]).numel():
            self.worst_use_passing = max(self.worst_use_passing, float(passing.max()))
        bins = (use * USE_BINS).ceil_().clamp_(max=USE_BINS).int().flatten()
        self.use_histogram += torch.bincount(bins, minlength=USE_BINS + 1).cpu()

    def step_counts(self, steps: torch.Tensor) -> None:
        """Signed distances in steps of the output format from the correctly rounded value (integers, any shape)."""
        if steps.is_floating_point():
            steps = torch.nan_to_num(steps, nan=STEP_LIMIT)
        clipped = steps.clamp(-STEP_LIMIT, STEP_LIMIT).int().flatten()
        counts = torch.bincount(clipped + STEP_LIMIT, minlength=2 * STEP_LIMIT + 1).tolist()
        for index, count in enumerate(counts):
            if count:
                self.steps[index - STEP_LIMIT] = self.steps.get(index - STEP_LIMIT, 0) + count

    def violation_points(self, row: torch.Tensor, col: torch.Tensor) -> None:
        """Violations by index (1-D, global rows)."""
        ones = torch.ones(row.numel(), dtype=torch.int64)
        self.row_counts.scatter_add_(0, row.cpu(), ones)
        self.col_counts.scatter_add_(0, col.cpu(), ones)
        self.violations += row.numel()

    def candidates(self, ratio: torch.Tensor, err: torch.Tensor, make: Callable[[int], Element]) -> None:
        """Offer violating elements: ratio (err/budget) and err 1-D, make(i) -> the i-th; the worst few are kept.

        Without a budget every ratio is infinite; then the size of the error decides.
        """
        if ratio.numel() == 0:
            return
        size = torch.nan_to_num(err.double().abs(), nan=NO_BUDGET, posinf=NO_BUDGET).clamp(max=NO_BUDGET)
        ratio = torch.nan_to_num(ratio.double(), nan=math.inf, posinf=math.inf)
        ratio = torch.where(ratio.isinf(), NO_BUDGET * (1.0 + size), ratio)
        best = ratio.topk(min(WORST, ratio.numel()))
        for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            self.worst.append((value, make(index)))
        self.worst.sort(key=lambda pair: -pair[0])
        del self.worst[WORST:]

    def count_nonfinite(self, got: torch.Tensor, expected: torch.Tensor) -> None:
        """Non-finite table over violating elements (any equal shapes): what came, what was expected."""
        self.nonfinite["got_nan"] += int(got.isnan().sum())
        self.nonfinite["got_inf"] += int(got.isinf().sum())
        self.nonfinite["unexpected"] += int((~got.isfinite() & expected.isfinite()).sum())
        self.nonfinite["missing"] += int((got.isfinite() & ~expected.isfinite()).sum())

    def note(self, words: str, count: int = 1) -> None:
        """Something seen where nothing is judged."""
        self.observed[words] = self.observed.get(words, 0) + count

    def result(self) -> Comparison:
        """The comparison."""
        elements = self.rows * self.cols
        exact_steps = self.judged - sum(self.steps.values())
        histogram = dict(self.steps)
        if exact_steps > 0:
            histogram[0] = histogram.get(0, 0) + exact_steps
        keys = sorted(histogram)
        names = {k: (f">={k}" if k == STEP_LIMIT else f"<={k}" if k == -STEP_LIMIT else str(k)) for k in keys}
        return Comparison(
            output=self.output,
            elements=elements,
            judged=self.judged,
            unspecified=self.unspecified,
            violations=self.violations,
            single=self.judged - self.ambiguous,
            worst_use=self.worst_use,
            worst_use_passing=self.worst_use_passing,
            where=where_in_words(self.row_counts, self.col_counts) if self.violations else "",
            rows=int((self.row_counts > 0).sum()) if self.violations else 0,
            cols=int((self.col_counts > 0).sum()) if self.violations else 0,
            worst=tuple(element for _, element in self.worst),
            use_quantiles=self._quantiles(),
            ulp_histogram={names[k]: histogram[k] for k in keys},
            wide=self.wide,
            nonfinite={k: v for k, v in self.nonfinite.items() if v},
            observed="; ".join(
                f"{words} ({count} rows)" if count > 1 else words for words, count in self.observed.items()
            ),
        )

    def _quantiles(self) -> dict[str, float]:
        """Over all judged elements; those that were never offered have their only admissible value, and use 0."""
        if self.judged == 0:
            return {}
        cumulative = self.use_histogram.numpy().cumsum()
        offered = int(cumulative[-1])
        total = max(self.judged, offered)
        positions = [math.ceil(share * total) - (total - offered) for share in (0.5, 0.99)]
        p50, p99 = (int(cumulative.searchsorted(place)) / USE_BINS if place > 0 else 0.0 for place in positions)
        return {"p50": p50, "p99": p99, "max": self.worst_use}


def runs_in_words(indices: list[int], noun: str) -> str:
    """Consecutive indices in words: ``row 9``, ``rows 256 to 511``; empty where there is no pattern."""
    if not indices:
        return ""
    if len(indices) == 1:
        return f"{noun} {indices[0]}"
    if indices[-1] - indices[0] + 1 == len(indices):
        return f"{noun}s {indices[0]} to {indices[-1]}"
    steps = {b - a for a, b in itertools.pairwise(indices)}
    if len(steps) == 1 and len(indices) > 2:
        return f"every {steps.pop()}th {noun} from {indices[0]}"
    if len(indices) <= 6:
        return f"{noun}s {', '.join(map(str, indices))}"
    return ""


def where_in_words(row_counts: torch.Tensor, col_counts: torch.Tensor) -> str:
    """Where violations are, from their counts per row and per column."""
    rows = row_counts.nonzero().flatten().tolist()
    cols = col_counts.nonzero().flatten().tolist()
    all_rows, all_cols = len(rows) == len(row_counts), len(cols) == len(col_counts)
    total = int(row_counts.sum())
    if len(col_counts) == 1:
        return (
            "every row" if all_rows else f"{len(rows)} of {len(row_counts)} rows" + _after(runs_in_words(rows, "row"))
        )
    parts = []
    if all_rows and all_cols:
        parts.append("every row and column")
    else:
        parts.append(
            "every row" if all_rows else runs_in_words(rows, "row") or f"{len(rows)} of {len(row_counts)} rows"
        )
        parts.append(
            "every column" if all_cols else runs_in_words(cols, "column") or f"{len(cols)} of {len(col_counts)} columns"
        )
    share = total / max(1, len(rows) * len(cols))
    words = ", ".join(parts)
    if len(rows) * len(cols) > 1:
        words += f" ({100 * share:.3g} % of the elements there)"
    top_row = int(row_counts.argmax())
    if len(rows) > 1 and int(row_counts[top_row]) > 0.9 * total:
        words += f"; mostly row {top_row}"
    top_col = int(col_counts.argmax())
    if len(cols) > 1 and int(col_counts[top_col]) > 0.9 * total:
        words += f"; mostly column {top_col}"
    return words


def _after(words: str) -> str:
    return f" ({words})" if words else ""
