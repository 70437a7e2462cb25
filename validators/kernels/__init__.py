"""Kernels under test: one file a provider. Only these files may import aiter, vllm or triton, inside functions."""
