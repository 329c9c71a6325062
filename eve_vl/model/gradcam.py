"""Grad-CAM on attention: which keys each query takes that speak for a score (Selvaraju et al. 2017; on the attention of
vision-language encoders as in ALBEF, Li et al. 2021, and EVE's visualisations).

Letters: B batch, N all tokens, H heads.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from eve_vl.model.exchange import Module, exchanged
from eve_vl.model.layers import Attention, attention_mask, attention_weights


class WatchedAttention(nn.Module):
    """The twin of an attention that keeps its weights for a gradient: (B, H, N, N) of each pass."""

    def __init__(self, attention: Attention):
        super().__init__()
        self.attention = attention
        self.passes: list[Tensor] = []

    def forward(
        self,
        x_BND: Tensor,
        is_padding_BN: Tensor | None,
        only: int | None = None,
        *,
        keys_BMD: Tensor | None = None,
        bias_HNM: Tensor | None = None,
    ) -> Tensor:
        """Return what the attention does."""
        assert only is None, "all rows are wanted"
        q_BHNd, k_BHNd, v_BHNd = self.attention.split(x_BND, keys_BMD)
        weights_BHNN = attention_weights(q_BHNd, k_BHNd, attention_mask(is_padding_BN, bias_HNM))
        self.passes.append(weights_BHNN.detach().requires_grad_())
        return self.attention.join(self.passes[-1] @ v_BHNd)


def gradcam(module: Module, attention: str, score: Callable[[Module], Tensor]) -> tuple[Tensor, Tensor]:
    """Return (B, N, N), the mean over heads of relu(weight · ∂score/∂weight) in one attention; and whether each row's
    weights have any effect on the score at all, bool (B, N).

    attention: its name in the module. score: goes once through the module that it is given, a twin, with the whole batch or
    with part after part of it, and returns a scalar. Rows are queries, columns keys; padding, as a key, has none. A weight is
    moved alone: the others of its row do not make room for it.
    """
    original = module.get_submodule(attention)
    assert isinstance(original, Attention)
    watched = WatchedAttention(original)
    with torch.enable_grad():
        value = score(exchanged(module, {attention: watched}))
    assert watched.passes, "the score goes through the encoder"
    gradient_BHNN = torch.cat(torch.autograd.grad(value, watched.passes))
    return (torch.cat(watched.passes).detach() * gradient_BHNN).relu().mean(1), gradient_BHNN.ne(0).any(3).any(1)
