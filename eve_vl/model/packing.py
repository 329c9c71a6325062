"""Packed tokens: the rows that blocks compute.

All image tokens come first, then all text tokens without padding. Only attention puts them back in their sequences.

Letters: B batch, N all tokens of a sequence, A = B·N, S rows, M rows that are read, H heads, d width of a head, D or X a width.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl.utils.frozen import Frozen

TILE = 32
"""Text rows are padded to a multiple of this, because oneDNN prepares each matrix product of a new shape."""


@dataclass(kw_only=True, slots=True)
class Tokens:
    """A batch of sequences with the modality of every token."""

    x_BND: Tensor
    num_image: int
    """Tokens of the image, [CLS] included; they come first. The other N - num_image are text."""
    is_padding_BN: Tensor | None = None
    """Bool, True where there is no token; None when there is no padding at all."""
    num_real: int | None = None
    """Text tokens without padding in the whole batch, if known without a GPU sync."""
    patch_BK: Tensor | None = None
    """int64, positions of the image's patches in its grid; None: all in order, or no image."""


class ReadPositions(Frozen):
    """States to read, all of one modality; the last block computes nothing else."""

    row_M: Tensor
    """int64."""
    is_image: bool
    positions: slice | None = None
    """Their positions in the sequences, if equal in all."""


