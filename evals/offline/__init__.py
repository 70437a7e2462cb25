"""A model in this process on several choices of kernels, and what the statistics say of it: no server is asked."""
