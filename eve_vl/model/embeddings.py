"""Embeddings of pixels and token ids, with learned positions.

Letters: B batch, H height, W width, P patches of the image, K kept patches, M masked patches, T text tokens, N all tokens, D
width, X values in a patch or channels.
"""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl.config import InputConfig
from eve_vl.config.model import Stem
from eve_vl.model.layers import layer_norm
from eve_vl.model.packing import Tokens
from eve_vl.utils.errors import UserError

PATCH_CONV_WIDTHS = (16, 32, 64, 64, 96, 32)
"""Channels of a PatchConvStem's layers before the last; 196,080 parameters at seven layers and width 1024."""


def join(image: Tokens | None, text: Tokens | None) -> Tokens:
    """Return images, texts, or pairs row by row, as one sequence, [image; text]."""
    if image is None or text is None:
        tokens = image or text
        assert tokens is not None, "an image, a text or both"
        return tokens
    is_padding_BN = text.is_padding_BN
    if is_padding_BN is not None:
        is_padding_BN = F.pad(is_padding_BN, (image.x_BND.shape[1], 0), value=False)
    x_BND = torch.cat([image.x_BND, text.x_BND], dim=1)
    return replace(image, x_BND=x_BND, is_padding_BN=is_padding_BN, num_real=text.num_real)


def index_tokens(tokens: Tokens, rows: Tensor) -> Tokens:
    """Return rows of a batch by int64 indices, which may repeat."""
    is_padding_BN, patch_BK = (
        None if each is None else each[rows] for each in (tokens.is_padding_BN, tokens.patch_BK)
    )
    return replace(
        tokens,
        x_BND=tokens.x_BND[rows],
        is_padding_BN=is_padding_BN,
        num_real=None,
        patch_BK=patch_BK,
    )


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
    """Pick rows of each sample: (B, P, X) and int64 (B, K) to (B, K, X)."""
    return x_BPX.gather(1, index_BK[:, :, None].expand(-1, -1, x_BPX.shape[2]))


def scatter_patches(patches_BPX: Tensor, index_BM: Tensor, new_BMX: Tensor) -> Tensor:
    """Replace the patches at positions index_BM (int64), inverse to `gather_patches`."""
    return patches_BPX.scatter(
        1, index_BM[:, :, None].expand_as(new_BMX), new_BMX.to(patches_BPX.dtype)
    )


def gray_out(patches_BPX: Tensor, hidden_BM: Tensor) -> Tensor:
    """Return normalised patches with the masked ones in middle grey, for display."""
    return scatter_patches(
        patches_BPX, hidden_BM, torch.zeros_like(gather_patches(patches_BPX, hidden_BM))
    )


def to_images(patches_BPX: Tensor, patch_size: int) -> list[np.ndarray]:
    """Return patches of pixels in [-1, 1], clamped, as uint8 images (H, W, 3)."""
    pixels_BCHW = (unpatchify(patches_BPX.float(), patch_size) + 1) * 127.5
    return list(pixels_BCHW.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy())


class ViewNorm(nn.Module):
    """Batch normalisation (B, X, H, W) with separate averages for masked images.

    These are mostly grey, and averages over both would fit neither.
    """

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))
        self.whole, self.hidden = (nn.BatchNorm2d(width, affine=False) for _ in range(2))

    def forward(self, x_BXHW: Tensor, *, is_hidden: bool) -> Tensor:
        """Normalise by the batch, or by the running averages in evaluation."""
        norm = self.hidden if is_hidden else self.whole
        averages = norm.running_mean, norm.running_var
        return F.batch_norm(
            x_BXHW, *averages, self.weight, self.bias, norm.training, norm.momentum or 0.0, norm.eps
        )


