"""Augmentations of training images (data.augment), uint8 (3, H, W)."""

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

BRIGHTNESS = 0
CONTRAST = 1
LUMA = np.array([0.2989, 0.587, 0.114])
"""Weights of red, green and blue in grey, as in torchvision."""


def augment(pixels: Tensor, name: str, rng: np.random.Generator) -> Tensor:
    """Apply an augmentation of data.augment to an image, uint8 (3, H, W).

    All randomness comes from `rng`.
    """
    if name in IN_NUMPY:
        # NumPy takes a third of torch's time at 64 pixels (LOG 2026-12-01)
        change = IN_NUMPY[name]
        return torch.from_numpy(change(np.ascontiguousarray(pixels), rng))
    with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global generator
        seed = int(rng.integers(2**63))
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPU's too
        return rand_augment()(pixels)


@functools.cache
def rand_augment() -> Callable[[Tensor], Tensor]:
    """Return torchvision's RandAugment.

    Importing torchvision takes as long as importing torch, so only runs that need it pay for it.
    """
    from torchvision.transforms import v2

    return v2.RandAugment(num_ops=2, magnitude=7, num_magnitude_bins=11)


def color_jitter(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast and saturation by up to 40 %, in random order, uint8 (3, H, W).

    The three changes are one affine map of the colours, so this takes a fifth of the time of
    torchvision's ColorJitter. That also rounds and clips between the changes.
    """
    factors = rng.uniform(0.6, 1.4, 3)
    order = rng.permutation(3)
    colours = pixels.reshape(3, -1).astype(np.float32)
    matrix, offset = jitter_matrix(factors, order, colours.mean(axis=1))
    changed = matrix.astype(np.float32) @ colours + offset.astype(np.float32)
    return changed.round().clip(0, 255).astype(np.uint8).reshape(pixels.shape)


def jitter_matrix(
    factors: np.ndarray, order: np.ndarray, mean: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the matrix (3, 3) and offset (3, 1) of a colour jitter.

    factors: of brightness, contrast and saturation.
    order: the changes' numbers in the order in which they apply.
    mean: colour of the image, (3,).
    """
    matrix = np.eye(3)
    offset = np.zeros(3)
    for number in order:
        factor = factors[number]
        if number == BRIGHTNESS:
            matrix = factor * matrix
            offset = factor * offset
        elif number == CONTRAST:  # mixes with the grey of the whole image
            grey = LUMA @ (matrix @ mean + offset)
            matrix = factor * matrix
            offset = factor * offset + (1 - factor) * grey
        else:  # saturation mixes with the grey of each pixel
            mix = factor * np.eye(3) + (1 - factor) * LUMA
            matrix = mix @ matrix
            offset = mix @ offset
    return matrix, offset[:, None]


def random_ink(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Recolour half of the images, uint8 (3, H, W).

    A quarter is in grey, a quarter in shades of one dark random colour. Drawings are then
    recognised by their lines.
    """
    draw_grey, draw_ink, *ink = rng.random(5)
    if draw_grey < 0.5:
        return pixels
    red, green, blue = pixels.astype(np.uint32)
    grey = (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16  # as Pillow's convert("L")
    darkest = np.array([ink]).T * (0.7 * 255 * (draw_ink < 0.5))
    shades = np.arange(256)
    colours = (shades + (1 - shades / 255) * darkest).round().astype(np.uint8)
    return colours.take(grey, axis=1)


def random_strokes(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change the strokes of a drawing, uint8 (3, H, W).

    Lines become bolder (20 %) or thinner (20 %), areas become outlines (20 %), dark and light are
    swapped without the hues (15 %), and the drawing moves by at most 2 pixels each way. Lines that
    would lose half of their ink are not made thinner.
    """
    draw_width, draw_outline, draw_invert, *draw_shift = rng.random(5)
    if draw_width < 0.2:
        pixels = 255 - lightest(255 - pixels)
    elif draw_width < 0.4:
        thinner = lightest(pixels)
        if 2 * (255 - thinner).sum() >= (255 - pixels).sum():
            pixels = thinner
    if draw_outline < 0.2:
        pixels = pixels + (255 - lightest(pixels))  # the ink less that of thinner lines
    if draw_invert < 0.15:
        # lightness of HSL; uint8 wraps, the sum fits
        pixels = pixels + (255 - pixels.max(0) - pixels.min(0))
    for axis, draw in enumerate(draw_shift, start=1):
        places = np.arange(pixels.shape[axis]) - (int(draw * 5) - 2)
        pixels = pixels.take(places, axis, mode="clip")  # repeats the border
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


IN_NUMPY = {
    "color": color_jitter,
    "random_ink": random_ink,
    "strokes": random_strokes,
    "ink_strokes": ink_strokes,
}
