"""Patches against slices of images."""

import torch

from eve_vl.model.patches import gather_patches, patchify, scatter_patches, unpatchify
from helpers.tiny_encoder import pixels


def test_patches_are_cut_row_by_row_and_put_back():
    images = pixels(2)
    patches = patchify(images, 4)
    for row in range(4):
        for column in range(4):
            rows = slice(4 * row, 4 * row + 4)
            columns = slice(4 * column, 4 * column + 4)
            expected = images[:, :, rows, columns].flatten(1)
            assert torch.equal(patches[:, 4 * row + column], expected)
    assert torch.equal(unpatchify(patches, 4), images)


def test_patches_are_picked_and_replaced_by_their_positions():
    patches = torch.randn(3, 16, 48)
    index = torch.tensor(
        [
            [3, 1],
            [0, 15],
            [7, 8],
        ]
    )
    picked = gather_patches(patches, index)
    replaced = scatter_patches(patches, index, -picked.double())
    expected = patches.clone()
    for b in range(3):
        for k in range(2):
            assert torch.equal(picked[b, k], patches[b, index[b, k]])
            expected[b, index[b, k]] *= -1
    assert torch.equal(replaced, expected)
