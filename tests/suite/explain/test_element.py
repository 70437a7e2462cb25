"""The explanation of one element: its lines on an element of each op, and that its verdict is the comparison's."""

from __future__ import annotations

import pytest
import torch

from reference.contract import Contract, get_contract
from tests import zoo
from tests.support.case_inputs import element_report
from validators.__main__ import main
from validators.calls.call import Claim, run_kernel
from validators.cases.case import Case
from validators.cases.tensors import GemmInputs, GemmOutputs
from validators.explain.element import ElementError
from validators.judge.compare import compare
from validators.kernels.kernel import Kernel
from validators.kernels.registry import find_kernel


def claim(kernel: Kernel, case: str) -> Claim:
    return run_kernel(kernel, Case.parse(case), "cpu")


def contract_of(kernel: Kernel, name: str | None = None) -> Contract:
    return get_contract(kernel.op, name or str(kernel.contract))


def lines(
    kernel: str, case: str, row: int, col: int, output: str | None = None, contract: str | None = None
) -> list[str]:
    found = find_kernel(kernel, Case.parse(case).op)
    made = claim(found, case)
    text = element_report(made.inputs, made.outputs, contract_of(found, contract), row, col)
    return text.splitlines()


def test_a_code_of_the_fused_op_line_by_line() -> None:
    case = "add_rmsnorm_quant-m8-n72-bf16-e4m3fn-gaussian_gain-s0"
    assert lines("emulated/aiter-hip-gfx950", case, 3, 17) == [
        "codes of row 3, column 17, under contract aiter-hip-gfx950",
        "  x             -0.328125  0xbea8 bf16",
        "  residual      0.2197265625  0x3e61 bf16",
        "  sum           -0.1083984375  0xbdde0000 fp32 = fl32(x + residual)",
        "  residual_out  -0.1083984375  0xbdde bf16, the sum rounded to nearest even",
        "                -0.1083984375  0xbdde bf16, got",
        "  norm input z  -0.1083984375  0xbdde0000 fp32 = the sum",
        "  mean square   1.975040547 over 72 elements, exact; eps 1e-05",
        "  rms           0.7115589614 = 1/sqrt(mean square + eps)",
        "                the kernel's fp32 value in [0.711558044, 0.7115598917], "
        "budget 22 u = reduction 17.5 + mean and eps 2.5 + rsqrt 2",
        "  weight w      -0.017578125  0xbc900000 fp32",
        "  y             0.001355833821 = z * rms * w, not rounded before the quantizer",
        "  amax          1.758767546 = |y| of column 21; in fp32 [1.758765101, 1.758769989]",
        "                not below 1e-10",
        "  scale         0.003925820813  0x3b80a42c fp32 = amax * fl32(1/448), row is NORMAL",
        "                admissible [0.003925815225, 0.003925825935], budget 25.75 u = reduction 17.5 + mean and "
        "eps 2.5 + rsqrt 2 + multiplies 2 + reciprocal of Q 0.75 + scale 1",
        "                0.003925820813  0x3b80a42c fp32, got: admissible",
        "  t = y/s       0.3453631795 in [0.3453629994, 0.3453633597]  (rms cancels)",
        "  codes         0x2a = 0.3125, t from 0.296875 to 0.328125",
        "                0x2b = 0.34375, t from 0.328125 to 0.359375  <- admissible, got",
        "                0x2c = 0.375, t from 0.359375 to 0.390625",
        "  verdict       ADMISSIBLE: the only admissible code",
    ]


def test_every_rounding_point_of_a_contract_is_a_line() -> None:
    case = "add_rmsnorm_quant-m8-n72-bf16-e4m3fn-gaussian_gain-s0"
    text = lines("emulated/vllm", case, 3, 17)
    start = next(i for i, line in enumerate(text) if "z * rms" in line)
    assert text[start : start + 9] == [
        "  z * rms       -0.07713187486  0xbd9df751 fp32",
        "                -0.0771484375  0xbd9e bf16, rounded to bf16",
        "  y             0.001356124878  0x3ab1c000 fp32 = (z * rms) * w",
        "                0.001358032227  0x3ab2 bf16, rounded to bf16",
        "                |y| in 0.001358032227 over the interval of rms",
        "  amax          1.7578125 = |y| of column 21; in fp32 1.7578125",
        "  scale         0.00392368855  0x3b809249 fp32 = amax / 448, row is NORMAL",
        "                admissible 0.00392368855, from an amax that is a value of bf16",
        "                0.00392368855  0x3b809249 fp32, got: admissible",
    ]


