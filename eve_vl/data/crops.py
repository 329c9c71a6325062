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
LONGEST = (
    64  # times the shorter side that a centre crop resizes: a line of pixels would fill the memory
)
Box = tuple[int, int, int, int]  # top, left, height, width in pixels


def whole_box(height: int, width: int) -> Box:
    """Return the box of a whole image; EVE tests on images squeezed to a square."""
    return 0, 0, height, width


def centre_box(height: int, width: int) -> Box:
    """Return the box of a whole image without the ends of a very long one."""
    box_height, box_width = min(height, LONGEST * width), min(width, LONGEST * height)
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def random_box(
    height: int, width: int, *, rng: np.random.Generator, scale: tuple[float, float]
) -> Box:
    """Sample a box that covers `scale` of an image; its aspect ratio is 3/4 to 4/3.

    Like torchvision's RandomResizedCrop, it falls back to the centre after ten failed attempts.
    """
    for area, aspect, y, x in rng.random((10, 4)).tolist():
        area = height * width * (scale[0] + area * (scale[1] - scale[0]))
        aspect = MAX_ASPECT ** (2 * aspect - 1)
        box_height, box_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            return (
                int(y * (height - box_height + 1)),
                int(x * (width - box_width + 1)),
                box_height,
                box_width,
            )
    box_height, box_width = (
        min(height, round(width * MAX_ASPECT)),
        min(width, round(height * MAX_ASPECT)),
    )
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


class Crop(Frozen):
    """A box of an image, resized to a square of `size` pixels.

    choose: returns the box for (height, width). The box is chosen before EXIF rotates the image. A JPEG is decoded at
    a smaller size if the box keeps `sharpness` pixels per pixel of the square. is_centre: resize the shorter side of the box
    and cut out the middle, instead of changing its aspect ratio.
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
        return next(
            (
                divisor
                for divisor in (8, 4, 2)
                if min(box[2:]) >= divisor * self.sharpness * self.size
            ),
            1,
        )

    def cut(self, pixels: Tensor, box: Box, divisor: int = 1) -> Tensor:
        """Return uint8 (3, size, size) from an image whose sides were divided.

        A box of the right size stays.
        """
        top, left, height, width = box
        rows = slice(top // divisor, -(-(top + height) // divisor))
        columns = slice(left // divisor, -(-(left + width) // divisor))
        part, size, short = pixels[:, rows, columns], self.size, min(height, width)
        wanted = (size * height // short, size * width // short) if self.is_centre else (size, size)
        if part.shape[1:] != wanted:
            part = F.interpolate(part[None], wanted, mode=self.interpolation, antialias=True)[0]
        top, left = ((side - size) // 2 for side in wanted)
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

    An eighth less sharpness is less than the aspect ratio changes either side. With it, more crops are decoded at half size.
    """
    choose = partial(random_box, rng=rng, scale=scale)
    return Crop(
        size=sizes.image_size, choose=choose, sharpness=7 / 8, interpolation=sizes.interpolation
    )


def to_tensor(image: Unencoded, crop: Crop | None = None) -> Tensor:
    """Return an image in memory, or a crop of it, as uint8 (3, height, width)."""
    pixels = torch.from_numpy(image.pixels.copy()).permute(
        2, 0, 1
    )  # in memory the channels stay last
    return crop(pixels) if crop else pixels
