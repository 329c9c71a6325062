"""Questions and statements about scenes against independent readers, and against guesses."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

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
LOOK = re.compile(rf"(?:({'|'.join(HARD_COLORS)}) )?({'|'.join(HARD_KINDS)}|shape)")


@pytest.fixture(scope="module", params=["", "hard_"])
def prefix(request: pytest.FixtureRequest) -> str:
    """The prefix of the splits of a world."""
    return request.param


@pytest.fixture(scope="module")
def train_questions(prefix: str) -> list[Question]:
    return [sample_question(f"{prefix}train", 0, index) for index in range(20_000)]


@pytest.fixture(scope="module")
def train_statements(prefix: str) -> list[Statement]:
    return [sample_statement(f"{prefix}train", 0, index) for index in range(20_000)]


@pytest.fixture(scope="module")
def heldout_statements(prefix: str) -> list[Statement]:
    return [sample_statement(f"{prefix}test", 0, index) for index in range(5000)]


# Truth


@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_is_true_and_only_novel_rows_are_about_held_out_pairs(split):
    is_novel = split == "test_novel"
    for index in range(1500):
        row = sample_question(split, 0, index)
        assert row.answer in answers_of(split)
        assert answer_of(row.scene, row.question) == row.answer, (row.question, row.scene.shapes)
        assert shows_held_out_pair(row.scene) == is_novel
        if not is_novel or row.kind == "relation":
            assert names_held_out_pair(row.question) == is_novel


@pytest.mark.parametrize("split", SPLITS)
def test_every_label_is_true_and_only_novel_rows_are_about_held_out_pairs(split):
    is_novel = split == "test_novel"
    for index in range(1500):
        row = sample_statement(split, 0, index)
        assert is_statement_true(row.left, row.right, row.statement) == row.label, row
        assert shows_held_out_pair(row.left) == is_novel
        assert shows_held_out_pair(row.right) == is_novel
        assert is_novel or not names_held_out_pair(row.statement)


# Words and shares


def test_all_texts_use_few_plain_words(train_questions, train_statements, prefix):
    texts = [row.question for row in train_questions]
    for row in train_statements:
        # captions are tested with the scenes
        if row.kind != "shows":
            texts.append(row.statement)
    words = {word for text in texts for word in text.split()}
    assert all(word.isascii() and word.isalpha() and word.islower() for word in words)
    assert len(words) < 100
    assert max(len(text.split()) for text in texts) <= 20
    answers = answers_of(f"{prefix}train")
    assert len(answers) == len(set(answers)) < 40


def test_every_answer_and_kind_of_question_occurs(train_questions, prefix):
    assert {row.answer for row in train_questions} == set(answers_of(f"{prefix}train"))
    counts = Counter(row.kind for row in train_questions)
    for kind in QUESTION_KINDS:
        assert 0.18 < counts[kind] / len(train_questions) < 0.22


def test_every_kind_of_statement_occurs(train_statements, prefix):
    counts = Counter(row.kind for row in train_statements)
    num_caption_rows = counts.pop("shows", 0)
    if prefix:
        assert num_caption_rows == 0
        bounds = (0.08, 0.12)
    else:
        assert 0.32 < num_caption_rows / len(train_statements) < 0.35
        bounds = (0.06, 0.075)
    assert set(counts) == set(STATEMENT_KINDS) - {"shows"}
    for count in counts.values():
        assert bounds[0] < count / len(train_statements) < bounds[1]


# Balance


@dataclass
class GuessedRow:
    """A row as a guesser sees it: views of it, the finest first, and the truth."""

    kind: str
    views: list[Hashable]
    truth: Hashable


def template_of(text: str) -> str:
    """Return a text with its kinds, colours and sizes replaced by the names of their classes."""
    return " ".join(WORD_CLASSES.get(word, word) for word in singular(text).split())


def guess_by_question(row: Question) -> GuessedRow:
    views: list[Hashable] = [row.question, template_of(row.question), row.kind]
    return GuessedRow(row.kind, views, row.answer)


def guess_by_statement(row: Statement) -> GuessedRow:
    views: list[Hashable] = [row.statement, template_of(row.statement), row.kind]
    return GuessedRow(row.kind, views, row.label)


def accuracy_of_guesses(train_rows, test_rows, as_guessed: Callable) -> dict[str, float]:
    """Return the accuracy by kind, and of all.

    The guess is the commonest truth of the finest view that training shows at least 20 times.
    """
    truths = defaultdict(Counter)
    for row in map(as_guessed, train_rows):
        for view in row.views:
            truths[view][row.truth] += 1
    hits = defaultdict(list)
    for row in map(as_guessed, test_rows):
        common_views = [view for view in row.views if truths[view].total() >= 20]
        guess = truths[common_views[0]].most_common(1)[0][0]
        hits[row.kind].append(guess == row.truth)
        hits["all"].append(guess == row.truth)
    return {kind: sum(values) / len(values) for kind, values in hits.items()}


def test_no_question_is_answered_without_the_image(train_questions, prefix):
    test_questions = [sample_question(f"{prefix}test", 0, index) for index in range(5000)]
    accuracy = accuracy_of_guesses(train_questions, test_questions, guess_by_question)
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
        if counts.total() >= 60:
            excesses.append(max(counts.values()) / counts.total() - 1 / len(counts))
    assert len(excesses) > 50
    assert max(excesses) < 0.25
    assert sum(excesses) / len(excesses) < 0.08


def test_no_statement_is_judged_without_the_images(train_statements, heldout_statements):
    accuracy = accuracy_of_guesses(train_statements, heldout_statements, guess_by_statement)
    assert max(accuracy.values()) < 0.56
    assert accuracy["all"] < 0.53


@pytest.mark.parametrize("side", ["left", "right"])
def test_hardly_a_statement_is_judged_from_one_image(train_statements, heldout_statements, side):
    """Guess from the wording and the number of shapes that it speaks of in one image."""

    def guess_by_side(row: Statement) -> GuessedRow:
        scene = getattr(row, side)
        look = LOOK.search(row.statement)
        if look:
            evidence = len(find_shapes(scene, look[0]))
        else:
            evidence = scene.background
        views = [(template_of(row.statement), evidence), row.kind]
        return GuessedRow(row.kind, views, row.label)

    accuracy = accuracy_of_guesses(train_statements, heldout_statements, guess_by_side)
    del accuracy["all"]
    accuracy.pop("shows", None)  # its view is of a look, and half of the true ones show it here
    for kind in ("side", "side_number"):  # decided by this side half the time
        assert 0.7 < accuracy.pop(kind) < 0.8
    assert accuracy.pop("both") == pytest.approx(0.75, abs=0.05)
    assert accuracy.pop("more") == pytest.approx(2 / 3, abs=0.05)
    assert max(accuracy.values()) < 0.57
