"""Patches of images: cutting, picking, replacing, and putting them together.

Letters: B batch, C channels, H height, W width, P patches of the image, K picked patches,
M replaced patches, X values in a patch.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def patchify(pixels_BCHW: Tensor, patch_size: int) -> Tensor:
    """Cut images into patches, row by row: (B, 3, H, W) to (B, P, 3·patch²).

    A patch has its channels first.
    """
    return F.pixel_unshuffle(pixels_BCHW, patch_size).flatten(2).mT.contiguous()


def unpatchify(patches_BPX: Tensor, patch_size: int) -> Tensor:
    """Invert `patchify` for square images: (B, P, 3·patch²) to (B, 3, H, W)."""
    side = round(patches_BPX.shape[1] ** 0.5)
    return F.pixel_shuffle(patches_BPX.mT.unflatten(2, (side, side)), patch_size)


def gather_patches(x_BPX: Tensor, index_BK: Tensor) -> Tensor:
    """Pick patches of each sample: (B, P, X) and int64 (B, K) to (B, K, X)."""
    index_BKX = index_BK[:, :, None].expand(-1, -1, x_BPX.shape[2])
    return x_BPX.gather(1, index_BKX)


def scatter_patches(patches_BPX: Tensor, index_BM: Tensor, new_BMX: Tensor) -> Tensor:
    """Replace the patches at positions index_BM (int64), inverse to `gather_patches`."""
    index_BMX = index_BM[:, :, None].expand_as(new_BMX)
    return patches_BPX.scatter(1, index_BMX, new_BMX.to(patches_BPX.dtype))


def gray_out(patches_BPX: Tensor, masked_BM: Tensor) -> Tensor:
    """Return normalised patches with the masked ones in middle grey, for display."""
    gray_BMX = torch.zeros_like(gather_patches(patches_BPX, masked_BM))
    return scatter_patches(patches_BPX, masked_BM, gray_BMX)


def to_images(patches_BPX: Tensor, patch_size: int) -> list[np.ndarray]:
    """Return patches of pixels in [-1, 1], clamped, as uint8 images (H, W, 3)."""
    pixels_BCHW = (unpatchify(patches_BPX.float(), patch_size) + 1) * 127.5
    bytes_BCHW = pixels_BCHW.round().clamp(0, 255).byte()
    return list(bytes_BCHW.permute(0, 2, 3, 1).cpu().numpy())
