"""A model in this process, with its norms and linears on chosen kernels."""
