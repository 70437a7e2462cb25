"""One file for each op: what its cases and inputs are. An op exists where it has a file here."""
