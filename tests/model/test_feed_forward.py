"""Feed-forward policies: which networks a block has, and what they compute for each token."""

import typing

import pytest
import torch
from torch import nn

from eve_vl.config.model import FFNPolicy
from eve_vl.model.block import Block
from eve_vl.model.encoder import Encoder
from eve_vl.model.feed_forward import FeedForward, ModalityFeedForward, PairFeedForward
from eve_vl.model.moe import MoE
from eve_vl.model.reference_moe import ReferenceMoE
from helpers.random_weights import randomize
from helpers.slow_experts import in_rows
from helpers.tiny_encoder import SIZES, VOCAB, model_config, slow_ffn_part

B = 2
N = 7
D = 16
NUM_PATCHES = 16


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [ModalityFeedForward, MoE, MoE]),
        ({"num_deep_blocks": 0}, [ModalityFeedForward] * 3),
        ({"deep_ffn": "moe", "num_deep_blocks": 3}, [MoE] * 3),
        (
            {"shallow_ffn": "shared", "deep_ffn": "modality", "num_deep_blocks": 1},
            [FeedForward, FeedForward, ModalityFeedForward],
        ),
        ({"shallow_ffn": "moe", "deep_ffn": "shared"}, [MoE, FeedForward, FeedForward]),
        ({"deep_ffn": "modality_vl"}, [ModalityFeedForward, PairFeedForward, PairFeedForward]),
    ],
)
def test_policies_reach_their_blocks(changes, expected):
    blocks = Encoder(model_config(**changes), SIZES, VOCAB).blocks
    assert [type(block.ffn) for block in blocks] == expected


def test_sizes_of_the_router_reach_the_experts():
    config = model_config(modality_routing=False, num_experts=5, top_k=1)
    ffn = Block(config, "moe", sizes=SIZES).ffn
    assert isinstance(ffn, MoE)
    assert ffn.router.weight.shape == (5, D)
    assert ffn.router.top_k == 1
    assert ffn.router.modality_embed is None


@pytest.mark.parametrize(
    ("routing", "kind", "drops"),
    [
        ("dropless", MoE, None),
        ("reference", ReferenceMoE, True),
        ("reference-dropless", ReferenceMoE, False),
    ],
)
def test_routing_decides_which_experts_are_built(routing, kind, drops):
    config = model_config(routing=routing, activation="gelu")
    ffn = Block(config, "moe", sizes=SIZES).ffn
    assert isinstance(ffn, MoE)
    assert type(ffn) is kind
    assert ffn.experts.activation is nn.functional.gelu
    if isinstance(ffn, ReferenceMoE):
        assert (ffn.drops, ffn.num_image) == (drops, 1 + NUM_PATCHES)
    # without an image there is no fixed boundary
    assert type(Block(config, "moe").ffn) is MoE


@pytest.mark.parametrize(
    "num_image",
    [0, 4, N],
    ids=["text", "pair", "image"],
)
@pytest.mark.parametrize("policy", typing.get_args(FFNPolicy))
@torch.no_grad()
def test_a_block_adds_the_output_of_its_policy_to_each_token(policy, num_image):
    block = Block(model_config(), policy, sizes=SIZES)
    randomize(block, 2, std=0.4)
    nn.init.zeros_(block.scale1)  # no attention
    x_BND = torch.randn(B, N, D)
    x_SD, rows = in_rows(x_BND, num_image, num_heads=2)
    y_SD, stats = block(x_SD, rows)
    assert (stats is not None) == (policy == "moe")

    is_text = torch.arange(N) >= num_image
    is_pair = 0 < num_image < N
    for x_ND, y_ND in zip(x_BND, rows.unpack(y_SD), strict=True):
        branch_ND = slow_ffn_part(block, x_ND, is_text, is_pair)
        expected_ND = x_ND + block.scale2 * branch_ND
        torch.testing.assert_close(y_ND, expected_ND, rtol=1e-4, atol=1e-4)
