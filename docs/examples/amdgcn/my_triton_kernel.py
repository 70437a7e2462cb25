"""A Triton kernel of one's own, judged as machine code of gfx942 or gfx950 on a machine without a GPU.

python -m validators run --device amdgcn:gfx950 --kernel docs/examples/amdgcn/my_triton_kernel.py:quantize
"""

import torch
import triton
import triton.language as tl


@triton.jit
def _quantize(x_ptr, codes_ptr, scale_ptr, stride, n, LARGEST: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * stride + columns, mask=columns < n, other=0.0).to(tl.float32)
    scale = tl.max(tl.abs(x), axis=0) / LARGEST
    scale = tl.where(scale == 0.0, 1.0, scale)
    codes = (x * (1.0 / scale)).to(codes_ptr.dtype.element_ty)
    tl.store(codes_ptr + row * n + columns, codes, mask=columns < n)
    tl.store(scale_ptr + row, scale)


def quantize(x, fp8_dtype):
    """Per-token quantization; the names of the parameters say which op it is."""
    m, n = x.shape
    codes = torch.empty(m, n, dtype=fp8_dtype, device=x.device)
    scale = torch.empty(m, 1, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(n)
    _quantize[(m,)](x, codes, scale, x.stride(0), n, torch.finfo(fp8_dtype).max, block, num_warps=4)
    return codes, scale


quantize.contract = "aiter-triton"
quantize.devices = ("amdgcn", "cuda")
quantize.supports = {"strided": True}
