def explain(*a): return ()
