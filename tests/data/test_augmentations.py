"""Augmentations, compared with torchvision and slow loops."""

import colorsys
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from eve_vl.data.augmentations import color_jitter, random_ink, random_strokes


def test_colour_jitter_is_torchvisions_where_nothing_is_clipped():
    middle = np.random.default_rng(0).integers(110, 140, (3, 9, 7), dtype=np.uint8)
    changes = (
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
    )
    orders = set()
    for seed in range(60):
        jittered = color_jitter(middle, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        factors = rng.uniform(0.6, 1.4, 3)
        order = rng.permutation(3)
        expected = torch.from_numpy(middle) / 255
        for number in order:
            expected = changes[number](expected, factors[number])
        assert jittered.dtype == np.uint8
        np.testing.assert_allclose(jittered, 255 * expected.numpy(), atol=0.51)
        orders.add(tuple(order.tolist()))
    assert len(orders) == 6


def test_colour_jitter_clips_what_is_too_dark_or_too_light():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 2, (3, 8, 8), dtype=np.uint8) * 255
    jittered = np.stack([color_jitter(image, rng) for _ in range(50)])
    is_light = jittered[:, image == 255]
    is_dark = jittered[:, image == 0]
    assert (is_light.mean(axis=1) > is_dark.mean(axis=1)).all()
    assert (jittered == 255).any()
    assert (jittered == 0).any()


def test_recolouring_keeps_lines_and_is_grey_or_inked_half_of_the_time():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (3, 4, 5), dtype=np.uint8)
    image[:, 0] = 255
    grey = np.asarray(Image.fromarray(image.transpose(1, 2, 0)).convert("L")).astype(int)
    from_dark_to_light = np.argsort(grey, axis=None)
    num_same = 0
    num_grey = 0
    for _ in range(400):
        recoloured = random_ink(image, rng)
        assert (recoloured.shape, recoloured.dtype) == (image.shape, np.uint8)
        if np.array_equal(recoloured, image):
            num_same += 1
            continue
        assert (recoloured[:, 0] == 255).all()
        num_grey += (recoloured == grey).all()
        for channel in recoloured.astype(int):
            assert (np.diff(channel.flatten()[from_dark_to_light]) >= 0).all()
    assert num_same == pytest.approx(200, abs=40)
    assert num_grey == pytest.approx(100, abs=35)


def slow_extreme(pixels: np.ndarray, choose: Callable[[np.ndarray], int]) -> np.ndarray:
    """Return the largest or smallest of the 3×3 pixels around each one, those outside left out."""
    extreme = np.empty_like(pixels)
    for channel, y, x in np.ndindex(pixels.shape):
        around = pixels[channel, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        extreme[channel, y, x] = choose(around)
    return extreme


def slow_lightness_inverted(pixels: np.ndarray) -> np.ndarray:
    """Return the drawing with 1 − L instead of L in HSL, pixel by pixel."""
    inverted = np.empty_like(pixels)
    for y, x in np.ndindex(pixels.shape[1:]):
        hue, lightness, saturation = colorsys.rgb_to_hls(*(pixels[:, y, x] / 255))
        rgb = colorsys.hls_to_rgb(hue, 1 - lightness, saturation)
        inverted[:, y, x] = np.round(255 * np.array(rgb))
    return inverted


def slow_moved(pixels: np.ndarray, down: int, right: int) -> np.ndarray:
    moved = np.empty_like(pixels)
    height, width = pixels.shape[1:]
    for y, x in np.ndindex(height, width):
        from_y = min(max(y - down, 0), height - 1)
        from_x = min(max(x - right, 0), width - 1)
        moved[:, y, x] = pixels[:, from_y, from_x]
    return moved


def slow_strokes(pixels: np.ndarray, draws: list[float]) -> tuple[np.ndarray, str]:
    """Return the drawing after its changes, and their names."""
    width, outline, invert, down, right = draws
    names = []
    if width < 0.2:
        names.append("bolder")
        pixels = slow_extreme(pixels, np.min)
    elif width < 0.4:
        thin = slow_extreme(pixels, np.max)
        if (255 - thin).sum() * 2 >= (255 - pixels).sum():
            names.append("thinner")
            pixels = thin
        else:
            names.append("too thin")
    if outline < 0.2:
        names.append("outline")
        inner_ink = 255 - slow_extreme(pixels, np.max)
        pixels = 255 - ((255 - pixels) - inner_ink)
    if invert < 0.15:
        names.append("inverted")
        pixels = slow_lightness_inverted(pixels)
    return slow_moved(pixels, int(down * 5) - 2, int(right * 5) - 2), " ".join(names)


def test_strokes_are_those_of_slow_loops():
    filled = np.full((3, 13, 11), 255, np.uint8)
    filled[:, 2:12, 1:10] = 30
    filled[1:, 4:6, 4:7] = 200
    lines = np.full((3, 13, 11), 255, np.uint8)
    lines[:, 4] = lines[:, :, 6] = 0
    rng = np.random.default_rng(0)
    counts: Counter[str] = Counter()
    for seed in range(200):
        random_image = rng.integers(0, 256, (3, 6, 7), dtype=np.uint8)
        image = (filled, lines, random_image)[seed % 3]
        changed = random_strokes(image, np.random.default_rng(seed))
        expected, names = slow_strokes(image, np.random.default_rng(seed).random(5).tolist())
        assert changed.dtype == np.uint8
        assert np.array_equal(changed, expected), (seed, names)
        counts[names] += 1
    assert {"bolder", "thinner", "too thin", "outline", "inverted"} <= set(counts)
    assert {"thinner outline", "bolder inverted"} <= set(counts)
    assert counts[""] == pytest.approx(200 * 0.6 * 0.8 * 0.85, abs=28)
