"""Embeddings against convolutions, interpolation of images and loops over tokens."""

from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation

from eve_vl.model.patches import gather_patches, patchify, unpatchify
from eve_vl.model.positions import resize_positions
from eve_vl.model.stems import ConvStem
from eve_vl.utils.errors import UserError
from helpers.tiny_encoder import encoder, pixels, text_batch


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_patches_are_cut_row_by_row_and_put_back():
    images = pixels(2)
    cut = patchify(images, 4)
    for row in range(4):
        for column in range(4):
            expected = images[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten(1)
            assert torch.equal(cut[:, 4 * row + column], expected)
    assert torch.equal(unpatchify(cut, 4), images)


def test_projection_of_patches_equals_a_strided_convolution():
    model = encoder()
    conv = nn.Conv2d(3, 16, kernel_size=4, stride=4)
    with torch.no_grad():
        proj = cast(nn.Linear, model.image.proj)
        conv.weight.copy_(proj.weight.view(16, 3, 4, 4))
        conv.bias.copy_(proj.bias)  # pyright: ignore[reportOptionalMemberAccess]
    images = pixels(2)
    torch.testing.assert_close(proj(patchify(images, 4)), conv(images).flatten(2).transpose(1, 2))


def conv_encoder() -> Any:
    return encoder(stem="conv").image


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("is_hidden", [False, True])
def test_convolutions_equal_torchvisions_blocks(is_hidden, training):
    """Each kind of image moves only its own running averages."""
    stem = conv_encoder().proj.train(training)
    halve = partial(Conv2dNormActivation, kernel_size=3, stride=2)
    same: Any = nn.Sequential(halve(3, 8), halve(8, 16), nn.Conv2d(16, 16, 1)).train(training)
    convs, norms = [same[0][0], same[1][0], same[2]], [same[0][1], same[1][1]]
    for ours, theirs in zip([*stem.convs, stem.proj], convs, strict=True):
        theirs.load_state_dict(ours.state_dict())
    for ours, theirs in zip(stem.norms, norms, strict=True):
        for norm in (ours.whole, ours.hidden):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
        averages = (ours.hidden if is_hidden else ours.whole).state_dict()
        theirs.load_state_dict({"weight": ours.weight, "bias": ours.bias} | averages)
    left_alone = [
        (norm.whole if is_hidden else norm.hidden).running_mean.clone() for norm in stem.norms
    ]
    images = pixels(2)
    torch.testing.assert_close(stem(images, is_masked=is_hidden), same(images).flatten(2).mT)
    for ours, theirs, other in zip(stem.norms, norms, left_alone, strict=True):
        torch.testing.assert_close(
            (ours.hidden if is_hidden else ours.whole).running_var, theirs.running_var
        )
        assert torch.equal((ours.whole if is_hidden else ours.hidden).running_mean, other)


@pytest.mark.parametrize(
    ("patch_size", "widths"),
    [(8, [48, 96, 192]), (16, [24, 48, 96, 192]), (32, [24, 48, 96, 192, 192])],
)
def test_channels_double_up_to_the_fourth_convolution(patch_size, widths):
    stem = ConvStem(192, patch_size)
    assert [cast(nn.Conv2d, conv).out_channels for conv in stem.convs] == widths
    assert stem(torch.zeros(2, 3, 128, 64)).shape == (2, 128 * 64 // patch_size**2, 192)


def test_convolutions_see_nothing_of_hidden_patches():
    model, x = conv_encoder(), pixels(2)
    keep = torch.tensor([[0, 5, 15], [1, 2, 12]])
    before = model(x, keep).x_BND
    for p in range(16):
        changed = x.clone()
        changed[:, :, 4 * (p // 4) : 4 * (p // 4) + 4, 4 * (p % 4) : 4 * (p % 4) + 4] += 1
        for b in range(2):
            assert torch.equal(model(changed, keep).x_BND[b], before[b]) == (p not in keep[b])


def test_take_picks_rows():
    x = torch.randn(3, 16, 48)
    index = torch.tensor([[3, 1], [0, 15], [7, 7]])
    for b in range(3):
        for k in range(2):
            assert torch.equal(gather_patches(x, index)[b, k], x[b, index[b, k]])


def test_image_embedding_adds_cls_positions_and_type():
    model, x = encoder().image, pixels(2)
    assert model.cls is not None
    proj, positions = cast(nn.Linear, model.proj), model.get_parameter("positions")
    tokens = model(x)
    assert tokens.num_image == 17
    assert tokens.is_padding_BN is None
    for b in range(2):
        torch.testing.assert_close(tokens.x_BND[b, 0], model.cls + positions[0] + model.type_embed)
        for p in range(16):
            patch = x[
                b, :, 4 * (p // 4) : 4 * (p // 4) + 4, 4 * (p % 4) : 4 * (p % 4) + 4
            ].flatten()
            expected = proj(patch) + positions[1 + p] + model.type_embed
            torch.testing.assert_close(tokens.x_BND[b, 1 + p], expected, rtol=1e-5, atol=1e-5)


def test_dropped_patches_leave_the_others_their_own_positions():
    model, x = encoder().image, pixels()
    keep = torch.stack([torch.randperm(16)[:5].sort().values for _ in range(3)])
    everything, kept = model(x).x_BND, model(x, keep).x_BND
    torch.testing.assert_close(kept[:, :1], everything[:, :1])
    torch.testing.assert_close(
        kept[:, 1:], gather_patches(everything[:, 1:], keep), rtol=1e-5, atol=1e-5
    )


def test_text_embedding_against_a_loop():
    model = encoder().text
    positions = model.get_parameter("positions")
    ids, is_padding = text_batch()
    tokens = model(ids, is_padding)
    assert tokens.num_image == 0
    norm = cast(nn.LayerNorm, model.norm)
    for b in range(3):
        for t in range(6):
            word = model.words.weight[ids[b, t]]
            normed = (word - word.mean()) / (word.var(unbiased=False) + 1e-6).sqrt()
            expected = normed * norm.weight + norm.bias + positions[t] + model.type_embed
            torch.testing.assert_close(tokens.x_BND[b, t], expected, rtol=1e-5, atol=1e-5)


def test_text_longer_than_the_positions_is_refused():
    model = encoder().text
    ids = torch.ones(1, 12, dtype=torch.long)
    model(ids, None)
    with pytest.raises(UserError, match=r"text of 13 tokens, but input\.text_length is 12"):
        model(torch.ones(1, 13, dtype=torch.long), None)


def test_positions_are_resized_for_other_image_sizes():
    model = encoder().image
    positions = model.get_parameter("positions")
    assert resize_positions(positions, 16) is positions
    resized = resize_positions(positions, 36)
    assert torch.equal(resized[0], positions[0])
    for d in range(16):  # one channel after the other, as an image
        grid = positions[1:, d].reshape(1, 1, 4, 4)
        expected = F.interpolate(grid, size=(6, 6), mode="bicubic", align_corners=False).flatten()
        torch.testing.assert_close(resized[1:, d], expected)
    with torch.no_grad():
        positions[1:] = torch.arange(16.0)
    torch.testing.assert_close(
        resize_positions(positions, 64)[1:], torch.arange(16.0).expand(64, 16), rtol=1e-5, atol=1e-5
    )
    assert model(torch.randn(2, 3, 24, 24)).x_BND.shape == (2, 37, 16)
