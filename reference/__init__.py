"""What is true: pure PyTorch float64 evaluation of the ops. Knows no kernel, no case and no policy."""
