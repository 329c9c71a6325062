"""Boxes of random crops, and how sharp a crop must be."""

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from eve_vl.config import InputConfig
from eve_vl.data.crops import Crop, random_box, train_crop


@pytest.mark.parametrize(
    ("height", "width"),
    [
        (480, 640),
        (300, 300),
        (100, 1000),
        (1000, 100),
    ],
)
def test_random_boxes_are_spread_as_torchvisions(height, width):
    rng = np.random.default_rng(0)
    boxes = [random_box(height, width, rng=rng, scale=(0.5, 1.0)) for _ in range(2000)]
    boxes = np.array(boxes)
    assert (boxes >= 0).all()
    assert (boxes[:, 0] + boxes[:, 2] <= height).all()
    assert (boxes[:, 1] + boxes[:, 3] <= width).all()

    torch.manual_seed(0)
    blank = torch.empty(1, height, width)
    expected = []
    for _ in range(2000):
        expected.append(
            RandomResizedCrop.get_params(
                blank,
                [0.5, 1.0],
                [3 / 4, 4 / 3],
            )
        )
    expected = np.array(expected)
    margin = 0.012 * max(height, width)
    assert boxes.mean(axis=0) == pytest.approx(expected.mean(axis=0), abs=margin)
    assert boxes.std(axis=0) == pytest.approx(expected.std(axis=0), abs=margin)


@pytest.mark.parametrize(
    ("size", "sharpness", "divisor"),
    [
        (100, 1.0, 1),
        (99, 1.0, 2),
        (113, 7 / 8, 2),
        (114, 7 / 8, 1),
    ],
)
def test_a_crop_divides_the_image_as_far_as_its_sharpness_allows(size, sharpness, divisor):
    assert Crop(size=size, sharpness=sharpness).divisor((0, 0, 199, 5000)) == divisor


def test_training_may_lose_an_eighth_of_the_sharpness():
    sizes = InputConfig(image_size=24, patch_size=8)
    crop = train_crop(sizes, rng=np.random.default_rng(0), scale=(0.5, 1))
    assert crop.sharpness == 7 / 8
    assert Crop(size=24).sharpness == 1
    for shape in ((3, 16, 400), (3, 400, 16)):
        assert crop(torch.zeros(shape, dtype=torch.uint8)).shape == (3, 24, 24)
