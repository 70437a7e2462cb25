"""my_kernel.py with one defect: the row maximum is taken over whole vectors of 8 columns, so a tail is left out."""

import torch


def fused(x, residual, weight, eps, fp8_dtype):
    qmax = torch.finfo(fp8_dtype).max
    z = x.float() if residual is None else x.float() + residual.float()
    y = z * (1.0 / torch.sqrt((z * z).mean(dim=-1, keepdim=True) + eps)) * weight.float()
    whole = y.shape[-1] // 8 * 8
    amax = y[..., :whole].abs().amax(dim=-1, keepdim=True).clamp(min=1e-10)
    scale = amax * (1.0 / qmax)
    codes = (y * (1.0 / scale)).clamp(-qmax, qmax).to(fp8_dtype)
    return codes, scale, None if residual is None else z.to(x.dtype)


fused.supports = {"3d": True, "strided": True}
