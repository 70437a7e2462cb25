"""An arm: which kernels compute the norms and linears of an in-process model.

Presets: ``unfused``: the norm stored as bf16, then the per-token quantizer, then the PTPC linear. ``fused``: one kernel
adds, normalises and quantizes, and hands (codes, scale) to the linear (SGLang PR #21403); before a router, whose input
must stay bf16, both take the bf16 norm. Two more are yardsticks of the model's own quantisation noise: ``bf16-norms``
quantizes no activation that comes from a norm under test, ``bf16`` none at all.
``fused,add_rmsnorm_quant=FILE.py:FUNCTION,ptpc_gemm=NAME`` replaces single kernels; a name alone replaces those of
every op that it computes and the arm has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from evals.errors import EvalError, NotDecided, WorkFault
from evals.model.decoder import Decoder, Linear, Stream
from validators.cases import tensors
from validators.errors import UsageError
from validators.kernels.kernel import Kernel, KernelError
from validators.kernels.registry import find_kernel, find_kernels
from validators.records.command_line import split_op
from validators.words import FUSED, GEMM, PATH

PRESETS = ("unfused", "fused", "bf16-norms", "bf16")
FP8 = torch.float8_e4m3fn
T = TypeVar("T")


@dataclass(frozen=True)
class Arm:
    """A named way through the model. preset: one of ``PRESETS``, which says what kernels there are.

    calls: how often each op was called, by op; proof that a kernel was on.
    """

    name: str
    preset: str
    norm: Kernel | None = None
    quant: Kernel | None = None
    gemm: Kernel | None = None
    calls: dict[str, int] = field(default_factory=dict, compare=False)

    @property
    def kernels(self) -> dict[str, str]:
        """op -> kernel name."""
        chosen = dict(zip(PATH, (self.norm, self.quant, self.gemm), strict=True))
        return {op: kernel.name for op, kernel in chosen.items() if kernel is not None}

    @property
    def emulated(self) -> bool:
        """Whether a kernel of this arm is a stand-in that nobody ships."""
        return any(kernel.emulated for kernel in (self.norm, self.quant, self.gemm) if kernel is not None)

    # ---- what the forward pass asks for

    def norm_linear(self, model: Decoder, stream: Stream, weight: Tensor, hidden: Tensor, what: Linear) -> Tensor:
        """Add, normalise, quantize, multiply; by the fused kernel where the arm has one."""
        if self.norm is None:
            x = self.plain_norm(model, stream, weight, hidden)
            return self._unquantized(model, x, what) if self.preset == "bf16-norms" else self.linear(model, x, what)
        inputs = tensors.NormQuantInputs(hidden.contiguous(), stream.residual, weight, model.shape.eps, FP8)
        out = self._run(self.norm, inputs, tensors.NormQuantOutputs)
        stream.residual = hidden if stream.residual is None else out.residual_out
        return self._gemm(model, out.codes, out.scale, what)

    def plain_norm(self, model: Decoder, stream: Stream, weight: Tensor, hidden: Tensor) -> Tensor:
        """The norm without quantization, rounded once to storage: sum and statistics in ``wide``, not rounded."""
        total = hidden.to(model.wide)
        if stream.residual is not None:
            total = total + stream.residual.to(model.wide)
        stream.residual = model.stored(total)
        rms = (total.square().mean(-1, keepdim=True) + model.shape.eps).rsqrt()
        return model.stored(total * rms * weight.to(model.wide))

    def linear(self, model: Decoder, x: Tensor, what: Linear) -> Tensor:
        """Quantize x and multiply; without a quantizer, x times the dequantized weight."""
        if self.quant is None:
            return self._unquantized(model, x, what)
        out = self._run(self.quant, tensors.QuantInputs(x.contiguous(), FP8), tensors.QuantOutputs)
        return self._gemm(model, out.codes, out.scale, what)

    def _unquantized(self, model: Decoder, x: Tensor, what: Linear) -> Tensor:
        out = model.stored(x.to(model.wide) @ what.wide.t())
        return out if what.bias is None else model.stored(out.to(model.wide) + what.bias.to(model.wide))

    def _gemm(self, model: Decoder, codes: Tensor, scale: Tensor, what: Linear) -> Tensor:
        assert self.gemm is not None
        inputs = tensors.GemmInputs(codes, scale, what.codes, what.scale, None, model.storage)
        product = self._run(self.gemm, inputs, tensors.GemmOutputs).out
        # Engines add the bias of a quantized linear after the store: one more rounding.
        return product if what.bias is None else model.stored(product.to(model.wide) + what.bias.to(model.wide))

    def _run(self, kernel: Kernel, inputs: tensors.Inputs, kind: type[T]) -> T:
        """One call; WorkFault with one sentence if the kernel raises or returns something of another shape."""
        self.calls[kernel.op] = self.calls.get(kernel.op, 0) + 1
        buffers = inputs.empty()
        try:
            outputs = kernel.call(inputs, buffers)
        except Exception as error:
            # A kernel may raise anything.
            reason = " ".join(str(error).split())[:200]
            raise WorkFault(
                f"kernel {kernel.name} of arm {self.name} raised {type(error).__name__}: {reason}"
            ) from error
        if not isinstance(outputs, kind):
            raise WorkFault(f"kernel {kernel.name} of arm {self.name} returned no {kind.__name__}")
        for part, wanted in vars(buffers).items():
            given = getattr(outputs, part)
            if wanted is not None and (given is None or given.shape != wanted.shape or given.dtype != wanted.dtype):
                found = "nothing" if given is None else f"{given.dtype} {list(given.shape)}"
                raise WorkFault(
                    f"kernel {kernel.name} of arm {self.name} returned {found} as {part}, "
                    f"expected {wanted.dtype} {list(wanted.shape)}"
                )
        return outputs


def default_kernels(device: str) -> dict[str, str]:
    """op -> name of the kernel that the presets take on a device: emulated norms, and torch's own GEMM there."""
    gemm = "torch_native/eager"
    if device.startswith("cuda"):
        names = ("torch_native/scaled_mm_hopper", "torch_native/scaled_mm_gpu")
        found = [name for name in names if find_kernel(name, GEMM).unavailable(device) is None]
        gemm = found[0] if found else gemm
    return dict(zip(PATH, ("emulated/aiter-hip-gfx950", "emulated/aiter-hip-gfx950", gemm), strict=True))


