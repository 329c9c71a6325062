"""Relative positions: attention biases by the distance of key and query (BEiT).

Letters: B batch, N tokens, M places to fill, S source places, H heads, K patches or words, L blocks, X values per token pair.
"""

from itertools import accumulate

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl.config import EveModelConfig, InputConfig
from eve_vl.model.packing import Tokens

SLOWEST, FASTEST = 1.01, 1.5
"""Limits of the factor between successive steps of the resized grid (BEiT)."""


class RelativePositions(nn.Module):
    """Attention biases by the distance of key and query, as in BEiT and VLMo.

    A table (rows, L·H) has H columns per block and a row per kind of query–key pair; R rows of images, g patches per side,
    texts of at most T tokens.

    | row | from query to key |
    |---|---|
    | 0 … R - 4 | patch to patch: (Δrow + g - 1) · (2g - 1) + Δcolumn + g - 1, Δ = query - key |
    | R - 3, R - 2, R - 1 | image's [CLS] to patch, patch to [CLS], [CLS] to itself; R = (2g - 1)² + 3 |
    | R, R + 1 | text to image, image to text |
    | R + 2 … R + 2T - 2 | word to word: key - query + T - 2 |
    | R + 2T - 1, R + 2T, R + 2T + 1 | text's [CLS] to word, word to [CLS], [CLS] to itself |

    Shorter texts use the rows in the middle. The table's parts are separate parameters, whose shapes tell the sizes.
    """

    def __init__(self, config: EveModelConfig, sizes: InputConfig):
        super().__init__()
        self.shape = config.depth, config.num_heads
        self.side, self.text_length = sizes.image_size // sizes.patch_size, sizes.text_length
        width = config.depth * config.num_heads
        self.image_bias = nn.Parameter(torch.empty((2 * self.side - 1) ** 2 + 3, width))
        self.cross_bias = nn.Parameter(torch.empty(2, width))
        self.text_bias = nn.Parameter(torch.empty(2 * sizes.text_length, width))

    def forward(self, tokens: Tokens) -> Tensor:
        """Return the biases of each block, float32 (L, B, H, N, N).

        B is 1 if all samples have the same.
        """
        table = torch.cat([self.image_bias, self.cross_bias, self.text_bias])
        bias_BNNX = F.embedding(
            self.rows_of(tokens), table
        )  # unlike indexing, it sums gradients in a fixed order
        return bias_BNNX.unflatten(3, self.shape).permute(3, 0, 4, 1, 2).contiguous()

    def rows_of(self, tokens: Tokens) -> Tensor:
        """Return the table row of each pair of tokens, int64 (B, N, N).

        B is 1 if all samples have the same.
        """
        n, device, R, T = (
            tokens.num_image,
            tokens.x_BND.device,
            len(self.image_bias),
            self.text_length,
        )
        image_BNN = text_BNN = None
        if n:
            patch_BK = (
                torch.arange(n - 1, device=device)[None]
                if tokens.patch_BK is None
                else tokens.patch_BK
            )
            assert tokens.patch_BK is not None or n - 1 == self.side**2, (
                "images are of input.image_size"
            )
            row_BK = patch_BK // self.side
            down, right = _between(row_BK), _between(patch_BK - row_BK * self.side)
            near = (down + self.side - 1) * (2 * self.side - 1) + right + self.side - 1
            image_BNN = _with_cls(near, R - 3)
        if num_words := tokens.x_BND.shape[1] - n:
            word_1T = torch.arange(num_words - 1, device=device)[None]
            text_BNN = _with_cls(R + T - _between(word_1T), R + 2 * T - 1)
        if image_BNN is None or text_BNN is None:
            found = text_BNN if image_BNN is None else image_BNN
            assert found is not None, "an image, a text or both"
            return found
        to_text = F.pad(image_BNN, (0, num_words), value=R + 1)
        to_image = F.pad(text_BNN, (n, 0), value=R)
        return torch.cat([to_text, to_image.expand(len(to_text), -1, -1)], dim=1)

    def resized(self, image_bias: Tensor, text_bias: Tensor) -> tuple[Tensor, Tensor, list[str]]:
        """Return another table's two parts at this one's sizes, and notes on changes.

        Longer texts are cut.
        """
        g, T, done = self.side, len(text_bias) // 2, []
        there = round((len(image_bias) - 3) ** 0.5 + 1) // 2
        if there != g:
            image_bias = torch.cat([resize_distances(image_bias[:-3], g), image_bias[-3:]])
            done.append(f"relative positions resized from {there**2} to {g**2} patches")
        if (less := T - self.text_length) > 0:
            text_bias = torch.cat([text_bias[less : len(text_bias) - 3 - less], text_bias[-3:]])
            done.append(f"relative positions of texts cut from {T} to {self.text_length} tokens")
        return image_bias, text_bias, done


def _between(x_BK: Tensor) -> Tensor:
    """Return query minus key, (B, K, K)."""
    return x_BK[:, :, None] - x_BK[:, None]


def _with_cls(row_BKK: Tensor, first: int) -> Tensor:
    """Prepend a [CLS] to table rows: `first` as query, + 1 as key, + 2 as both."""
    row_BNN = F.pad(F.pad(row_BKK, (1, 0), value=first + 1), (0, 0, 1, 0), value=first)
    row_BNN[:, 0, 0] = first + 2
    return row_BNN


def resize_distances(bias_SX: Tensor, side: int) -> Tensor:
    """Resize biases by distance to `side` patches per side: ((2·side - 1)², X).

    As in BEiT: the old distances spread over the new range in steps that grow by one factor, so near ones stay in place. Cubic
    splines interpolate along rows, then along columns.
    """
    old, new = round(len(bias_SX) ** 0.5), 2 * side - 1
    spline_MS = torch.from_numpy(
        spline(geometric_places(old // 2, new // 2), np.arange(new) - new // 2)
    )
    grid_SSX = bias_SX.double().unflatten(0, (old, old))
    grid_MMX = torch.einsum(
        "ap,bq,pqx->abx", spline_MS.to(bias_SX.device), spline_MS.to(bias_SX.device), grid_SSX
    )
    return grid_MMX.flatten(0, 1).to(bias_SX.dtype)


def geometric_places(count: int, reach: float) -> np.ndarray:
    """Return 2 · count + 1 places around 0 in steps 1, q, q² … that reach `reach`.

    q stays within its limits.
    """
    low, high = SLOWEST, FASTEST
    while high - low > 1e-6:
        q = (low + high) / 2
        low, high = (low, q) if sum(q**step for step in range(count)) > reach else (q, high)
    right = np.array(list(accumulate(low**step for step in range(count))))
    return np.concatenate([-right[::-1], [0.0], right])


def spline(known_S: np.ndarray, wanted_M: np.ndarray) -> np.ndarray:
    """Return the weights (M, S) of known places' values at wanted places.

    They are those of a not-a-knot cubic spline. Beyond the last known places the spline keeps their values.
    """
    scale = np.abs(known_S).max()
    known_S, wanted_M = (
        known_S / scale,
        np.clip(wanted_M / scale, known_S.min() / scale, known_S.max() / scale),
    )

    def basis(x: np.ndarray) -> np.ndarray:  # cubics, plus each inner knot's term to its right
        powers = x[:, None] ** np.arange(min(4, len(known_S)))
        return np.hstack([powers, np.maximum(x[:, None] - known_S[2:-2], 0) ** 3])

    return basis(wanted_M) @ np.linalg.inv(basis(known_S))
