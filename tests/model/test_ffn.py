"""Feed-forward policies: parts, outputs and costs of each."""

import typing
from typing import Any

import pytest
import torch
from torch import nn

from eve_vl.config import EveModelConfig
from eve_vl.config.model import FFNPolicy
from eve_vl.model.block import Block
from eve_vl.model.encoder import Encoder
from eve_vl.model.feed_forward import FeedForward, ModalityFeedForward, PairFeedForward
from eve_vl.model.moe import MoE
from eve_vl.model.reference_moe import ReferenceMoE
from helpers.tiny_encoder import SIZES, VOCAB, model_config, slow_norm
from helpers.twins import in_rows, randomize, slow_ffn, slow_moe

ROUTINGS = typing.get_args(typing.get_type_hints(EveModelConfig)["routing"])
DECODER: dict[str, Any] = {"decoder_depth": 2, "decoder_dim": 16, "decoder_num_heads": 2}
MIXED = [
    ("shared", "shared"),
    ("modality", "moe"),
    ("moe", "modality"),
    ("shared", "moe"),
    ("modality", "modality_vl"),
]
P, T = 16, 12  # patches of the tiny images, tokens of a full text


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# Building and running


@pytest.mark.parametrize("num_image", [0, 4, 7])
def test_hard_router_sends_each_token_to_its_modalitys_norm_and_network(num_image):
    ffn = ModalityFeedForward(16, 32)
    randomize(ffn, 4)
    x = torch.randn(2, 7, 16)
    x_SD, rows = in_rows(x, num_image)
    output = rows.unpack(ffn(x_SD, rows))
    for b in range(2):
        for n in range(7):
            is_text = n >= num_image
            norm, net = (ffn.norm_text, ffn.text) if is_text else (ffn.norm_image, ffn.image)
            weights = (net.fc1.weight, net.fc1.bias, net.fc2.weight, net.fc2.bias)
            torch.testing.assert_close(
                output[b, n], slow_ffn(slow_norm(norm, x[b, n]), *weights), rtol=1e-4, atol=1e-4
            )


def test_ffn_policies_reach_their_blocks():
    def kinds(**changes: object) -> list[type]:
        return [type(block.ffn) for block in Encoder(model_config(**changes), SIZES, VOCAB).blocks]  # pyright: ignore

    assert kinds() == [ModalityFeedForward, MoE, MoE]
    assert kinds(num_deep_blocks=0) == [ModalityFeedForward] * 3
    assert kinds(shallow_ffn="shared", deep_ffn="modality", num_deep_blocks=1) == [
        FeedForward,
        FeedForward,
        ModalityFeedForward,
    ]
    assert kinds(shallow_ffn="moe", deep_ffn="shared", num_deep_blocks=2) == [
        MoE,
        FeedForward,
        FeedForward,
    ]
    assert kinds(deep_ffn="moe", num_deep_blocks=3) == [MoE] * 3
    blocks = Encoder(
        model_config(modality_routing=False, num_experts=5, top_k=1), SIZES, VOCAB
    ).blocks
    ffn = blocks[2].ffn
    assert isinstance(ffn, MoE)
    assert ffn.router.weight.shape == (5, 16)
    assert ffn.router.top_k == 1
    assert ffn.router.modality_embed is None


def test_routing_says_which_experts_are_built():
    def built(routing: str) -> MoE:
        ffn = Block(model_config(routing=routing, activation="gelu"), "moe", sizes=SIZES).ffn
        assert isinstance(ffn, MoE)
        assert ffn.experts.activation is nn.functional.gelu
        return ffn

    assert type(built("dropless")) is MoE
    for routing, drops in (("reference", True), ("reference-dropless", False)):
        ffn = built(routing)
        assert isinstance(ffn, ReferenceMoE)
        assert (ffn.drops, ffn.num_image) == (drops, 1 + P)
        assert (
            type(Block(model_config(routing=routing), "moe").ffn) is MoE
        )  # without an image there is no fixed boundary


@pytest.mark.parametrize("policy", typing.get_args(FFNPolicy))
@torch.no_grad()
def test_a_block_adds_what_its_policy_makes_of_each_token(policy):
    """With the block's own norm where one is for all, and statistics from experts alone."""
    block = Block(model_config(), policy, sizes=SIZES)
    randomize(block, 2, std=0.4)
    nn.init.zeros_(block.scale1)  # no attention
    x_BND, num_image = torch.randn(2, 7, 16), 4
    x_SD, rows = in_rows(x_BND, num_image, num_heads=2)
    y_SD, stats = block(x_SD, rows)
    assert (stats is not None) == (policy == "moe")
    assert hasattr(block, "norm2") == ("modality" not in policy)
    expected = x_BND.clone()
    for b in range(2):
        for n in range(7):
            if isinstance(block.ffn, PairFeedForward):
                branch = slow_ffn(
                    slow_norm(block.ffn.norm_vl, x_BND[b, n]), *block.ffn.vl.parameters()
                )
            elif isinstance(block.ffn, ModalityFeedForward):
                norm, net = [
                    (block.ffn.norm_image, block.ffn.image),
                    (block.ffn.norm_text, block.ffn.text),
                ][n >= num_image]
                branch = slow_ffn(slow_norm(norm, x_BND[b, n]), *net.parameters())
            elif isinstance(block.ffn, MoE):
                normed = slow_norm(block.norm2, x_BND[b, n])[None, None]
                branch = slow_moe(block.ffn, normed, torch.tensor([[n >= num_image]]), None)[0][
                    0, 0
                ]
            else:
                branch = slow_ffn(slow_norm(block.norm2, x_BND[b, n]), *block.ffn.parameters())
            expected[b, n] += block.scale2 * branch
    torch.testing.assert_close(rows.unpack(y_SD), expected, rtol=1e-4, atol=1e-4)
