"""The light decoder that reconstructs masked patches from the encoder's states (MAE §3).

Letters: B batch, P patches of the image, K kept patches, M masked patches, T text tokens, D encoder width,
d decoder width, X values in a patch.
"""

import dataclasses

import torch
from torch import Tensor, nn

from eve_vl.config import EveModelConfig
from eve_vl.model.embeddings import join
from eve_vl.model.encoder import Block
from eve_vl.model.layers import layer_norm
from eve_vl.model.packing import PackedTokens, Tokens


class PixelDecoder(nn.Module):
    """A few narrow blocks over [image; one mask token per masked patch; text], then the pixels of the masked patches.

    Attention ignores order, so masked patches come after all kept ones, without reordering. Fixed sine-cosine positions locate
    all patches.
    """

    def __init__(self, embed_dim: int, patch_dim: int, block: EveModelConfig, *, depth: int, dim: int, num_heads: int):
        """embed_dim: of the encoder. block: shape of the blocks, except for width and heads."""
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
        tokens = join(image, Tokens(x_BND=text_BTd, num_image=0, is_padding_BN=is_padding_BT, num_real=encoded.num_real))
        rows = PackedTokens.of(tokens, self.block.num_heads)
        hidden, x_Sd = rows.between(1 + K, 1 + K + M), rows.collect(tokens.x_BND)
        for block in self.blocks:
            x_Sd, _ = block(x_Sd, rows, hidden if block is self.blocks[-1] else None)
        return self.pixels(self.norm(x_Sd)).unflatten(0, (-1, M))


def sincos_positions(num_patches: int, dim: int, device: torch.device) -> Tensor:
    """Return (num_patches, dim) float32 sine-cosine positions of a square grid, half for the row, half for the column."""
    side = round(num_patches**0.5)
    frequencies = 10_000 ** -(torch.arange(dim // 4, device=device, dtype=torch.float32) / (dim // 4))
    angles = torch.arange(side, device=device, dtype=torch.float32)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = axis[:, None].expand(-1, side, -1), axis[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=2).reshape(num_patches, dim)
