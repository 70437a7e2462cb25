"""Where a boolean mask is true, in words: what turns "510 elements are wrong" into "row 9, so the row's scale"."""

from __future__ import annotations

import torch

TILE = 128


def where_words(mask: torch.Tensor) -> str:
    """Where a boolean mask [M, N] (or [B, S, N], taken as [B*S, N]) is true, in words.

    Tries, in this order: nowhere, everywhere, one element, one row, one column, whole columns or rows (ranges, tails,
    periods such as odd rows or lanes 32 to 63 of 64), one or a few 128x128 tiles, a block, a dominant row or column;
    else "no pattern" with the counts. Costs one ``any`` an axis, and sums only where something was found.
    """
    flat = mask.reshape(-1, mask.shape[-1]) if mask.dim() != 1 else mask.reshape(1, -1)
    row_hit, col_hit = flat.any(1), flat.any(0)
    rows, cols = row_hit.nonzero().flatten().tolist(), col_hit.nonzero().flatten().tolist()
    m, n = flat.shape
    if not rows:
        return "nowhere"
    count = int(flat.sum())
    if count == m * n:
        return "everywhere"
    if count == 1:
        return f"one element, ({rows[0]}, {cols[0]})"
    full = count == len(rows) * len(cols)
    row_words, col_words = _axis_words(rows, m, "row"), _axis_words(cols, n, "column")
    if len(rows) == 1 and m > 1:
        if len(cols) == n:
            return f"all in row {rows[0]}, every column"
        return f"all in row {rows[0]}" + (f", {col_words}" if col_words else "")
    if len(cols) == 1 and n > 1:
        if len(rows) == m:
            return f"column {cols[0]} of every row"
        return f"all in column {cols[0]}" + (f", {row_words}" if row_words else "")
    if len(rows) == m and col_words:
        return f"{col_words} of every row" if full else f"{col_words}, in every row but not in every element"
    if len(cols) == n and row_words:
        return row_words if full else f"{row_words}, in every column but not in every element"
    if tiles := _tile_words(flat, m, n):
        return tiles
    if row_words or col_words:
        words = ", ".join(words for words in (row_words, col_words) if words)
        return words if full else f"within {words}"
    return _dominant(flat, count, len(rows), len(cols))


def _axis_words(hits: list[int], size: int, noun: str) -> str:
    """A range, a tail or a period that holds exactly these indices; empty if all or no such words exist."""
    count = len(hits)
    if count == size:
        return ""
    if count == 1:
        return f"{noun} {hits[0]}"
    if hits[-1] - hits[0] + 1 == count:
        tail = f" (the last {count})" if hits[-1] == size - 1 else ""
        return f"{noun}s {hits[0]} to {hits[-1]}{tail}"
    for period in (2, 4, 8, 16, 32, 64, 128, 256):
        residues = sorted({h % period for h in hits})
        # Only a set that fills its residue classes, at least three times over, is called periodic.
        if size < 3 * period or sum(len(range(r, size, period)) for r in residues) != count:
            continue
        if period == 2:
            return f"{'odd' if residues[0] else 'even'} {noun}s"
        if len(residues) == 1:
            return f"{noun}s {residues[0]} modulo {period}"
        if residues[-1] - residues[0] + 1 == len(residues) < period:
            return f"{noun}s {residues[0]} to {residues[-1]} of every {period}"
    return ""


def _tile_words(flat: torch.Tensor, m: int, n: int) -> str:
    """Words for hits inside at most three aligned 128x128 tiles of a matrix of at least eight."""
    tiles_n = -(-n // TILE)
    if -(-m // TILE) * tiles_n < 8:
        return ""
    padded = torch.nn.functional.pad(flat, (0, tiles_n * TILE - n))
    hit = [
        (row, tile)
        for row in range(0, m, TILE)
        for tile in padded[row : row + TILE].any(0).view(tiles_n, TILE).any(1).nonzero().flatten().tolist()
    ]
    if len(hit) > 3:
        return ""
    places = ", ".join(f"({row}, {tile * TILE})" for row, tile in hit)
    return f"one 128x128 tile at {places}" if len(hit) == 1 else f"{len(hit)} 128x128 tiles, at {places}"


def _dominant(flat: torch.Tensor, count: int, rows: int, cols: int) -> str:
    m, n = flat.shape
    for dim, noun in ((1, "row"), (0, "column")):
        if flat.shape[1 - dim] == 1:
            continue  # the only one holds everything
        per_line = flat.sum(dim)
        largest = int(per_line.max())
        if 2 * largest > count and count > 2:
            return f"{100 * largest / count:.1f} % in {noun} {int(per_line.argmax())}, the rest spread"
    if n == 1:
        return f"no pattern ({count:,} of {m:,} rows)"
    return f"no pattern ({count:,} elements in {rows:,} of {m:,} rows and {cols:,} of {n:,} columns)"
