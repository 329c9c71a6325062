"""Images of scenes against those that PIL draws."""

import dataclasses
import math

import numpy as np
import pytest

from eve_vl.synthetic.scenes.drawing import render
from eve_vl.synthetic.scenes.sampling import sample_scene
from eve_vl.synthetic.scenes.world import BACKGROUNDS, HARD_COLORS
from helpers.pil_scenes import draw_with_pil


@pytest.mark.parametrize(
    ("split", "image_size"),
    [
        ("train", 48),
        ("train", 97),
        ("hard_train", 64),
        ("hard_train", 128),
    ],
)
def test_image_equals_the_one_that_pil_draws(split, image_size):
    for index in range(1000 // image_size):
        scene = dataclasses.replace(sample_scene(split, 1, index), clutter=(), slope=0)
        image = render(scene, image_size).astype(float)
        difference = np.abs(image - draw_with_pil(scene, image_size))
        assert difference.mean() < 0.7
        assert difference.max() < 90  # a sharp corner inside one pixel
        assert (difference > 40).mean() < 0.01


@pytest.mark.parametrize("image_size", [16, 33, 48, 64, 256])
def test_image_shows_each_shape_in_its_colour_at_its_place(image_size):
    for index in range(50):
        scene = sample_scene("test", 0, index)
        image = render(scene, image_size)
        assert image.shape == (image_size, image_size, 3)
        assert image.dtype == np.uint8
        assert image.flags.c_contiguous
        for shape in scene.shapes:
            if image_size < 48 and shape.kind not in ("square", "circle"):
                continue
            x = shape.center_x
            if shape.kind == "ring":
                x += 0.76 * shape.extent / 2
            pixel = image[int(shape.center_y * image_size), int(x * image_size)]
            np.testing.assert_allclose(pixel.astype(int), shape.rgb, atol=2)


def nearest_name(palette: dict, rgb: tuple) -> str:
    return min(palette, key=lambda name: math.dist(palette[name], rgb))


@pytest.mark.parametrize("split", ["train", "hard_train"])
def test_colours_have_the_nearest_name_and_clutter_is_muted(split):
    for index in range(150):
        scene = sample_scene(split, 2, index)
        assert nearest_name(BACKGROUNDS, scene.background_rgb) == scene.background
        for shape in scene.shapes:
            assert nearest_name(HARD_COLORS, shape.rgb) == shape.color
        bare = dataclasses.replace(scene, clutter=())
        difference = np.abs(render(scene, 48).astype(int) - render(bare, 48))
        assert difference.max() <= 30 * len(scene.clutter)
