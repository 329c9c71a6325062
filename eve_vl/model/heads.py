"""Heads and the pixel decoder: from encoder states to predictions.

Letters: B batch, P patches of the image, K kept patches, M masked patches or tokens, T text tokens, N all tokens, D width of
the encoder, d width of features or of the decoder, V vocabulary, X values in a patch.
"""

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl.config import EveModelConfig
from eve_vl.config.model import NORM_EPS
from eve_vl.model.embeddings import join
from eve_vl.model.encoder import Block
from eve_vl.model.layers import layer_norm
from eve_vl.model.packing import PackedTokens, Tokens


class TokenHead(nn.Module):
    """Two-layer head over the vocabulary for masked tokens."""

    def __init__(self, embed_dim: int, vocab_size: int, norm_eps: float = NORM_EPS):
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, embed_dim)
        self.norm = layer_norm(embed_dim, norm_eps)
        self.fc2 = nn.Linear(embed_dim, vocab_size)

    def forward(self, x_MD: Tensor) -> Tensor:
        """Return logits (M, V) of states (M, D); pass masked tokens only."""
        return self.fc2(self.norm(F.gelu(self.fc1(x_MD))))


class MLPHead(nn.Sequential):
    """Two-layer classifier; (B, in_dim) to logits (B, out_dim)."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int):
        super().__init__(
            nn.Linear(in_dim, hidden_dim),
            nn.LayerNorm(hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, out_dim),
        )


class ITMHead(nn.Linear):
    """Logits (B, 2) of an image–text pair, class 1 = match.

    standardize: batch normalisation without weights comes first, in float32, as in MAE's linear probes. Most of a [CLS] state
    is equal for all inputs, and an untrained head makes the encoder increase that share (LOG.md). Each process normalises by
    its own rows, evaluation by running averages. ranks: only a match has a logit, a score to rank the texts of an image; that
    of no match is 0.
    """

    def __init__(self, embed_dim: int, *, standardize: bool, ranks: bool = False):
        super().__init__(embed_dim, 1 if ranks else 2)
        self.norm = nn.BatchNorm1d(embed_dim, affine=False) if standardize else None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Return logits (B, 2) of states (B, D)."""
        logits = super().forward(input if self.norm is None else self.norm(input.float()))
        return logits if self.out_features == 2 else F.pad(logits, (1, 0))


class PairedAttentionHead(nn.Module):
    """Two classes from two pairs that attend to each other, pooled by attention.

    UNITER's "pair with attention".
    """

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.1):
        super().__init__()
        self.attend_right = nn.MultiheadAttention(embed_dim, num_heads, dropout, batch_first=True)
        self.attend_left = nn.MultiheadAttention(embed_dim, num_heads, dropout, batch_first=True)
        self.fuse = nn.Sequential(
            nn.Linear(2 * embed_dim, embed_dim), nn.ReLU(), nn.Dropout(dropout)
        )
        self.score = nn.Linear(embed_dim, 1)
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(2 * embed_dim, 2)

    def forward(self, left_BND: Tensor, right_BND: Tensor, is_padding_BN: Tensor | None) -> Tensor:
        """Return logits (B, 2) from states of [left image; text] and [right image; text]."""
        pooled = []
        sides = (self.attend_right, left_BND, right_BND), (self.attend_left, right_BND, left_BND)
        for attention, own_BND, other_BND in sides:
            attended_BND, _ = attention(
                own_BND, other_BND, other_BND, key_padding_mask=is_padding_BN, need_weights=False
            )
            fused_BND = self.fuse(torch.cat([attended_BND, own_BND], dim=2))
            score_BN = self.score(fused_BND).squeeze(2).relu()
            if is_padding_BN is not None:
                score_BN = score_BN.masked_fill(is_padding_BN, float("-inf"))
            weight_BN = self.dropout(score_BN.softmax(1))
            pooled.append(torch.bmm(weight_BN[:, None].to(fused_BND.dtype), fused_BND).squeeze(1))
        return self.classify(torch.cat(pooled, dim=1))