def make_arm(spec: str, device: str = "cpu", name: str = "") -> Arm:
    """The arm of ``PRESET[,[OP=]KERNEL...]``; EvalError with one sentence."""
    preset, *changes = spec.split(",")
    if preset not in PRESETS:
        raise EvalError(f"unknown arm {preset!r}; known: {', '.join(PRESETS)}, each with ,[OP=]KERNEL")
    defaults = {} if preset == "bf16" else default_kernels(device)
    if preset in ("unfused", "bf16-norms"):
        defaults.pop(FUSED)
    found: dict[str, Kernel] = {}
    for change in changes:
        found |= {kernel.op: kernel for kernel in _replaced(change, preset, tuple(defaults))}
    found |= {op: find_kernel(kernel, op) for op, kernel in defaults.items() if op not in found}
    for kernel in found.values():
        if reason := kernel.unavailable(device):
            raise NotDecided(f"kernel {kernel.name} is not available on {device}: {reason}")
    norm, quant, gemm = (found.get(op) for op in PATH)
    return Arm(name or spec, preset, norm, quant, gemm)


def _replaced(change: str, preset: str, ops: Sequence[str]) -> list[Kernel]:
    """The kernels that ``[OP=]KERNEL`` puts in. ops: of the kernels that the preset has."""
    try:
        op, _ = split_op(change)
        if not ops or (op and op not in ops):
            raise EvalError(f"an arm {preset!r} has no {f'{op} ' if op else ''}kernel to replace")
        return find_kernels(change, ops)
    except (KernelError, UsageError) as error:
        raise EvalError(str(error)) from None
