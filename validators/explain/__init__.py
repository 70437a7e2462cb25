"""After the verdict: which contract, which defect, and the arithmetic of one element."""
