"""Embeddings of images and texts, and their positions, against loops over tokens."""

from typing import cast

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eve_vl.model.patches import gather_patches, patchify
from eve_vl.model.positions import fit_text_positions, resize_positions
from eve_vl.utils.errors import UserError
from helpers.tiny_encoder import encoder, pixels, slow_norm, text_batch


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_image_embedding_adds_cls_positions_and_type():
    embedding = encoder().image
    images = pixels(2)
    positions = embedding.get_parameter("positions")
    assert embedding.cls is not None
    tokens = embedding(images)
    assert tokens.num_image == 17
    assert tokens.is_padding_BN is None
    patches = embedding.proj(patchify(images, 4))
    for b in range(2):
        cls = embedding.cls + positions[0] + embedding.type_embed
        torch.testing.assert_close(tokens.x_BND[b, 0], cls)
        for number in range(16):
            expected = patches[b, number] + positions[1 + number] + embedding.type_embed
            torch.testing.assert_close(tokens.x_BND[b, 1 + number], expected)


def test_dropped_patches_leave_the_others_their_own_positions():
    embedding = encoder().image
    images = pixels()
    keep = torch.stack([torch.randperm(16)[:5].sort().values for _ in range(3)])
    whole = embedding(images).x_BND
    states_of_kept = embedding(images, keep).x_BND
    torch.testing.assert_close(states_of_kept[:, :1], whole[:, :1])
    expected = gather_patches(whole[:, 1:], keep)
    torch.testing.assert_close(states_of_kept[:, 1:], expected, rtol=1e-5, atol=1e-5)


def test_text_embedding_adds_positions_and_type_to_normed_words():
    embedding = encoder().text
    positions = embedding.get_parameter("positions")
    norm = cast(nn.LayerNorm, embedding.norm)
    ids, is_padding = text_batch()
    tokens = embedding(ids, is_padding)
    assert tokens.num_image == 0
    for b in range(3):
        for t in range(6):
            word = slow_norm(norm, embedding.words.weight[ids[b, t]])
            expected = word + positions[t] + embedding.type_embed
            torch.testing.assert_close(tokens.x_BND[b, t], expected, rtol=1e-5, atol=1e-5)


def test_a_text_longer_than_the_positions_is_refused():
    embedding = encoder().text
    embedding(torch.ones(1, 12, dtype=torch.long), None)
    with pytest.raises(UserError, match=r"text of 13 tokens, but input\.text_length is 12"):
        embedding(torch.ones(1, 13, dtype=torch.long), None)


def test_image_positions_are_resized_as_an_image_of_each_channel():
    embedding = encoder().image
    positions = embedding.get_parameter("positions")
    assert resize_positions(positions, 16) is positions
    resized = resize_positions(positions, 36)
    assert torch.equal(resized[0], positions[0])
    for channel in range(16):
        grid = positions[1:, channel].reshape(1, 1, 4, 4)
        expected = F.interpolate(
            grid,
            size=(6, 6),
            mode="bicubic",
            align_corners=False,
        )
        torch.testing.assert_close(resized[1:, channel], expected.flatten())
    assert embedding(torch.randn(2, 3, 24, 24)).x_BND.shape == (2, 37, 16)


@pytest.mark.parametrize(
    ("length", "expected", "note"),
    [
        (3, [0, 1, 2], None),
        (2, [0, 1], "text positions cut from 3 to 2 tokens"),
        (5, [0, 1, 2, 2, 2], "text positions extended from 3 to 5 tokens"),
    ],
)
def test_text_positions_are_cut_or_the_last_one_is_repeated(length, expected, note):
    tensors = {"positions": torch.arange(3.0)[:, None], "norm": torch.ones(1)}
    fitted, actual_note = fit_text_positions(tensors, "positions", length)
    assert fitted["positions"][:, 0].tolist() == expected
    assert fitted["norm"] is tensors["norm"]
    assert actual_note == note
