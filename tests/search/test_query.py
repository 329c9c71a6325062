"""Queries: weights, quoted phrases and excluded words; no text is a syntax error."""

import itertools
import random
import re

import pytest

from eve_vl.search.query import Query
from eve_vl.utils.errors import UserError


@pytest.mark.parametrize(
    ("query", "parts", "terms"),
    [
        ("red car", [("red car", 1)], [("red", 1), ("car", 1)]),
        ("  a dog, a Dog!", [("  a dog, a Dog!", 1)], [("a", 1), ("dog", 1)]),
        (
            "2:cat -dog",
            [("cat", 2), ("dog", -1)],
            [("cat", 2)],
        ),
        (
            'red "fire engine" -0.5:toy',
            [("red fire engine", 1), ("toy", -0.5)],
            [("red", 1), ("fire engine", 1)],
        ),
        (
            '-"hot dog" 1.5:"big cat" tree',
            [("tree", 1), ("hot dog", -1), ("big cat", 1.5)],
            [("big cat", 1.5), ("tree", 1)],
        ),
        (
            "t-shirt - 16:9 at 5:30",
            [("t-shirt - 16:9 at 5:30", 1)],
            [("t-shirt", 1), ("16:9", 1), ("at", 1), ("5:30", 1)],
        ),
        (
            '0:cat "" 5" "open',
            [('0:cat "" 5" "open', 1)],
            [("0:cat", 1), ("5", 1), ("open", 1)],
        ),
        ("3:pmt", [("pmt", 3)], [("pmt", 3)]),
        ("-dog", [("dog", -1)], []),
        ("", [], []),
        ("?! ❤", [("?! ❤", 1)], []),
        ("красный 猫", [("красный 猫", 1)], [("красный", 1), ("猫", 1)]),
    ],
)
def test_query_has_weights_phrases_and_exclusions(query, parts, terms):
    parsed = Query.parse(query)
    assert list(parsed.parts) == parts
    assert list(parsed.terms) == terms
    assert parsed.is_plain == (parts in ([], [(query, 1)]))


SIGNS = list('"*^(){}[]:+-,.;\\/%_~ \n\0')
WORDS = ["AND", "OR", "NOT", "NEAR(", "captions:", "rowid", "cat", "2:", '""', "é", "猫", "❤"]


def test_no_text_is_a_syntax_error(shared_index):
    rng = random.Random(0)
    texts = ["cat" + " -x" * 500, "cat " * 1000, '"' + "a b " * 1000 + '"']
    for _ in range(40):
        texts.append("".join(rng.choices(SIGNS + WORDS, k=rng.randint(1, 12))))
    for text, captions in itertools.product(texts, (False, True)):
        try:
            shared_index.search(text, captions=captions, rerank=0)
        except UserError as error:
            assert re.search("nothing|is known to the run's tokenizer|is empty", str(error))
