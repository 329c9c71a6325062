"""What scenes show, judged by centres and widths of shapes instead of their names."""

import re
from collections.abc import Callable

from eve_vl.synthetic.scenes.world import HELD_OUT, Scene, Shape

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
STEPS = {
    "above": (-0.25, 0),
    "below": (0.25, 0),
    "left of": (0, -0.25),
    "right of": (0, 0.25),
}
"""Distance to the next cell of a hard scene, down and to the right."""
ROW_WORDS = ("top", "", "bottom")
COLUMN_WORDS = ("left", "", "right")


class Sentences:
    """Functions that read sentences, each with the pattern of its sentences."""

    def __init__(self):
        self.readers: list[tuple[str, Callable]] = []

    def pattern(self, pattern: str) -> Callable:
        def register(reader: Callable) -> Callable:
            self.readers.append((pattern, reader))
            return reader

        return register

    def read(self, sentence: str, *scenes: Scene):
        """Return what the first function returns whose pattern fits."""
        for pattern, reader in self.readers:
            match = re.fullmatch(pattern, sentence)
            if match:
                return reader(*scenes, *match.groups())
        raise AssertionError(f"not understood: {sentence}")


def singular(text: str) -> str:
    """Return a text with its nouns in the singular."""
    text = re.sub(r"\bcrosses\b", "cross", text)
    return re.sub(r"\b(?!cross\b)(\w+)s\b", r"\1", text)


def size_of(scene: Scene, shape: Shape) -> str:
    smallest_big = 0.19 if scene.world.is_hard else 0.29
    return "big" if shape.extent > smallest_big else "small"


def look_of(scene: Scene, shape: Shape) -> str:
    return f"{size_of(scene, shape)} {shape.color} {shape.kind}"


def cell_of(shape: Shape, num_lines: int) -> tuple[int, int]:
    """Return row and column from 0 in a square grid."""
    return int(shape.center_y * num_lines), int(shape.center_x * num_lines)


def place_of(shape: Shape) -> str:
    """Return the place in an easy scene: "top left", "top", "middle"."""
    row, column = cell_of(shape, 3)
    words = f"{ROW_WORDS[row]} {COLUMN_WORDS[column]}".strip()
    return words or "middle"


def is_next_to(shape: Shape, side: str, neighbor: Shape) -> bool:
    """Return whether the shape is directly above, below, left of or right of the neighbor."""
    step_y, step_x = STEPS[side]
    error_y = abs(shape.center_y - neighbor.center_y - step_y)
    error_x = abs(shape.center_x - neighbor.center_x - step_x)
    return max(error_y, error_x) < 0.05


def find_shapes(scene: Scene, description: str) -> list[Shape]:
    """Return the shapes that "big red circle(s)", "star" or "red shape(s)" describes."""
    words = set(singular(description).split()) - {"shape"}
    shapes = []
    for shape in scene.shapes:
        if words <= set(look_of(scene, shape).split()):
            shapes.append(shape)
    return shapes


def the_shape(scene: Scene, description: str) -> Shape:
    """Return the only shape that a description fits: "the" presupposes exactly one."""
    (shape,) = find_shapes(scene, description)
    return shape


def shows_held_out_pair(scene: Scene) -> bool:
    return any((shape.kind, shape.color) in HELD_OUT for shape in scene.shapes)


def names_held_out_pair(text: str) -> bool:
    return any(f"{color} {kind}" in text for kind, color in HELD_OUT)
