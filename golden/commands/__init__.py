"""The commands of ``python -m golden``, one file per command."""
