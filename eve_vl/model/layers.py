"""Attention, its relative positions, and feed-forward networks by modality.

Letters: B batch, N tokens, M keys or places to fill, S rows of a batch or source places, D width, H heads, F feed-forward
width, K patches or words, L blocks, X values per token pair.
"""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl.config import EveModelConfig, InputConfig
from eve_vl.config.model import NORM_EPS, Activation
from eve_vl.model.packing import PackedTokens, ReadPositions, Tokens

Module = TypeVar("Module", bound=nn.Module)


def layer_norm(dim: int, eps: float = NORM_EPS) -> nn.LayerNorm:
    """Return a LayerNorm, by default with the encoder's eps."""
    return nn.LayerNorm(dim, eps=eps)


class _QuickGELU(torch.autograd.Function):
    """x · sigmoid(1.702 x) = silu(1.702 x) / 1.702.

    It saves one tensor for backward instead of two.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.silu(x * 1.702, inplace=True).div_(1.702)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad, x * 1.702)


def quick_gelu(x: Tensor) -> Tensor:
    """Return QuickGELU of any shape and float dtype."""
    return _QuickGELU.apply(x)


class Attention(nn.Module):
    """Multi-head attention, self-attention unless keys are given.

    q and v have biases, k has none.
    """

    def __init__(self, embed_dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.attend: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor] = attend
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=False)
        self.q_bias = nn.Parameter(torch.empty(embed_dim))
        self.v_bias = nn.Parameter(torch.empty(embed_dim))
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x_BND: Tensor, is_padding_BM: Tensor | None, *, keys_BMD: Tensor | None = None) -> Tensor:
        """Attend from each of N tokens to M without padding: (B, N, D) to (B, N, D).

        keys_BMD: source of keys and values (co-attention), by default the tokens themselves. is_padding_BM: padding among
        them.
        """
        return self.join(self.attend(*self.split(x_BND, keys_BMD), attention_mask(is_padding_BM, None)))

    def over_rows(
        self, x_SD: Tensor, rows: PackedTokens, read: ReadPositions | None = None, bias_BHNN: Tensor | None = None
    ) -> Tensor:
        """Attend from each row, or each that is read, to all real tokens of its sequence.

        (S, D) to (S, D) or (M, D). bias_BHNN: added to the scores; (1, H, N, N) if equal for all samples.
        """
        qkv_SX = self.project(x_SD, rows)
        positions = None if read is None else read.positions
        is_plain = positions is None and bias_BHNN is None and self.attend is attend
        if is_plain and takes_lengths(qkv_SX, rows, self.num_heads):
            out_SD = attend_by_lengths(qkv_SX, rows, self.num_heads)
        else:
            q_BHNd, k_BHNd, v_BHNd = rows.split_heads(qkv_SX)
            if positions is not None:
                q_BHNd = q_BHNd[:, :, positions]
                bias_BHNN = None if bias_BHNN is None else bias_BHNN[:, :, positions]
            out_BHNd = self.attend(q_BHNd, k_BHNd, v_BHNd, attention_mask(rows.is_padding_BN, bias_BHNN))
            if positions is not None:
                return self.join(out_BHNd).flatten(0, 1)
            out_SD = rows.join_heads(out_BHNd)
        return self.proj(out_SD if read is None else out_SD.index_select(0, read.row_M))

    def project(self, x_SD: Tensor, rows: PackedTokens) -> Tensor:
        """Return queries, keys and values, (S, 3·D).

        rows: for subclasses with weights per modality.
        """
        return F.linear(x_SD, self.qkv.weight, self._bias())

    def split(self, x_BND: Tensor, keys_BMD: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, H, N, d), keys and values (B, H, M, d)."""
        D, bias_3D = x_BND.shape[2], self._bias()
        if keys_BMD is None:
            return self._heads(F.linear(x_BND, self.qkv.weight, bias_3D), 3)
        (q,) = self._heads(F.linear(x_BND, self.qkv.weight[:D], bias_3D[:D]), 1)
        k, v = self._heads(F.linear(keys_BMD, self.qkv.weight[D:], bias_3D[D:]), 2)
        return q, k, v

    def _bias(self) -> Tensor:
        return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])

    def _heads(self, x_BNX: Tensor, count: int) -> Any:
        B, N, X = x_BNX.shape
        return x_BNX.view(B, N, count, self.num_heads, X // count // self.num_heads).permute(2, 0, 3, 1, 4)

    def join(self, out_BHNd: Tensor) -> Tensor:
        """Concatenate and project the heads: (B, H, N, d) to (B, N, D)."""
        return self.proj(out_BHNd.transpose(1, 2).flatten(2))


def attention_mask(is_padding_BM: Tensor | None, bias_HNM: Tensor | None) -> Tensor | None:
    """Return the mask of `attend`: bool, True for allowed keys, or floats to add.

    None if all keys are allowed.
    """
    if bias_HNM is None:
        return None if is_padding_BM is None else ~is_padding_BM[:, None, None, :]
    if is_padding_BM is None:
        return bias_HNM
    return bias_HNM.masked_fill(is_padding_BM[:, None, None, :], float("-inf"))


def attend(q_BHNd: Tensor, k_BHMd: Tensor, v_BHMd: Tensor, mask: Tensor | None) -> Tensor:
    """Return softmax attention, (B, H, N, d).

    It is torch's fused kernel, but explicit for bfloat16 on CPU: there the fused backward is slow: the explicit form is 1.2 to
    2.7 times faster, forward and backward together, most on short sequences (LOG.md).
    """
    if q_BHNd.device.type != "cpu" or q_BHNd.dtype != torch.bfloat16 or not q_BHNd.requires_grad:
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(q_BHNd.dtype)
        return F.scaled_dot_product_attention(q_BHNd, k_BHMd, v_BHMd, attn_mask=mask)
    return attention_weights(q_BHNd, k_BHMd, mask) @ v_BHMd


def takes_lengths(qkv_SX: Tensor, rows: PackedTokens, num_heads: int) -> bool:
    """Return whether to use `attend_by_lengths`: on padding, with a GPU's kernel."""
    if rows.is_padding_BN is None or qkv_SX.device.type != "cuda" or qkv_SX.dtype not in (torch.bfloat16, torch.float16):
        return False
    return qkv_SX.shape[1] // 3 // num_heads % 8 == 0 and torch.cuda.get_device_capability(qkv_SX.device) >= (8, 0)


def attend_by_lengths(qkv_SX: Tensor, rows: PackedTokens, num_heads: int) -> Tensor:
    """Return softmax attention within each sequence of rows, (S, D).

    Flash attention gets sequence starts, not a mask.
    """
    from torch.nn.attention.varlen import varlen_attn

    (order_S, back_S, starts), longest, (S, X) = rows.by_sequence, rows.shape[1], qkv_SX.shape
    q_SHd, k_SHd, v_SHd = qkv_SX.index_select(0, order_S).view(S, 3, num_heads, X // 3 // num_heads).unbind(1)
    out_SHd = varlen_attn(q_SHd, k_SHd, v_SHd, starts, starts, longest, longest)
    assert isinstance(out_SHd, Tensor)
    return out_SHd.flatten(1).index_select(0, back_S)


def attention_weights(q_BHNd: Tensor, k_BHMd: Tensor, mask: Tensor | None) -> Tensor:
    """Return attention weights, (B, H, N, M), with row sums of 1; 0 for masked keys."""
    scores_BHNM = (q_BHNd * q_BHNd.shape[-1] ** -0.5) @ k_BHMd.transpose(-1, -2)
    if mask is not None and mask.dtype == torch.bool:  # adding −∞ costs nothing in the backward pass, filling does
        mask = torch.zeros_like(mask, dtype=scores_BHNM.dtype).masked_fill_(~mask, float("-inf"))
    if mask is not None:
        scores_BHNM = scores_BHNM + mask
    return scores_BHNM.softmax(-1, dtype=torch.float32).to(q_BHNd.dtype)  # softmax in bfloat16 is slower on a CPU


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu} | {
    "gelu_tanh": partial(F.gelu, approximate="tanh")
}


class FeedForward(nn.Module):
    """Two linear layers with an activation in between; (…, D) to (…, D)."""

    def __init__(self, embed_dim: int, ffn_dim: int, activation: Activation = "quick_gelu"):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.fc1 = nn.Linear(embed_dim, ffn_dim)
        self.fc2 = nn.Linear(ffn_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to each token."""
        return self.fc2(self.activation(self.fc1(x)))


class ModalityFeedForward(nn.Module):
    """The hard router: a norm and a feed-forward network per modality."""

    def __init__(self, embed_dim: int, ffn_dim: int, activation: Activation = "quick_gelu"):
        super().__init__()
        self.norm_image, self.image = layer_norm(embed_dim), FeedForward(embed_dim, ffn_dim, activation)
        self.norm_text, self.text = layer_norm(embed_dim), FeedForward(embed_dim, ffn_dim, activation)

    def forward(self, x_SD: Tensor, rows: PackedTokens) -> Tensor:
        """(S, D) to (S, D)."""
        if rows.num_image == x_SD.shape[0]:
            return self.image(self.norm_image(x_SD))
        if rows.num_image == 0:
            return self.text(self.norm_text(x_SD))
        image_SD, text_SD = x_SD[: rows.num_image], x_SD[rows.num_image :]
        return torch.cat([self.image(self.norm_image(image_SD)), self.text(self.norm_text(text_SD))])


class PassFeedForward(ModalityFeedForward):
    """VLMo's top blocks: one norm and network for all tokens of a pair.

    An image or a text without the other has its modality's.
    """

    def __init__(self, embed_dim: int, ffn_dim: int, activation: Activation = "quick_gelu"):
        super().__init__(embed_dim, ffn_dim, activation)
        self.norm_vl, self.vl = layer_norm(embed_dim), FeedForward(embed_dim, ffn_dim, activation)

    def forward(self, x_SD: Tensor, rows: PackedTokens) -> Tensor:
        """(S, D) to (S, D)."""
        return self.vl(self.norm_vl(x_SD)) if rows.is_pair else super().forward(x_SD, rows)


FEED_FORWARDS = {"shared": FeedForward, "modality": ModalityFeedForward, "modality_vl": PassFeedForward}  # by policy


def drop_path(x_SD: Tensor, rows: PackedTokens, rate: float, training: bool) -> Tensor:
    """Drop the branch for a random share of the samples, and scale the rest.

    Stochastic depth.
    """
    if rate == 0 or not training:
        return x_SD
    keep_B = torch.empty(rows.shape[0], device=x_SD.device).bernoulli_(1 - rate).div_(1 - rate)
    return x_SD * keep_B.to(x_SD.dtype).index_select(0, rows.sample_S)[:, None]


def replace_submodules(module: Module, parts: Mapping[str, nn.Module]) -> Module:
    """Return a twin of a module with other submodules.

    parts: by name, such as `encoder.blocks.0.attn`. It copies only the modules above these, without tensors. The original stays
    unchanged and usable, unlike with a hook or a patched attribute.
    """
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    for name, part in parts.items():
        first, _, rest = name.partition(".")
        twin._modules[first] = replace_submodules(twin.get_submodule(first), {rest: part}) if rest else part
    return twin


# Relative positions: attention biases by the distance of key and query (BEiT)

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
        bias_BNNX = F.embedding(self.rows_of(tokens), table)  # unlike indexing, it sums gradients in a fixed order
        return bias_BNNX.unflatten(3, self.shape).permute(3, 0, 4, 1, 2).contiguous()

    def rows_of(self, tokens: Tokens) -> Tensor:
        """Return the table row of each pair of tokens, int64 (B, N, N).

        B is 1 if all samples have the same.
        """
        n, device, R, T = tokens.num_image, tokens.x_BND.device, len(self.image_bias), self.text_length
        image_BNN = text_BNN = None
        if n:
            patch_BK = torch.arange(n - 1, device=device)[None] if tokens.patch_BK is None else tokens.patch_BK
            assert tokens.patch_BK is not None or n - 1 == self.side**2, "images are of input.image_size"
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
    spline_MS = torch.from_numpy(spline(geometric_places(old // 2, new // 2), np.arange(new) - new // 2))
    grid_SSX = bias_SX.double().unflatten(0, (old, old))
    grid_MMX = torch.einsum("ap,bq,pqx->abx", spline_MS.to(bias_SX.device), spline_MS.to(bias_SX.device), grid_SSX)
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
    known_S, wanted_M = known_S / scale, np.clip(wanted_M / scale, known_S.min() / scale, known_S.max() / scale)

    def basis(x: np.ndarray) -> np.ndarray:  # cubics, plus each inner knot's term to its right
        powers = x[:, None] ** np.arange(min(4, len(known_S)))
        return np.hstack([powers, np.maximum(x[:, None] - known_S[2:-2], 0) ** 3])

    return basis(wanted_M) @ np.linalg.inv(basis(known_S))
