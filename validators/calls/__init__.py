"""What a kernel did: it wrote its outputs and nothing else, and gives the same bits again. Needs no truth."""
