"""Kernels under test: one file per provider. Only these files may import aiter, vllm or triton, inside functions."""
