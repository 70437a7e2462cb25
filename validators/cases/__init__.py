"""Cases: what a kernel is asked to compute, named by an id that reproduces it."""
