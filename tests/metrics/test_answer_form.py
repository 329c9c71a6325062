"""The normal form of answers: a table worked out by hand from vqaEval.py."""

import pytest

from eve_vl.metrics.answer_form import CONTRACTIONS, normalize

NORMAL = {
    "": "",
    "Cat": "cat",
    "a cat.": "cat",
    "An  apple on\nthe\ttable ": "apple on table",
    "The": "the",  # articles only, unlike officially: a choice may be called "A"
    "A": "a",
    "an a.": "an a",
    "theatre": "theatre",
    "none": "0",
    "None.": "0",
    "zero": "0",
    "two": "2",
    "Ten": "10",
    "eleven": "eleven",
    "one dog and two cats": "1 dog and 2 cats",
    "10,000": "10000",
    "10,000 b.c.": "10000 bc",
    "1,000 red/blue": "1000 redblue",  # one comma inside a number drops all punctuation
    "red/blue": "red blue",
    "red / blue": "red blue",
    # a mark that touches a space anywhere is dropped everywhere
    "red/ blue/green": "red bluegreen",
    "red,blue": "red blue",
    "x;/y/z": "x y z",  # spaces put there for another mark do not count
    "red, blue,green": "red bluegreen",
    "t-shirt": "t shirt",
    "a-frame": "frame",
    "x-ray - t-shirt": "xray tshirt",
    "yes!": "yes",
    "what?!": "what",
    "(yes)": "yes",
    'the "stop" sign': "stop sign",
    "{[<a_b>]}": "b",
    "5 + 5 = 10": "5 5 10",
    "back\\slash": "back slash",
    "`me@home`;": "me home",
    # colon, apostrophe, hash, star, per cent and ampersand are no official punctuation
    "10:30": "10:30",
    "50%": "50%",
    "black & white": "black & white",
    "u.s.a.": "usa",
    "3.14": "3.14",
    ".5": ".5",
    "no. 5": "no 5",
    "no.5": "no.5",
    "3.": "3",
    "1.2.3.": "1.2.3",
    "...": "",
    "." * 32 + "x": "x",
    "." * 35 + "x": "...x",  # at most 32 periods are removed
    "a." * 33: "a" * 32 + "a.",
    "don't": "don't",
    "dont": "don't",
    "Dont.": "don't",
    "it's": "it's",
    "its": "its",
    "IM": "im",  # the table has "Im", words are lower case by then
    "ive": "ive",
    "twas": "'twas",
    "oclock": "o'clock",
    "ow's'at": "'ow's'at",
    "'ow'sat": "'ow's'at",
    "couldnt've": "couldn't've",
    "couldn'tve": "couldn't've",
    "couldntve": "couldntve",  # two lost apostrophes are not restored
    "yall'd've": "y'all'd've",
    "somebody'd": "somebodyd",  # the official table has it the wrong way round
    "somebodyd": "somebodyd",
    "id": "id",
    "hell": "hell",
    "let's": "let's",
    "lets": "lets",
    "the hes": "he's",
}


@pytest.mark.parametrize("answer", NORMAL)
def test_normal_form_is_the_one_worked_out_by_hand(answer: str):
    assert normalize(answer) == NORMAL[answer]


def test_contractions_only_gain_apostrophes():
    num_official = 120
    num_of_i = 4
    num_to_themselves = 2
    assert len(CONTRACTIONS) == num_official - num_of_i - num_to_themselves
    for short, full in CONTRACTIONS.items():
        assert short.replace("'", "") == full.replace("'", "")
        assert short == short.lower()
        assert normalize(short) == full
