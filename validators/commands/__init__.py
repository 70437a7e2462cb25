"""The commands of ``python -m validators``, one file per command."""
