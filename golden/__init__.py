"""Golden tensors: what was true before, bit for bit."""
