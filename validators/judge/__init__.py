"""What a kernel's values are: comparison with admissible sets, statistics, the verdict. Knows no kernel."""
