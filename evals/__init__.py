"""End-to-end parity: what a model answers, and what it thinks of the right answers, on two kernels."""
