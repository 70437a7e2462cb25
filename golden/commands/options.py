"""The option that all commands of ``golden`` have."""

from __future__ import annotations

import argparse
from pathlib import Path

STORE = Path(__file__).resolve().parents[1] / "data"


def add_store(parser: argparse.ArgumentParser) -> None:
    """``--store``."""
    parser.add_argument("--store", default=str(STORE), metavar="DIR", help="the store's folder (default: golden/data)")
