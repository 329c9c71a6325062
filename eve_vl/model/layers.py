"""Attention, and feed-forward networks by modality.

Letters: B batch, N tokens, M keys, S rows of a batch, D width, H heads, F feed-forward width, X values per token.
"""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl.config.model import NORM_EPS, Activation
from eve_vl.model.packing import PackedTokens, ReadPositions

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

    def forward(
        self, x_BND: Tensor, is_padding_BM: Tensor | None, *, keys_BMD: Tensor | None = None
    ) -> Tensor:
        """Attend from each of N tokens to M without padding: (B, N, D) to (B, N, D).

        keys_BMD: source of keys and values (co-attention), by default the tokens themselves. is_padding_BM: padding among
        them.
        """
        return self.join(
            self.attend(*self.split(x_BND, keys_BMD), attention_mask(is_padding_BM, None))
        )

    def over_rows(
        self,
        x_SD: Tensor,
        rows: PackedTokens,
        read: ReadPositions | None = None,
        bias_BHNN: Tensor | None = None,
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
            out_BHNd = self.attend(
                q_BHNd, k_BHNd, v_BHNd, attention_mask(rows.is_padding_BN, bias_BHNN)
            )
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
        return x_BNX.view(B, N, count, self.num_heads, X // count // self.num_heads).permute(
            2, 0, 3, 1, 4
        )

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
    if (
        rows.is_padding_BN is None
        or qkv_SX.device.type != "cuda"
        or qkv_SX.dtype not in (torch.bfloat16, torch.float16)
    ):
        return False
    return qkv_SX.shape[1] // 3 // num_heads % 8 == 0 and torch.cuda.get_device_capability(
        qkv_SX.device
    ) >= (8, 0)


def attend_by_lengths(qkv_SX: Tensor, rows: PackedTokens, num_heads: int) -> Tensor:
    """Return softmax attention within each sequence of rows, (S, D).

    Flash attention gets sequence starts, not a mask.
    """
    from torch.nn.attention.varlen import varlen_attn

    (order_S, back_S, starts), longest, (S, X) = rows.by_sequence, rows.shape[1], qkv_SX.shape
    q_SHd, k_SHd, v_SHd = (
        qkv_SX.index_select(0, order_S).view(S, 3, num_heads, X // 3 // num_heads).unbind(1)
    )
    out_SHd = varlen_attn(q_SHd, k_SHd, v_SHd, starts, starts, longest, longest)
    assert isinstance(out_SHd, Tensor)
    return out_SHd.flatten(1).index_select(0, back_S)


def attention_weights(q_BHNd: Tensor, k_BHMd: Tensor, mask: Tensor | None) -> Tensor:
    """Return attention weights, (B, H, N, M), with row sums of 1; 0 for masked keys."""
    scores_BHNM = (q_BHNd * q_BHNd.shape[-1] ** -0.5) @ k_BHMd.transpose(-1, -2)
    if (
        mask is not None and mask.dtype == torch.bool
    ):  # adding −∞ costs nothing in the backward pass, filling does
        mask = torch.zeros_like(mask, dtype=scores_BHNM.dtype).masked_fill_(~mask, float("-inf"))
    if mask is not None:
        scores_BHNM = scores_BHNM + mask
    return scores_BHNM.softmax(-1, dtype=torch.float32).to(
        q_BHNd.dtype
    )  # softmax in bfloat16 is slower on a CPU


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
        self.norm_image, self.image = (
            layer_norm(embed_dim),
            FeedForward(embed_dim, ffn_dim, activation),
        )
        self.norm_text, self.text = (
            layer_norm(embed_dim),
            FeedForward(embed_dim, ffn_dim, activation),
        )

    def forward(self, x_SD: Tensor, rows: PackedTokens) -> Tensor:
        """(S, D) to (S, D)."""
        if rows.num_image == x_SD.shape[0]:
            return self.image(self.norm_image(x_SD))
        if rows.num_image == 0:
            return self.text(self.norm_text(x_SD))
        image_SD, text_SD = x_SD[: rows.num_image], x_SD[rows.num_image :]
        return torch.cat(
            [self.image(self.norm_image(image_SD)), self.text(self.norm_text(text_SD))]
        )


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


FEED_FORWARDS = {
    "shared": FeedForward,
    "modality": ModalityFeedForward,
    "modality_vl": PassFeedForward,
}  # by policy


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
        twin._modules[first] = (
            replace_submodules(twin.get_submodule(first), {rest: part}) if rest else part
        )
    return twin
