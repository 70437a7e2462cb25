"""The user's own kernels: the forms, the attributes, the results, and one sentence for each mistake."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.support.fakes import norm, quantize
from validators.cases import tensors
from validators.cases.case import Case
from validators.kernels import plugin
from validators.kernels.kernel import Kernel, KernelError
from validators.kernels.registry import find_kernel
from validators.records.record import Status
from validators.records.text import failure_report
from validators.run import validate

FN = torch.float8_e4m3fn
FORMS = {
    "add_rmsnorm_quant": "def f(x, residual, weight, eps, fp8_dtype): ",
    "in place": "def f(out, input, residual_in, residual_out, scale, weight, epsilon): ",
    "per_token_quant": "def f(x, fp8_dtype): ",
    "ptpc_gemm": "def f(a, a_scale, b, b_scale, bias, out_dtype): ",
}
NORM_CASE = Case("add_rmsnorm_quant", 4, 64, "gaussian")


def write(folder: Path, source: str, name: str = "mine.py") -> str:
    (folder / name).write_text(source)
    return f"{folder / name}:f"


def inputs(residual: bool = True, gemma: bool = False) -> tensors.NormQuantInputs:
    x, r = torch.randn((2, 4, 32), generator=torch.Generator().manual_seed(1)).bfloat16()
    weight = torch.linspace(0.5, 1.5, 32).bfloat16()
    return tensors.NormQuantInputs(x, r if residual else None, weight, 1e-5, FN, gemma)


def buffers(residual: bool = True) -> tensors.NormQuantOutputs:
    stored = torch.full((4, 32), float("nan")).bfloat16() if residual else None
    return tensors.NormQuantOutputs(torch.zeros(4, 32).to(FN), torch.full((4, 1), float("nan")), stored)


def same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("form", list(FORMS))
def test_the_parameter_names_say_the_op(tmp_path: Path, form: str) -> None:
    spec = write(tmp_path, FORMS[form] + "...")
    op = "add_rmsnorm_quant" if form == "in place" else form
    kernel = plugin.load(spec)
    assert (kernel.name, kernel.op, kernel.contract) == (spec, op, None)
    assert kernel.in_place == (form == "in place")
    assert not kernel.fake
    assert not kernel.emulated
    assert kernel.unavailable("cpu") is None
    assert kernel.versions()["torch"] == torch.__version__
    assert find_kernel(spec, op).name == spec, "the registry finds it under the name that records carry"
    other = "ptpc_gemm" if op != "ptpc_gemm" else "per_token_quant"
    with pytest.raises(KernelError, match=f"computes {op} by its parameter names, not {other}"):
        plugin.load(spec, other)


NORM_BODY = """
import torch
from tests.support.fakes import norm, quantize

def f(weight, x, residual, eps, fp8_dtype, block=64, *, gemma=False):
    z = x.float() if residual is None else x.float() + residual.float()
    codes, scale = quantize(norm(z, weight, eps, gemma))
    return codes, scale, None if residual is None else z.to(x.dtype)

f.contract = "unfused"
f.supports = {"gemma": True, "strided": True, "fnuz": False}
"""


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("gemma", [True, False])
def test_a_norm_is_called_by_name_with_extras_left_at_their_defaults(
    tmp_path: Path, residual: bool, gemma: bool
) -> None:
    kernel = plugin.load(write(tmp_path, NORM_BODY))
    given = inputs(residual, gemma)
    out = kernel.call(given, buffers(residual))
    assert isinstance(out, tensors.NormQuantOutputs)
    z = given.x.float() if given.residual is None else given.x.float() + given.residual.float()
    codes, scale = quantize(norm(z, given.weight, given.eps, gemma))
    assert same_bytes(out.codes, codes)
    assert torch.equal(out.scale, scale)
    assert (out.residual_out is not None) == residual
    assert kernel.contract == "unfused"


IN_PLACE_BODY = """
from tests.support.fakes import norm, quantize

