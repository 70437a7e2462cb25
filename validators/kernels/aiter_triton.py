"""aiter's Triton kernels, loaded by file path, so that they also run where aiter itself cannot be imported.

The file that holds ``_quant_fused_add_rmsnorm_kernel`` imports only triton in every version looked at (0.1.7 to
2026-08). It is found in the installed distribution amd-aiter, or through AITER_TRITON_PATH, which names the
file or a checkout. Launch parameters follow aiter's wrapper (``ops/triton/normalization/rmsnorm.py``): one
block of next_power_of_2(N) elements up to 64 KiB of x, a loop over blocks beyond; one program a
processor, at most one per row. The kernel addresses residual and residual_out with the row stride of x.

``aiter_triton/interpreted`` is the same kernel in Triton's interpreter on a CPU, a real, planted violation of the
declared contract. Measured on triton 3.9.0: the interpreter adds two bf16 tensors as their raw 16-bit integers
(fp16 is added correctly), rounds fp32 to bf16 toward zero, and its fp32 to FP8 cast drops the carry
into the exponent (7.77 becomes 4, not 8; 1.5 to 2.6 % of random values).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import os
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from validators import arch, toolchain
from validators.cases.case import Case
from validators.cases.tensors import NormQuantInputs, NormQuantOutputs
from validators.kernels.kernel import Kernel, KernelError

PATH_VARIABLE = "AITER_TRITON_PATH"
_WITH_RESIDUAL = "_quant_fused_add_rmsnorm_kernel"
_WITHOUT_RESIDUAL = "_quant_rms_norm_kernel"
# Newest place first; the last one held kernels and wrappers together.
_PLACES = (
    "ops/triton/_triton_kernels/normalization/rmsnorm.py",
    "ops/triton/_triton_kernels/rmsnorm.py",
    "ops/triton/rmsnorm.py",
)
_LARGEST_BLOCK_BYTES = 65536


def find_file() -> Path:
    """The file that defines the kernels; raises KernelError with one sentence where there is none."""
    given = os.environ.get(PATH_VARIABLE)
    if given:
        path = Path(given)
        if path.is_file():
            if _defines_kernels(path):
                return path
            raise KernelError(f"{PATH_VARIABLE}={given} has no {_WITH_RESIDUAL}")
        if not path.is_dir():
            raise KernelError(f"{PATH_VARIABLE}={given} does not exist")
        roots = [path / "aiter", path]
    else:
        roots = _installed()
        if not roots:
            raise KernelError(
                f"no aiter is installed and {PATH_VARIABLE} does not name its rmsnorm.py or a checkout of aiter"
            )
    for root in roots:
        for place in _PLACES:
            if (root / place).is_file() and _defines_kernels(root / place):
                return root / place
    raise KernelError(f"{roots[0]} holds no Triton file that defines {_WITH_RESIDUAL}")


def _installed() -> list[Path]:
    roots = []
    folder = arch.distribution_folder("amd-aiter", "aiter")
    if folder is not None:
        roots.append(folder)
    try:
        # A top-level name: found without running aiter/__init__.py, which raises without ROCm.
        spec = importlib.util.find_spec("aiter")
    except (ImportError, ValueError):
        spec = None
    if spec is not None:
        roots.extend(Path(place) for place in spec.submodule_search_locations or ())
    return roots


def _defines_kernels(path: Path) -> bool:
    return f"def {_WITH_RESIDUAL}(" in path.read_text(encoding="utf-8", errors="replace") or _is_double(path)


def _is_double(path: Path) -> bool:
    """Whether the file says that it is a test double, by a line ``__fake__ = True``."""
    return "\n__fake__ = True\n" in path.read_text(encoding="utf-8", errors="replace")


@contextlib.contextmanager
def _hollow_parents(path: Path) -> Iterator[str]:
    """Yields a module name for ``path``; inside, its parent packages exist but hold no code.

    The file's own imports of helpers of its package (relative, or ``aiter.ops...``) then find their files, and
    ``aiter/__init__.py`` never runs. Afterwards sys.modules is as before.
    """
    parts = path.with_suffix("").parts
    if "aiter" not in parts[:-1]:
        yield "aiter_triton_rmsnorm"
        return
    start = len(parts) - 2 - parts[:-1][::-1].index("aiter")

    def is_aiter(name: str) -> bool:
        return name == "aiter" or name.startswith("aiter.")

    before = {name: module for name, module in sys.modules.items() if is_aiter(name)}
    for name in before:
        del sys.modules[name]
    try:
        for end in range(start + 1, len(parts)):
            package = types.ModuleType(".".join(parts[start:end]))
            package.__path__ = [str(Path(*parts[:end]))]
            sys.modules[package.__name__] = package
        yield ".".join(parts[start:])
    finally:
        for name in [name for name in sys.modules if is_aiter(name)]:
            del sys.modules[name]
        sys.modules.update(before)


@functools.lru_cache(maxsize=8)
def load(path: Path) -> types.ModuleType:
    """The module at ``path``, executed once; raises KernelError with its own message if that fails."""
    with _hollow_parents(path.resolve()) as name:
        spec = importlib.util.spec_from_file_location(name, path.resolve())
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            # The library's own code runs at import, and may raise anything.
            raise KernelError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    return module


def _processors(device: torch.device) -> int:
    if device.type == "cpu":
        return 1 << 30
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def launch_values(inputs: NormQuantInputs, outputs: NormQuantOutputs, processors: int) -> dict[str, object]:
    """Every launch parameter of the two kernels, by the name that the kernel gives it."""
    n = inputs.x.shape[-1]
    x = inputs.x.view(-1, n)
    m = x.shape[0]
    block = min(_LARGEST_BLOCK_BYTES // x.element_size(), 1 << (n - 1).bit_length())
    blocked = n > block
    aux = torch.empty((m, n), dtype=torch.float32, device=x.device) if blocked else None
    return {
        "input_ptr": x,
        "output_ptr": outputs.codes.view(m, n),
        "res_in_ptr": None if inputs.residual is None else inputs.residual.view(m, n),
        "res_out_ptr": None if outputs.residual_out is None else outputs.residual_out.view(m, n),
        "x_scale_ptr": None,
        "y_scale_ptr": outputs.scale.view(m),
        "g_ptr": inputs.weight,
        "aux_ptr": aux,
        "input_row_stride": x.stride(0),
        "output_row_stride": n,
        "aux_row_stride": n if blocked else None,
        "n_rows": m,
        "n_cols": n,
        "epsilon": inputs.eps,
        "scale_ub_ptr": None,
        "out_intermediate_ptr": None,
        "DTYPE_MAX": torch.finfo(inputs.fp8_dtype).max,
        "IS_SMOOTH": False,
        "CLAMP_MAX": False,
        "CLAMP_OUT": False,
        "DUMP_INTERMEDIATE": False,
        "BLOCK_SIZE": block,
        "USE_BLOCKED": blocked,
        "NUM_PRGMS": min(m, processors),
    }


def _name_for(inputs: NormQuantInputs) -> str:
    return _WITHOUT_RESIDUAL if inputs.residual is None else _WITH_RESIDUAL


def kernel_for(inputs: NormQuantInputs) -> Any:
    """aiter's ``@triton.jit`` function with or without residual; raises KernelError where its file has none."""
    name, path = _name_for(inputs), find_file()
    kernel = getattr(load(path), name, None)
    if kernel is None:
        raise KernelError(f"{path} has no {name}")
    return kernel


