"""Drawing of scenes.

Images are anti-aliased by signed distance; each shape is computed only inside its bounding box.

Letters: H height and W width of a bounding box; S side of the image.
"""

import math
from functools import cache

import numpy as np

from eve_vl.synthetic.scenes.world import Mark, Scene, Shape

MARK_TONE = 30
"""Levels by which clutter darkens every channel of the background."""

_STAR_INNER = 0.46
"""Radius of the notches relative to the tips; a true pentagram (0.38) is too thin at 10 pixels."""
_COS_36 = math.cos(math.pi / 5)
_SIN_36 = math.sin(math.pi / 5)


def render(scene: Scene, image_size: int) -> np.ndarray:
    """Render a scene: uint8, shape (image_size, image_size, 3), RGB."""
    # channels first: long rows are faster to blend
    canvas_3SS = np.empty((3, image_size, image_size), np.float32)
    canvas_3SS[:] = np.asarray(scene.background_rgb, np.float32)[:, None, None]
    canvas_3SS += (2 * _centers(image_size) - 1)[:, None] * scene.slope
    for mark in scene.clutter:
        _draw_mark(canvas_3SS, mark)
    for shape in scene.shapes:
        _draw_shape(canvas_3SS, shape)
    canvas_3SS += 0.5
    levels_3SS = np.clip(canvas_3SS, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(levels_3SS.transpose(1, 2, 0))


@cache
def _centers(image_size: int) -> np.ndarray:
    """Return pixel centres as fractions of the canvas, shape (S,)."""
    return ((np.arange(image_size) + 0.5) / image_size).astype(np.float32)


def _span(center: float, reach: float, image_size: int) -> slice:
    """Return the pixels within `reach` of a centre, plus one for the soft edge."""
    first = int((center - reach) * image_size) - 1
    end = int((center + reach) * image_size) + 2
    return slice(max(0, first), max(0, min(image_size, end)))


def _draw_shape(canvas_3SS: np.ndarray, shape: Shape) -> None:
    image_size = canvas_3SS.shape[1]
    centers_S = _centers(image_size)
    radius = shape.extent / 2
    rows = _span(shape.center_y, radius, image_size)
    columns = _span(shape.center_x, radius, image_size)
    y_H1 = (centers_S[rows, None] - shape.center_y) / radius
    # every kind is symmetric
    x_1W = np.abs(centers_S[None, columns] - shape.center_x) / radius
    cover_HW = _coverage(_depth(shape.kind, y_H1, x_1W), radius * image_size)
    box_3HW = canvas_3SS[:, rows, columns]
    box_3HW += cover_HW * (np.asarray(shape.rgb, np.float32)[:, None, None] - box_3HW)


def _draw_mark(canvas_3SS: np.ndarray, mark: Mark) -> None:
    image_size = canvas_3SS.shape[1]
    centers_S = _centers(image_size)
    rows = _span(mark.center_y, abs(mark.half_y) + mark.radius, image_size)
    columns = _span(mark.center_x, abs(mark.half_x) + mark.radius, image_size)
    y_H1 = centers_S[rows, None] - mark.center_y
    x_1W = centers_S[None, columns] - mark.center_x
    length_squared = mark.half_y**2 + mark.half_x**2 or 1.0  # a dot has none
    along_HW = np.clip((y_H1 * mark.half_y + x_1W * mark.half_x) / length_squared, -1, 1)
    distance_HW = np.hypot(y_H1 - along_HW * mark.half_y, x_1W - along_HW * mark.half_x)
    canvas_3SS[:, rows, columns] -= _coverage(mark.radius - distance_HW, image_size) * MARK_TONE


def _coverage(depth_HW: np.ndarray, pixels_per_unit: float) -> np.ndarray:
    """Return the covered share of each pixel.

    It is a ramp one pixel wide over the depth of the centre below the outline.
    """
    return (depth_HW * pixels_per_unit + 0.5).clip(0, 1)


def _depth(kind: str, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return depths below a shape's outline, negative outside.

    The offsets y (H, 1) and |x| (1, W) and the depths (H, W) are in units of the shape's radius.
    """
    match kind:
        case "circle":
            return 1 - np.sqrt(y * y + x * x)
        case "square":
            return 0.9 - np.maximum(np.abs(y), x)
        case "diamond":
            return (1 - np.abs(y) - x) * math.sqrt(0.5)
        case "bar":
            return np.minimum(0.4 - np.abs(y), 1 - x)
        case "ring":
            return 0.24 - np.abs(np.sqrt(y * y + x * x) - 0.76)
        case "cross":
            y = np.abs(y)
            return np.minimum(0.36 - np.minimum(y, x), 1 - np.maximum(y, x))
        case "triangle":
            return _depth_in_triangle(y, x)
    return _depth_in_star(y, x)


def _depth_in_triangle(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return depths below the outline of a triangle with its apex at y = −1."""
    base = 1.0
    height = 1.85
    depth_below_side = ((y + 1) * base - x * height) / math.hypot(base, height)
    return np.minimum(depth_below_side, height - 1 - y)


def _depth_in_star(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return depths below the outline of a star with one tip up, by folding its arms onto one."""
    y = -y
    for sign in (1, -1):
        beyond = 2 * np.maximum(sign * _COS_36 * x - _SIN_36 * y, 0)
        x = x - beyond * sign * _COS_36
        y = y + beyond * _SIN_36
    notch_x = _STAR_INNER * _SIN_36
    notch_y = _STAR_INNER * _COS_36 - 1
    return (np.abs(x) * notch_y - (y - 1) * notch_x) / math.hypot(notch_x, notch_y)
