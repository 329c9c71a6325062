"""Scenes to pixels: anti-aliased by signed distance, each shape computed only inside its bounding box.

Letters: H height and W width of a bounding box; S side of the image.
"""

import math
from functools import cache

import numpy as np

from eve_vl.synthetic import check_image_size
from eve_vl.synthetic.scenes.world import Mark, Scene, Shape

MIN_IMAGE_SIZE = 16
MARK_TONE = 30  # levels by which clutter darkens every channel of the background

_STAR_INNER = 0.46  # radius of the notches relative to the tips; a true pentagram (0.38) is too thin at 10 pixels
_COS_36, _SIN_36 = math.cos(math.pi / 5), math.sin(math.pi / 5)


def render(scene: Scene, image_size: int) -> np.ndarray:
    """Render a scene: uint8, shape (image_size, image_size, 3), RGB. Raises UserError below 16 pixels."""
    check_image_size(image_size, MIN_IMAGE_SIZE)
    canvas_3SS = np.empty((3, image_size, image_size), np.float32)  # channels first: long rows are faster to blend
    canvas_3SS[:] = np.asarray(scene.background_rgb, np.float32)[:, None, None]
    canvas_3SS += (2 * _centers(image_size) - 1)[:, None] * scene.slope
    for mark in scene.clutter:
        _draw_mark(canvas_3SS, mark)
    for shape in scene.shapes:
        _draw_shape(canvas_3SS, shape)
    canvas_3SS += 0.5
    return np.ascontiguousarray(np.clip(canvas_3SS, 0, 255).astype(np.uint8).transpose(1, 2, 0))


@cache
def _centers(image_size: int) -> np.ndarray:
    """Return pixel centres as fractions of the canvas, shape (S,)."""
    return ((np.arange(image_size) + 0.5) / image_size).astype(np.float32)


def _span(center: float, reach: float, image_size: int) -> slice:
    """Return the pixels within `reach` of a centre, plus one for the soft edge."""
    first = int((center - reach) * image_size) - 1
    last = int((center + reach) * image_size) + 2
    return slice(max(0, first), max(0, min(image_size, last)))


def _draw_shape(canvas_3SS: np.ndarray, shape: Shape) -> None:
    image_size = canvas_3SS.shape[1]
    radius = shape.extent / 2
    rows, columns = _span(shape.center_y, radius, image_size), _span(shape.center_x, radius, image_size)
    y_H1 = (_centers(image_size)[rows, None] - shape.center_y) / radius
    x_1W = np.abs(_centers(image_size)[None, columns] - shape.center_x) / radius  # every kind is symmetric
    cover_HW = _coverage(_DEPTH[shape.kind](y_H1, x_1W), radius * image_size)
    box_3HW = canvas_3SS[:, rows, columns]
    box_3HW += cover_HW * (np.asarray(shape.rgb, np.float32)[:, None, None] - box_3HW)


def _draw_mark(canvas_3SS: np.ndarray, mark: Mark) -> None:
    image_size = canvas_3SS.shape[1]
    rows = _span(mark.center_y, abs(mark.half_y) + mark.radius, image_size)
    columns = _span(mark.center_x, abs(mark.half_x) + mark.radius, image_size)
    y_H1 = _centers(image_size)[rows, None] - mark.center_y
    x_1W = _centers(image_size)[None, columns] - mark.center_x
    length_squared = mark.half_y**2 + mark.half_x**2 or 1.0  # a dot has none
    along_HW = np.clip((y_H1 * mark.half_y + x_1W * mark.half_x) / length_squared, -1, 1)
    distance_HW = np.hypot(y_H1 - along_HW * mark.half_y, x_1W - along_HW * mark.half_x)
    canvas_3SS[:, rows, columns] -= _coverage(mark.radius - distance_HW, image_size) * MARK_TONE


def _coverage(depth_HW: np.ndarray, pixels_per_unit: float) -> np.ndarray:
    """Return the covered share of each pixel, a ramp one pixel wide over the depth of its centre below the outline."""
    return np.clip(depth_HW * pixels_per_unit + 0.5, 0, 1)


# Depth below the outline (negative outside) at offsets y (H, 1) and |x| (1, W), in units of the shape's radius.


def _circle(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return 1 - np.sqrt(y * y + x * x)


def _square(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return 0.9 - np.maximum(np.abs(y), x)


def _ring(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return 0.24 - np.abs(np.sqrt(y * y + x * x) - 0.76)


def _cross(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    y = np.abs(y)
    return np.minimum(0.36 - np.minimum(y, x), 1 - np.maximum(y, x))


def _triangle(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    base, height = 1.0, 1.85  # apex at y = −1
    return np.minimum(((y + 1) * base - x * height) / math.hypot(base, height), height - 1 - y)


def _star(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    y = -y  # tip up
    for sign in (1, -1):  # fold five arms onto one
        beyond = 2 * np.maximum(sign * _COS_36 * x - _SIN_36 * y, 0)
        x, y = x - beyond * sign * _COS_36, y + beyond * _SIN_36
    x = np.abs(x)
    notch_x, notch_y = _STAR_INNER * _SIN_36, _STAR_INNER * _COS_36 - 1
    return (x * notch_y - (y - 1) * notch_x) / math.hypot(notch_x, notch_y)


_DEPTH = {"circle": _circle, "square": _square, "triangle": _triangle, "star": _star, "cross": _cross, "ring": _ring}
