"""Pages are plain English: short sentences, no banned words, no paths of some machine."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.support.pages import PAGES, read

LONGEST_SENTENCE = 40
"""Words. Readers from everywhere lose the thread of longer ones."""
UNPLAIN = (
    "anew",
    "thereof",
    "therein",
    "whatsoever",
    "beside",
    "stands",
    "lies",
    "falls",
    "hangs on",
    "to be had",
    "for whoever",
)
RATE = (
    r"\b(lines?|rows?|tests?|records?|nats|experts?|adds|minutes|seconds|values?|answers?|files?) "
    r"an? (case|kernel|golden|night|layer|op|token|output|run|preset|provider|finding|row)\b"
)
"""The rate "a": "one line a case" reads as two things; "per" is clear."""
MARKETING = ("seamless", "robust", "powerful", "blazing", "cutting-edge", "leverage", "comprehensive", "effortless")


@pytest.mark.parametrize("name", PAGES)
def test_plain_words(name: str) -> None:
    text = read(name)
    assert "\u2014" not in text, "an em dash; two sentences read better"
    assert not [word for word in MARKETING if word in text.lower()]
    assert not re.search(r"/work\b|/tmp/|https?://", text), "a path of some machine, or a host"


def sentences(text: str) -> Iterator[str]:
    """Sentences of a page: paragraphs, items of lists and cells of tables, each apart; code counts as one word."""
    text = re.sub(r"^```.*?^```$|<!--.*?-->", "", text, flags=re.MULTILINE | re.DOTALL)
    for block in re.split(r"\n\s*\n|\n(?=\s*[-*|#>]|\s*\d+\. )", text):
        for part in block.strip().strip("|").split("|") if block.lstrip().startswith("|") else [block]:
            plain = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "CODE", part))
            yield from (s for s in re.split(r"(?<=[.!?:])\**\s+(?=[A-Z\d\[*(\"])", plain.strip()) if s)


def words(sentence: str) -> list[str]:
    """Words and numbers; ids of defects and names of kernels in a list are neither."""
    found = [word.strip('*_()[].,;:!?"') for word in sentence.split()]
    return [w for w in found if re.search(r"\w", w) and not re.fullmatch(r"[A-Z]{1,2}\d+|[\w-]+/\S+", w)]


def unplain(text: str) -> list[str]:
    """What the rules of language forbid: long sentences, banned words, the rate "a", clauses as subjects."""
    found = []
    for sentence in sentences(text):
        if len(words(sentence)) > LONGEST_SENTENCE:
            found.append(f"{len(words(sentence))} words: {sentence}")
        found += [f"{word}: {sentence}" for word in UNPLAIN if re.search(rf"\b{word}\b", sentence, re.IGNORECASE)]
        if rate := re.search(RATE, sentence):
            found.append(f"{rate[0]}: {sentence}")
        if re.match(r"[-*\d. ]*What (?!.*\?)", sentence) and not sentence.startswith("#"):
            found.append(f"a clause as a subject: {sentence}")
    return found


@pytest.mark.parametrize("name", PAGES)
def test_plain_sentences(name: str) -> None:
    assert not unplain(read(name))


@pytest.mark.parametrize(
    "text",
    [
        " ".join(["word"] * 41) + ".",
        "| one | " + " ".join(["word"] * 41) + " |",
        "- Short.\n- Write it anew.",
        "It prints one line a case.",
        "What goes wrong counts.",
        "The result lies below it.",
    ],
)
def test_a_sentence_that_is_not_plain_is_seen(text: str) -> None:
    assert len(unplain(text)) == 1
    assert not unplain(f"```text\n{text}\n```")


def test_sentences_at_the_limit_pass() -> None:
    assert not unplain(" ".join(["Word"] * 40) + ". " + " ".join(["Word"] * 40) + ".")
    assert not unplain("What is a lane? See `what lies beside it`.")
