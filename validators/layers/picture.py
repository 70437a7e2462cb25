"""A picture of error against depth, as SVG, without any library."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from validators.errors import UserError

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 860, 420, 84, 150, 48, 56
_COLOURS = ("#0b6e4f", "#b5651d", "#3b4ba3")


class PictureError(UserError):
    """Nothing to draw; one sentence."""


def error_against_depth(title: str, layers: Sequence[int], series: Mapping[str, Sequence[float]]) -> str:
    """SVG text: a line a series, layers on a linear axis, errors (positive, relative) on a logarithmic one.

    A value that is zero or not finite has no point. Raises PictureError if none is left.
    """
    drawable = [v for values in series.values() for v in values if math.isfinite(v) and v > 0]
    if not drawable:
        raise PictureError("there is no finite error to draw")
    low, high = math.floor(math.log10(min(drawable))), math.ceil(math.log10(max(drawable)))
    high = max(high, low + 1)
    first, last = min(layers), max(max(layers), min(layers) + 1)

    def x(layer: float) -> float:
        return _LEFT + (layer - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _TOP + (high - math.log10(value)) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    size = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="13"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="26" font-size="15">{html.escape(title)}</text>',
    ]
    for power in range(low, high + 1):
        at = y(10.0**power)
        parts.append(f'<path d="M{_LEFT} {at:.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">1e{power}</text>')
    for layer in sorted({first, last, *range(first, last + 1, max(1, (last - first) // 8))}):
        parts.append(f'<text x="{x(layer):.1f}" y="{_HEIGHT - _BOTTOM + 20}" text-anchor="middle">{layer}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 12}" text-anchor="middle">layer</text>')
    for number, (name, values) in enumerate(series.items()):
        colour, points = _COLOURS[number % len(_COLOURS)], []
        for layer, value in zip(layers, values, strict=True):
            if math.isfinite(value) and value > 0:
                points.append((x(layer), y(value)))
        line = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.5" fill="{colour}"/>' for px, py in points]
        at = _TOP + 20 * number + 8
        parts.append(f'<text x="{_WIDTH - _RIGHT + 14}" y="{at}" fill="{colour}">{html.escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])