def f(out, input, residual_in, residual_out, scale, weight, epsilon, group_size=0, shuffle_scale=False):
    z = input.float() + residual_in.float()
    residual_out.copy_(z)
    codes, scales = quantize(norm(z, weight, epsilon, False))
    out.copy_(codes)
    scale.copy_(scales)
    return "ignored"
"""


def test_the_in_place_order_fills_the_buffers(tmp_path: Path) -> None:
    kernel = plugin.load(write(tmp_path, IN_PLACE_BODY))
    given, target = inputs(), buffers()
    assert kernel.call(given, target) is target
    assert given.residual is not None
    codes, scale = quantize(norm(given.x.float() + given.residual.float(), given.weight, given.eps, False))
    assert same_bytes(target.codes, codes)
    assert torch.equal(target.scale, scale)
    assert target.residual_out is not None
    assert torch.equal(target.residual_out, given.x + given.residual)
    assert '"residual_none"' in str(kernel.unsupported(dataclasses.replace(NORM_CASE, residual=False)))


def test_quantizers_and_gemms(tmp_path: Path) -> None:
    source = (
        "from tests.support.fakes import quantize\n" + FORMS["per_token_quant"] + "return list(quantize(x.float()))"
    )
    x = inputs().x
    out = plugin.load(write(tmp_path, source)).call(tensors.QuantInputs(x, FN), buffers())
    assert isinstance(out, tensors.QuantOutputs)
    assert same_bytes(out.codes, quantize(x.float())[0])
    source = (
        "def f(a, b, a_scale, b_scale, out_dtype, bias=None):\n"
        "    y = (a.float() @ b.float().t()) * a_scale * b_scale.t()\n"
        "    return (y if bias is None else y + bias.float()).to(out_dtype)"
    )
    a, b = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3) - 5
    bias = torch.tensor([1.0, 2.0, 3.0, 4.0]).bfloat16()
    kernel = plugin.load(write(tmp_path, source, "gemm.py"))
    given = tensors.GemmInputs(a.to(FN), torch.ones(2, 1) * 2, b.to(FN), torch.ones(4, 1) * 0.5, bias, torch.bfloat16)
    product = kernel.call(given, buffers())
    assert isinstance(product, tensors.GemmOutputs)
    assert torch.equal(product.out, (a @ b.t() + bias.float()).bfloat16())


def test_modules_and_siblings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_sibling_of_mine.py").write_text("VALUE = 7")
    spec = write(tmp_path, "from a_sibling_of_mine import VALUE\n" + FORMS["per_token_quant"] + "return VALUE")
    with pytest.raises(KernelError, match="returned a int, not a tuple"):
        plugin.load(spec).call(tensors.QuantInputs(inputs().x, FN), buffers())
    monkeypatch.syspath_prepend(str(tmp_path))
    assert plugin.load("mine:f").op == "per_token_quant"


def test_an_edited_file_is_read_again(tmp_path: Path) -> None:
    import os

    spec = write(tmp_path, FORMS["per_token_quant"] + "...")
    assert plugin.load(spec).op == "per_token_quant"
    write(tmp_path, FORMS["ptpc_gemm"] + "...")
    os.utime(tmp_path / "mine.py", ns=(1, 1))
    assert plugin.load(spec).op == "ptpc_gemm"


BROKEN = {
    "extra parameter": (
        "def f(x, fp8_dtype, stream): ...",
        "takes (x, fp8_dtype, stream), which is none of the known forms",
    ),
    "wrong names": ("def f(hidden, q): ...", "takes (hidden, q), which is none of the known forms: (x, residual,"),
    "positional": ("def f(x, fp8_dtype, /): ...", "takes x, fp8_dtype by position only"),
    "not a function": ("f = 3", "is a int, not a function"),
    "absent": ("g = 3", "has no function 'f'"),
    "raises": ("raise ValueError('no toolkit found')", "raised ValueError: no toolkit found"),
    "exits": ("raise SystemExit(4)", "raised SystemExit: 4"),
    "syntax": ("def f(:", "raised SyntaxError"),
    "import": ("import a_module_that_is_not_there", "No module named 'a_module_that_is_not_there'"),
    "contract": ("def f(x, fp8_dtype): ...\nf.contract = 'mine'", "declares an unknown contract 'mine' for op per_tok"),
    "contract of another op": ("def f(x, fp8_dtype): ...\nf.contract = 'fp32'", "unknown contract 'fp32'"),
    "supports": ("def f(x, fp8_dtype): ...\nf.supports = {'4d': True}", "supports has unknown keys 4d; known: 3d, str"),
    "supports values": ("def f(x, fp8_dtype): ...\nf.supports = {'3d': 'yes'}", "must be a dict of True and False"),
    "supports type": ("def f(x, fp8_dtype): ...\nf.supports = ['3d']", "must be a dict of True and False"),
    "gemma": (FORMS["add_rmsnorm_quant"] + "...\nf.supports = {'gemma': True}", "but no parameter is named gemma or"),
    "devices": (
        "def f(x, fp8_dtype): ...\nf.devices = 'cuda'",
        'must be a tuple of "cpu", "cuda" and "amdgcn", not \'cuda\'',
    ),
}


@pytest.mark.parametrize(("source", "words"), BROKEN.values(), ids=BROKEN)
def test_every_mistake_in_the_file_is_one_sentence(tmp_path: Path, source: str, words: str) -> None:
    spec = write(tmp_path, source)
    with pytest.raises(KernelError) as caught:
        plugin.load(spec)
    assert words in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_every_mistake_in_the_name_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "broken_package_of_mine").mkdir()
    for spec, words in {
        f"{tmp_path}/gone.py:f": "there is no file",
        "a_module_that_is_not_there:f": "there is no module a_module_that_is_not_there (a file needs its .py)",
        "torch.not_there:f": "there is no module torch.not_there",
        "torch:": "names no kernel; expected path/to/file.py:function or module:function",
        ":f": "names no kernel",
        "torch:not_there": "torch has no function 'not_there'",
        write(tmp_path, "def fused(x): ...").replace(":f", ":fast"): "has no function 'fast'; it has fused",
    }.items():
        with pytest.raises(KernelError) as caught:
            plugin.load(spec)
        assert words in str(caught.value), spec


RESULTS = {
    "none": ("add_rmsnorm_quant", "None", "returned None, not a tuple (codes, scale, residual_out)"),
    "two": ("add_rmsnorm_quant", "x, x", "returned 2 values, not the 3 of (codes, scale, residual_out)"),
    "no residual": ("add_rmsnorm_quant", "x, x, None", "returned None as residual_out although there was a residual"),
    "list scale": ("add_rmsnorm_quant", "x, [1.0], x", "returned (a float) as scale, not a tensor"),
    "missing scale": ("per_token_quant", "x, None", "returned None as scale, not a tensor"),
    "one tensor": ("per_token_quant", "x", "returned a Tensor [4, 32] bfloat16, not a tuple (codes, scale)"),
    "gemm": (
        "ptpc_gemm",
        "(a, b)",
        "returned (a Tensor [2, 2] float8_e4m3fn, a Tensor [2, 2] float8_e4m3fn), not the tensor out [M, N]",
    ),
}


@pytest.mark.parametrize("what", list(RESULTS))
def test_a_result_of_the_wrong_structure_is_one_sentence(tmp_path: Path, what: str) -> None:
    op, body, words = RESULTS[what]
    kernel = plugin.load(write(tmp_path, FORMS[op] + f"return {body}"))
    a = torch.ones(2, 2).to(FN)
    given = {
        "add_rmsnorm_quant": inputs(),
        "per_token_quant": tensors.QuantInputs(inputs().x, FN),
        "ptpc_gemm": tensors.GemmInputs(a, torch.ones(2, 1), a, torch.ones(2, 1), None, torch.bfloat16),
    }[op]
    target: tensors.Outputs = buffers()
    with pytest.raises(KernelError) as caught:
        kernel.call(given, target)
    assert words in str(caught.value)


def test_the_convention_that_overwrites_the_residual_is_named_and_told_what_to_do(tmp_path: Path) -> None:
    """vLLM's ops return codes and scale, and leave the sum in ``residual``."""
    for name, body in {"two": "x.to(fp8_dtype), x[:, :1]", "same": "x.to(fp8_dtype), x[:, :1], residual"}.items():
        kernel = plugin.load(write(tmp_path, FORMS["add_rmsnorm_quant"] + f"return {body}", f"{name}.py"))
        with pytest.raises(KernelError) as caught:
            kernel.call(inputs(), buffers())
        assert "residual = residual.clone()" in caught.value.hint
        record = validate(kernel, NORM_CASE, contract="eager")
        assert record.status is Status.ERROR
        assert record.reasons[1] == caught.value.hint
        report = failure_report(record)
        assert "return codes, scale, residual" in " ".join(report.split()), report
    assert "shares memory with the input residual" in record.reasons[0]


