"""Blocks and encoder against timm, torch's own layers and slow loops."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from timm.layers.activations import QuickGELU
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl.config import EveModelConfig
from eve_vl.model.block import Block, drop_path
from eve_vl.model.encoder import Encoder
from eve_vl.model.feed_forward import FeedForward, ModalityFeedForward, PairFeedForward
from eve_vl.model.initialization import initialize
from eve_vl.model.moe import MoE
from eve_vl.model.tokens import Tokens, join
from eve_vl.tasks.masked_signal.task import MaskedSignal
from eve_vl.tasks.task import Sizes
from helpers.twins import in_rows, randomize, router_sums, slow_ffn, slow_moe, tiny_config

VOCAB = 30
SIZES = tiny_config().input
LENGTHS = (6, 3, 5)


def model_config(**changes: object) -> EveModelConfig:
    return replace(tiny_config().model, **changes)  # pyright: ignore


def encoder(seed: int = 0, **changes: object) -> Encoder:
    """A tiny encoder in evaluation mode with weights that all matter."""
    module = Encoder(model_config(**changes), SIZES, VOCAB)
    randomize(module, seed, std=0.4)
    return module.eval()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def text_batch() -> tuple[Tensor, Tensor]:
    """Token ids and padding of three texts."""
    is_padding_BT = torch.arange(max(LENGTHS)) >= torch.tensor(LENGTHS)[:, None]
    return torch.randint(1, VOCAB, is_padding_BT.shape).masked_fill(is_padding_BT, 0), is_padding_BT


def pixels(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 16, 16)


# Drop path


def test_drop_path_drops_whole_samples_at_its_rate_and_keeps_the_mean():
    x, rows = in_rows(torch.ones(20_000, 2, 3), 1)
    assert drop_path(x, rows, 0.3, training=False) is x
    assert drop_path(x, rows, 0.0, training=True) is x
    dropped = rows.unpack(drop_path(x, rows, 0.3, training=True)).flatten(1)
    assert torch.equal(dropped, dropped[:, :1].expand(-1, 6))
    assert sorted(dropped.unique().tolist()) == pytest.approx([0, 1 / 0.7])
    assert (dropped[:, 0] == 0).float().mean().item() == pytest.approx(
        0.3, abs=5 * math.sqrt(0.21 / 20_000)
    )
    rates = [
        block.drop_path_rate for block in Encoder(model_config(drop_path=0.2), SIZES, VOCAB).blocks
    ]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


def test_drop_path_is_drawn_for_both_branches_on_their_own():
    block = encoder(drop_path=0.2, shallow_ffn="shared").blocks[0]
    assert isinstance(block, Block)
    block.train().drop_path_rate = 0.5
    x = torch.randn(1, 4, 16)
    outcomes = block(*in_rows(x.expand(400, 4, 16), 4, num_heads=2))[0].view(400, -1)
    distances = torch.cdist(outcomes, outcomes, compute_mode="donot_use_mm_for_euclid_dist")
    kinds = torch.unique(distances < 1e-3, dim=0)
    assert len(kinds) == 4  # neither, either, both
    unchanged = (outcomes == x.flatten(1)).all(1).float().mean().item()
    assert unchanged == pytest.approx(0.25, abs=0.11)


# Blocks


def timm_twin(block: Block, dim: int, heads: int) -> TimmBlock:
    """timm's ViT block with the weights of ours; it has a bias on k, which is 0 here."""
    twin = TimmBlock(
        dim,
        heads,
        mlp_ratio=2.0,
        qkv_bias=True,
        init_values=1.0,
        act_layer=QuickGELU,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),  # pyright: ignore[reportArgumentType]
    )
    assert isinstance(block.ffn, FeedForward)
    attn = block.attn
    weights = {
        "norm1.weight": block.norm1.weight,
        "norm1.bias": block.norm1.bias,
        "attn.qkv.weight": attn.qkv.weight,
        "attn.qkv.bias": torch.cat([attn.q_bias, torch.zeros(dim), attn.v_bias]),
        "attn.proj.weight": attn.proj.weight,
        "attn.proj.bias": attn.proj.bias,
        "ls1.gamma": block.scale1,
        "norm2.weight": block.norm2.weight,
        "norm2.bias": block.norm2.bias,
        "mlp.fc1.weight": block.ffn.fc1.weight,
        "mlp.fc1.bias": block.ffn.fc1.bias,
        "mlp.fc2.weight": block.ffn.fc2.weight,
        "mlp.fc2.bias": block.ffn.fc2.bias,
        "ls2.gamma": block.scale2,
    }
    twin.load_state_dict({name: weight.detach() for name, weight in weights.items()})
    return twin


