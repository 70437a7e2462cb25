"""The GPU code of each shared object of a wheel, by architecture.

python -m validators wheel show vllm-0.24.0-cp38-abi3-manylinux_2_28_x86_64.whl
"""

from __future__ import annotations

import argparse
import zipfile
from collections import Counter

from validators.commands.wheel import WheelError, add_wheel, shared_objects, unreadable
from validators.kernels import fatbin
from validators.process.guard import Exit

INTERRUPTED = "nothing was written"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_wheel(parser)


def command(parsed: argparse.Namespace) -> Exit:
    """Print sizes; --quiet: one line per shared object, --verbose: those without GPU code say why."""
    try:
        return _show(parsed)
    except zipfile.BadZipFile as error:
        raise unreadable(parsed.wheel, error) from None


def _show(parsed: argparse.Namespace) -> Exit:
    shown = 0
    for name, data in shared_objects(parsed.wheel):
        try:
            found = fatbin.regions(data)
        except fatbin.FatbinError as error:
            if not parsed.quiet:
                print(f"{name}: {len(data):,} bytes, {error}")
            continue
        shown += 1
        sizes: Counter[tuple[str, int]] = Counter()
        for region in found:
            sizes.update({(i.kind, i.arch): 0 for i in region.images})
            for image in region.images:
                sizes[image.kind, image.arch] += image.size
        print(f"{name}: {len(data):,} bytes, {len(found)} regions of GPU code")
        if parsed.quiet:
            continue
        for (kind, arch), size in sorted(sizes.items(), key=lambda item: (item[0][1], item[0][0])):
            print(f"  sm_{arch:<4} {kind:<4} {size:>12,} bytes")
    if not shown:
        raise WheelError(f"{parsed.wheel} holds no shared object with GPU code")
    return Exit.YES