class ConvStem(nn.Module):
    """Convolutions 3 × 3 that halve the sides to one place per patch, then 1 × 1.

    Each doubles the channels (Xiao et al. 2021, "Early Convolutions Help Transformers See Better"). The last has embed_dim; of
    more than four, all from the fourth on.
    """

    def __init__(self, embed_dim: int, patch_size: int):
        super().__init__()
        halvings = patch_size.bit_length() - 1
        doubled = [max(embed_dim >> left, 1) for left in reversed(range(min(halvings, 4)))]
        widths = [3, *doubled, *[embed_dim] * (halvings - 4)]
        self.convs = nn.ModuleList(
            nn.Conv2d(*pair, 3, 2, 1, bias=False) for pair in pairwise(widths)
        )
        self.norms = nn.ModuleList(ViewNorm(width) for width in widths[1:])
        self.proj = nn.Conv2d(widths[-1], embed_dim, 1)

    def forward(self, pixels_BCHW: Tensor, *, is_hidden: bool = False) -> Tensor:
        """Embed (B, 3, H, W) to (B, P, D). is_hidden: patches are masked in grey."""
        x_BXHW = pixels_BCHW.contiguous(memory_format=torch.channels_last)  # faster on a CPU
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x_BXHW = norm(conv(x_BXHW), is_hidden=is_hidden).relu_()
        return self.proj(x_BXHW).flatten(2).mT