def test_a_code_of_the_quantizer_line_by_line() -> None:
    assert lines("emulated/aiter-hip-gfx950", "per_token_quant-m8-n72-bf16-e4m3fn-gaussian-s0", 3, 17) == [
        "codes of row 3, column 17, under contract aiter-hip-gfx950",
        "  x             0.69921875  0x3f33 bf16",
        "  amax          2.84375 = |y| of column 14; in fp32 2.84375",
        "                not below 1e-10",
        "  scale         0.006347656716  0x3bd00001 fp32 = amax * fl32(1/448), row is NORMAL",
        "                admissible 0.006347656716, from an amax that is a value of bf16",
        "                0.006347656716  0x3bd00001 fp32, got: admissible",
        "  t = y/s       110.1538381 in [110.1538239, 110.1538544]  (by the kernel's own scale)",
        "  codes         0x6d = 104, t from 100 to 108",
        "                0x6e = 112, t from 108 to 116  <- admissible, got",
        "                0x6f = 120, t from 116 to 124",
        "  verdict       ADMISSIBLE: the only admissible code",
    ]


def test_an_output_of_the_gemm_line_by_line() -> None:
    assert lines("emulated/fp32", "ptpc_gemm-m8-n16-k64-bf16-e4m3fn-gaussian-bias-s0", 3, 5) == [
        "out of row 3, column 5, under contract fp32",
        "  sum           121096 of 64 products, exact",
        "                sum|a*b| 893100, 64 products are not zero",
        "                k 4: 0xf9 * 0xf3 = 50688",
        "                k 16: 0xf9 * 0xf1 = 41472",
        "                k 36: 0xfc * 0x6d = -39936",
        "  scales        token 0.004570854362  0x3b95c71b fp32",
        "                channel 0.003606211627  0x3b6c5631 fp32",
        "  accumulator   fp32, any order: off by at most 3.755092621e-06 * sum|a*b|",
        "                that is 3.353698806 here",
        "  exact         1.996082059 = sum * token * channel",
        "                off by at most 5.555836074e-05 before the store",
        "  bias          -1.328125  0xbfaa bf16, added before the store",
        "                0.6679570585 with the exact value",
        "  admissible    0.66796875, 1 value of bf16",
        "  got           0.66796875  0x3f2b bf16",
        "  verdict       ADMISSIBLE: the only admissible value",
    ]


def test_a_known_unit_shows_its_accumulator_and_every_order_of_the_scales() -> None:
    text = lines("emulated/fp32", "ptpc_gemm-m8-n16-k64-bf16-e4m3fn-gaussian-s0", 3, 5, contract="hopper-fast")
    start = next(i for i, line in enumerate(text) if "accumulator" in line)
    assert text[start : start + 5] == [
        "  accumulator   81704  0x479f9400 fp32, unit hopper-fast bit for bit",
        "                0 from the exact sum",
        "  epilogue      0.8392202854  0x3f56d724 fp32 = (acc * token) * channel",
        "                0.8392202854  0x3f56d724 fp32 = (acc * channel) * token",
        "                0.839220345  0x3f56d725 fp32 = acc * (token * channel)",
    ]


def test_an_unknown_unit_states_its_assumption() -> None:
    text = "\n".join(lines("emulated/unknown", "ptpc_gemm-m8-n16-k64-bf16-e4m3fn-small_integers-s0", 3, 5))
    assert "assumes that the matrix unit forms products exactly" in text
    assert "here nothing rounds, in any order: the sum is exact" in text


