"""A search for failures that goes on: cases drawn at random, and each failure reduced to the smallest that remains."""