WRAPPED = {
    "module": ("import torch\nf = torch.nn.Linear(2, 2)", "an nn.Module (Linear), whose call takes (*args, **kwargs)"),
    "class": ("class f:\n    def __init__(self, n): ...", "the class f, and calling it makes an object"),
    "op": ("import torch\nf = torch.ops.aten.add", "an op of torch.library (OpOverloadPacket)"),
    "overload": ("import torch\nf = torch.ops.aten.add.Tensor", "an op of torch.library (OpOverload)"),
    "gathers": ("def f(*args, **kwargs): ...", "a function of (*args, **kwargs)"),
    "keywords": ("def f(x, **kwargs): ...", "a function of (x, **kwargs)"),
}


@pytest.mark.parametrize(("source", "words"), WRAPPED.values(), ids=WRAPPED)
def test_what_hides_its_parameters_is_told_what_to_wrap(tmp_path: Path, source: str, words: str) -> None:
    spec = write(tmp_path, source)
    with pytest.raises(KernelError) as caught:
        plugin.load(spec, "per_token_quant")
    assert f"{spec} is {words}" in str(caught.value)
    assert "def quantize(x, fp8_dtype): return kernel(...)" in str(caught.value)
    with pytest.raises(KernelError, match=r"def fused\(x, residual, weight, eps, fp8_dtype\): return kernel"):
        plugin.load(spec)