def test_a_truncated_residual_is_two_lines_that_differ() -> None:
    case = "add_rmsnorm_quant-m8-n72-bf16-e4m3fn-residual_ties-s0"
    kernel = zoo.find_defect("N04").kernel
    made = claim(kernel, case)
    contract = contract_of(kernel)
    worst = next(c for c in compare(made.inputs, made.outputs, contract) if c.output == "residual_out").worst[0]
    text = element_report(made.inputs, made.outputs, contract, worst.row, worst.col, "residual_out").splitlines()
    assert worst.got_bits in text[-2]
    assert text[-2].endswith("got")
    assert text[-1] == "  verdict       NOT ADMISSIBLE: the bits differ, and one value is admissible"


# Small cases of which every element is explained: kernels that are right, wrong in the scale, in the codes, everywhere.
_AGREEMENT = [
    ("emulated/vllm", None, "add_rmsnorm_quant-m4-n40-bf16-e4m3fn-midpoints-s0"),
    ("emulated/aiter-triton", "aiter-hip-gfx950", "add_rmsnorm_quant-m4-n40-bf16-e4m3fn-gaussian_gain-s0"),
    ("emulated/eager", "vllm", "add_rmsnorm_quant-m4-n40-fp16-e4m3fnuz-double_rounding-s0"),
    ("emulated/torch-compile", None, "add_rmsnorm_quant-m8-n40-bf16-e4m3fn-nonfinite-nores-s0"),
    ("emulated/unfused", None, "add_rmsnorm_quant-m4-n40-bf16-e4m3fn-zero_rows-s0"),
    ("emulated/eager", "aiter-hip-gfx950", "per_token_quant-m4-n40-bf16-e4m3fn-midpoints-s0"),
    ("emulated/aiter-triton", "eager", "per_token_quant-m4-n40-bf16-e4m3fn-subnormal_rows-s0"),
    ("Q14", None, "per_token_quant-m4-n40-bf16-e4m3fn-gaussian-s0"),
    ("Q03", None, "add_rmsnorm_quant-m4-n40-bf16-e4m3fnuz-gaussian-s0"),
    ("Q12", None, "add_rmsnorm_quant-m4-n40-bf16-e4m3fn-crest_ladder-s0"),
    ("N04", None, "add_rmsnorm_quant-m4-n40-bf16-e4m3fn-residual_ties-s0"),
    ("N13", None, "add_rmsnorm_quant-m4-n40-bf16-e4m3fn-gaussian-gemma-s0"),
    ("G12", None, "ptpc_gemm-m6-n16-k64-bf16-e4m3fn-gaussian-s0"),
    ("G19", None, "ptpc_gemm-m6-n16-k64-fp16-e4m3fn-nan_row-s0"),
    ("emulated/fp32", "hopper-fast", "ptpc_gemm-m6-n16-k256-bf16-e4m3fn-random_bytes-bias-s0"),
    ("emulated/unknown", None, "ptpc_gemm-m6-n16-k64-bf16-e4m3fn-huge_scales-bias-s0"),
]


@pytest.mark.parametrize(("name", "contract", "case"), _AGREEMENT)
def test_its_verdict_is_the_comparisons_on_every_element(name: str, contract: str | None, case: str) -> None:
    parsed = Case.parse(case)
    kernel = zoo.find_defect(name).kernel if "/" not in name else find_kernel(name, parsed.op)
    made, judged_by = claim(kernel, case), contract_of(kernel, contract)
    for comparison in compare(made.inputs, made.outputs, judged_by):
        columns = [0] if comparison.output == "scale" else range(parsed.n)
        verdicts = [
            element_report(made.inputs, made.outputs, judged_by, row, col, comparison.output).splitlines()[-1]
            for row in range(parsed.m)
            for col in columns
        ]
        assert sum("NOT ADMISSIBLE" in v for v in verdicts) == comparison.violations, comparison.output
        assert sum("UNSPECIFIED" in v for v in verdicts) == comparison.unspecified, comparison.output
        assert len(verdicts) == comparison.judged + comparison.unspecified


