"""Heads: from states of the encoder to predictions.

Letters: B batch, M masked tokens, N all tokens, D width, V vocabulary.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl.config.model import NORM_EPS
from eve_vl.model.layers import layer_norm


class TokenHead(nn.Module):
    """Two-layer head over the vocabulary for masked tokens."""

    def __init__(self, embed_dim: int, vocab_size: int, norm_eps: float = NORM_EPS):
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, embed_dim)
        self.norm = layer_norm(embed_dim, norm_eps)
        self.fc2 = nn.Linear(embed_dim, vocab_size)

    def forward(self, x_MD: Tensor) -> Tensor:
        """(M, D) to logits (M, V). Give it the masked tokens alone."""
        return self.fc2(self.norm(F.gelu(self.fc1(x_MD))))


class MLPHead(nn.Sequential):
    """Two-layer classifier on a state; (B, in_dim) to logits (B, out_dim)."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int):
        super().__init__(nn.Linear(in_dim, hidden_dim), nn.LayerNorm(hidden_dim), nn.GELU(), nn.Linear(hidden_dim, out_dim))

    def start_as_one_of_many(self) -> None:
        """Make each class as likely as it is on average: from one half, the first hundred steps go into unlearning it."""
        bias = self[-1].bias
        assert isinstance(bias, nn.Parameter)
        nn.init.constant_(bias, -math.log(max(len(bias) - 1, 1)))


class BatchNormNoAffine(nn.BatchNorm1d):
    """(B, D) to float32 (B, D) of mean 0 and variance 1: batch normalisation without weights, as in MAE's linear probes; each
    process by its own rows, in evaluation by running averages.

    Most of a [CLS] state is the same for all inputs, and an encoder whose head is still ignorant makes it more so (LOG.md).
    """

    def __init__(self, embed_dim: int):
        super().__init__(embed_dim, affine=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Standardise states."""
        return super().forward(input.float())


class ITMHead(nn.Linear):
    """A state of an image–text pair to logits (B, 2), class 1 = match; with `standardize`, of standardised states.

    ranks: only a match has a logit, a score that tells one text of an image from another; that of no match is 0.
    """

    def __init__(self, embed_dim: int, *, standardize: bool, ranks: bool = False):
        super().__init__(embed_dim, 1 if ranks else 2)
        self.norm = BatchNormNoAffine(embed_dim) if standardize else nn.Identity()

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """(B, D) to (B, 2)."""
        logits = super().forward(self.norm(input))
        return logits if self.out_features == 2 else F.pad(logits, (1, 0))


class PairedAttentionHead(nn.Module):
    """Two pairs, each attending to the other, fused, pooled by attention, then two classes (UNITER, "pair with attention")."""

    def __init__(self, embed_dim: int, num_heads: int, dropout: float = 0.1):
        super().__init__()
        self.attend_right = nn.MultiheadAttention(embed_dim, num_heads, dropout, batch_first=True)
        self.attend_left = nn.MultiheadAttention(embed_dim, num_heads, dropout, batch_first=True)
        self.fuse = nn.Sequential(nn.Linear(2 * embed_dim, embed_dim), nn.ReLU(), nn.Dropout(dropout))
        self.score = nn.Linear(embed_dim, 1)
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(2 * embed_dim, 2)

    def forward(self, left_BND: Tensor, right_BND: Tensor, is_padding_BN: Tensor | None) -> Tensor:
        """Return logits (B, 2) from the states of [left image; text] and [right image; text]."""
        pooled = []
        sides = (self.attend_right, left_BND, right_BND), (self.attend_left, right_BND, left_BND)
        for attention, own_BND, other_BND in sides:
            attended_BND, _ = attention(own_BND, other_BND, other_BND, key_padding_mask=is_padding_BN, need_weights=False)
            fused_BND = self.fuse(torch.cat([attended_BND, own_BND], dim=2))
            score_BN = self.score(fused_BND).squeeze(2).relu()
            if is_padding_BN is not None:
                score_BN = score_BN.masked_fill(is_padding_BN, float("-inf"))
            weight_BN = self.dropout(score_BN.softmax(1))
            pooled.append(torch.bmm(weight_BN[:, None].to(fused_BND.dtype), fused_BND).squeeze(1))
        return self.classify(torch.cat(pooled, dim=1))


class SiameseHead(nn.Module):
    """Two states, their distance and their product to two classes (InferSent, Conneau et al. 2017): whether the two say the
    same is there from the start, where a classifier of the states alone must first learn to compare.

    The states come standardised.
    """

    def __init__(self, embed_dim: int):
        super().__init__()
        self.norm = BatchNormNoAffine(embed_dim)
        self.classify = MLPHead(4 * embed_dim, 2 * embed_dim, 2)

    def forward(self, left_BD: Tensor, right_BD: Tensor) -> Tensor:
        """Two times (B, D) to logits (B, 2)."""
        left_BD, right_BD = self.norm(torch.cat([left_BD, right_BD])).unflatten(0, (2, -1))
        return self.classify(torch.cat([left_BD, right_BD, (left_BD - right_BD).abs(), left_BD * right_BD], dim=1))


class ContrastHead(nn.Module):
    """Projections of the two [CLS] states to features of length 1, and the temperature they are compared with."""

    def __init__(self, embed_dim: int, projection_dim: int):
        super().__init__()
        self.image = nn.Linear(embed_dim, projection_dim, bias=False)
        self.text = nn.Linear(embed_dim, projection_dim, bias=False)
        self.temperature = nn.Parameter(torch.empty(()))

    def image_features(self, cls_BD: Tensor) -> Tensor:
        """(B, D) to float32 (B, d)."""
        return F.normalize(self.image(cls_BD).float(), dim=1)

    def text_features(self, cls_BD: Tensor) -> Tensor:
        """(B, D) to float32 (B, d)."""
        return F.normalize(self.text(cls_BD).float(), dim=1)
