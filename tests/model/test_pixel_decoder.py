"""The pixel decoder against MAE's form, which puts every patch back in its place."""

import math

import pytest
import torch
from torch.nn import functional as F

from eve_vl.config import EveModelConfig
from eve_vl.model.pixel_decoder import PixelDecoder, sincos_positions
from eve_vl.model.tokens import Tokens
from eve_vl.tasks.masked_signal.config import MaskedSignalConfig
from helpers.tiny_encoder import LENGTHS, text_batch
from helpers.twins import in_rows, randomize, tiny_config


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_sincos_positions_by_the_formula():
    positions = sincos_positions(9, 8, torch.device("cpu"))
    for row in range(3):
        for column in range(3):
            expected = []
            for place in (row, column):
                angles = [place / 10_000 ** (i / 2) for i in range(2)]
                expected += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            assert positions[3 * row + column].tolist() == pytest.approx(expected, abs=1e-6)


@torch.no_grad()
def test_decoder_equals_one_that_puts_every_patch_back_in_place():
    """MAE's form: the whole grid in order, mask tokens where patches are hidden, one sample at a time, no padding."""
    config = tiny_config()
    assert isinstance(config.task, MaskedSignalConfig)
    assert isinstance(config.model, EveModelConfig)
    shape = {"depth": 2, "dim": 8, "num_heads": config.task.decoder_num_heads}
    decoder = PixelDecoder(config.model.embed_dim, config.input.patch_dim, config.model, **shape)
    randomize(decoder, 5, std=0.4)
    order = torch.stack([torch.randperm(16) for _ in range(3)])
    keep, hidden = order[:, :4].sort().values, order[:, 4:].sort().values
    _, is_padding = text_batch()
    encoded = Tokens(
        x_BND=torch.randn(3, 1 + 4 + 6, 16), num_image=5, is_padding_BN=F.pad(is_padding, (5, 0))
    )
    predicted = decoder(encoded, keep, hidden)
    positions = sincos_positions(16, 8, torch.device("cpu"))
    for b, length in enumerate(LENGTHS):
        x = decoder.embed(encoded.x_BND[b])
        grid = decoder.mask_token.expand(16, 8).clone()
        grid[keep[b]] = x[1:5]
        x_ND, rows = in_rows(
            torch.cat([x[:1], grid + positions, x[5 : 5 + length]])[None],
            17,
            num_heads=decoder.block.num_heads,
        )
        for block in decoder.blocks:
            x_ND, _ = block(x_ND, rows)
        pixels = decoder.pixels(decoder.norm(x_ND[1:17]))
        torch.testing.assert_close(predicted[b], pixels[hidden[b]], rtol=1e-4, atol=1e-5)
    swapped = torch.randperm(12)
    torch.testing.assert_close(
        decoder(encoded, keep, hidden[:, swapped]), predicted[:, swapped], rtol=1e-4, atol=1e-5
    )
