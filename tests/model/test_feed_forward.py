"""Feed-forward policies: which networks a block has, and what they compute for each token."""

import typing

import pytest
import torch
from torch import Tensor, nn

from eve_vl.config.model import FFNPolicy
from eve_vl.model.block import Block
from eve_vl.model.encoder import Encoder
from eve_vl.model.feed_forward import FeedForward, ModalityFeedForward, PairFeedForward
from eve_vl.model.moe import MoE
from eve_vl.model.reference_moe import ReferenceMoE
from helpers.tiny_encoder import SIZES, VOCAB, model_config, slow_norm
from helpers.twins import in_rows, randomize, slow_ffn, slow_moe

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


def slow_branch(block: Block, x_D: Tensor, *, is_text: bool) -> Tensor:
    """Compute the feed-forward part of a block for one token of a pair."""
    ffn = block.ffn
    if isinstance(ffn, PairFeedForward):
        return slow_ffn(slow_norm(ffn.norm_vl, x_D), *ffn.vl.parameters())
    if isinstance(ffn, ModalityFeedForward):
        norm = ffn.norm_image
        network = ffn.image
        if is_text:
            norm = ffn.norm_text
            network = ffn.text
        return slow_ffn(slow_norm(norm, x_D), *network.parameters())
    normed_D = slow_norm(block.norm2, x_D)
    if isinstance(ffn, MoE):
        output_11D, _ = slow_moe(ffn, normed_D[None, None], torch.tensor([[is_text]]), None)
        return output_11D[0, 0]
    return slow_ffn(normed_D, *ffn.parameters())


@pytest.mark.parametrize("policy", typing.get_args(FFNPolicy))
@torch.no_grad()
def test_a_block_adds_the_output_of_its_policy_to_each_token(policy):
    block = Block(model_config(), policy, sizes=SIZES)
    randomize(block, 2, std=0.4)
    nn.init.zeros_(block.scale1)  # no attention
    num_image = 4
    x_BND = torch.randn(B, N, D)
    x_SD, rows = in_rows(x_BND, num_image, num_heads=2)
    y_SD, stats = block(x_SD, rows)
    assert (stats is not None) == (policy == "moe")

    expected_BND = x_BND.clone()
    for b in range(B):
        for n in range(N):
            branch_D = slow_branch(block, x_BND[b, n], is_text=n >= num_image)
            expected_BND[b, n] += block.scale2 * branch_D
    torch.testing.assert_close(rows.unpack(y_SD), expected_BND, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_image", [0, N], ids=["text", "image"])
@pytest.mark.parametrize("policy", ["modality", "modality_vl"])
@torch.no_grad()
def test_a_pass_of_one_modality_takes_its_network(policy, num_image):
    kind = {"modality": ModalityFeedForward, "modality_vl": PairFeedForward}[policy]
    ffn = kind(D, 32)
    randomize(ffn, 4)
    x_BND = torch.randn(B, N, D)
    x_SD, rows = in_rows(x_BND, num_image)
    norm, network = (ffn.norm_image, ffn.image) if num_image else (ffn.norm_text, ffn.text)
    for x_D, y_D in zip(x_SD, ffn(x_SD, rows), strict=True):
        expected = slow_ffn(slow_norm(norm, x_D), *network.parameters())
        torch.testing.assert_close(y_D, expected, rtol=1e-4, atol=1e-4)