@pytest.mark.parametrize("scale", [1.0, None])
def test_block_equals_timms_forward_and_backward(scale):
    block = Block(model_config(), "shared", 0.0)
    randomize(block, 3, std=0.3)
    if scale is not None:
        for parameter in (block.scale1, block.scale2):
            nn.init.constant_(parameter, scale)
    twin = timm_twin(block, 16, 2)
    x = torch.randn(2, 7, 16)
    ours_x, timm_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    ours = block(*in_rows(ours_x, 7, num_heads=2))[0].view(x.shape)
    theirs = twin(timm_x)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    upstream = torch.randn(2, 7, 16)
    ours.backward(upstream)
    theirs.backward(upstream)
    assert ours_x.grad is not None
    assert timm_x.grad is not None
    torch.testing.assert_close(ours_x.grad, timm_x.grad, rtol=1e-4, atol=1e-5)
    theirs_by_name = {name: parameter.grad for name, parameter in twin.named_parameters()}
    bias = theirs_by_name["attn.qkv.bias"]
    assert bias is not None
    pairs_of_gradients = [
        (block.attn.q_bias.grad, bias[:16]),
        (block.attn.v_bias.grad, bias[32:]),
        (block.attn.qkv.weight.grad, theirs_by_name["attn.qkv.weight"]),
        (block.attn.proj.weight.grad, theirs_by_name["attn.proj.weight"]),
        (block.norm1.weight.grad, theirs_by_name["norm1.weight"]),
        (block.norm2.bias.grad, theirs_by_name["norm2.bias"]),
        (block.ffn.fc1.weight.grad, theirs_by_name["mlp.fc1.weight"]),  # pyright: ignore
        (block.ffn.fc2.bias.grad, theirs_by_name["mlp.fc2.bias"]),  # pyright: ignore
        (block.scale1.grad, theirs_by_name["ls1.gamma"]),
        (block.scale2.grad, theirs_by_name["ls2.gamma"]),
    ]
    for a, b in pairs_of_gradients:
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def slow_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return (x - x.mean()) / (x.var(unbiased=False) + 1e-6).sqrt() * norm.weight + norm.bias


# The encoder


