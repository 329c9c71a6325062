"""Heads: from encoder states to words, classes, matches and features.

Letters: B batch, M masked tokens, N all tokens, D width of the encoder, d width of features,
V vocabulary, I images, C texts.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl.config.model import NORM_EPS
from eve_vl.model.norm import layer_norm


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

    standardize: batch normalisation without weights comes first, in float32, as in MAE's linear
    probes. Most of a [CLS] state is equal for all inputs, and an untrained head makes the encoder
    increase that share (LOG.md). Each process normalises by its own rows, evaluation by running
    averages. ranks: only a match has a logit, a score to rank the texts of an image; that of no
    match is 0.
    """

    def __init__(self, embed_dim: int, *, standardize: bool, ranks: bool = False):
        super().__init__(embed_dim, 1 if ranks else 2)
        self.norm = nn.BatchNorm1d(embed_dim, affine=False) if standardize else None

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Return logits (B, 2) of states (B, D)."""
        x_BD = input if self.norm is None else self.norm(input.float())
        logits = super().forward(x_BD)
        if self.out_features == 1:
            logits = F.pad(logits, (1, 0))
        return logits


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
        pooled_left_BD = self._pooled(self.attend_right, left_BND, right_BND, is_padding_BN)
        pooled_right_BD = self._pooled(self.attend_left, right_BND, left_BND, is_padding_BN)
        return self.classify(torch.cat([pooled_left_BD, pooled_right_BD], dim=1))

    def _pooled(
        self,
        attention: nn.MultiheadAttention,
        x_BND: Tensor,
        keys_BND: Tensor,
        is_padding_BN: Tensor | None,
    ) -> Tensor:
        """Return one pair's states after attention to the other pair, pooled to (B, D)."""
        attended_BND, _ = attention(
            x_BND, keys_BND, keys_BND, key_padding_mask=is_padding_BN, need_weights=False
        )
        fused_BND = self.fuse(torch.cat([attended_BND, x_BND], dim=2))
        score_BN = self.score(fused_BND).squeeze(2).relu()
        if is_padding_BN is not None:
            score_BN = score_BN.masked_fill(is_padding_BN, float("-inf"))
        weight_BN = self.dropout(score_BN.softmax(1))
        return torch.bmm(weight_BN[:, None].to(fused_BND.dtype), fused_BND).squeeze(1)


class SiameseHead(nn.Module):
    """Two classes from two standardised states, their distance and their product.

    As in InferSent (Conneau et al. 2017). Distance and product show equality from the start; a
    classifier of the states alone must first learn to compare.
    """

    def __init__(self, embed_dim: int):
        super().__init__()
        self.norm = nn.BatchNorm1d(embed_dim, affine=False)
        self.classify = MLPHead(4 * embed_dim, 2 * embed_dim, 2)

    def forward(self, left_BD: Tensor, right_BD: Tensor) -> Tensor:
        """Return logits (B, 2) of two states (B, D)."""
        states_2BD = self.norm(torch.cat([left_BD, right_BD]).float()).unflatten(0, (2, -1))
        left_BD, right_BD = states_2BD
        distance_BD = (left_BD - right_BD).abs()
        product_BD = left_BD * right_BD
        return self.classify(torch.cat([left_BD, right_BD, distance_BD, product_BD], dim=1))


class ContrastHead(nn.Module):
    """Projections of two [CLS] states to features of length 1, and a temperature.

    is_siglip: texts have a bias, and `logit_bias` is the one of SigLIP's sigmoid, which no softmax
    needs.
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
        if self.logit_bias is None:
            return logits_IC
        return logits_IC + self.logit_bias

    def image_features(self, cls_BD: Tensor) -> Tensor:
        """Return image features, float32 (B, d), of states (B, D)."""
        return F.normalize(self.image(cls_BD).float(), dim=1)

    def text_features(self, cls_BD: Tensor) -> Tensor:
        """Return text features, float32 (B, d), of states (B, D)."""
        return F.normalize(self.text(cls_BD).float(), dim=1)
