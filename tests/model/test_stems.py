"""Convolutional stems against torchvision's blocks."""

from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock
from torchvision.ops import Conv2dNormActivation

from eve_vl.model.stems import ConvStem, ResidualBlock
from helpers.tiny_encoder import encoder, pixels


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def conv_embedding(stem: str = "conv") -> Any:
    return encoder(stem=stem).image


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("is_masked", [False, True])
def test_convolutions_equal_torchvisions_blocks(is_masked, training):
    """Each kind of image, whole or masked, moves only its own running averages."""
    stem = conv_embedding().proj.train(training)
    block = partial(Conv2dNormActivation, kernel_size=3, stride=2)
    twin: Any = nn.Sequential(block(3, 8), block(8, 16), nn.Conv2d(16, 16, 1)).train(training)
    twin_convs = [twin[0][0], twin[1][0], twin[2]]
    twin_norms = [twin[0][1], twin[1][1]]
    for conv, twin_conv in zip([*stem.convs, stem.proj], twin_convs, strict=True):
        twin_conv.load_state_dict(conv.state_dict())

    used = "hidden" if is_masked else "whole"
    unused = "whole" if is_masked else "hidden"
    means_before = []
    for norm, twin_norm in zip(stem.norms, twin_norms, strict=True):
        for averages in (norm.whole, norm.hidden):
            averages.running_mean.normal_()
            averages.running_var.uniform_(0.5, 2)
        state = getattr(norm, used).state_dict()
        twin_norm.load_state_dict({"weight": norm.weight, "bias": norm.bias} | state)
        means_before.append(getattr(norm, unused).running_mean.clone())

    images = pixels(2)
    expected = twin(images).flatten(2).mT
    torch.testing.assert_close(stem(images, is_masked=is_masked), expected)
    for norm, twin_norm, mean_before in zip(stem.norms, twin_norms, means_before, strict=True):
        torch.testing.assert_close(getattr(norm, used).running_var, twin_norm.running_var)
        assert torch.equal(getattr(norm, unused).running_mean, mean_before)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("is_masked", [False, True])
def test_a_residual_block_equals_torchvisions(is_masked, training):
    block: Any = ResidualBlock(8).train(training)
    twin: Any = BasicBlock(8, 8).train(training)
    used = "hidden" if is_masked else "whole"
    for number in ("1", "2"):
        norm = getattr(block, f"norm{number}")
        averages = getattr(norm, used)
        averages.running_mean.normal_()
        averages.running_var.uniform_(0.5, 2)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        twin_norm = getattr(twin, f"bn{number}")
        scales = {"weight": norm.weight, "bias": norm.bias}
        twin_norm.load_state_dict(scales | averages.state_dict())
        twin_conv = getattr(twin, f"conv{number}")
        twin_conv.load_state_dict(getattr(block, f"conv{number}").state_dict())

    features = torch.randn(2, 8, 6, 6)
    expected = twin(features)
    torch.testing.assert_close(block(features, is_masked=is_masked), expected)


def test_a_residual_block_follows_each_convolution_but_the_first():
    stem = ConvStem(192, 16, residual=True)
    assert [cast(ResidualBlock, block).conv1.out_channels for block in stem.blocks] == [48, 96, 192]
    assert stem(torch.zeros(2, 3, 128, 64)).shape == (2, 32, 192)
    assert not ConvStem(192, 16).blocks


@pytest.mark.parametrize(
    ("patch_size", "widths"),
    [
        (8, [48, 96, 192]),
        (16, [24, 48, 96, 192]),
        (32, [24, 48, 96, 192, 192]),
    ],
)
def test_channels_double_up_to_the_fourth_convolution(patch_size, widths):
    stem = ConvStem(192, patch_size)
    assert [cast(nn.Conv2d, conv).out_channels for conv in stem.convs] == widths
    assert stem(torch.zeros(2, 3, 128, 64)).shape == (2, 128 * 64 // patch_size**2, 192)


@pytest.mark.parametrize("stem", ["conv", "residual_conv"])
def test_convolutions_see_nothing_of_masked_patches(stem):
    embedding = conv_embedding(stem)
    images = pixels(2)
    keep = torch.tensor(
        [
            [0, 5, 15],
            [1, 2, 12],
        ]
    )
    before = embedding(images, keep).x_BND
    for patch in range(16):
        row = 4 * (patch // 4)
        column = 4 * (patch % 4)
        changed = images.clone()
        changed[:, :, row : row + 4, column : column + 4] += 1
        after = embedding(changed, keep).x_BND
        for b in range(2):
            assert torch.equal(after[b], before[b]) == (patch not in keep[b])
