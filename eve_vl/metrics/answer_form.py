"""The normal form of answers, in which VQA compares them.

Checked against vqaEval.py of the VQA v2 evaluation tools, oddities included, since scores must
match the official server.
"""

import re
from functools import lru_cache

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_NUMBER = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")  # the official look-behind for digits is misspelt and always holds
MAX_PERIODS = 32
"""The official call passes re.UNICODE, which is 32, where the number of replacements belongs."""
ARTICLES = ("a", "an", "the")
NUMBERS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}

CONTRACTED = """
    ain't aren't can't couldn't couldn't've could've didn't doesn't don't hadn't hadn't've
    hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't
    mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't
    she'd've shouldn't shouldn't've should've somebody'd've somebody'll somebody's someone'd
    someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've
    weren't we've what'll what're what's what've when's where'd where's where've who'd who'd've
    who'll who's who've why'll why're why's won't wouldn't wouldn't've would've y'all y'all'll
    y'all'd've you'd you'd've you'll you're you've
"""
"""Words that get one missing apostrophe back. The official entries for "I" are missing here,
because words are lower case by then and cannot match. The two that map to themselves are missing
too."""


def _contractions() -> dict[str, str]:
    """Return the contracted words by their forms without one of the apostrophes."""
    contractions = {}
    for word in CONTRACTED.split():
        for position, letter in enumerate(word):
            if letter == "'":
                contractions[word[:position] + word[position + 1 :]] = word
    contractions["somebody'd"] = "somebodyd"  # the official table has it the wrong way round
    return contractions


CONTRACTIONS = _contractions()


@lru_cache(1 << 16)  # annotators repeat few answers
def normalize(answer: str) -> str:
    """Return the normal form of an answer, compared officially if annotators disagree.

    Punctuation goes (or becomes a space, if it touches no space and no number has a comma), periods
    go unless a digit follows, then lower case, number words up to ten as digits, no articles,
    apostrophes put back, single spaces. An answer of articles only keeps them ("A", a choice),
    unlike officially. The result can be empty ("?").
    """
    answer = strip(answer)
    has_comma_in_number = COMMA_IN_NUMBER.search(answer) is not None
    text = answer
    for mark in PUNCTUATION:
        is_dropped = has_comma_in_number or f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if is_dropped else " ")
    text = PERIOD.sub("", text, count=MAX_PERIODS)

    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    words_without_articles = [word for word in words if word not in ARTICLES]
    return " ".join(CONTRACTIONS.get(word, word) for word in words_without_articles or words)


def strip(answer: str) -> str:
    """Return an answer on one line, without space around it."""
    return answer.replace("\n", " ").replace("\t", " ").strip()
