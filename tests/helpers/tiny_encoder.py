"""A tiny encoder, its inputs, and a slow twin in its textbook form.

Letters: B batch, N all tokens, D width, L blocks, H heads.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl.config import EveModelConfig
from eve_vl.model.attention import Attention
from eve_vl.model.block import Block
from eve_vl.model.encoder import Encoder
from eve_vl.model.feed_forward import FeedForward, ModalityFeedForward, PairFeedForward
from eve_vl.model.moe import MoE
from eve_vl.model.tokens import Tokens
from helpers.random_weights import randomize
from helpers.slow_experts import slow_ffn, slow_moe
from helpers.tiny_config import tiny_config

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


def text_batch() -> tuple[Tensor, Tensor]:
    """Token ids and padding of three texts."""
    is_padding_BT = torch.arange(max(LENGTHS)) >= torch.tensor(LENGTHS)[:, None]
    ids_BT = torch.randint(1, VOCAB, is_padding_BT.shape).masked_fill(is_padding_BT, 0)
    return ids_BT, is_padding_BT


def pixels(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 16, 16)


def inputs_of(model: Encoder, kind: str) -> tuple[Tokens | None, Tokens | None]:
    """Image and text as `encode` takes them."""
    if kind == "text":
        return None, model.text(*text_batch())
    keep_BK = None
    if kind == "pair of kept patches":
        keep_BK = torch.stack([torch.randperm(16)[:4] for _ in range(3)])
    image = model.image(pixels(), keep_BK)
    text = None if kind == "image" else model.text(*text_batch())
    return image, text


def slow_encode(
    model: Encoder,
    x_BND: Tensor,
    num_image: int,
    is_padding_BN: Tensor | None,
    bias_BLHNN: Tensor | None = None,
) -> Tensor:
    """Encode one sample after the other, padding cut off; every block in its textbook form.

    bias_BLHNN: of each block's attention.
    """
    B, N, D = x_BND.shape
    is_pair = 0 < num_image < N
    assert isinstance(model.norm_pre, nn.LayerNorm)
    outputs = torch.zeros(B, N, D)
    for b in range(B):
        is_real_N = torch.ones(N, dtype=torch.bool)
        if is_padding_BN is not None:
            is_real_N = ~is_padding_BN[b]
        is_text = (torch.arange(N) >= num_image)[is_real_N]
        x_ND = torch.stack([slow_norm(model.norm_pre, row_D) for row_D in x_BND[b, is_real_N]])
        for number, block in enumerate(model.blocks):
            assert isinstance(block, Block)
            bias_HNN = None
            if bias_BLHNN is not None:
                bias_HNN = bias_BLHNN[b, number][:, is_real_N][:, :, is_real_N]
            normed_ND = F.layer_norm(x_ND, (D,), block.norm1.weight, block.norm1.bias, 1e-6)
            branch_ND = torch_attention(block.attn, normed_ND, bias_HNN)
            x_ND = x_ND + block.scale1 * branch_ND
            x_ND = x_ND + block.scale2 * slow_ffn_part(block, x_ND, is_text, is_pair)
        outputs[b, is_real_N] = torch.stack([slow_norm(model.norm, row_D) for row_D in x_ND])
    return outputs


def torch_attention(attention: Attention, x_ND: Tensor, bias_HNN: Tensor | None) -> Tensor:
    """Self-attention of one sequence by torch's function."""
    D = x_ND.shape[1]
    x_N1D = x_ND[:, None]
    out_N1D, _ = F.multi_head_attention_forward(
        x_N1D,
        x_N1D,
        x_N1D,
        embed_dim_to_check=D,
        num_heads=attention.num_heads,
        in_proj_weight=attention.qkv.weight,
        in_proj_bias=torch.cat([attention.q_bias, torch.zeros(D), attention.v_bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=attention.proj.weight,
        out_proj_bias=attention.proj.bias,
        attn_mask=bias_HNN,
    )
    return out_N1D[:, 0]


def slow_ffn_part(
    block: Block,
    x_ND: Tensor,
    is_text: Tensor,
    is_pair: bool,
) -> Tensor:
    """The second branch of a block, row by row, norms included."""
    ffn = block.ffn
    rows = []
    if isinstance(ffn, ModalityFeedForward):
        for row_D, row_is_text in zip(x_ND, is_text, strict=True):
            norm = ffn.norm_image
            network = ffn.image
            if row_is_text:
                norm = ffn.norm_text
                network = ffn.text
            if is_pair and isinstance(ffn, PairFeedForward):
                norm = ffn.norm_vl
                network = ffn.vl
            rows.append(slow_ffn(slow_norm(norm, row_D), *network.parameters()))
        return torch.stack(rows)

    normed_ND = torch.stack([slow_norm(block.norm2, row_D) for row_D in x_ND])
    if isinstance(ffn, MoE):
        branch_1ND, _ = slow_moe(ffn, normed_ND[None], is_text[None], None)
        return branch_1ND[0]
    assert isinstance(ffn, FeedForward)
    return torch.stack([slow_ffn(row_D, *ffn.parameters()) for row_D in normed_ND])


def slow_norm(norm: nn.LayerNorm, x_D: Tensor) -> Tensor:
    centred_D = x_D - x_D.mean()
    return centred_D / (x_D.var(unbiased=False) + 1e-6).sqrt() * norm.weight + norm.bias


def torch_twin(attention: Attention) -> nn.MultiheadAttention:
    """torch's attention module with the same weights; its bias on k is 0."""
    D = attention.proj.in_features
    twin = nn.MultiheadAttention(D, attention.num_heads, batch_first=True)
    twin.load_state_dict(
        {
            "in_proj_weight": attention.qkv.weight.detach(),
            "in_proj_bias": torch.cat([attention.q_bias, torch.zeros(D), attention.v_bias]),
            "out_proj.weight": attention.proj.weight.detach(),
            "out_proj.bias": attention.proj.bias.detach(),
        }
    )
    return twin
