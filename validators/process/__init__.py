"""Processes: what one is doing, how its end is noticed, and what an interrupt does."""
