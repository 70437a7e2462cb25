"""One file for each op: how its outputs are explained."""
