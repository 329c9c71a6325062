"""Blocks against timm's, and stochastic depth against its definition."""

import math
from functools import partial

import pytest
import torch
from timm.layers.activations import QuickGELU
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn

from eve_vl.model.block import Block, drop_path
from eve_vl.model.encoder import Encoder
from eve_vl.model.feed_forward import FeedForward
from helpers.random_weights import randomize
from helpers.slow_experts import in_rows
from helpers.tiny_encoder import SIZES, VOCAB, encoder, model_config

DIM = 16
HEADS = 2


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_drop_path_drops_whole_samples_at_its_rate_and_keeps_the_mean():
    num_samples = 20_000
    rate = 0.3
    x_SD, rows = in_rows(torch.ones(num_samples, 2, 3), 1)
    assert drop_path(x_SD, rows, rate, training=False) is x_SD
    assert drop_path(x_SD, rows, 0.0, training=True) is x_SD

    dropped = rows.unpack(drop_path(x_SD, rows, rate, training=True)).flatten(1)
    assert torch.equal(dropped, dropped[:, :1].expand(-1, 6))
    assert sorted(dropped.unique().tolist()) == pytest.approx([0, 1 / (1 - rate)])
    share = (dropped[:, 0] == 0).float().mean().item()
    deviation = math.sqrt(rate * (1 - rate) / num_samples)
    assert share == pytest.approx(rate, abs=5 * deviation)


def test_rate_of_drop_path_grows_linearly_with_depth():
    blocks = Encoder(model_config(drop_path=0.2), SIZES, VOCAB).blocks
    assert [block.drop_path_rate for block in blocks] == pytest.approx([0.0, 0.1, 0.2])


def test_drop_path_is_sampled_for_each_branch_separately():
    block = encoder(drop_path=0.2, shallow_ffn="shared").blocks[0]
    assert isinstance(block, Block)
    block.train().drop_path_rate = 0.5
    x = torch.randn(1, 4, DIM)
    outcomes = block(*in_rows(x.expand(400, 4, DIM), 4, num_heads=HEADS))[0].view(400, -1)
    distances = torch.cdist(outcomes, outcomes, compute_mode="donot_use_mm_for_euclid_dist")
    kinds = torch.unique(distances < 1e-3, dim=0)
    assert len(kinds) == 4  # neither, either, both
    unchanged = (outcomes == x.flatten(1)).all(1).float().mean().item()
    assert unchanged == pytest.approx(0.25, abs=0.11)


def timm_names(block: Block) -> dict[str, Tensor]:
    """Return the weights of a block by timm's names, all but those of q, k and v's bias."""
    ffn = block.ffn
    assert isinstance(ffn, FeedForward)
    return {
        "norm1.weight": block.norm1.weight,
        "norm1.bias": block.norm1.bias,
        "attn.qkv.weight": block.attn.qkv.weight,
        "attn.proj.weight": block.attn.proj.weight,
        "attn.proj.bias": block.attn.proj.bias,
        "ls1.gamma": block.scale1,
        "norm2.weight": block.norm2.weight,
        "norm2.bias": block.norm2.bias,
        "mlp.fc1.weight": ffn.fc1.weight,
        "mlp.fc1.bias": ffn.fc1.bias,
        "mlp.fc2.weight": ffn.fc2.weight,
        "mlp.fc2.bias": ffn.fc2.bias,
        "ls2.gamma": block.scale2,
    }


def timm_twin(block: Block) -> TimmBlock:
    """Return timm's ViT block with the weights of ours; its bias on k is 0."""
    twin = TimmBlock(
        DIM,
        HEADS,
        mlp_ratio=2.0,
        qkv_bias=True,
        init_values=1.0,
        act_layer=QuickGELU,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),  # pyright: ignore[reportArgumentType]
    )
    weights = {name: weight.detach() for name, weight in timm_names(block).items()}
    weights["attn.qkv.bias"] = torch.cat(
        [block.attn.q_bias, torch.zeros(DIM), block.attn.v_bias]
    ).detach()
    twin.load_state_dict(weights)
    return twin


@pytest.mark.parametrize("scale", [1.0, None], ids=["LayerScale 1", "any LayerScale"])
def test_block_equals_timms_forward_and_backward(scale):
    block = Block(model_config(), "shared", 0.0)
    randomize(block, 3, std=0.3)
    if scale is not None:
        nn.init.constant_(block.scale1, scale)
        nn.init.constant_(block.scale2, scale)
    twin = timm_twin(block)
    x = torch.randn(2, 7, DIM, requires_grad=True)
    twin_x = x.detach().clone().requires_grad_()

    output = block(*in_rows(x, 7, num_heads=HEADS))[0].view(x.shape)
    twin_output = twin(twin_x)
    torch.testing.assert_close(output, twin_output, rtol=1e-5, atol=1e-5)

    upstream = torch.randn(2, 7, DIM)
    output.backward(upstream)
    twin_output.backward(upstream)
    torch.testing.assert_close(x.grad, twin_x.grad, rtol=1e-4, atol=1e-5)
    twin_gradients = {name: parameter.grad for name, parameter in twin.named_parameters()}
    gradients = {name: weight.grad for name, weight in timm_names(block).items()}
    bias_gradient = twin_gradients.pop("attn.qkv.bias")
    assert bias_gradient is not None
    assert gradients.keys() == twin_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, twin_gradients[name], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(block.attn.q_bias.grad, bias_gradient[:DIM], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        block.attn.v_bias.grad, bias_gradient[2 * DIM :], rtol=1e-4, atol=1e-5
    )
