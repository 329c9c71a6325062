"""Multi-head attention of sequences and of packed rows.

Letters: B batch, N tokens, M keys, or rows that are read, S rows of a batch, D width, H heads,
d width of a head, X values per token.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl.model.packing import PackedTokens, ReadPositions


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

        keys_BMD: source of keys and values (co-attention), by default the tokens themselves.
        is_padding_BM: padding among them.
        """
        q_BHNd, k_BHMd, v_BHMd = self.split_heads(x_BND, keys_BMD)
        mask = attention_mask(is_padding_BM, None)
        out_BHNd = self.attend(q_BHNd, k_BHMd, v_BHMd, mask)
        return self.join_heads(out_BHNd)

    def forward_packed(
        self,
        x_SD: Tensor,
        rows: PackedTokens,
        read: ReadPositions | None = None,
        bias_BHNN: Tensor | None = None,
    ) -> Tensor:
        """Attend from each row, or each that is read, to all real tokens of its sequence.

        (S, D) to (S, D) or (M, D). bias_BHNN: added to the scores; (1, H, N, N) if equal for all
        samples.
        """
        qkv_SX = self.project_qkv(x_SD, rows)
        positions = None if read is None else read.positions
        is_plain = positions is None and bias_BHNN is None and self.attend is attend
        if is_plain and can_use_varlen(qkv_SX, rows, self.num_heads):
            out_SD = varlen_attention(qkv_SX, rows, self.num_heads)
        else:
            qkv_3BHNd = rows.split_heads(qkv_SX)
            if not is_plain:  # explicit products of other strides round differently
                qkv_3BHNd = qkv_3BHNd.contiguous()
            q_BHNd, k_BHNd, v_BHNd = qkv_3BHNd
            if positions is not None:
                q_BHNd = q_BHNd[:, :, positions]
                if bias_BHNN is not None:
                    bias_BHNN = bias_BHNN[:, :, positions]
            mask = attention_mask(rows.is_padding_BN, bias_BHNN)
            out_BHNd = self.attend(q_BHNd, k_BHNd, v_BHNd, mask)
            if positions is not None:
                return self.join_heads(out_BHNd).flatten(0, 1)
            out_SD = rows.join_heads(out_BHNd)

        if read is not None:
            out_SD = out_SD.index_select(0, read.row_M)
        return self.proj(out_SD)

    def project_qkv(self, x_SD: Tensor, rows: PackedTokens) -> Tensor:
        """Return queries, keys and values, (S, 3·D).

        rows: for subclasses with weights per modality.
        """
        return F.linear(x_SD, self.qkv.weight, self._bias())

    def split_heads(
        self, x_BND: Tensor, keys_BMD: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, H, N, d), keys and values (B, H, M, d)."""
        weight = self.qkv.weight
        bias = self._bias()
        if keys_BMD is None:
            q, k, v = self._heads(F.linear(x_BND, weight, bias), 3)
            return q, k, v
        D = x_BND.shape[2]
        (q,) = self._heads(F.linear(x_BND, weight[:D], bias[:D]), 1)
        k, v = self._heads(F.linear(keys_BMD, weight[D:], bias[D:]), 2)
        return q, k, v

    def join_heads(self, out_BHNd: Tensor) -> Tensor:
        """Concatenate and project the heads: (B, H, N, d) to (B, N, D)."""
        return self.proj(out_BHNd.transpose(1, 2).flatten(2))

    def _bias(self) -> Tensor:
        return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])

    def _heads(self, x_BNX: Tensor, count: int) -> Tensor:
        """Split (B, N, count·D) by heads: (count, B, H, N, d)."""
        B, N, X = x_BNX.shape
        d = X // count // self.num_heads
        return x_BNX.view(B, N, count, self.num_heads, d).permute(2, 0, 3, 1, 4)


def attention_mask(is_padding_BM: Tensor | None, bias_HNM: Tensor | None) -> Tensor | None:
    """Return the mask of `attend`: bool, True for allowed keys, or floats to add.

    None if all keys are allowed.
    """
    if is_padding_BM is None:
        return bias_HNM
    is_padding_B11M = is_padding_BM[:, None, None, :]
    if bias_HNM is None:
        return ~is_padding_B11M
    return bias_HNM.masked_fill(is_padding_B11M, float("-inf"))


def attend(q_BHNd: Tensor, k_BHMd: Tensor, v_BHMd: Tensor, mask: Tensor | None) -> Tensor:
    """Return softmax attention, (B, H, N, d).

    It is torch's fused kernel, but explicit for training in bfloat16 on CPU: there the fused
    backward is slow. The explicit form is 1.2 to 2.7 times faster, forward and backward together,
    most on short sequences (LOG.md).
    """
    if q_BHNd.device.type == "cpu" and q_BHNd.dtype == torch.bfloat16 and q_BHNd.requires_grad:
        return attention_weights(q_BHNd, k_BHMd, mask) @ v_BHMd
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(q_BHNd.dtype)
    return F.scaled_dot_product_attention(q_BHNd, k_BHMd, v_BHMd, attn_mask=mask)


def attention_weights(q_BHNd: Tensor, k_BHMd: Tensor, mask: Tensor | None) -> Tensor:
    """Return attention weights, (B, H, N, M), with row sums of 1; 0 for masked keys."""
    d = q_BHNd.shape[-1]
    scores_BHNM = (q_BHNd * d**-0.5) @ k_BHMd.transpose(-1, -2)
    if mask is not None and mask.dtype == torch.bool:
        # adding −∞ costs nothing in the backward pass, filling does
        zeros = torch.zeros_like(mask, dtype=scores_BHNM.dtype)
        mask = zeros.masked_fill_(~mask, float("-inf"))
    if mask is not None:
        scores_BHNM = scores_BHNM + mask
    # softmax in bfloat16 is slower on a CPU
    return scores_BHNM.softmax(-1, dtype=torch.float32).to(q_BHNd.dtype)


def can_use_varlen(qkv_SX: Tensor, rows: PackedTokens, num_heads: int) -> bool:
    """Return whether to use `varlen_attention`: on padding, with a GPU's kernel."""
    if rows.is_padding_BN is None or qkv_SX.device.type != "cuda":
        return False
    if qkv_SX.dtype not in (torch.bfloat16, torch.float16):
        return False
    d = qkv_SX.shape[1] // 3 // num_heads
    return d % 8 == 0 and torch.cuda.get_device_capability(qkv_SX.device) >= (8, 0)


def varlen_attention(qkv_SX: Tensor, rows: PackedTokens, num_heads: int) -> Tensor:
    """Return softmax attention within each sequence of rows, (S, D).

    Flash attention gets sequence starts, not a mask.
    """
    from torch.nn.attention.varlen import varlen_attn

    S, X = qkv_SX.shape
    order = rows.by_sequence
    qkv_S3Hd = qkv_SX.index_select(0, order.row_S).view(S, 3, num_heads, X // 3 // num_heads)
    q_SHd, k_SHd, v_SHd = qkv_S3Hd.unbind(1)
    longest = rows.shape[1]
    out_SHd = varlen_attn(q_SHd, k_SHd, v_SHd, order.start, order.start, longest, longest)
    assert isinstance(out_SHd, Tensor)
    return out_SHd.flatten(1).index_select(0, order.place_S)
