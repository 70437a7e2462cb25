"""The judge's accelerators on a GPU; each is held against the judgement without it."""
