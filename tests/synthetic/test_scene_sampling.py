"""Which scenes, questions and statements are sampled."""

from collections import Counter

import pytest

from eve_vl.synthetic.scenes.captions import captions
from eve_vl.synthetic.scenes.drawing import render
from eve_vl.synthetic.scenes.questions import sample_question
from eve_vl.synthetic.scenes.sampling import sample_scene
from eve_vl.synthetic.scenes.statements import sample_statement
from eve_vl.synthetic.scenes.world import COLORS, HARD_COLORS, KINDS, SPLITS
from helpers.scene_lookup import cell_of, shows_held_out_pair

HARD_KINDS = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "bar")
GOLDEN_INDEX = 16
GOLDEN_CAPTIONS = (
    "yellow circle top left and cyan ring top and red triangle top right and orange star right",
    "the picture contains a yellow circle and a cyan ring and a red triangle and an orange star",
    "on beige small yellow circle and small cyan ring and small red triangle and big orange star",
    "there are one red shape and one orange shape and one yellow shape and one cyan shape on beige",
)
GOLDEN_SUM = 1419991
GOLDEN_HARD_CAPTION = (
    "row one contains a big green circle and a small cyan triangle. "
    "a big pink circle is at row three column three"
)
GOLDEN_HARD_SUM = 2513231


@pytest.mark.parametrize("sample", [sample_scene, sample_question, sample_statement])
def test_rows_depend_only_on_split_seed_and_index(sample):
    forwards = [sample("val", 2, index) for index in range(50)]
    backwards = [sample("val", 2, index) for index in reversed(range(50))]
    assert backwards[::-1] == forwards
    rows = set()
    for split in SPLITS:
        for seed in (0, 1):
            rows.update(repr(sample(split, seed, index)) for index in range(20))
    assert len(rows) == 2 * 20 * len(SPLITS)


def test_golden_scene_guards_against_another_python_drawing_other_data():
    """Whoever changes the world on purpose writes the new values here."""
    scene = sample_scene("val", 0, GOLDEN_INDEX)
    assert captions(scene) == GOLDEN_CAPTIONS
    assert render(scene, 48).astype(int).sum() == pytest.approx(GOLDEN_SUM, rel=1e-4)
    hard = sample_scene("hard_val", 0, GOLDEN_INDEX)
    assert captions(hard)[2] == GOLDEN_HARD_CAPTION
    assert render(hard, 64).astype(int).sum() == pytest.approx(GOLDEN_HARD_SUM, rel=1e-4)


@pytest.mark.parametrize("split", SPLITS)
def test_held_out_pairs_are_in_every_novel_scene_and_in_no_other_split(split):
    for index in range(500):
        assert shows_held_out_pair(sample_scene(split, 0, index)) == (split == "test_novel")


@pytest.mark.parametrize(
    ("split", "num_lines", "counts", "extents"),
    [
        ("train", 3, range(1, 5), {"small": 0.24, "big": 0.34}),
        ("hard_train", 4, range(3, 9), {"small": 0.15, "big": 0.23}),
    ],
)
def test_shapes_are_clear_of_one_another_and_of_borders_between_cells(
    split, num_lines, counts, extents
):
    for index in range(500):
        shapes = sample_scene(split, 0, index).shapes
        assert len(shapes) in counts
        for number, shape in enumerate(shapes):
            half = shape.extent / 2
            for center in (shape.center_y, shape.center_x):
                assert half - 0.01 < center < 1.01 - half
                for line in range(1, num_lines):
                    assert abs(center - line / num_lines) > 0.1
            assert (shape.row, shape.column) == cell_of(shape, num_lines)
            assert shape.extent == pytest.approx(extents[shape.size], abs=0.02)
            for neighbor in shapes[:number]:
                gap_y = abs(shape.center_y - neighbor.center_y)
                gap_x = abs(shape.center_x - neighbor.center_x)
                # at most two pixels of 48 meet
                assert max(gap_y, gap_x) > (shape.extent + neighbor.extent) / 2 - 0.05


@pytest.mark.parametrize(
    ("split", "kinds", "colors", "lines"),
    [
        ("train", KINDS, COLORS, range(3)),
        ("hard_train", HARD_KINDS, HARD_COLORS, range(4)),
    ],
)
def test_every_property_is_drawn_evenly(split, kinds, colors, lines):
    scenes = [sample_scene(split, 0, index) for index in range(2000)]
    shapes = [shape for scene in scenes for shape in scene.shapes]
    properties = {
        "kind": kinds,
        "color": colors,
        "size": ("big", "small"),
        "row": lines,
    }
    for name, values in properties.items():
        counts = Counter(getattr(shape, name) for shape in shapes)
        for value in values:
            assert 0.8 < counts[value] / len(shapes) * len(values) < 1.2, (name, value)
    for count in Counter(scene.background for scene in scenes).values():
        assert 0.17 < count / len(scenes) < 0.23
    for count in Counter(len(scene.shapes) for scene in scenes).values():
        assert count / len(scenes) > 0.03