def test_the_cases_above_have_violations_of_every_output() -> None:
    """Agreement on nothing but good elements would prove little."""
    wrong = set()
    for name, contract, case in _AGREEMENT:
        kernel = zoo.find_defect(name).kernel if "/" not in name else find_kernel(name, Case.parse(case).op)
        made = claim(kernel, case)
        found = compare(made.inputs, made.outputs, contract_of(kernel, contract))
        wrong |= {c.output for c in found if c.violations} | {"unspecified" for c in found if c.unspecified}
    assert wrong == {"residual_out", "scale", "codes", "out", "unspecified"}


@pytest.mark.parametrize(
    ("row", "col", "output", "contract", "sentence"),
    [
        (4, 0, None, None, "(4, 0) is outside the output, which has 4 rows and 40 columns"),
        (0, -1, None, None, "(0, -1) is outside the output, which has 4 rows and 40 columns"),
        (0, 0, "out", None, "this case has no output 'out'; known: codes, scale"),
        (0, 0, "residual_out", None, "this case has no output 'residual_out'; known: codes, scale"),
        (0, 0, None, "fp32", "contract 'fp32' does not belong to these inputs"),
    ],
)
def test_an_element_that_is_not_there_is_one_sentence(
    row: int, col: int, output: str | None, contract: str | None, sentence: str
) -> None:
    made = claim(find_kernel("emulated/eager", "per_token_quant"), "per_token_quant-m4-n40-bf16-e4m3fn-gaussian-s0")
    judged_by = get_contract("ptpc_gemm", contract) if contract else get_contract("per_token_quant", "eager")
    with pytest.raises(ElementError) as error:
        element_report(made.inputs, made.outputs, judged_by, row, col, output)
    assert str(error.value) == sentence


def test_the_command_says_admissible_with_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    case = "per_token_quant-m16-n40-bf16-e4m3fn-gaussian-s0"
    options = ["explain", case, "--kernel", "emulated/eager", "--row", "1", "--col", "2", "--device", "cpu"]
    assert main(options) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"emulated/eager on {case}, contract declared"
    assert printed[1] == "codes of row 1, column 2, under contract eager"
    options = [*options, "--output", "scale", "--contract", "aiter-hip-gfx950"]
    codes = {main([*options[:5], str(row), *options[6:]]) for row in range(4)}
    # amax * fl32(1/448) and amax / 448 differ in some rows and not in others.
    assert codes == {0, 1}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense", "--kernel", "emulated/eager", "--row", "0"], "is not a case id"),
        (
            ["per_token_quant-m4-n40-bf16-e4m3fn-gaussian-s0", "--kernel", "emulated/eager", "--row", "9"],
            "is outside",
        ),
        (["per_token_quant-m4-n40-bf16-e4m3fn-gaussian-s0", "--kernel", "nobody", "--row", "0"], "unknown kernel"),
        (["per_token_quant-m4-n40-bf16-e4m3fn-gaussian-s0", "--kernel", "emulated/eager"], "required: --row"),
    ],
)
def test_the_command_answers_bad_input_with_one_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", *arguments, "--col", "0"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert words in said[0]


@pytest.mark.parametrize(
    ("value", "last"),
    [
        (float("inf"), "UNSPECIFIED"),
        (65504.0, "UNSPECIFIED"),
        (0.0, "NOT ADMISSIBLE"),
        (-65504.0, "NOT ADMISSIBLE"),
        (float("nan"), "NOT ADMISSIBLE"),
    ],
)
def test_beyond_the_range_the_report_says_what_the_judge_says(value: float, last: str) -> None:
    """2 * 1e6 in fp16: Inf or the largest value may be stored, and nothing else."""
    codes, scale = torch.ones(1, 2, dtype=torch.float8_e4m3fn), torch.ones(1, 1)
    inputs = GemmInputs(codes, scale * 1e6, codes, scale, None, torch.float16)
    outputs = GemmOutputs(torch.full((1, 1), value, dtype=torch.float16))
    contract = get_contract("ptpc_gemm", "fp32")
    report = element_report(inputs, outputs, contract, 0, 0)
    assert report.splitlines()[-1] == f"  verdict       {last}: the exact value is beyond the range of fp16"
    assert compare(inputs, outputs, contract)[0].violations == (last == "NOT ADMISSIBLE")
