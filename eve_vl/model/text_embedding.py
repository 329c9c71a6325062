"""Embedding of token ids: words, norm, dropout, positions and type.

Letters: B batch, T text tokens, D width.
"""

import torch
from torch import Tensor, nn

from eve_vl.config import InputConfig
from eve_vl.model.norm import layer_norm
from eve_vl.model.tokens import Tokens
from eve_vl.utils.errors import UserError


class TextEmbed(nn.Module):
    """Token embedding, LayerNorm, dropout, then type embedding and learned positions.

    is_bert adds the positions before the LayerNorm, as in BERT.
    """

    def __init__(
        self,
        embed_dim: int,
        sizes: InputConfig,
        vocab_size: int,
        *,
        dropout: float,
        norm_eps: float,
        is_bert: bool,
        has_positions: bool = True,
    ):
        super().__init__()
        self.max_tokens = sizes.text_length
        self.is_bert = is_bert
        self.words = nn.Embedding(vocab_size, embed_dim)
        self.norm: nn.Module = layer_norm(embed_dim, norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.positions = None
        if has_positions:
            self.positions = nn.Parameter(torch.empty(sizes.text_length, embed_dim))
        self.type_embed = nn.Parameter(torch.empty(embed_dim))

    def forward(
        self, ids_BT: Tensor, is_padding_BT: Tensor | None, num_real: int | None = None
    ) -> Tokens:
        """Embed int64 token ids, the text [CLS] first.

        Raises UserError for more tokens than positions. num_real: number of tokens without padding,
        if known.
        """
        T = ids_BT.shape[1]
        if self.max_tokens < T:
            raise UserError(f"text of {T} tokens, but input.text_length is {self.max_tokens}")

        if self.positions is None:
            x_BTD = self.without_positions(ids_BT)
        elif self.is_bert:
            x_BTD = self.dropout(self.norm(self.words(ids_BT) + self.positions[:T]))
        else:
            x_BTD = self.without_positions(ids_BT) + self.positions[:T]
        return Tokens(
            x_BND=x_BTD + self.type_embed,
            num_image=0,
            is_padding_BN=is_padding_BT,
            num_real=num_real,
        )

    def without_positions(self, ids_BT: Tensor) -> Tensor:
        """Embed int64 token ids without their positions: (B, T) to (B, T, D)."""
        return self.dropout(self.norm(self.words(ids_BT)))
