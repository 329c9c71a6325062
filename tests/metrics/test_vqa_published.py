"""VQA's normal form and accuracy: recorded results of published copies of vqaEval.py."""

import pytest

from eve_vl.metrics.answer_form import normalize
from eve_vl.metrics.vqa import accuracy_of

NORMAL = {  # salesforce-lavis 1.0.2, common/vqa_tools/vqa_eval.py
    "the two dogs": "2 dogs",
    "A t-shirt.": "t shirt",
    "red, white, and blue": "red white and blue",
    "red,white": "red white",
    "10:30 a.m.": "10:30 am",
    "1,000 people, more or less": "1000 people more or less",
    "its' 5": "its' 5",
    "An orange and an apple": "orange and apple",
    "(left) side": "left side",
    "$5.50": "$5.50",
    "x_y": "x y",
    "x - y": "x y",
    "'twas nice": "'twas nice",
    'on the "stop" sign': "on stop sign",
    "ten o clock": "10 o clock",
    "e.g. bus": "eg bus",
    "shant-itll  someones": "shan't it'll someone's",
    "youd. let's\twe'd've y'all'dve One": "you'd let's we'd've y'all'd've 1",
    "mustn't  wheres who'dve": "mustn't where's who'd've",
    "... itll\twouldnt - #1-not've": "it'll wouldn't #1not've",
    "mightn't - somebody'd've.y'all'll": "mightn't somebody'd'vey'all'll",
    "it'd someoned've\nwho'd": "it'd someone'd've who'd",
    "the & y'all'd've shed've": "& y'all'd've she'd've",
    "couldn't've-the": "couldn't've",
    "thered've  -": "there'd've",
}

SCORES = [  # lmms-eval 0.7.3, tasks/vqav2/utils.py; annotators of each question disagree
    ("2", ["two"] * 5 + ["2"] * 3 + ["three"] * 2, 1.0),
    ("dog", ["a dog", "The dog", "dog.", "puppy", "dogs", "hound", *["pup"] * 4], 0.9),
    ("no", ["yes"] * 9 + ["no"], 0.3),
    ("t shirt", ["t-shirt", "T-shirt", "tshirt", "t shirt", *["shirt"] * 3, *["tee"] * 3], 0.9),
    ("red, white", ["red white", "red/white", "red and white", "white, red", *["red"] * 6], 0.6),
    ("dont know", ["don't know", "don't know", "dont know", *["unsure"] * 5, "0", "0"], 0.9),
    ("none", ["0", "zero", "none", "nothing", *["1"] * 6], 0.9),
    ("1,000", ["1000", "1,000", "thousand", "1000", *["500"] * 6], 0.9),
    ("10:30", ["10:30"] * 2 + ["10.30"] * 4 + ["1030"] * 4, 0.6),
]


@pytest.mark.parametrize("answer", NORMAL)
def test_normal_form_is_the_published_one(answer):
    assert normalize(answer) == NORMAL[answer]


@pytest.mark.parametrize(("prediction", "answers", "score"), SCORES)
def test_accuracy_is_the_published_one(prediction, answers, score):
    assert len(answers) == 10
    assert accuracy_of(prediction, answers) == pytest.approx(score)