def test_a_function_that_names_its_parameters_may_gather_more(tmp_path: Path) -> None:
    assert plugin.load(write(tmp_path, "def f(x, fp8_dtype, **options): ...")).op == "per_token_quant"


def limited(folder: Path, limits: str) -> Kernel:
    source = f"{FORMS['per_token_quant']}raise ValueError('never called')\nf.unsupported = {limits}"
    return plugin.load(write(folder, source, f"limits{len(list(folder.iterdir()))}.py"))


def test_a_limit_is_declared_beside_the_function(tmp_path: Path) -> None:
    wide, narrow = Case("per_token_quant", 4, 1002, "gaussian"), Case("per_token_quant", 4, 64, "gaussian")
    for limits in (
        "lambda case: f'n must be a multiple of 16, not {case.n}' if case.n % 16 else None",
        "lambda case: case.n % 16 and f'n must be a multiple of 16, not {case.n}'",
        "lambda case: case.n > 64 and 'n must be a multiple of 16, not 1002'",
    ):
        kernel = limited(tmp_path, limits)
        assert kernel.unsupported(narrow) is None
        assert kernel.unsupported(wide) == "n must be a multiple of 16, not 1002"
        record = validate(kernel, wide, contract="eager")
        assert (record.status, record.reasons) == (Status.UNSUPPORTED, ("n must be a multiple of 16, not 1002",))
    assert '"3d"' in str(kernel.unsupported(dataclasses.replace(narrow, layout="3d"))), "supports is asked first"


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ("lambda case: case.width", "unsupported raised AttributeError for per_token_quant-m4-n64"),
        ("lambda: None", "unsupported raised TypeError"),
        ("lambda case: True", "unsupported returned 'True' for per_token_quant-m4-n64"),
        ("lambda case: ''", "unsupported returned '' for"),
        ("lambda case: ['n']", "it takes a case and returns a sentence, or None"),
    ],
)
def test_a_limit_that_cannot_be_asked_is_an_error_with_one_sentence(tmp_path: Path, limits: str, words: str) -> None:
    kernel = limited(tmp_path, limits)
    with pytest.raises(KernelError) as caught:
        kernel.unsupported(Case("per_token_quant", 4, 64, "gaussian"))
    assert words in str(caught.value)
    record = validate(kernel, Case("per_token_quant", 4, 64, "gaussian"), contract="eager")
    assert record.status is Status.ERROR
    assert words in record.reasons[0]


