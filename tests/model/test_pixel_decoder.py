"""The pixel decoder against MAE's form, which puts every patch back in its place."""

import math

import pytest
import torch
from torch.nn import functional as F

from eve_vl.model.pixel_decoder import PixelDecoder, sincos_positions
from eve_vl.model.tokens import Tokens
from helpers.random_weights import randomize
from helpers.slow_experts import in_rows
from helpers.tiny_encoder import LENGTHS, SIZES, model_config, text_batch

DIM = 8
HEADS = 2
NUM_PATCHES = 16
NUM_KEPT = 4


def test_positions_are_sines_and_cosines_of_row_and_column():
    positions = sincos_positions(9, DIM, torch.device("cpu"))
    for row in range(3):
        for column in range(3):
            expected = []
            for place in (row, column):
                angles = [place, place / 100]
                expected += [math.sin(angle) for angle in angles]
                expected += [math.cos(angle) for angle in angles]
            assert positions[3 * row + column].tolist() == pytest.approx(expected, abs=1e-6)


@torch.no_grad()
def test_decoder_equals_one_that_puts_every_patch_back_in_place():
    """MAE's form: the grid in order with mask tokens, one sample at a time, no padding."""
    torch.manual_seed(0)
    decoder = PixelDecoder(
        16,
        SIZES.patch_dim,
        model_config(),
        depth=2,
        dim=DIM,
        num_heads=HEADS,
    )
    randomize(decoder, 5, std=0.4)
    order = torch.stack([torch.randperm(NUM_PATCHES) for _ in range(3)])
    keep = order[:, :NUM_KEPT].sort().values
    masked = order[:, NUM_KEPT:].sort().values
    _, is_padding = text_batch()
    num_image = 1 + NUM_KEPT
    encoded = Tokens(
        x_BND=torch.randn(3, num_image + is_padding.shape[1], 16),
        num_image=num_image,
        is_padding_BN=F.pad(is_padding, (num_image, 0)),
    )
    predicted = decoder(encoded, keep, masked)

    positions = sincos_positions(NUM_PATCHES, DIM, torch.device("cpu"))
    for b, length in enumerate(LENGTHS):
        states = decoder.embed(encoded.x_BND[b])
        grid = decoder.mask_token.expand(NUM_PATCHES, DIM).clone()
        grid[keep[b]] = states[1:num_image]
        text = states[num_image : num_image + length]
        sequence = torch.cat([states[:1], grid + positions, text])
        x_ND, rows = in_rows(sequence[None], 1 + NUM_PATCHES, num_heads=HEADS)
        for block in decoder.blocks:
            x_ND, _ = block(x_ND, rows)
        pixels = decoder.pixels(decoder.norm(x_ND[1 : 1 + NUM_PATCHES]))
        torch.testing.assert_close(predicted[b], pixels[masked[b]], rtol=1e-4, atol=1e-5)

    permutation = torch.randperm(masked.shape[1])
    permuted = decoder(encoded, keep, masked[:, permutation])
    torch.testing.assert_close(permuted, predicted[:, permutation], rtol=1e-4, atol=1e-5)