class SiameseHead(nn.Module):
    """Two classes from two standardised states, their distance and their product.

    As in InferSent (Conneau et al. 2017). Distance and product show equality from the start; a classifier of the states alone
    must first learn to compare.
    """

    def __init__(self, embed_dim: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(embed_dim, affine=False)
        self.classify = MLPHead(4 * embed_dim, 2 * embed_dim, 2)

    def forward(self, left_BD: Tensor, right_BD: Tensor) -> Tensor:
        """Return logits (B, 2) of two states (B, D)."""
        left_BD, right_BD = self.norm(torch.cat([left_BD, right_BD]).float()).unflatten(0, (2, -1))
        return self.classify(
            torch.cat([left_BD, right_BD, (left_BD - right_BD).abs(), left_BD * right_BD], dim=1)
        )


class ContrastHead(nn.Module):
    """Projections of two [CLS] states to features of length 1, and a temperature.

    is_siglip: texts have a bias, and `logit_bias` is the one of SigLIP's sigmoid, which no softmax needs.
    """

    def __init__(
        self, image_dim: int, text_dim: int, projection_dim: int, *, is_siglip: bool = False
    ):
        super().__init__()
        self.image = nn.Linear(image_dim, projection_dim, bias=False)
        self.text = nn.Linear(text_dim, projection_dim, bias=is_siglip)
        self.temperature = nn.Parameter(torch.empty(()))
        self.logit_bias = nn.Buffer(torch.zeros(())) if is_siglip else None

    def logits(self, image_Id: Tensor, text_Cd: Tensor) -> Tensor:
        """Return the logits (I, C) of features."""
        logits_IC = image_Id @ text_Cd.T / self.temperature
        return logits_IC if self.logit_bias is None else logits_IC + self.logit_bias

    def image_features(self, cls_BD: Tensor) -> Tensor:
        """Return image features, float32 (B, d), of states (B, D)."""
        return F.normalize(self.image(cls_BD).float(), dim=1)

    def text_features(self, cls_BD: Tensor) -> Tensor:
        """Return text features, float32 (B, d), of states (B, D)."""
        return F.normalize(self.text(cls_BD).float(), dim=1)


class PixelDecoder(nn.Module):
    """The light decoder that reconstructs masked patches from states (MAE §3).

    A few narrow blocks over [image; one mask token per masked patch; text] give the pixels of the masked patches. Attention
    ignores order, so masked patches come after all kept ones, without reordering. Fixed sine-cosine positions locate all
    patches.
    """

    def __init__(
        self,
        embed_dim: int,
        patch_dim: int,
        block: EveModelConfig,
        *,
        depth: int,
        dim: int,
        num_heads: int,
    ):
        """Build it.

        embed_dim: of the encoder. block: shape of the blocks, except for width and heads.
        """
        super().__init__()
        block = dataclasses.replace(block, embed_dim=dim, num_heads=num_heads)
        self.embed = nn.Linear(embed_dim, dim)
        self.mask_token = nn.Parameter(torch.empty(dim))
        self.blocks = nn.ModuleList(Block(block, "shared") for _ in range(depth))
        self.norm = layer_norm(dim)
        self.pixels = nn.Linear(dim, patch_dim)
        self.block = block

    def forward(self, encoded: Tokens, keep_BK: Tensor, hidden_BM: Tensor) -> Tensor:
        """Predict the masked patches.

        encoded: states of [image CLS, K kept patches, T text tokens]. keep_BK, hidden_BM: int64 positions in the grid.
        Returns (B, M, X), in the order of hidden_BM.
        """
        K, M = keep_BK.shape[1], hidden_BM.shape[1]
        x_BNd = self.embed(encoded.x_BND)
        positions_Pd = sincos_positions(K + M, x_BNd.shape[2], x_BNd.device).to(x_BNd.dtype)
        cls_B1d, kept_BKd, text_BTd = x_BNd.split([1, K, x_BNd.shape[1] - K - 1], dim=1)
        hidden_BMd = self.mask_token.to(x_BNd.dtype) + positions_Pd[hidden_BM]
        image_BNd = torch.cat([cls_B1d, kept_BKd + positions_Pd[keep_BK], hidden_BMd], dim=1)
        is_padding_BT = None if encoded.is_padding_BN is None else encoded.is_padding_BN[:, 1 + K :]
        image = Tokens(x_BND=image_BNd, num_image=1 + K + M)
        tokens = join(
            image,
            Tokens(
                x_BND=text_BTd, num_image=0, is_padding_BN=is_padding_BT, num_real=encoded.num_real
            ),
        )
        rows = PackedTokens.of(tokens, self.block.num_heads)
        hidden, x_Sd = rows.between(1 + K, 1 + K + M), rows.collect(tokens.x_BND)
        for block in self.blocks:
            x_Sd, _ = block(x_Sd, rows, hidden if block is self.blocks[-1] else None)
        return self.pixels(self.norm(x_Sd)).unflatten(0, (-1, M))


def sincos_positions(num_patches: int, dim: int, device: torch.device) -> Tensor:
    """Return sine-cosine positions of a square grid, float32 (num_patches, dim).

    One half is for the row, one for the column.
    """
    side = round(num_patches**0.5)
    frequencies = 10_000 ** -(
        torch.arange(dim // 4, device=device, dtype=torch.float32) / (dim // 4)
    )
    angles = torch.arange(side, device=device, dtype=torch.float32)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = axis[:, None].expand(-1, side, -1), axis[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=2).reshape(num_patches, dim)
