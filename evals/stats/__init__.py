"""The statistics of two runs, and the verdict on them. Needs no kernel."""