def slow_encode(
    model: Encoder,
    x_BND: Tensor,
    num_image: int,
    is_padding_BN: Tensor | None,
    bias_BLHNN: Tensor | None = None,
) -> Tensor:
    """One sample after the other, padding cut off; every block in its textbook form. bias_BLHNN: of each block's attention."""
    B, N, D = x_BND.shape
    is_pair = 0 < num_image < N
    assert isinstance(model.norm_pre, nn.LayerNorm)
    outputs = torch.zeros(B, N, D)
    for b in range(B):
        real = torch.ones(N, dtype=torch.bool) if is_padding_BN is None else ~is_padding_BN[b]
        x = torch.stack([slow_norm(model.norm_pre, row) for row in x_BND[b, real]])[None]
        is_text = (torch.arange(N) >= num_image)[real][None]
        for number, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            normed = F.layer_norm(x, (D,), block.norm1.weight, block.norm1.bias, 1e-6)
            bias = torch.cat([block.attn.q_bias, torch.zeros(D), block.attn.v_bias])
            branch, _ = F.multi_head_attention_forward(
                *[normed.transpose(0, 1)] * 3,
                embed_dim_to_check=D,
                num_heads=block.attn.num_heads,
                in_proj_weight=block.attn.qkv.weight,
                in_proj_bias=bias,
                bias_k=None,
                bias_v=None,
                add_zero_attn=False,
                dropout_p=0.0,
                out_proj_weight=block.attn.proj.weight,
                out_proj_bias=block.attn.proj.bias,
                attn_mask=None
                if bias_BLHNN is None
                else bias_BLHNN[b, number][:, real][:, :, real],
            )
            x = x + block.scale1 * branch.transpose(0, 1)
            if is_pair and isinstance(block.ffn, PairFeedForward):
                rows = [
                    slow_ffn(slow_norm(block.ffn.norm_vl, row), *block.ffn.vl.parameters())
                    for row in x[0]
                ]
                branch = torch.stack(rows)[None]
            elif isinstance(block.ffn, ModalityFeedForward):
                rows = []
                for row, text in zip(x[0], is_text[0], strict=True):
                    norm, net = (
                        (block.ffn.norm_text, block.ffn.text)
                        if text
                        else (block.ffn.norm_image, block.ffn.image)
                    )
                    rows.append(slow_ffn(slow_norm(norm, row), *net.parameters()))
                branch = torch.stack(rows)[None]
            else:
                normed = F.layer_norm(x, (D,), block.norm2.weight, block.norm2.bias, 1e-6)
                if isinstance(block.ffn, MoE):
                    branch, _ = slow_moe(block.ffn, normed, is_text, None)
                else:
                    branch = torch.stack(
                        [slow_ffn(row, *block.ffn.parameters()) for row in normed[0]]
                    )[None]
            x = x + block.scale2 * branch
        outputs[b, real] = torch.stack([slow_norm(model.norm, row) for row in x[0]])
    return outputs


def inputs_of(model: Encoder, kind: str) -> tuple[Tokens | None, Tokens | None]:
    """Image and text as `encode` takes them."""
    keep = (
        torch.stack([torch.randperm(16)[:4] for _ in range(3)])
        if kind == "pair of kept patches"
        else None
    )
    image = None if kind == "text" else model.image(pixels(), keep)
    return image, None if kind == "image" else model.text(*text_batch())


