"""Relative positions: attention biases by the distance of key and query (BEiT).

Letters: B batch, N tokens, M places to fill, S source places, H heads, K patches or words,
L blocks, X values per token pair.
"""

from itertools import accumulate

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl.config import InputConfig
from eve_vl.model.tokens import Tokens
from eve_vl.systems.vlmo.config import VlmoModelConfig

MIN_GROWTH = 1.01
MAX_GROWTH = 1.5
"""Limits of the factor between successive steps of the resized grid (BEiT)."""


class RelativePositions(nn.Module):
    """Attention biases by the distance of key and query, as in BEiT and VLMo.

    A table (rows, L·H) has H columns per block and a row per kind of query–key pair;
    R = (2g - 1)² + 3 rows of images, g patches per side, texts of at most T tokens.

    | row | from query to key |
    |---|---|
    | 0 … R - 4 | patch to patch: (Δrow + g - 1) · (2g - 1) + Δcolumn + g - 1, Δ = query - key |
    | R - 3, R - 2, R - 1 | [CLS] of images to patch, patch to it, it to itself |
    | R, R + 1 | text to image, image to text |
    | R + 2 … R + 2T - 2 | word to word: key - query + T - 2 |
    | R + 2T - 1, R + 2T, R + 2T + 1 | text's [CLS] to word, word to [CLS], [CLS] to itself |

    Shorter texts use the rows in the middle. The table's parts are separate parameters, whose
    shapes tell the sizes.
    """

    def __init__(self, config: VlmoModelConfig, sizes: InputConfig):
        super().__init__()
        self.shape = config.depth, config.num_heads
        self.side = sizes.image_size // sizes.patch_size
        self.text_length = sizes.text_length
        width = config.depth * config.num_heads
        self.image_bias = nn.Parameter(torch.empty((2 * self.side - 1) ** 2 + 3, width))
        self.cross_bias = nn.Parameter(torch.empty(2, width))
        self.text_bias = nn.Parameter(torch.empty(2 * sizes.text_length, width))

    def forward(self, tokens: Tokens) -> Tensor:
        """Return the biases of each block, float32 (L, B, H, N, N).

        B is 1 if all samples have the same.
        """
        table = torch.cat([self.image_bias, self.cross_bias, self.text_bias])
        # unlike indexing, it sums gradients in a fixed order
        bias_BNNX = F.embedding(self.rows_of(tokens), table)
        return bias_BNNX.unflatten(3, self.shape).permute(3, 0, 4, 1, 2).contiguous()

    def rows_of(self, tokens: Tokens) -> Tensor:
        """Return the table row of each pair of tokens, int64 (B, N, N).

        B is 1 if all samples have the same.
        """
        num_image = tokens.num_image
        num_text = tokens.x_BND.shape[1] - num_image
        if num_text == 0:
            return self._image_rows(tokens)
        if num_image == 0:
            return self._text_rows(num_text, tokens.x_BND.device)

        image_BNN = self._image_rows(tokens)
        text_1NN = self._text_rows(num_text, tokens.x_BND.device)
        R = len(self.image_bias)
        from_image_BMN = F.pad(image_BNN, (0, num_text), value=R + 1)
        from_text_1MN = F.pad(text_1NN, (num_image, 0), value=R)
        return torch.cat([from_image_BMN, from_text_1MN.expand(len(image_BNN), -1, -1)], dim=1)

    def _image_rows(self, tokens: Tokens) -> Tensor:
        """Return the table rows between the tokens of images, int64 (B or 1, N, N)."""
        num_patches = tokens.num_image - 1
        patch_BK = tokens.patch_BK
        if patch_BK is None:
            assert num_patches == self.side**2, "images are of input.image_size"
            patch_BK = torch.arange(num_patches, device=tokens.x_BND.device)[None]

        row_BK = patch_BK // self.side
        column_BK = patch_BK - row_BK * self.side
        down_BKK = _differences(row_BK) + self.side - 1
        right_BKK = _differences(column_BK) + self.side - 1
        return _with_cls(down_BKK * (2 * self.side - 1) + right_BKK, len(self.image_bias) - 3)

    def _text_rows(self, num_tokens: int, device: torch.device) -> Tensor:
        """Return the table rows between the tokens of a text, int64 (1, N, N)."""
        R = len(self.image_bias)
        T = self.text_length
        word_1K = torch.arange(num_tokens - 1, device=device)[None]
        return _with_cls(R + T - _differences(word_1K), R + 2 * T - 1)

    def resized(
        self, tensors: dict[str, Tensor], prefix: str
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Resize another table among an encoder's weights to this one's sizes.

        prefix: of this module's names. Longer texts are cut. Returns all weights, and notes on
        changes; weights without a table stay as they are.
        """
        image_name = f"{prefix}image_bias"
        text_name = f"{prefix}text_bias"
        if image_name not in tensors or text_name not in tensors:
            return tensors, []

        notes = []
        image_bias = tensors[image_name]
        old_side = round((len(image_bias) - 3) ** 0.5 + 1) // 2
        if old_side != self.side:
            image_bias = torch.cat([resize_distances(image_bias[:-3], self.side), image_bias[-3:]])
            notes.append(f"relative positions resized from {old_side**2} to {self.side**2} patches")

        text_bias = tensors[text_name]
        old_length = len(text_bias) // 2
        excess = old_length - self.text_length
        if excess > 0:
            text_bias = torch.cat([text_bias[excess : -3 - excess], text_bias[-3:]])
            notes.append(
                f"relative positions of texts cut from {old_length} to {self.text_length} tokens"
            )
        return tensors | {image_name: image_bias, text_name: text_bias}, notes


def _differences(x_BK: Tensor) -> Tensor:
    """Return query minus key, (B, K, K)."""
    return x_BK[:, :, None] - x_BK[:, None]


def _with_cls(row_BKK: Tensor, first: int) -> Tensor:
    """Prepend a [CLS] to table rows: `first` as query, + 1 as key, + 2 as both."""
    B, K, _ = row_BKK.shape
    # not by assignment, whose constant torch.export cannot name in a model that encodes twice
    corner_B11 = row_BKK.new_full((B, 1, 1), first + 2)
    cls_B1N = F.pad(corner_B11, (0, K), value=first)
    row_BKN = F.pad(row_BKK, (1, 0), value=first + 1)
    return torch.cat([cls_B1N, row_BKN], dim=1)


def resize_distances(bias_SX: Tensor, side: int) -> Tensor:
    """Resize biases by distance to `side` patches per side: ((2·side - 1)², X).

    As in BEiT: the old distances spread over the new range in steps that grow by one factor, so
    near ones stay in place. Cubic splines interpolate along rows, then along columns.
    """
    num_old = round(len(bias_SX) ** 0.5)
    num_new = 2 * side - 1
    places_S = geometric_places(num_old // 2, num_new // 2)
    spline_MS = torch.from_numpy(spline(places_S, np.arange(num_new) - num_new // 2))
    spline_MS = spline_MS.to(bias_SX.device)
    grid_SSX = bias_SX.double().unflatten(0, (num_old, num_old))
    grid_MMX = torch.einsum("ap,bq,pqx->abx", spline_MS, spline_MS, grid_SSX)
    return grid_MMX.flatten(0, 1).to(bias_SX.dtype)


def geometric_places(count: int, reach: float) -> np.ndarray:
    """Return 2 · count + 1 places around 0 in steps 1, q, q² … that reach `reach`.

    q stays within its limits.
    """
    low = MIN_GROWTH
    high = MAX_GROWTH
    while high - low > 1e-6:
        q = (low + high) / 2
        if sum(q**step for step in range(count)) > reach:
            high = q
        else:
            low = q
    right = np.array(list(accumulate(low**step for step in range(count))))
    return np.concatenate([-right[::-1], [0.0], right])


def spline(place_S: np.ndarray, target_M: np.ndarray) -> np.ndarray:
    """Return the weights (M, S) of the values at some places for values at target places.

    They are those of a not-a-knot cubic spline. Beyond the last places the spline keeps their
    values.
    """
    scale = np.abs(place_S).max()
    place_S = place_S / scale
    target_M = np.clip(target_M / scale, place_S.min(), place_S.max())

    def basis(x: np.ndarray) -> np.ndarray:
        """Return cubics, plus each inner knot's term to its right."""
        powers = x[:, None] ** np.arange(min(4, len(place_S)))
        knots = np.maximum(x[:, None] - place_S[2:-2], 0) ** 3
        return np.hstack([powers, knots])

    return basis(target_M) @ np.linalg.inv(basis(place_S))