def test_a_limit_that_is_no_function_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="unsupported is n % 16, not a function: it takes a case"):
        limited(tmp_path, "'n % 16'")


def test_a_kernel_that_raises_is_told_how_to_declare_a_limit(tmp_path: Path) -> None:
    spec = write(tmp_path, FORMS["per_token_quant"] + "raise ValueError('n % 16')")
    record = validate(plugin.load(spec), Case("per_token_quant", 4, 1002, "gaussian"), contract="eager")
    assert record.status is Status.ERROR
    assert record.reasons == (
        "the kernel raised ValueError: n % 16",
        'if that is a limit, declare it: f.unsupported = lambda case: "why" if ... else None',
    )


CHANGES: dict[str, dict[str, object]] = {
    "3d": {"layout": "3d"},
    "strided": {"layout": "strided"},
    "3dstrided": {"layout": "3dstrided"},
    "fp16": {"dtype": "fp16"},
    "fnuz": {"fp8": "e4m3fnuz"},
    "fp32_gamma": {"gamma": "fp32"},
    "gemma": {"gemma": True},
    "residual_none": {"residual": False},
    "bias": {"op": "ptpc_gemm", "k": 32, "bias": True},
}


def test_supports_has_documented_defaults_and_overrides(tmp_path: Path) -> None:
    plain = {
        op: plugin.load(write(tmp_path, FORMS[op] + "...", f"{op}.py")) for op in ("add_rmsnorm_quant", "ptpc_gemm")
    }
    assert set(CHANGES) == set(plugin.DEFAULT_SUPPORTS)
    for key, change in CHANGES.items():
        case = dataclasses.replace(NORM_CASE, **change)  # type: ignore[arg-type]
        reason = plain[case.op].unsupported(case)
        assert (reason is None) == plugin.DEFAULT_SUPPORTS[key]
        assert reason is None or f'"{key}"' in reason
        flipped = not plugin.DEFAULT_SUPPORTS[key]
        form = FORMS[case.op] if key != "gemma" else FORMS[case.op].replace("):", ", gemma=False):")
        spec = write(tmp_path, f"{form}...\nf.supports = {{{key!r}: {flipped}}}", f"{key}_flipped.py")
        assert (plugin.load(spec).unsupported(case) is None) == flipped
    assert plain["add_rmsnorm_quant"].unsupported(NORM_CASE) is None


def test_devices(tmp_path: Path) -> None:
    kernel = plugin.load(write(tmp_path, "def f(x, fp8_dtype): ...\nf.devices = ('cuda',)"))
    assert "says that it runs on cuda, not on cpu" in str(kernel.unavailable("cpu"))
    assert (kernel.unavailable("cuda") is None) == torch.cuda.is_available()


def test_a_function_declares_that_its_runs_differ(tmp_path: Path) -> None:
    source = FORMS["per_token_quant"] + "...\n"
    assert plugin.load(write(tmp_path, source, "same.py")).deterministic
    assert not plugin.load(write(tmp_path, source + "f.deterministic = False", "free.py")).deterministic
    with pytest.raises(KernelError, match="deterministic must be True or False, not 'no'"):
        plugin.load(write(tmp_path, source + "f.deterministic = 'no'", "bad.py"))
