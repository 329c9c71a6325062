"""Learned positions at other sizes: of patches and of text tokens.

Letters: D width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def resize_positions(positions: Tensor, num_patches: int, *, has_cls: bool = True) -> Tensor:
    """Resize a learned square grid bicubically: (1 + num_patches, D), [CLS] first."""
    num_cls = int(has_cls)
    cls_1D = positions[:num_cls]
    grid_PD = positions[num_cls:]
    if num_patches == len(grid_PD):
        return positions

    old_side = round(len(grid_PD) ** 0.5)
    new_side = round(num_patches**0.5)
    grid_1DHW = grid_PD.reshape(1, old_side, old_side, -1).permute(0, 3, 1, 2)
    grid_1DHW = F.interpolate(
        grid_1DHW, size=(new_side, new_side), mode="bicubic", align_corners=False
    )
    grid_PD = grid_1DHW.permute(0, 2, 3, 1).reshape(new_side * new_side, -1)
    return torch.cat([cls_1D, grid_PD])


def resize_image_positions(
    tensors: dict[str, Tensor], name: str, num_patches: int, *, has_cls: bool = True
) -> tuple[dict[str, Tensor], str | None]:
    """Resize the image positions in another backbone's weights.

    Returns the weights, and a sentence if resized.
    """
    positions = tensors.get(name)
    if positions is None:
        return tensors, None
    num_patches_before = len(positions) - int(has_cls)
    if num_patches_before == num_patches:
        return tensors, None
    note = f"positions resized from {num_patches_before} to {num_patches} patches"
    positions = resize_positions(positions, num_patches, has_cls=has_cls)
    return tensors | {name: positions}, note


def fit_text_positions(
    tensors: dict[str, Tensor], name: str, length: int
) -> tuple[dict[str, Tensor], str | None]:
    """Cut or extend the learned text positions in another backbone's weights.

    Further ones start as the last one. Returns the weights, and a sentence on the change.
    """
    positions = tensors.get(name)
    if positions is None or len(positions) == length:
        return tensors, None
    num_before = len(positions)
    if num_before > length:
        verb = "cut"
        positions = positions[:length].clone()
    else:
        verb = "extended"
        last = positions[-1:].expand(length - num_before, -1)
        positions = torch.cat([positions, last])
    return (
        tensors | {name: positions},
        f"text positions {verb} from {num_before} to {length} tokens",
    )
