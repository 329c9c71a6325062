"""From pixels and token ids to the vectors that enter the blocks.

Letters: B batch, P patches of the picture, K kept patches, T text tokens, N all tokens, D width, X values in a patch.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl.config import InputConfig
from eve_vl.errors import UserError
from eve_vl.model.layers import layer_norm


@dataclass(kw_only=True, slots=True)
class Tokens:
    """A batch of sequences. The modality of every token travels with it, whatever was dropped on the way."""

    x_BND: Tensor
    num_image: int
    """Tokens of the picture, [CLS] included; they come first. The other N - num_image are text."""
    is_padding_BN: Tensor | None = None
    """Bool, True where there is no token; None when there is no padding at all."""

    @property
    def is_text_BN(self) -> Tensor:
        """Bool, True for text tokens."""
        B, N, _ = self.x_BND.shape
        return (torch.arange(N, device=self.x_BND.device) >= self.num_image).expand(B, N)


def join(image: Tokens | None, text: Tokens | None) -> Tokens:
    """Return pictures, texts or, row by row, pairs of them as one sequence, [picture; text]."""
    if image is None or text is None:
        tokens = image or text
        assert tokens is not None, "a picture, a text or both"
        return tokens
    is_padding_BN = None
    if text.is_padding_BN is not None:
        is_padding_BN = F.pad(text.is_padding_BN, (image.x_BND.shape[1], 0), value=False)
    x_BND = torch.cat([image.x_BND, text.x_BND], dim=1)
    return Tokens(x_BND=x_BND, num_image=image.num_image, is_padding_BN=is_padding_BN)


def pick(tokens: Tokens, rows: Tensor) -> Tokens:
    """Return some rows of a batch, int64 indices, perhaps more than once."""
    is_padding_BN = None if tokens.is_padding_BN is None else tokens.is_padding_BN[rows]
    return Tokens(x_BND=tokens.x_BND[rows], num_image=tokens.num_image, is_padding_BN=is_padding_BN)


def patchify(pixels_BCHW: Tensor, patch_size: int) -> Tensor:
    """Cut pictures into non-overlapping patches, row by row: (B, 3, H, W) to (B, P, 3·patch²), channel first."""
    return F.pixel_unshuffle(pixels_BCHW, patch_size).flatten(2).mT.contiguous()


def unpatchify(patches_BPX: Tensor, patch_size: int) -> Tensor:
    """Undo `patchify` for square pictures: (B, P, 3·patch²) to (B, 3, H, W)."""
    side = round(patches_BPX.shape[1] ** 0.5)
    return F.pixel_shuffle(patches_BPX.mT.unflatten(2, (side, side)), patch_size)


def take(x_BPX: Tensor, index_BK: Tensor) -> Tensor:
    """Pick rows of each sample: (B, P, X) and int64 (B, K) to (B, K, X)."""
    return x_BPX.gather(1, index_BK[:, :, None].expand(-1, -1, x_BPX.shape[2]))


def put(patches_BPX: Tensor, index_BM: Tensor, new_BMX: Tensor) -> Tensor:
    """Return the patches with those at the positions index_BM (int64) exchanged; the inverse of `take`."""
    return patches_BPX.scatter(1, index_BM[:, :, None].expand_as(new_BMX), new_BMX.to(patches_BPX.dtype))


def hide(patches_BPX: Tensor, hidden_BM: Tensor) -> Tensor:
    """Return normalised patches with the hidden ones in middle grey, for people to look at."""
    return put(patches_BPX, hidden_BM, torch.zeros_like(take(patches_BPX, hidden_BM)))


def to_pictures(patches_BPX: Tensor, patch_size: int) -> list[np.ndarray]:
    """Return patches of pixels in [-1, 1] as uint8 pictures (H, W, 3); values outside are cut off."""
    pixels_BCHW = (unpatchify(patches_BPX.float(), patch_size) + 1) * 127.5
    return list(pixels_BCHW.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy())


class ImageEmbed(nn.Module):
    """Linear patch projection, image [CLS], learned positions, image type embedding."""

    def __init__(self, embed_dim: int, sizes: InputConfig):
        super().__init__()
        self.patch_size = sizes.patch_size
        self.proj = nn.Linear(sizes.patch_dim, embed_dim)
        self.cls = nn.Parameter(torch.empty(embed_dim))
        self.positions = nn.Parameter(torch.empty(1 + sizes.num_patches, embed_dim))
        self.type_embed = nn.Parameter(torch.empty(embed_dim))

    def forward(self, pixels_BCHW: Tensor, keep_BK: Tensor | None = None) -> Tokens:
        """Embed all patches, or only those at the positions keep_BK (int64), each with its own position."""
        patches_BPX = patchify(pixels_BCHW, self.patch_size)
        B, P, _ = patches_BPX.shape
        positions = resize_positions(self.positions, P)
        cls_D, patch_PD = positions[0] + self.cls, positions[1:]
        if keep_BK is not None:
            patches_BPX, patch_PD = take(patches_BPX, keep_BK), patch_PD[keep_BK]
        x_BPD = self.proj(patches_BPX) + patch_PD
        x_BND = torch.cat([cls_D.to(x_BPD.dtype).expand(B, 1, -1), x_BPD], dim=1) + self.type_embed
        return Tokens(x_BND=x_BND, num_image=x_BND.shape[1])


def resize_positions(positions: Tensor, num_patches: int) -> Tensor:
    """Return (1 + num_patches, D): a learned square grid, [CLS] first, bicubically resized to another square one if need be."""
    if num_patches == len(positions) - 1:
        return positions
    old, new = round((len(positions) - 1) ** 0.5), round(num_patches**0.5)
    grid = positions[1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([positions[:1], grid.permute(0, 2, 3, 1).reshape(new * new, -1)])


class TextEmbed(nn.Module):
    """Word embedding, LayerNorm, dropout; learned positions and text type embedding are added after both."""

    def __init__(self, embed_dim: int, sizes: InputConfig, vocab_size: int, dropout: float):
        super().__init__()
        self.words = nn.Embedding(vocab_size, embed_dim)
        self.norm = layer_norm(embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.positions = nn.Parameter(torch.empty(sizes.text_length, embed_dim))
        self.type_embed = nn.Parameter(torch.empty(embed_dim))

    def forward(self, ids_BT: Tensor, is_padding_BT: Tensor | None) -> Tokens:
        """Embed int64 token ids, the text [CLS] first. Raises UserError for more tokens than there are positions."""
        T = ids_BT.shape[1]
        if len(self.positions) < T:
            raise UserError(f"text of {T} tokens, but input.text_length is {len(self.positions)}")
        x_BTD = self.dropout(self.norm(self.words(ids_BT))) + self.positions[:T] + self.type_embed
        return Tokens(x_BND=x_BTD, num_image=0, is_padding_BN=is_padding_BT)
