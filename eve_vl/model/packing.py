"""Packed tokens: the rows that the blocks of an encoder compute.

The rows of a batch are all its image tokens, then all its text tokens without padding. Norms,
feed-forward networks and experts never see a sequence. Only attention puts the rows back into
their sequences. Two pairs with 2 image tokens and 3 text tokens each, the second with 2 of padding:

    sequences, tokens numbered in order             rows
                 image   text
    sample 0      0 1   2 3 4          row_A →      number   0 1 2 3 | 4 5 6 7
    sample 1      5 6   7 · ·          ← token_S    token    0 1 5 6 | 2 3 4 7

    token_S = [0 1 5 6 2 3 4 7]        the token of each row
    row_A   = [0 1 4 5 6 2 3 7 · ·]    the row of each token, which is its inverse

The linear layer of attention gives each row three vectors per head, which lie in memory as
(S, 3, H, d). Attention reads them as (3, B, H, N, d) and returns (B, H, N, d). Both changes of
order are one gather each.

Letters: B batch, N all tokens of a sequence, A = B·N tokens, S rows, M rows that are read,
H heads, d width of a head, D or X a width.
"""

from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl.model.tokens import Tokens
from eve_vl.utils.frozen import Frozen

TILE = 32
"""Text rows are padded to a multiple of this, because oneDNN prepares each product of a new
shape."""


class ReadPositions(Frozen):
    """States to read, all of one modality; the last block computes nothing else."""

    row_M: Tensor
    """int64."""
    is_image: bool
    positions: slice | None = None
    """Their positions in the sequences, if equal in all."""


class SequenceOrder(Frozen):
    """The order of rows by sequence, for attention by lengths."""

    row_S: Tensor
    """int64, rows sorted by sample; in each, its tokens come before its padding."""
    place_S: Tensor
    """int64, place of each row in this order."""
    start: Tensor
    """int32 (2·B + 1,), where each sample's tokens and its padding start; the last is S."""


