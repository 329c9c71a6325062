"""Embedding of pixels: patches, [CLS], positions and type.

Letters: B batch, C channels, H height, W width, P patches of the image, K kept patches,
M replaced patches, N all tokens, D width, X values in a patch.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl.config import InputConfig
from eve_vl.config.model import Stem
from eve_vl.model.patches import gather_patches, patchify, scatter_patches
from eve_vl.model.positions import resize_positions
from eve_vl.model.stems import ConvStem, PatchConvStem
from eve_vl.model.tokens import Tokens


class ImageEmbed(nn.Module):
    """Patch embedding, image [CLS] and learned positions if any, image type embedding."""

    def __init__(
        self,
        embed_dim: int,
        sizes: InputConfig,
        stem: Stem = "linear",
        *,
        has_positions: bool = True,
        has_cls: bool = True,
    ):
        super().__init__()
        self.sizes = sizes
        if stem == "linear":
            self.proj = nn.Linear(sizes.patch_dim, embed_dim)
        elif stem == "patch_conv":
            self.proj = PatchConvStem(embed_dim, sizes.patch_size)
        else:
            residual = stem == "residual_conv"
            self.proj = ConvStem(embed_dim, sizes.patch_size, residual=residual)
        self.cls = nn.Parameter(torch.empty(embed_dim)) if has_cls else None
        self.positions = None
        if has_positions:
            num_positions = sizes.num_patches + int(has_cls)
            self.positions = nn.Parameter(torch.empty(num_positions, embed_dim))
        self.type_embed = nn.Parameter(torch.empty(embed_dim))

    def forward(
        self,
        pixels_BCHW: Tensor,
        keep_BK: Tensor | None = None,
        replacement: tuple[Tensor, Tensor] | None = None,
    ) -> Tokens:
        """Embed all patches, or those at the positions keep_BK (int64), with positions.

        replacement: positions (int64, (B, M)) of patches, and the embeddings that replace theirs,
        (B, M, D).
        """
        side = pixels_BCHW.shape[2] // self.sizes.patch_size
        x_BND = self._patches(pixels_BCHW, keep_BK, side)
        if replacement is not None:
            x_BND = scatter_patches(x_BND, *replacement)

        cls_D = self.cls
        if self.positions is not None:
            position_ND = resize_positions(self.positions, side**2, has_cls=cls_D is not None)
            if cls_D is not None:
                cls_D = position_ND[0] + cls_D
                position_ND = position_ND[1:]
            x_BND = x_BND + (position_ND if keep_BK is None else position_ND[keep_BK])

        if cls_D is not None:
            cls_B1D = cls_D.to(x_BND.dtype).expand(x_BND.shape[0], 1, -1)
            x_BND = torch.cat([cls_B1D, x_BND], dim=1)
        x_BND = x_BND + self.type_embed
        return Tokens(x_BND=x_BND, num_image=x_BND.shape[1], patch_BK=keep_BK)

    def _patches(self, pixels_BCHW: Tensor, keep_BK: Tensor | None, side: int) -> Tensor:
        """Return the patches (B, P, D), or the kept ones (B, K, D).

        They depend on no masked pixel.
        """
        if isinstance(self.proj, nn.Linear):
            patches_BPX = patchify(pixels_BCHW, self.sizes.patch_size)
            if keep_BK is not None:
                patches_BPX = gather_patches(patches_BPX, keep_BK)
            return self.proj(patches_BPX)
        if keep_BK is None:
            return self.proj(pixels_BCHW)
        if isinstance(self.proj, PatchConvStem):  # its patches do not overlap
            return gather_patches(self.proj(pixels_BCHW), keep_BK)

        is_kept_BP = torch.zeros(
            len(keep_BK), side**2, dtype=pixels_BCHW.dtype, device=keep_BK.device
        )
        is_kept_BP = is_kept_BP.scatter_(1, keep_BK, 1)
        is_kept_B1HW = F.interpolate(
            is_kept_BP.view(-1, 1, side, side), scale_factor=float(self.sizes.patch_size)
        )
        x_BPD = self.proj(pixels_BCHW * is_kept_B1HW, is_masked=True)
        return gather_patches(x_BPD, keep_BK)
