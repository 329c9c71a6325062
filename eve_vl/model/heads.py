"""Heads: from states of the encoder to predictions.

Letters: M masked tokens, D width, V vocabulary.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl.model.layers import layer_norm


class TokenHead(nn.Module):
    """Two-layer head over the vocabulary for masked tokens."""

    def __init__(self, embed_dim: int, vocab_size: int):
        super().__init__()
        self.fc1 = nn.Linear(embed_dim, embed_dim)
        self.norm = layer_norm(embed_dim)
        self.fc2 = nn.Linear(embed_dim, vocab_size)

    def forward(self, x_MD: Tensor) -> Tensor:
        """(M, D) to logits (M, V). Give it the masked tokens alone."""
        return self.fc2(self.norm(F.gelu(self.fc1(x_MD))))
