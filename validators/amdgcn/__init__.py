"""An interpreter of AMD GPU machine code (assembly text of gfx942 and gfx950) on a CPU, in numpy.

It imports numpy and the standard library only: no torch, nothing of ``reference``. It fails closed: what is not
implemented is one sentence with file and line, never a guess.
"""