def values_of(kernel: Any, inputs: NormQuantInputs, outputs: NormQuantOutputs, processors: int) -> dict[str, object]:
    """The values of the kernel's own parameters; raises KernelError for one that this adapter does not know."""
    values = launch_values(inputs, outputs, processors)
    unknown = [parameter for parameter in kernel.arg_names if parameter not in values]
    if unknown:
        said = f"has parameters that this adapter does not know: {', '.join(unknown)}"
        raise KernelError(f"{_name_for(inputs)} in {find_file()} {said}")
    return {parameter: values[parameter] for parameter in kernel.arg_names}


def _add_rmsnorm_quant(inputs: NormQuantInputs, buffers: NormQuantOutputs) -> NormQuantOutputs:
    kernel, processors = kernel_for(inputs), _processors(inputs.device)
    kernel[(min(inputs.row_count, processors),)](**values_of(kernel, inputs, buffers, processors))
    return NormQuantOutputs(buffers.codes, buffers.scale, None if inputs.residual is None else buffers.residual_out)


def missing_file() -> str | None:
    """One sentence why aiter's file is not found, or None."""
    try:
        find_file()
    except KernelError as error:
        return str(error)
    return None


def _is_fake() -> bool:
    try:
        return _is_double(find_file())
    except KernelError:
        return False


def _unavailable(device: str) -> str | None:
    if _is_fake():
        return None
    reason = arch.no_gpu(device)
    if reason is not None and device.partition(":")[0] == "cpu":
        reason = "needs a GPU; with TRITON_INTERPRET=1, aiter_triton/interpreted runs on a CPU"
    return reason or arch.no_triton(interpreted=False) or missing_file()


def _interpreted_unavailable(device: str) -> str | None:
    if device.partition(":")[0] != "cpu":
        return "runs in Triton's interpreter on a CPU only"
    return arch.no_triton(interpreted=True) or missing_file()


def unsupported(case: Case) -> str | None:
    """Why aiter's kernel does not take this case, or None."""
    if case.gemma:
        return "aiter's Triton kernel has no 1 + weight"
    if "strided" in case.layout:
        return "aiter's Triton kernel addresses residual and residual_out with the row stride of x"
    return None


def _compiled_unsupported(case: Case) -> str | None:
    reason = unsupported(case)
    if reason is None and case.fp8 == "e4m3fnuz" and torch.cuda.is_available() and not arch.is_rocm():
        return "Triton has no e4m3fnuz on NVIDIA"
    return reason


def versions() -> Mapping[str, str]:
    """Of Triton, of aiter, and the digest of the file that ran."""
    found = dict(arch.versions("triton", "amd-aiter"))
    with contextlib.suppress(KernelError):
        file = find_file()
        # Which source ran, not its folder: records are read on other machines.
        found["aiter_triton_file"] = "/".join(file.parts[-3:])
        found["aiter_triton_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        # The file is in aiter/ops/triton/..., and the checkout is what holds the package.
        package = next((folder for folder in file.resolve().parents if folder.name == "aiter"), None)
        if commit := toolchain.commit_of("amd-aiter", str(package or "")):
            found["aiter commit"] = commit
    return found


def kernels() -> list[Kernel]:
    """The fused kernel compiled for a GPU, and in Triton's interpreter; contract ``aiter-triton`` both times."""
    same = functools.partial(Kernel, op="add_rmsnorm_quant", contract="aiter-triton", call=_add_rmsnorm_quant)
    adapter = functools.partial(same, in_place=True, versions=versions, fake=_is_fake())
    return [
        adapter(
            name="aiter_triton/add_rmsnorm_quant",
            unavailable=_unavailable,
            unsupported=_compiled_unsupported,
            notes=f"{_WITHOUT_RESIDUAL} where there is no residual",
        ),
        adapter(
            name="aiter_triton/interpreted",
            unavailable=_interpreted_unavailable,
            unsupported=unsupported,
            notes="a planted, real violation: triton 3.9's interpreter adds bf16 as integers and drops FP8 carries",
        ),
    ]
