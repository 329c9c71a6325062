"""Questions and statements about scenes against an independent reader and guesses."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

import numpy as np
import pytest

from eve_vl.data.image_refs import ImageDrawing
from eve_vl.synthetic.scenes.captions import all_captions
from eve_vl.synthetic.scenes.drawing import render
from eve_vl.synthetic.scenes.questions import QUESTION_KINDS, Question, answers_of, sample_question
from eve_vl.synthetic.scenes.rows import SceneQuestions, SceneStatements
from eve_vl.synthetic.scenes.sampling import sample_scene
from eve_vl.synthetic.scenes.statements import STATEMENT_KINDS, Statement, sample_statement
from eve_vl.synthetic.scenes.world import HARD_COLORS, HARD_KINDS, HELD_OUT, SPLITS, Scene, Shape

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
WORD_CLASSES = {
    **dict.fromkeys(HARD_KINDS, "KIND"),
    **dict.fromkeys(HARD_COLORS, "COLOR"),
    "big": "SIZE",
    "small": "SIZE",
    "an": "a",
}
HELD_OUT_TEXTS = {f"{color} {kind}" for kind, color in HELD_OUT}


@pytest.fixture(scope="module", params=["", "hard_"])
def prefix(request: pytest.FixtureRequest) -> str:
    """The prefix of the splits of a world."""
    return request.param


@pytest.fixture(scope="module")
def train_questions(prefix: str) -> list[Question]:
    return [sample_question(f"{prefix}train", 0, i) for i in range(20_000)]


@pytest.fixture(scope="module")
def train_statements(prefix: str) -> list[Statement]:
    return [sample_statement(f"{prefix}train", 0, i) for i in range(20_000)]


@pytest.fixture(scope="module")
def scored_statements(prefix: str) -> list[Statement]:
    return [sample_statement(f"{prefix}test", 0, i) for i in range(5000)]


# Truth


def _shows_held_out(scene: Scene) -> bool:
    return not {(shape.kind, shape.color) for shape in scene.shapes}.isdisjoint(HELD_OUT)


def _names_held_out(text: str) -> bool:
    return any(each in text for each in HELD_OUT_TEXTS)


@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_is_what_the_reader_finds(split):
    """Held-out pairs are shown and asked about in novel rows only."""
    for i in range(1500):
        asked = sample_question(split, 0, i)
        assert asked.answer in answers_of(split)
        assert _answer(asked.scene, asked.question) == asked.answer, (
            asked.question,
            asked.scene.shapes,
        )
        assert _shows_held_out(asked.scene) == (split == "test_novel")
        if split != "test_novel" or asked.kind == "relation":
            assert _names_held_out(asked.question) == (split == "test_novel")


@pytest.mark.parametrize("split", SPLITS)
def test_every_label_is_what_the_reader_finds(split):
    """Held-out pairs are shown and spoken of in novel rows only."""
    for i in range(1500):
        claimed = sample_statement(split, 0, i)
        found = _holds(claimed.left, claimed.right, claimed.statement)
        assert found == claimed.label, (
            claimed.statement,
            claimed.left.shapes,
            claimed.right.shapes,
        )
        assert all(
            _shows_held_out(scene) == (split == "test_novel")
            for scene in (claimed.left, claimed.right)
        )
        assert split == "test_novel" or not _names_held_out(claimed.statement)


def test_rows_depend_only_on_split_seed_and_index():
    for sample in (sample_question, sample_statement):
        in_order = [sample("val", 2, i) for i in range(50)]
        assert [sample("val", 2, i) for i in reversed(range(50))] == in_order[::-1]
        rows = {
            repr(sample(split, seed, i)) for split in SPLITS for seed in (0, 1) for i in range(50)
        }
        assert len(rows) == 2 * 50 * len(SPLITS)


def test_all_texts_use_few_plain_words(train_questions, train_statements, prefix):
    texts = [asked.question for asked in train_questions] + [
        claimed.statement for claimed in train_statements
    ]
    if not prefix:  # captions of hard scenes are tested in test_data_scenes.py
        texts += [
            caption for i in range(1000) for caption in all_captions(sample_scene("train", 0, i))
        ]
    words = {word for text in texts for word in text.split()}
    answers = answers_of(f"{prefix}train")
    assert all(word.isascii() and word.isalpha() and word.islower() for word in words)
    assert len(words) < 100
    assert len(answers) == len(set(answers)) < 40
    assert max(len(text.split()) for text in texts) <= 20


def test_every_answer_and_kind_occurs(train_questions, train_statements, prefix):
    assert {asked.answer for asked in train_questions} == set(answers_of(f"{prefix}train"))
    kinds = Counter(asked.kind for asked in train_questions)
    assert all(0.18 < kinds[kind] / len(train_questions) < 0.22 for kind in QUESTION_KINDS)
    kinds = Counter(claimed.kind for claimed in train_statements)
    if prefix:
        assert "shows" not in kinds
        assert all(
            0.08 < kinds[kind] / len(train_statements) < 0.12
            for kind in STATEMENT_KINDS
            if kind != "shows"
        )
        return
    assert 0.32 < kinds.pop("shows") / len(train_statements) < 0.35
    assert all(
        0.06 < kinds[kind] / len(train_statements) < 0.075
        for kind in STATEMENT_KINDS
        if kind != "shows"
    )


# Balance


def test_no_question_is_answered_without_the_image(train_questions, prefix):
    """The best constant answer to each wording, or to each template where a wording is new or
    rare."""
    scored = [sample_question(f"{prefix}test", 0, i) for i in range(5000)]
    accuracy = _blind_accuracy(train_questions, scored, _question_views, lambda row: row.answer)
    bounds = {
        "attribute": 0.27,
        "count": 0.26,
        "existence": 0.54,
        "relation": 0.54,
        "comparison": 0.54,
    }
    assert {
        kind: value for kind, value in accuracy.items() if value >= bounds.get(kind, 0.42)
    } == {}


def test_every_common_question_has_even_answers(train_questions):
    answers = defaultdict(Counter)
    for asked in train_questions:
        answers[asked.question][asked.answer] += 1
    common = [counter for counter in answers.values() if counter.total() >= 60]
    assert len(common) > 50
    excess = [max(counter.values()) / counter.total() - 1 / len(counter) for counter in common]
    assert max(excess) < 0.25
    assert sum(excess) / len(excess) < 0.08


def test_no_statement_is_judged_without_the_images(train_statements, scored_statements):
    accuracy = _blind_accuracy(
        train_statements, scored_statements, _statement_views, lambda row: row.label
    )
    assert max(accuracy.values()) < 0.56
    assert accuracy["all"] < 0.53


@pytest.mark.parametrize("side", ["left", "right"])
def test_hardly_a_statement_is_judged_from_one_image(train_statements, scored_statements, side):
    """Guess from the wording and the number of shapes that it speaks of in one image."""

    def views(row: Statement) -> tuple[Hashable, ...]:
        scene = getattr(row, side)
        trait = re.search(
            rf"(?:({'|'.join(HARD_COLORS)}) )?({'|'.join(HARD_KINDS)}|shape)", row.statement
        )
        seen = len(_find(scene, trait[0])) if trait else scene.background
        return (_template(row.statement), seen), row.kind

    accuracy = _blind_accuracy(train_statements, scored_statements, views, lambda row: row.label)
    one_sided = [accuracy.pop(kind) for kind in ("side", "side_number")]
    accuracy.pop("shows", None)  # its view is of a trait, and half of the true ones show it here
    assert all(0.7 < value < 0.8 for value in one_sided)  # decided by this side half the time
    assert accuracy["both"] == pytest.approx(0.75, abs=0.05)
    assert accuracy["more"] == pytest.approx(2 / 3, abs=0.05)
    assert all(
        value < 0.57 for kind, value in accuracy.items() if kind not in ("both", "more", "all")
    )


RowT = TypeVar("RowT", Question, Statement)


def _blind_accuracy(
    fitted: Iterable[RowT],
    scored: Iterable[RowT],
    views: Callable[[RowT], tuple[Hashable, ...]],
    truth: Callable[[RowT], Hashable],
) -> dict[str, float]:
    """Accuracy by kind, and of all, of the commonest truth under the finest view seen at least 20
    times."""
    seen = defaultdict(Counter)
    for row in fitted:
        for view in views(row):
            seen[view][truth(row)] += 1
    hits = defaultdict(list)
    for row in scored:
        view = next(view for view in views(row) if seen[view].total() >= 20)
        hits[row.kind].append(seen[view].most_common(1)[0][0] == truth(row))
    accuracy = {kind: sum(values) / len(values) for kind, values in hits.items()}
    return {**accuracy, "all": sum(map(sum, hits.values())) / sum(map(len, hits.values()))}


def _question_views(row: Question) -> tuple[Hashable, ...]:
    return row.question, _template(row.question), row.kind


def _statement_views(row: Statement) -> tuple[Hashable, ...]:
    return row.statement, _template(row.statement), row.kind


def _template(text: str) -> str:
    words = [
        word if word == "cross" else word.removesuffix("s")
        for word in text.replace("crosses", "cross").split()
    ]
    return " ".join(WORD_CLASSES.get(word, word) for word in words)


# Rows


def test_question_rows_show_the_scene_they_ask_about():
    rows = SceneQuestions(split="val", image_size=40, seed=3, num_rows=5)
    asked = sample_question("val", 3, 4)
    row = rows[4]
    assert isinstance(row.image, ImageDrawing)
    np.testing.assert_array_equal(row.image.pixels, render(asked.scene, 40))
    assert (row.question, row.answers, row.answer_type) == (
        asked.question,
        (asked.answer,),
        asked.kind,
    )
    assert row.question_id == 4
    assert row.where == "scenes:val[4]"
    with pytest.raises(IndexError):
        rows[5]


def test_statement_rows_show_both_scenes():
    rows = SceneStatements(split="val", image_size=40, seed=3, num_rows=5)
    claimed = sample_statement("val", 3, 4)
    row = rows[4]
    for image, scene in ((row.left, claimed.left), (row.right, claimed.right)):
        assert isinstance(image, ImageDrawing)
        np.testing.assert_array_equal(image.pixels, render(scene, 40))
    assert (row.statement, row.label, row.identifier) == (claimed.statement, claimed.label, "4")
    assert row.group == row.statement  # the same words about other images are one group
    assert row.where == "scenes:val[4]"
    with pytest.raises(IndexError):
        rows[5]


# The reader: every sentence as a pattern, judged by coordinates and extents


def _size(scene: Scene, shape: Shape) -> str:
    return "big" if shape.extent > (0.19 if scene.world.is_hard else 0.29) else "small"


def _find(scene: Scene, trait: str) -> list[Shape]:
    """The shapes that "big red circle(s)", "star" or "red shape(s)" speaks of."""
    words = ["cross" if word == "crosses" else word for word in trait.split()]
    words = [
        word.removesuffix("s") if word != "cross" else word
        for word in words
        if word not in ("shape", "shapes")
    ]
    return [
        shape
        for shape in scene.shapes
        if set(words) <= {_size(scene, shape), shape.color, shape.kind}
    ]


def _the(scene: Scene, trait: str) -> Shape:
    (shape,) = _find(scene, trait)  # "the" presupposes exactly one
    return shape


def _at(scene: Scene, place: str) -> Shape:
    def is_there(shape: Shape) -> bool:
        if place.startswith("row"):
            return (
                f"row {NUMBERS[math.ceil(4 * shape.center_y)]} column "
                f"{NUMBERS[math.ceil(4 * shape.center_x)]}" == place
            )
        vertical = "top" if shape.center_y < 1 / 3 else "bottom" if shape.center_y > 2 / 3 else ""
        horizontal = "left" if shape.center_x < 1 / 3 else "right" if shape.center_x > 2 / 3 else ""
        return (f"{vertical} {horizontal}".strip() or "middle") == place

    (shape,) = [shape for shape in scene.shapes if is_there(shape)]
    return shape


def _next_to(scene: Scene, side: str, trait: str) -> Shape:
    step_y, step_x = {"above": (-1, 0), "below": (1, 0), "left of": (0, -1), "right of": (0, 1)}[
        side
    ]
    given = _the(scene, trait)
    y, x = given.center_y + step_y / 4, given.center_x + step_x / 4
    (shape,) = [
        shape
        for shape in scene.shapes
        if max(abs(shape.center_y - y), abs(shape.center_x - x)) < 0.05
    ]
    return shape


def _direction(one: Shape, other: Shape, axis: str) -> str:
    if axis in ("left", "right"):
        gap, names = other.center_x - one.center_x, ("left", "right")
    else:
        gap, names = other.center_y - one.center_y, ("above", "below")
    assert abs(gap) > 0.2, "too close to tell"
    return names[gap < 0]


def _bigger(one: Shape, other: Shape) -> bool:
    assert abs(one.extent - other.extent) > 0.05, "too close to tell"
    return one.extent > other.extent


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "no"


_READINGS: tuple[tuple[str, Callable[..., str]], ...] = (
    (r"what color is the shape at (.+)", lambda scene, place: _at(scene, place).color),
    (r"which kind is the shape at (.+)", lambda scene, place: _at(scene, place).kind),
    (
        r"what color is the shape directly (\w+(?: of)?) the (.+)",
        lambda scene, *where: _next_to(scene, *where).color,
    ),
    (
        r"which kind is the shape directly (\w+(?: of)?) the (.+)",
        lambda scene, *where: _next_to(scene, *where).kind,
    ),
    (r"what color is the (.+)", lambda scene, trait: _the(scene, trait).color),
    (r"which kind is the (.+)", lambda scene, trait: _the(scene, trait).kind),
    (r"which size is the (.+)", lambda scene, trait: _size(scene, _the(scene, trait))),
    (r"how many (.+) are there", lambda scene, trait: NUMBERS[len(_find(scene, trait))]),
    (r"is there an? (.+)", lambda scene, trait: _yes(bool(_find(scene, trait)))),
    (
        r"is the (.+) (left|above) or (?:right of|below) the (.+)",
        lambda scene, one, axis, other: _direction(_the(scene, one), _the(scene, other), axis),
    ),
    (
        r"is the (.+) (left|right|above|below)(?: of)? the (.+)",
        lambda scene, one, said, other: _yes(
            _direction(_the(scene, one), _the(scene, other), said) == said
        ),
    ),
    (
        r"are there more (.+) than (.+)",
        lambda scene, one, other: _yes(len(_find(scene, one)) > len(_find(scene, other))),
    ),
    (
        r"is the (.+) bigger than the (.+)",
        lambda scene, one, other: _yes(_bigger(_the(scene, one), _the(scene, other))),
    ),
    (
        r"which is bigger the (.+) or the (.+)",
        lambda scene, one, other: one if _bigger(_the(scene, one), _the(scene, other)) else other,
    ),
    (
        r"are the (.+) and the (.+) the same color",
        lambda scene, one, other: _yes(_the(scene, one).color == _the(scene, other).color),
    ),
)


def _answer(scene: Scene, question: str) -> str:
    for pattern, read in _READINGS:
        if match := re.fullmatch(pattern, question):
            return read(scene, *match.groups())
    raise AssertionError(f"not understood: {question}")


def _holds(left: Scene, right: Scene, statement: str) -> bool:
    def numbers(trait: str) -> tuple[int, int]:
        return len(_find(left, trait)), len(_find(right, trait))

    if match := re.fullmatch(r"one of the pictures shows (.+)", statement):
        return any(match[1] in all_captions(scene) for scene in (left, right))
    if match := re.fullmatch(r"both pictures contain the same number of (.+)", statement):
        return len(set(numbers(match[1]))) == 1
    if match := re.fullmatch(r"both pictures contain an? (.+)", statement):
        return all(numbers(match[1]))
    if match := re.fullmatch(
        r"the (left|right) picture contains (an?|one|two|three) (.+)", statement
    ):
        found = numbers(match[3])[match[1] == "right"]
        return found > 0 if match[2] in ("a", "an") else found == NUMBERS.index(match[2])
    if match := re.fullmatch(r"only one picture contains an? (.+)", statement):
        return sum(map(bool, numbers(match[1]))) == 1
    if match := re.fullmatch(r"there are (.+?) (.+) in total", statement):
        return sum(numbers(match[2])) == NUMBERS.index(match[1])
    if match := re.fullmatch(
        r"the (left|right) picture contains more (.+) than the (?:left|right) picture", statement
    ):
        on_left, on_right = numbers(match[2])
        return on_left > on_right if match[1] == "left" else on_right > on_left
    if match := re.fullmatch(r"the (.+) has the same color in both pictures", statement):
        return _the(left, match[1]).color == _the(right, match[1]).color
    if match := re.fullmatch(r"the (.+) is the same kind in both pictures", statement):
        return _the(left, match[1]).kind == _the(right, match[1]).kind
    assert statement == "both pictures have the same background"
    return left.background == right.background
