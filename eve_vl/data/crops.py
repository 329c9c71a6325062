"""Crops: boxes of images, resized to squares."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eve_vl.config import InputConfig
from eve_vl.data.image_refs import Unencoded
from eve_vl.utils.frozen import Frozen

MAX_ASPECT = 4 / 3
# Times the shorter side that a centre crop resizes: a line of pixels would fill the memory.
MAX_LENGTH = 64
NUM_ATTEMPTS = 10
Box = tuple[int, int, int, int]
"""Top, left, height, width in pixels."""


def whole_box(height: int, width: int) -> Box:
    """Return the box of a whole image; EVE tests on images squeezed to a square."""
    return 0, 0, height, width


def centre_box(height: int, width: int) -> Box:
    """Return the box of a whole image without the ends of a very long one."""
    box_height = min(height, MAX_LENGTH * width)
    box_width = min(width, MAX_LENGTH * height)
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def random_box(
    height: int, width: int, *, rng: np.random.Generator, scale: tuple[float, float]
) -> Box:
    """Sample a box that covers `scale` of an image; its aspect ratio is 3/4 to 4/3.

    Like torchvision's RandomResizedCrop, it falls back to the centre after ten failed attempts.
    """
    for draw_area, draw_aspect, draw_top, draw_left in rng.random((NUM_ATTEMPTS, 4)).tolist():
        area = height * width * (scale[0] + draw_area * (scale[1] - scale[0]))
        aspect = MAX_ASPECT ** (2 * draw_aspect - 1)
        box_height = round(math.sqrt(area / aspect))
        box_width = round(math.sqrt(area * aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            top = int(draw_top * (height - box_height + 1))
            left = int(draw_left * (width - box_width + 1))
            return top, left, box_height, box_width

    box_height = min(height, round(width * MAX_ASPECT))
    box_width = min(width, round(height * MAX_ASPECT))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


class Crop(Frozen):
    """A box of an image, resized to a square of `size` pixels.

    choose: returns the box for (height, width). The box is chosen before EXIF rotates the image. A
    JPEG is decoded at a smaller size if the box keeps `sharpness` pixels per pixel of the square.
    is_centre: resize the shorter side of the box and cut out the middle, instead of changing its
    aspect ratio.
    """

    size: int
    choose: Callable[[int, int], Box] = whole_box
    sharpness: float = 1.0
    interpolation: str = "bicubic"
    is_centre: bool = False

    def divisor(self, box: Box) -> int:
        """Return the largest divisor for the sides of the image.

        libjpeg-turbo has fast code for these divisors.
        """
        shorter_side = min(box[2:])
        for divisor in (8, 4, 2):
            if shorter_side >= divisor * self.sharpness * self.size:
                return divisor
        return 1

    def cut(self, pixels: Tensor, box: Box, divisor: int = 1) -> Tensor:
        """Return uint8 (3, size, size) from an image whose sides were divided.

        A box of the right size stays.
        """
        top, left, height, width = box
        rows = slice(top // divisor, -(-(top + height) // divisor))
        columns = slice(left // divisor, -(-(left + width) // divisor))
        part = pixels[:, rows, columns]

        size = self.size
        new_height = size
        new_width = size
        if self.is_centre:
            shorter_side = min(height, width)
            new_height = size * height // shorter_side
            new_width = size * width // shorter_side
        if part.shape[1:] != (new_height, new_width):
            part = F.interpolate(
                part[None], (new_height, new_width), mode=self.interpolation, antialias=True
            )[0]
        top = (new_height - size) // 2
        left = (new_width - size) // 2
        return part[:, top : top + size, left : left + size]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Choose a box of a whole image and cut it out."""
        return self.cut(pixels, self.choose(*pixels.shape[1:]))


def eval_crop(sizes: InputConfig) -> Crop:
    """Return the square of a whole image, without chance."""
    if sizes.resize == "squash":
        return Crop(size=sizes.image_size, interpolation=sizes.interpolation)
    return Crop(
        size=sizes.image_size, choose=centre_box, interpolation=sizes.interpolation, is_centre=True
    )


def train_crop(sizes: InputConfig, *, rng: np.random.Generator, scale: tuple[float, float]) -> Crop:
    """Return a crop that samples a new box for every image.

    An eighth less sharpness is less than the aspect ratio changes either side. With it, more crops
    are decoded at half size.
    """
    return Crop(
        size=sizes.image_size,
        choose=partial(random_box, rng=rng, scale=scale),
        sharpness=7 / 8,
        interpolation=sizes.interpolation,
    )


def to_tensor(image: Unencoded, crop: Crop | None = None) -> Tensor:
    """Return an image in memory, or a crop of it, as uint8 (3, height, width)."""
    # in memory the channels stay last
    pixels = torch.from_numpy(image.pixels.copy()).permute(2, 0, 1)
    return crop(pixels) if crop else pixels