class PackedTokens(Frozen):
    """Layout of a batch's rows in its sequences."""

    shape: tuple[int, int]
    """B, N."""
    num_image: int
    """Number of image rows; the others are text."""
    is_pair: bool
    """Whether the pass has pairs: then `modality_vl` blocks use one network for all tokens."""
    is_padding_BN: Tensor | None
    """As in `Tokens`."""
    sample_S: Tensor
    """int64, sample of each row."""
    token_S: Tensor
    """int64, token of each row, among A; of narrowed rows, their own number."""
    is_real_S: Tensor | None
    """Bool, False for padding that fills a tile; None: all rows are real."""
    row_A: Tensor
    """int64, row of each token; any value for padding without a row."""
    is_empty_A: Tensor | None
    """Bool, padding without a row; None: there is none."""
    qkv_P: Tensor
    """int64 (3·B·H·N,), index of each place among the S·3·H queries, keys and values of rows; any value at padding."""
    head_R: Tensor
    """int64 (S·H,), index of each row's heads among the B·H·N heads."""

    @classmethod
    def of(cls, tokens: Tokens, num_heads: int, *, packs: bool = True) -> "PackedTokens":
        """Lay out a batch.

        packs: leave out padding if its size is known without a GPU sync.
        """
        (B, N, _), n, H, is_padding_BN = (
            tokens.x_BND.shape,
            tokens.num_image,
            num_heads,
            tokens.is_padding_BN,
        )
        device, num_texts = tokens.x_BND.device, _num_texts(tokens, packs)
        token_BN = torch.arange(B * N, device=device).view(B, N)
        text_R = token_BN[:, n:].flatten()
        if is_padding_BN is not None and num_texts < text_R.shape[0]:
            order_R = (
                is_padding_BN[:, n:].flatten().sort(stable=True).indices[:num_texts]
            )  # padding last
            text_R = text_R.index_select(0, order_R)
        token_S, S = torch.cat([token_BN[:, :n].flatten(), text_R]), B * n + num_texts
        row_A = torch.full((B * N,), -1, device=device).scatter_(
            0, token_S, torch.arange(S, device=device)
        )
        is_empty_A, row_A = row_A < 0 if S < B * N else None, row_A.clamp(min=0)
        sample_S = token_S // N
        H1, three = torch.arange(H, device=device)[:, None], torch.arange(3, device=device)
        head_SH = (sample_S * (H * N) + token_S - sample_S * N)[:, None] + H1[
            :, 0
        ] * N  # ONNX knows no remainder here
        return cls(
            shape=(B, N),
            num_image=B * n,
            is_pair=0 < n < N,
            is_padding_BN=is_padding_BN,
            sample_S=sample_S,
            token_S=token_S,
            is_real_S=None
            if is_padding_BN is None
            else ~is_padding_BN.flatten().index_select(0, token_S),
            row_A=row_A,
            is_empty_A=is_empty_A,
            qkv_P=((row_A.view(B, 1, N) * 3 + three[:, None, None, None]) * H + H1).flatten(),
            head_R=head_SH.flatten(),
        )

    @cached_property
    def by_sequence(self) -> tuple[Tensor, Tensor, Tensor]:
        """Order of rows by sequence, its inverse, and starts, int32 (2·B + 1,).

        For attention by lengths. Starts of each sample's tokens and of its padding, to which no token attends; the last is S.
        """
        (B, N), device = self.shape, self.token_S.device
        is_padding_S = 0 if self.is_real_S is None else (~self.is_real_S).long()
        part_S = 2 * self.sample_S + is_padding_S
        order_S = (part_S * (B * N) + self.token_S).argsort()
        lengths = torch.zeros(2 * B, dtype=torch.long, device=device).scatter_add_(
            0, part_S, torch.ones_like(part_S)
        )
        return order_S, order_S.argsort(), F.pad(lengths.cumsum(0), (1, 0)).int()

    @property
    def is_text_S(self) -> Tensor:
        """int64, 1 for text rows."""
        return (
            torch.arange(self.token_S.shape[0], device=self.token_S.device) >= self.num_image
        ).long()

    @property
    def is_of_2S(self) -> Tensor:
        """float32, 1 for real image tokens (row 0) and for real text tokens (row 1)."""
        is_text_S = self.is_text_S.float()
        is_of_2S = torch.stack([1 - is_text_S, is_text_S])
        return is_of_2S if self.is_real_S is None else is_of_2S * self.is_real_S

    def collect(self, x: Tensor) -> Tensor:
        """Return the rows (S, X) of tokens (B, N, X) or (A, X)."""
        return x.flatten(0, -2).index_select(0, self.token_S)

    def tokens(self, x_SX: Tensor) -> Tensor:
        """Return rows as tokens in their sequences, (A, X), 0 at empty places."""
        x_AX = x_SX.index_select(0, self.row_A)
        return x_AX if self.is_empty_A is None else x_AX.masked_fill_(self.is_empty_A[:, None], 0)

    def grid(self, x_SX: Tensor) -> Tensor:
        """Return rows as tokens in their sequences, (B, N, X), 0 at empty places."""
        return self.tokens(x_SX).unflatten(0, self.shape)

    def split_heads(self, qkv_SX: Tensor) -> Tensor:
        """Return queries, keys and values (3, B, H, N, d) of rows (S, 3·H·d)."""
        (B, N), R = (
            self.shape,
            3 * self.head_R.shape[0],
        )  # an exporter would take `len` for a constant
        return qkv_SX.view(R, -1).index_select(0, self.qkv_P).view(3, B, -1, N, qkv_SX.numel() // R)

    def join_heads(self, out_BHNd: Tensor) -> Tensor:
        """Return the concatenated heads of each row, (S, H·d)."""
        return out_BHNd.flatten(0, 2).index_select(0, self.head_R).view(self.token_S.shape[0], -1)

    def between(self, start: int, stop: int) -> ReadPositions:
        """Read tokens start to stop of each sequence, without padding, in order."""
        row_BM = self.row_A.view(self.shape)[:, start:stop]
        is_image = start * self.shape[0] < self.num_image
        return ReadPositions(
            row_M=row_BM.flatten(), is_image=is_image, positions=slice(start, stop)
        )

    def of_texts(self, token_M: Tensor) -> ReadPositions:
        """Read text tokens, int64 among the flattened (B, T), without padding."""
        B, N = self.shape
        n = self.num_image // B
        row_M = self.row_A.index_select(0, token_M // (N - n) * N + n + token_M % (N - n))
        return ReadPositions(row_M=row_M, is_image=False)

    def narrowed(self, x_SD: Tensor, read: ReadPositions | None) -> tuple[Tensor, "PackedTokens"]:
        """Return the rows that are read, (M, D), and their layout without attention.

        None reads all.
        """
        if read is None:
            return x_SD, self
        each_M = torch.arange(read.row_M.shape[0], device=read.row_M.device)
        changes = {
            "num_image": each_M.shape[0] * read.is_image,
            "is_real_S": None,
            "is_empty_A": None,
        }
        rows = replace(
            self,
            sample_S=self.sample_S.index_select(0, read.row_M),
            token_S=each_M,
            row_A=each_M,
            **changes,
        )
        return x_SD.index_select(0, read.row_M), rows


def _num_texts(tokens: Tokens, packs: bool) -> int:
    """Return the number of text rows.

    Tiles with all real tokens if their number is known without a GPU sync, else all tokens.
    """
    (B, N, _), is_padding_BN, num_real = tokens.x_BND.shape, tokens.is_padding_BN, tokens.num_real
    num_texts = B * (N - tokens.num_image)
    if is_padding_BN is None or not packs:
        return num_texts
    if num_real is None:
        if is_padding_BN.device.type != "cpu" or torch.compiler.is_exporting():
            return num_texts
        num_real = num_texts - int(is_padding_BN.sum())
    return min(-(-num_real // TILE) * TILE, num_texts)
