"""Scenes drawn by PIL, many times larger with hard edges, and averaged down."""

import math

import numpy as np
from PIL import Image, ImageDraw

from eve_vl.synthetic.scenes.world import Scene, Shape

SCALE = 12
Point = tuple[float, float]
"""Down and to the right of the centre of a shape."""


def draw_with_pil(scene: Scene, image_size: int) -> np.ndarray:
    """Return the image of a scene without clutter and slope, as floats."""
    side = image_size * SCALE
    image = Image.new("RGB", (side, side), scene.background_rgb)
    draw = ImageDraw.Draw(image)
    for shape in scene.shapes:
        fills = [shape.rgb, shape.rgb]
        if shape.kind == "ring":
            fills[1] = scene.background_rgb  # the hole
        for outline, fill in zip(_outlines(shape), fills, strict=False):
            points = []
            for y, x in outline:
                points.append(((shape.center_x + x) * side, (shape.center_y + y) * side))
            draw.polygon(points, fill=fill)
    blocks = np.asarray(image, float).reshape(image_size, SCALE, image_size, SCALE, 3)
    return blocks.mean((1, 3))


def _outlines(shape: Shape) -> list[list[Point]]:
    r = shape.extent / 2
    outlines = {
        "circle": [_around([r], 90)],
        "ring": [_around([r], 90), _around([0.52 * r], 90)],
        "square": [_box(0.9 * r, 0.9 * r)],
        "diamond": [_around([r], 4)],
        "bar": [_box(0.4 * r, r)],
        "cross": [_box(r, 0.36 * r), _box(0.36 * r, r)],
        "triangle": [
            [
                (-r, 0),
                (0.85 * r, r),
                (0.85 * r, -r),
            ]
        ],
        "star": [_around([r, 0.46 * r], 10)],
    }
    return outlines[shape.kind]


def _around(radii: list[float], count: int) -> list[Point]:
    """Return points around the centre, from the top, at radii that take turns."""
    points = []
    for index in range(count):
        angle = 2 * math.pi * index / count
        radius = radii[index % len(radii)]
        points.append((-radius * math.cos(angle), radius * math.sin(angle)))
    return points


def _box(half_y: float, half_x: float) -> list[Point]:
    return [
        (-half_y, -half_x),
        (-half_y, half_x),
        (half_y, half_x),
        (half_y, -half_x),
    ]
