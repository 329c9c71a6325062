"""What scenes show, judged by centres and widths of shapes instead of their names."""

import re
from collections.abc import Callable

from eve_vl.synthetic.scenes.world import HELD_OUT, Scene, Shape

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
STEPS = {"above": (-0.25, 0), "below": (0.25, 0), "left of": (0, -0.25), "right of": (0, 0.25)}
"""Distance to the next cell of a hard scene, down and to the right."""


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
    return re.sub(
        r"\b(crosse|(?!cros)\w+)s\b", lambda noun: noun[1].replace("crosse", "cross"), text
    )


def size_of(scene: Scene, shape: Shape) -> str:
    smallest_big = 0.19 if scene.world.is_hard else 0.29
    return "big" if shape.extent > smallest_big else "small"


def cell_of(shape: Shape, num_lines: int) -> tuple[int, int]:
    """Return row and column from 0 in a square grid."""
    return int(shape.center_y * num_lines), int(shape.center_x * num_lines)


def place_of(shape: Shape) -> str:
    """Return the place in an easy scene: "top left", "top", "middle"."""
    row, column = cell_of(shape, 3)
    words = f"{('top', '', 'bottom')[row]} {('left', '', 'right')[column]}".strip()
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
    return [s for s in scene.shapes if words <= {size_of(scene, s), s.color, s.kind}]


def the_shape(scene: Scene, description: str) -> Shape:
    """Return the only shape that a description fits: "the" presupposes exactly one."""
    (shape,) = find_shapes(scene, description)
    return shape


def shows_held_out_pair(scene: Scene) -> bool:
    pairs = {(shape.kind, shape.color) for shape in scene.shapes}
    return not pairs.isdisjoint(HELD_OUT)


def names_held_out_pair(text: str) -> bool:
    return any(f"{color} {kind}" in text for kind, color in HELD_OUT)
