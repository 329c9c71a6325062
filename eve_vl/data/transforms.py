"""Transforms of uint8 images: crops, resizing, augmentations."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from eve_vl.config import InputConfig
from eve_vl.data.records import Unencoded
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


def random_ink(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Recolour half of the images, uint8 (3, H, W).

    A quarter is in grey, a quarter in shades of one dark random colour. Drawings are then recognised by their lines.
    """
    draw_grey, draw_ink, *ink = rng.random(5)
    if draw_grey < 0.5:
        return pixels
    red, green, blue = pixels.astype(np.uint32)
    grey = (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16  # as Pillow's convert("L")
    darkest, shades = np.array([ink]).T * (0.7 * 255 * (draw_ink < 0.5)), np.arange(256)
    return (shades + (1 - shades / 255) * darkest).round().astype(np.uint8).take(grey, axis=1)


def random_strokes(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change the strokes of a drawing, uint8 (3, H, W).

    Lines become bolder (20 %) or thinner (20 %), areas become outlines (20 %), dark and light are swapped without the hues
    (15 %), and the drawing moves by at most 2 pixels each way. Lines that would lose half of their ink are not made thinner.
    """
    width, outline, invert, *shift = rng.random(5)
    if width < 0.2:
        pixels = 255 - lightest(255 - pixels)
    elif width < 0.4 and 2 * (255 - (thin := lightest(pixels))).sum() >= (255 - pixels).sum():
        pixels = thin
    if outline < 0.2:
        pixels = pixels + (255 - lightest(pixels))  # the ink less that of thinner lines
    if invert < 0.15:
        pixels = pixels + (
            255 - pixels.max(0) - pixels.min(0)
        )  # lightness of HSL; uint8 wraps, the sum fits
    for axis, part in enumerate(shift, start=1):
        side, by = pixels.shape[axis], int(part * 5) - 2
        pixels = pixels.take(np.arange(side) - by, axis, mode="clip")  # repeats the border
    return pixels


def ink_strokes(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Recolour half of the drawings, and change their strokes, uint8 (3, H, W)."""
    return random_strokes(random_ink(pixels, rng), rng)


def lightest(pixels: np.ndarray) -> np.ndarray:
    """Return the largest of each 3×3 pixels, as far as they lie within the image."""
    channels, height, width = pixels.shape
    padded = np.zeros((channels, height + 2, width + 2), np.uint8)
    padded[:, 1:-1, 1:-1] = pixels  # a third of the time of np.pad
    rows = np.maximum(np.maximum(padded[:, 2:], padded[:, :-2]), padded[:, 1:-1])
    return np.maximum(np.maximum(rows[:, :, 2:], rows[:, :, :-2]), rows[:, :, 1:-1])


DRAWING_AUGMENTATIONS = {
    "random_ink": random_ink,
    "strokes": random_strokes,
    "ink_strokes": ink_strokes,
}
PHOTO_AUGMENTATIONS = {
    "color": v2.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4),
    "rand": v2.RandAugment(num_ops=2, magnitude=7, num_magnitude_bins=11),
}


def augment(pixels: Tensor, name: str, rng: np.random.Generator) -> Tensor:
    """Apply an augmentation of data.augment to an image, uint8 (3, H, W).

    All randomness comes from `rng`.
    """
    if change := DRAWING_AUGMENTATIONS.get(
        name
    ):  # NumPy takes a third of torch's time at 64 pixels (LOG 2026-12-01)
        return torch.from_numpy(change(np.ascontiguousarray(pixels), rng))
    with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global generator
        torch.default_generator.manual_seed(
            int(rng.integers(2**63))
        )  # torch.manual_seed would seed the GPU's too
        return PHOTO_AUGMENTATIONS[name](pixels)
