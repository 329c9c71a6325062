"""Questions and statements about scenes against independent readers, and against guesses."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable

import pytest

from eve_vl.synthetic.scenes.questions import QUESTION_KINDS, Question, answers_of, sample_question
from eve_vl.synthetic.scenes.statements import STATEMENT_KINDS, Statement, sample_statement
from eve_vl.synthetic.scenes.world import HARD_COLORS, HARD_KINDS, SPLITS
from helpers.scene_lookup import (
    find_shapes,
    names_held_out_pair,
    shows_held_out_pair,
    singular,
)
from helpers.scene_question_reader import answer_of
from helpers.scene_statement_reader import is_statement_true

WORD_CLASSES = {"big": "SIZE", "small": "SIZE", "an": "a"}
WORD_CLASSES |= dict.fromkeys(HARD_KINDS, "KIND")
WORD_CLASSES |= dict.fromkeys(HARD_COLORS, "COLOR")
NUM_TRAINING = 12_000
LOOK = re.compile(rf"(?:({'|'.join(HARD_COLORS)}) )?({'|'.join(HARD_KINDS)}|shape)")


@pytest.fixture(scope="module", params=["", "hard_"])
def prefix(request: pytest.FixtureRequest) -> str:
    """The prefix of the splits of a world."""
    return request.param


@pytest.fixture(scope="module")
def train_questions(prefix: str) -> list[Question]:
    return [sample_question(f"{prefix}train", 0, index) for index in range(NUM_TRAINING)]


@pytest.fixture(scope="module")
def train_statements(prefix: str) -> list[Statement]:
    return [sample_statement(f"{prefix}train", 0, index) for index in range(NUM_TRAINING)]


@pytest.fixture(scope="module")
def heldout_statements(prefix: str) -> list[Statement]:
    return [sample_statement(f"{prefix}test", 0, index) for index in range(5000)]


# Truth


@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_is_true_and_only_novel_rows_are_about_held_out_pairs(split):
    is_novel = split == "test_novel"
    for index in range(800):
        row = sample_question(split, 0, index)
        assert row.answer in answers_of(split)
        assert answer_of(row.scene, row.question) == row.answer, (row.question, row.scene.shapes)
        assert shows_held_out_pair(row.scene) == is_novel
        if not is_novel or row.kind == "relation":
            assert names_held_out_pair(row.question) == is_novel


@pytest.mark.parametrize("split", SPLITS)
def test_every_label_is_true_and_only_novel_rows_are_about_held_out_pairs(split):
    is_novel = split == "test_novel"
    for index in range(800):
        row = sample_statement(split, 0, index)
        assert is_statement_true(row.left, row.right, row.statement) == row.label, row
        assert shows_held_out_pair(row.left) == is_novel
        assert shows_held_out_pair(row.right) == is_novel
        assert is_novel or not names_held_out_pair(row.statement)


# Words and shares


def test_all_texts_use_few_plain_words(train_questions, train_statements, prefix):
    texts = [row.question for row in train_questions]
    # captions are tested with the scenes
    texts += [row.statement for row in train_statements if row.kind != "shows"]
    words = set()
    for text in texts:
        assert re.fullmatch("[a-z ]+", text)
        assert len(text.split()) <= 20
        words.update(text.split())
    assert len(words) < 100
    answers = answers_of(f"{prefix}train")
    assert len(answers) == len(set(answers)) < 40


def test_every_answer_and_kind_of_question_occurs(train_questions, prefix):
    assert {row.answer for row in train_questions} == set(answers_of(f"{prefix}train"))
    counts = Counter(row.kind for row in train_questions)
    for kind in QUESTION_KINDS:
        assert 0.18 < counts[kind] / len(train_questions) < 0.22


def test_every_kind_of_statement_occurs(train_statements, prefix):
    """In the easy world a third are captions, which the hard world has not."""
    counts = Counter(row.kind for row in train_statements)
    share_of_captions = counts.pop("shows", 0) / len(train_statements)
    assert share_of_captions == pytest.approx(0 if prefix else 1 / 3, abs=0.02)
    assert set(counts) == set(STATEMENT_KINDS) - {"shows"}
    expected = (1 - share_of_captions) / len(counts)
    for count in counts.values():
        assert count / len(train_statements) == pytest.approx(expected, abs=0.02)


# Balance


def template_of(text: str) -> str:
    """Return a text with its kinds, colours and sizes replaced by the names of their classes."""
    return " ".join(WORD_CLASSES.get(word, word) for word in singular(text).split())


def views_of_question(row: Question) -> list[Hashable]:
    return [row.question, template_of(row.question), row.kind]


def views_of_statement(row: Statement) -> list[Hashable]:
    return [row.statement, template_of(row.statement), row.kind]


def accuracy_of_guesses(
    train_rows: list,
    test_rows: list,
    views_of: Callable[..., list[Hashable]],
    truth: str,
) -> dict[str, float]:
    """Return the accuracy by kind, and of all.

    The guess is the commonest truth of the finest view that training shows at least eight times;
    the views of a row are listed with the finest first.
    """
    truths = defaultdict(Counter)
    for row in train_rows:
        for view in views_of(row):
            truths[view][getattr(row, truth)] += 1
    num_hits = Counter()
    num_rows = Counter()
    for row in test_rows:
        finest_view = next(view for view in views_of(row) if truths[view].total() >= 8)
        guess = truths[finest_view].most_common(1)[0][0]
        for kind in (row.kind, "all"):
            num_rows[kind] += 1
            num_hits[kind] += guess == getattr(row, truth)
    return {kind: num_hits[kind] / num_rows[kind] for kind in num_rows}


def test_no_question_is_answered_without_the_image(train_questions, prefix):
    test_questions = [sample_question(f"{prefix}test", 0, index) for index in range(5000)]
    accuracy = accuracy_of_guesses(train_questions, test_questions, views_of_question, "answer")
    bounds = {
        "attribute": 0.27,
        "count": 0.26,
        "existence": 0.54,
        "relation": 0.54,
        "comparison": 0.54,
        "all": 0.42,
    }
    for kind, value in accuracy.items():
        assert value < bounds[kind], kind


def test_every_common_question_has_even_answers(train_questions):
    answers = defaultdict(Counter)
    for row in train_questions:
        answers[row.question][row.answer] += 1
    excesses = []
    for counts in answers.values():
        if counts.total() >= 30:
            excesses.append(max(counts.values()) / counts.total() - 1 / len(counts))
    assert len(excesses) > 30
    assert max(excesses) < 0.25
    assert sum(excesses) / len(excesses) < 0.08


def test_no_statement_is_judged_without_the_images(train_statements, heldout_statements):
    accuracy = accuracy_of_guesses(
        train_statements, heldout_statements, views_of_statement, "label"
    )
    assert max(accuracy.values()) < 0.56
    assert accuracy["all"] < 0.53


@pytest.mark.parametrize("side", ["left", "right"])
def test_hardly_a_statement_is_judged_from_one_image(train_statements, heldout_statements, side):
    """Guess from the wording and the number of shapes that it speaks of in one image."""

    def views_of_side(row: Statement) -> list[Hashable]:
        scene = getattr(row, side)
        look = LOOK.search(row.statement)
        evidence = len(find_shapes(scene, look[0])) if look else scene.background
        return [(template_of(row.statement), evidence), row.kind]

    accuracy = accuracy_of_guesses(train_statements, heldout_statements, views_of_side, "label")
    del accuracy["all"]
    accuracy.pop("shows", None)  # its view is of a look, and half of the true ones show it here
    for kind in ("side", "side_number"):  # decided by this side half the time
        assert 0.7 < accuracy.pop(kind) < 0.8
    assert accuracy.pop("both") == pytest.approx(0.75, abs=0.05)
    assert accuracy.pop("more") == pytest.approx(2 / 3, abs=0.05)
    assert max(accuracy.values()) < 0.57
