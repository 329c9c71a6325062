"""The light decoder that reconstructs the pixels of masked patches.

Letters: B batch, P patches of the image, K kept patches, M masked patches, T text tokens,
N all tokens, S rows of the batch, D width of the encoder, d width of the decoder,
X values in a patch.
"""

import dataclasses

import torch
from torch import Tensor, nn

from eve_vl.config import EveModelConfig
from eve_vl.model.block import Block
from eve_vl.model.norm import layer_norm
from eve_vl.model.packing import PackedTokens
from eve_vl.model.tokens import Tokens, join


class PixelDecoder(nn.Module):
    """The light decoder that reconstructs masked patches from states (MAE §3).

    A few narrow blocks over [image; one mask token per masked patch; text] give the pixels of the
    masked patches. Attention ignores order, so masked patches come after all kept ones, without
    reordering. Fixed sine-cosine positions locate all patches.
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
        """Set up the blocks and both projections.

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

    def forward(self, encoded: Tokens, keep_BK: Tensor, masked_BM: Tensor) -> Tensor:
        """Predict the masked patches.

        encoded: states of [image CLS, K kept patches, T text tokens]. keep_BK, masked_BM: int64
        positions in the grid. Returns (B, M, X), in the order of masked_BM.
        """
        K = keep_BK.shape[1]
        M = masked_BM.shape[1]
        tokens = self._with_mask_tokens(encoded, keep_BK, masked_BM)
        rows = PackedTokens.of(tokens, self.block.num_heads)
        masked = rows.read_range(1 + K, 1 + K + M)
        x_Sd = rows.pack(tokens.x_BND)
        for block in self.blocks:
            is_last = block is self.blocks[-1]
            x_Sd, _ = block(x_Sd, rows, masked if is_last else None)
        return self.pixels(self.norm(x_Sd)).unflatten(0, (-1, M))

    def _with_mask_tokens(self, encoded: Tokens, keep_BK: Tensor, masked_BM: Tensor) -> Tokens:
        """Return [image CLS, K kept patches, M mask tokens, T text tokens], with positions."""
        K = keep_BK.shape[1]
        M = masked_BM.shape[1]
        x_BNd = self.embed(encoded.x_BND)
        cls_B1d, kept_BKd, text_BTd = x_BNd.split([1, K, x_BNd.shape[1] - K - 1], dim=1)
        position_Pd = sincos_positions(K + M, x_BNd.shape[2], x_BNd.device).to(x_BNd.dtype)
        mask_token_BMd = self.mask_token.to(x_BNd.dtype) + position_Pd[masked_BM]
        image_BNd = torch.cat([cls_B1d, kept_BKd + position_Pd[keep_BK], mask_token_BMd], dim=1)

        is_padding_BT = None
        if encoded.is_padding_BN is not None:
            is_padding_BT = encoded.is_padding_BN[:, 1 + K :]
        image = Tokens(x_BND=image_BNd, num_image=1 + K + M)
        text = Tokens(
            x_BND=text_BTd, num_image=0, is_padding_BN=is_padding_BT, num_real=encoded.num_real
        )
        return join(image, text)


def sincos_positions(num_patches: int, dim: int, device: torch.device) -> Tensor:
    """Return sine-cosine positions of a square grid, float32 (num_patches, dim).

    One half is for the row, one for the column.
    """
    side = round(num_patches**0.5)
    num_frequencies = dim // 4
    number = torch.arange(num_frequencies, device=device, dtype=torch.float32)
    frequencies = 10_000 ** -(number / num_frequencies)
    places = torch.arange(side, device=device, dtype=torch.float32)
    angles = places[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = axis[:, None].expand(-1, side, -1)
    columns = axis[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=2).reshape(num_patches, dim)
