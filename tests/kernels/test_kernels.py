"""The kernels of this machine through the pipeline: one test per kernel and case; the record decides."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from validators.records.record import Status
from validators.records.text import failure_report

if TYPE_CHECKING:
    from conftest import Judge, KernelCase


@pytest.mark.kernel_cases
def test_kernel(kernel_case: KernelCase, judge: Judge) -> None:
    if kernel_case.unavailable:
        pytest.skip(f"{kernel_case.kernel.name} cannot run here: {kernel_case.unavailable}")
    record = judge(kernel_case)
    if record.status is Status.UNSUPPORTED:
        pytest.skip("; ".join(record.reasons))
    if record.status is not Status.PASSED:
        pytest.fail(failure_report(record), pytrace=False)