@pytest.mark.parametrize("kind", ["image", "text", "pair", "pair of kept patches"])
@pytest.mark.parametrize("shallow", ["modality", "shared"])
@torch.no_grad()
def test_encode_equals_the_slow_encoder(kind, shallow):
    model = encoder(shallow_ffn=shallow, num_deep_blocks=1)
    image, text = inputs_of(model, kind)
    tokens, encoded = join(image, text), model.encode(image, text)
    assert [len(routers) for routers in encoded.routers] == [1]
    assert encoded.num_image == tokens.num_image
    expected = slow_encode(model, tokens.x_BND, tokens.num_image, tokens.is_padding_BN)
    found = encoded.x_BND
    if tokens.is_padding_BN is not None:
        found = found.masked_fill(tokens.is_padding_BN[:, :, None], 0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    first = 0 if kind == "image" else tokens.num_image
    torch.testing.assert_close(encoded.cls_BD, expected[:, first], rtol=1e-4, atol=1e-4)
    assert encoded.text_BTD.shape == (3, 0 if text is None else 6, 16)


@torch.no_grad()
def test_padding_and_batch_mates_never_change_the_real_tokens():
    model = encoder()
    x = pixels()
    ids, is_padding = text_batch()
    plain = model.encode(model.image(x), model.text(ids, is_padding))
    longer_ids = F.pad(ids, (0, 5), value=0)
    longer_padding = F.pad(is_padding, (0, 5), value=True)
    other_ids = longer_ids.masked_fill(longer_padding, 9)
    for ids_now in (longer_ids, other_ids):
        padded = model.encode(model.image(x), model.text(ids_now, longer_padding))
        for b, length in enumerate(LENGTHS):
            real = 17 + length
            torch.testing.assert_close(
                padded.x_BND[b, :real], plain.x_BND[b, :real], rtol=1e-4, atol=1e-5
            )
        for a, b in zip(*padded.routers, *plain.routers, strict=True):
            assert torch.equal(router_sums(a).first_E, router_sums(b).first_E)
            torch.testing.assert_close(router_sums(a).gate_E, router_sums(b).gate_E)
    for b, length in enumerate(LENGTHS):
        text = model.text(ids[b : b + 1, :length], None)
        alone = model.encode(model.image(x[b : b + 1]), text)
        torch.testing.assert_close(
            alone.x_BND[0], plain.x_BND[b, : 17 + length], rtol=1e-4, atol=1e-5
        )


def test_join_keeps_the_modality_of_each_token():
    model = encoder()
    ids, is_padding = text_batch()
    image, text = model.image(pixels(), torch.tensor([[3, 5]] * 3)), model.text(ids, is_padding)
    both = join(image, text)
    assert both.num_image == 3
    assert torch.equal(both.x_BND, torch.cat([image.x_BND, text.x_BND], dim=1))
    assert both.is_padding_BN is not None
    assert not both.is_padding_BN[:, :3].any()
    assert torch.equal(both.is_padding_BN[:, 3:], is_padding)
    assert join(image, model.text(ids, None)).is_padding_BN is None
    assert join(image, None) is image
    assert join(None, text) is text


def test_dropout_and_drop_path_are_off_in_evaluation():
    model = encoder(dropout=0.5, drop_path=0.5)
    inputs = inputs_of(model, "pair")
    assert torch.equal(model.encode(*inputs).x_BND, model.encode(*inputs).x_BND)
    ids, is_padding = text_batch()
    assert torch.equal(model.text(ids, is_padding).x_BND, model.text(ids, is_padding).x_BND)
    model.train()
    assert not torch.equal(model.encode(*inputs).x_BND, model.encode(*inputs).x_BND)
    assert not torch.equal(model.text(ids, is_padding).x_BND, model.text(ids, is_padding).x_BND)


# Initial values


def test_initial_values_follow_the_table_and_leave_nothing_out():
    config = tiny_config(
        model={
            "embed_dim": 64,
            "num_heads": 4,
            "init_std": 0.05,
            "pos_embed_init_std": 0.2,
            "layer_scale_init": 0.3,
        }
    )
    task = MaskedSignal(config, Sizes(vocab_size=200, mask_id=2))
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.fill_(float("nan"))
    initialize(task, config.model)
    seen = set()
    for name, parameter in task.named_parameters():
        last = name.rsplit(".", 1)[-1]
        module = task.get_submodule(name.rpartition(".")[0])
        if isinstance(module, nn.LayerNorm):
            assert torch.equal(
                parameter, torch.full_like(parameter, 1.0 if last == "weight" else 0.0)
            ), name
            seen.add("norm")
        elif last in ("scale1", "scale2"):
            assert torch.equal(parameter, torch.full_like(parameter, 0.3)), name
            seen.add("scale")
        elif last in ("bias", "q_bias", "v_bias", "fc1_bias", "fc2_bias"):
            assert not parameter.any(), name
            seen.add(last)
        else:
            values = parameter.detach()
            std = 0.2 if last == "positions" else 0.05
            assert values.abs().max().item() <= 2 * std, name
            cut_std = std * 0.8796  # of a normal distribution cut at two standard deviations
            spread = 6 / math.sqrt(2 * values.numel())
            assert values.std().item() == pytest.approx(cut_std, rel=spread), name
            assert abs(values.mean().item()) < 6 * cut_std / math.sqrt(values.numel()), name
            seen.add(last)
    assert seen == {
        *("norm", "scale", "bias", "q_bias", "v_bias", "fc1_bias", "fc2_bias"),
        *(
            "weight",
            "fc1_weight",
            "fc2_weight",
            "cls",
            "positions",
            "type_embed",
            "modality_embed",
            "mask_token",
        ),
    }


def test_initial_weights_depend_on_the_seed_alone():
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        task = MaskedSignal(tiny_config(), Sizes(vocab_size=40, mask_id=2))
        return torch.cat([parameter.flatten() for parameter in task.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))
