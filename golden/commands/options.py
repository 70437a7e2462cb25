"""The option that all commands of ``golden`` have."""

from __future__ import annotations

import argparse
from pathlib import Path

from validators.commands import options

STORE = Path(__file__).resolve().parents[1] / "data"


def add_store(parser: argparse.ArgumentParser) -> None:
    """``--store``."""
    options.add(parser, "--store", "default: golden/data", default=str(STORE))