class PatchConvStem(nn.Sequential):
    """Convolutions 2 × 2 of stride 2 with GELU between, until a patch is one place.

    MLIM's, without overlap.
    """

    def __init__(self, embed_dim: int, patch_size: int):
        halvings = patch_size.bit_length() - 1
        widths = [3, *PATCH_CONV_WIDTHS[: halvings - 1], embed_dim]
        convs = [nn.Conv2d(*pair, 2, 2) for pair in pairwise(widths)]
        super().__init__(*[layer for conv in convs for layer in (conv, nn.GELU())][:-1])

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Embed (B, 3, H, W) to (B, P, D)."""
        return super().forward(input).flatten(2).mT


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
        else:
            self.proj = {"conv": ConvStem, "patch_conv": PatchConvStem}[stem](
                embed_dim, sizes.patch_size
            )
        self.cls = nn.Parameter(torch.empty(embed_dim)) if has_cls else None
        num_positions = has_cls + sizes.num_patches
        self.positions = (
            nn.Parameter(torch.empty(num_positions, embed_dim)) if has_positions else None
        )
        self.type_embed = nn.Parameter(torch.empty(embed_dim))

    def forward(
        self,
        pixels_BCHW: Tensor,
        keep_BK: Tensor | None = None,
        instead: tuple[Tensor, Tensor] | None = None,
    ) -> Tokens:
        """Embed all patches, or those at the positions keep_BK (int64), with positions.

        instead: positions (int64, (B, M)) of patches, and the embeddings that replace theirs, (B, M, D).
        """
        side = pixels_BCHW.shape[2] // self.sizes.patch_size
        x_BND, cls_D = self._patches(pixels_BCHW, keep_BK, side), self.cls
        x_BND = x_BND if instead is None else scatter_patches(x_BND, *instead)
        if self.positions is not None:
            positions = resize_positions(self.positions, side**2, has_cls=cls_D is not None)
            cls_D, patch_PD = (
                (None, positions) if cls_D is None else (positions[0] + cls_D, positions[1:])
            )
            x_BND = x_BND + (patch_PD if keep_BK is None else patch_PD[keep_BK])
        if cls_D is not None:
            x_BND = torch.cat([cls_D.to(x_BND.dtype).expand(x_BND.shape[0], 1, -1), x_BND], dim=1)
        x_BND = x_BND + self.type_embed
        return Tokens(x_BND=x_BND, num_image=x_BND.shape[1], patch_BK=keep_BK)

    def _patches(self, pixels_BCHW: Tensor, keep_BK: Tensor | None, side: int) -> Tensor:
        """Return the patches (B, P, D), or the kept ones (B, K, D).

        They depend on no masked pixel.
        """
        if isinstance(self.proj, PatchConvStem):
            x_BPD = self.proj(pixels_BCHW)
            return x_BPD if keep_BK is None else gather_patches(x_BPD, keep_BK)
        if isinstance(self.proj, nn.Linear):
            patches_BPX = patchify(pixels_BCHW, self.sizes.patch_size)
            return self.proj(
                patches_BPX if keep_BK is None else gather_patches(patches_BPX, keep_BK)
            )
        if keep_BK is None:
            return self.proj(pixels_BCHW)
        is_kept_BP = torch.zeros(
            len(keep_BK), side**2, dtype=pixels_BCHW.dtype, device=keep_BK.device
        ).scatter_(1, keep_BK, 1)
        is_kept_B1HW = F.interpolate(
            is_kept_BP.view(-1, 1, side, side), scale_factor=float(self.sizes.patch_size)
        )
        return gather_patches(self.proj(pixels_BCHW * is_kept_B1HW, is_hidden=True), keep_BK)


def resize_positions(positions: Tensor, num_patches: int, *, has_cls: bool = True) -> Tensor:
    """Resize a learned square grid bicubically: (1 + num_patches, D), [CLS] first."""
    cls, grid = positions[:has_cls], positions[has_cls:]
    if num_patches == len(grid):
        return positions
    old, new = round(len(grid) ** 0.5), round(num_patches**0.5)
    grid = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([cls, grid.permute(0, 2, 3, 1).reshape(new * new, -1)])


def resized_positions(
    tensors: dict[str, Tensor], name: str, num_patches: int, *, has_cls: bool = True
) -> tuple[dict[str, Tensor], str | None]:
    """Resize the image positions in another backbone's weights.

    Returns the weights, and a sentence if resized.
    """
    there = tensors.get(name)
    if there is None or len(there) == num_patches + has_cls:
        return tensors, None
    resized = f"positions resized from {len(there) - has_cls} to {num_patches} patches"
    return tensors | {name: resize_positions(there, num_patches, has_cls=has_cls)}, resized


def fitted_text_positions(
    tensors: dict[str, Tensor], name: str, length: int
) -> tuple[dict[str, Tensor], str | None]:
    """Cut or extend the learned text positions in another backbone's weights.

    Further ones start as the last one. Returns the weights, and a sentence on the change.
    """
    there = tensors.get(name)
    if there is None or len(there) == length:
        return tensors, None
    kept = there[:length]
    done = "cut" if len(there) > length else "extended"
    new = torch.cat([kept, there[-1:].expand(length - len(kept), -1)])
    return tensors | {name: new}, f"text positions {done} from {len(there)} to {length} tokens"


class TextEmbed(nn.Module):
    """Token embedding, LayerNorm, dropout, then type embedding and learned positions.

    config: of the model, with embed_dim and dropout. is_bert adds the positions before the LayerNorm, as in BERT.
    """

    def __init__(
        self,
        config: Any,
        sizes: InputConfig,
        vocab_size: int,
        eps: float,
        *,
        is_bert: bool,
        has_positions: bool = True,
    ):
        super().__init__()
        embed_dim, self.longest, self.is_bert = config.embed_dim, sizes.text_length, is_bert
        self.words = nn.Embedding(vocab_size, embed_dim)
        self.norm: nn.Module = layer_norm(embed_dim, eps)
        self.dropout = nn.Dropout(config.dropout)
        self.positions = (
            nn.Parameter(torch.empty(sizes.text_length, embed_dim)) if has_positions else None
        )
        self.type_embed = nn.Parameter(torch.empty(embed_dim))

    def forward(
        self, ids_BT: Tensor, is_padding_BT: Tensor | None, num_real: int | None = None
    ) -> Tokens:
        """Embed int64 token ids, the text [CLS] first.

        Raises UserError for more tokens than positions. num_real: number of tokens without padding, if known.
        """
        T = ids_BT.shape[1]
        if self.longest < T:
            raise UserError(f"text of {T} tokens, but input.text_length is {self.longest}")
        if self.is_bert and self.positions is not None:
            x_BTD = self.dropout(self.norm(self.words(ids_BT) + self.positions[:T]))
        else:
            x_BTD = self.without_place(ids_BT)
            x_BTD = x_BTD if self.positions is None else x_BTD + self.positions[:T]
        return Tokens(
            x_BND=x_BTD + self.type_embed,
            num_image=0,
            is_padding_BN=is_padding_BT,
            num_real=num_real,
        )

    def without_place(self, ids_BT: Tensor) -> Tensor:
        """Embed int64 token ids without their positions: (B, T) to (B, T, D)."""
        return self.dropout(self.norm(self.words(ids_BT)))
