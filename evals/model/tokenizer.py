"""The embedded model's tokens: words with the spaces around them, single digits, and the signs of GSM8K's solutions.

Text is cut by one regular expression and joined again by plain concatenation, so that decoding gives back every
character. The vocabulary is the set of pieces that the problems of ``evals.model.synthetic`` are made of; a word
outside it is an error here, since an unknown token would quietly represent anything.
"""

from __future__ import annotations

import re
from functools import lru_cache

from evals.model.synthetic import ITEMS, NAMES, PLACES, completion, problem, prompt

PATTERN = r"####|<<|>>| ?[A-Za-z]+ ?|[0-9]|\n|[^A-Za-z0-9\n]"
PIECES = re.compile(PATTERN)
PAD, END, UNKNOWN = "<pad>", "<end>", "<unk>"
END_ID, UNKNOWN_ID = 1, 2
SAMPLED = 4000  # problems searched for pieces; the vocabulary is complete long before


@lru_cache(maxsize=1)
def vocabulary() -> dict[str, int]:
    """Piece -> id: pad, end and unknown first, then digits and pieces in order of code points."""
    pieces = {str(digit) for digit in range(10)}
    for index in range(SAMPLED):
        made = problem(0, index)
        pieces.update(PIECES.findall(prompt(made.question) + completion(made.solution)))
    for word in (*NAMES, *ITEMS, *PLACES):  # whatever the sample held: the closed sets are complete
        pieces.add(f"{word} ")
    return {piece: place for place, piece in enumerate([PAD, END, UNKNOWN, *sorted(pieces)])}


def encode(text: str) -> list[int]:
    """Ids of a text; ValueError names the first piece that the vocabulary does not have."""
    known = vocabulary()
    try:
        return [known[piece] for piece in PIECES.findall(text)]
    except KeyError as missing:
        raise ValueError(f"the embedded model has no token for {missing.args[0]!r}") from None


def decode(ids: list[int]) -> str:
    """The text of ids, special tokens left out."""
    pieces = list(vocabulary())
    return "".join(pieces[place] for place in ids if place > UNKNOWN_ID)