class PackedTokens(Frozen):
    """Layout of a batch's rows in its sequences."""

    shape: tuple[int, int]
    """B, N."""
    num_heads: int
    num_image: int
    """Number of image rows; the others are text."""
    is_pair: bool
    """Whether the pass has pairs: then `modality_vl` blocks use one network for all tokens."""
    is_padding_BN: Tensor | None
    """As in `Tokens`."""
    sample_S: Tensor
    """int64, sample of each row."""
    token_S: Tensor
    """int64, token of each row, among A; of selected rows, their own number."""
    is_real_S: Tensor | None
    """Bool, False for padding that fills a tile; None: all rows are real."""
    row_A: Tensor
    """int64, row of each token; any value for padding without a row."""
    is_empty_A: Tensor | None
    """Bool, padding without a row; None: there is none."""
    vector_P: Tensor | None
    """int64 (3·B·H·N,), for each place of attention's input, the vector among the rows' S·3·H; any
    value at padding. None: rows are all tokens in order, so no gather is needed."""
    place_R: Tensor | None
    """int64 (S·H,), for each row's heads, their place in attention's output. None: as above."""

    @classmethod
    def of(cls, tokens: Tokens, num_heads: int, *, packs: bool = True) -> "PackedTokens":
        """Lay out a batch.

        packs: leave out padding if its size is known without a GPU sync.
        """
        B, N, _ = tokens.x_BND.shape
        n = tokens.num_image
        is_padding_BN = tokens.is_padding_BN
        device = tokens.x_BND.device

        num_texts = _num_texts(tokens, packs)
        S = B * n + num_texts
        token_BN = torch.arange(B * N, device=device).view(B, N)
        text_token_R = token_BN[:, n:].flatten()
        if is_padding_BN is not None and num_texts < text_token_R.shape[0]:
            padding_last_R = is_padding_BN[:, n:].flatten().sort(stable=True).indices
            text_token_R = text_token_R.index_select(0, padding_last_R[:num_texts])
        token_S = torch.cat([token_BN[:, :n].flatten(), text_token_R])

        row_S = torch.arange(S, device=device)
        row_A = torch.full((B * N,), -1, device=device).scatter_(0, token_S, row_S)
        is_empty_A = row_A < 0 if S < B * N else None
        row_A = row_A.clamp(min=0)
        sample_S = token_S // N

        is_real_S = None
        if is_padding_BN is not None:
            is_real_S = ~is_padding_BN.flatten().index_select(0, token_S)

        is_pair = 0 < n < N
        is_in_order = not is_pair and is_empty_A is None
        return cls(
            shape=(B, N),
            num_heads=num_heads,
            num_image=B * n,
            is_pair=is_pair,
            is_padding_BN=is_padding_BN,
            sample_S=sample_S,
            token_S=token_S,
            is_real_S=is_real_S,
            row_A=row_A,
            is_empty_A=is_empty_A,
            vector_P=None if is_in_order else _vector_of_places(row_A.view(B, N), num_heads),
            place_R=None if is_in_order else _place_of_heads(token_S, sample_S, N, num_heads),
        )

    @cached_property
    def by_sequence(self) -> SequenceOrder:
        """The order of rows by sequence."""
        B, N = self.shape
        part_S = 2 * self.sample_S
        if self.is_real_S is not None:
            part_S = part_S + (~self.is_real_S).long()
        row_S = (part_S * (B * N) + self.token_S).argsort()

        length = torch.zeros(2 * B, dtype=torch.long, device=part_S.device)
        length = length.scatter_add_(0, part_S, torch.ones_like(part_S))
        start = F.pad(length.cumsum(0), (1, 0)).int()
        return SequenceOrder(row_S=row_S, place_S=row_S.argsort(), start=start)

    @property
    def is_text_S(self) -> Tensor:
        """int64, 1 for text rows."""
        row_S = torch.arange(self.token_S.shape[0], device=self.token_S.device)
        return (row_S >= self.num_image).long()

    @property
    def is_modality_2S(self) -> Tensor:
        """float32, 1 for real image tokens (row 0) and for real text tokens (row 1)."""
        is_text_S = self.is_text_S.float()
        is_modality_2S = torch.stack([1 - is_text_S, is_text_S])
        if self.is_real_S is None:
            return is_modality_2S
        return is_modality_2S * self.is_real_S

    def pack(self, x: Tensor) -> Tensor:
        """Return the rows (S, X) of tokens (B, N, X) or (A, X)."""
        return x.flatten(0, -2).index_select(0, self.token_S)

    def unpack(self, x_SX: Tensor) -> Tensor:
        """Return rows as tokens in their sequences, (B, N, X), 0 at empty places."""
        return self.unpack_flat(x_SX).unflatten(0, self.shape)

    def unpack_flat(self, x_SX: Tensor) -> Tensor:
        """Return rows as tokens in their sequences, (A, X), 0 at empty places."""
        x_AX = x_SX.index_select(0, self.row_A)
        if self.is_empty_A is None:
            return x_AX
        return x_AX.masked_fill_(self.is_empty_A[:, None], 0)

    def split_heads(self, qkv_SX: Tensor) -> Tensor:
        """Return queries, keys and values (3, B, H, N, d) of rows (S, 3·H·d)."""
        B, N = self.shape
        H = self.num_heads
        if self.vector_P is None:
            return qkv_SX.view(B, N, 3, H, -1).permute(2, 0, 3, 1, 4)
        d = qkv_SX.shape[1] // (3 * H)
        return qkv_SX.view(-1, d).index_select(0, self.vector_P).view(3, B, H, N, d)

    def join_heads(self, out_BHNd: Tensor) -> Tensor:
        """Return the concatenated heads of each row, (S, H·d)."""
        if self.place_R is None:
            return out_BHNd.transpose(1, 2).flatten(2).flatten(0, 1)
        out_Rd = out_BHNd.flatten(0, 2).index_select(0, self.place_R)
        return out_Rd.view(self.token_S.shape[0], -1)

    def read_range(self, start: int, stop: int) -> ReadPositions:
        """Read tokens start to stop of each sequence, without padding, in order."""
        row_BM = self.row_A.view(self.shape)[:, start:stop]
        is_image = start * self.shape[0] < self.num_image
        positions = slice(start, stop)
        return ReadPositions(row_M=row_BM.flatten(), is_image=is_image, positions=positions)

    def read_texts(self, token_M: Tensor) -> ReadPositions:
        """Read text tokens, int64 among the flattened (B, T), without padding."""
        B, N = self.shape
        n = self.num_image // B
        T = N - n
        token_among_A_M = token_M // T * N + n + token_M % T
        return ReadPositions(row_M=self.row_A.index_select(0, token_among_A_M), is_image=False)

    def select(self, x_SD: Tensor, read: ReadPositions | None) -> tuple[Tensor, "PackedTokens"]:
        """Return the rows that are read, (M, D), and their layout without attention.

        None reads all.
        """
        if read is None:
            return x_SD, self
        M = read.row_M.shape[0]
        number_M = torch.arange(M, device=read.row_M.device)
        rows = replace(
            self,
            num_image=M if read.is_image else 0,
            sample_S=self.sample_S.index_select(0, read.row_M),
            token_S=number_M,
            is_real_S=None,
            row_A=number_M,
            is_empty_A=None,
        )
        return x_SD.index_select(0, read.row_M), rows


def _vector_of_places(row_BN: Tensor, num_heads: int) -> Tensor:
    """Return `PackedTokens.vector_P`: where attention's input (3, B, H, N) lies in (S, 3, H)."""
    kind_3 = torch.arange(3, device=row_BN.device)  # queries, keys, values
    head_H1 = torch.arange(num_heads, device=row_BN.device)[:, None]
    kind_of_row_3B1N = row_BN[:, None, :] * 3 + kind_3[:, None, None, None]
    vector_3BHN = kind_of_row_3B1N * num_heads + head_H1
    return vector_3BHN.flatten()


def _place_of_heads(token_S: Tensor, sample_S: Tensor, N: int, num_heads: int) -> Tensor:
    """Return `PackedTokens.place_R`: where the heads of rows (S, H) lie in (B, H, N)."""
    head_H = torch.arange(num_heads, device=token_S.device)
    position_S = token_S - sample_S * N  # ONNX knows no remainder here
    place_of_first_head_S = sample_S * (num_heads * N) + position_S
    place_SH = place_of_first_head_S[:, None] + head_H * N
    return place_SH.flatten()


def _num_texts(tokens: Tokens, packs: bool) -> int:
    """Return the number of text rows.

    These are tiles with all real tokens if their number is known without a GPU sync, else all.
    """
    B, N, _ = tokens.x_BND.shape
    num_texts = B * (N - tokens.num_image)
    is_padding_BN = tokens.is_padding_BN
    if is_padding_BN is None or not packs:
        return num_texts

    num_real = tokens.num_real
    if num_real is None:
        if is_padding_BN.device.type != "cpu" or torch.compiler.is_exporting():
            return num_texts
        num_real = num_texts - int(is_padding_BN.sum())
    num_tiles = -(-num_real // TILE)
    return min(num_tiles * TILE, num_texts)
