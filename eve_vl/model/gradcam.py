"""Grad-CAM on attention: which keys each query takes that speak for a score (Selvaraju et al. 2017; on the attention of
vision-language encoders as in ALBEF, Li et al. 2021, and EVE's visualisations).

Letters: B batch, N all tokens, H heads.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from eve_vl.model.encoder import Encoder
from eve_vl.model.layers import Attention, attention_weights


def gradcam(encoder: Encoder, block: int, score: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Return (B, N, N), the mean over heads of relu(weight · ∂score/∂weight) in one block's attention; and whether each
    row's weights have any effect on the score at all, bool (B, N).

    score: goes through the encoder once and returns a scalar. block: 0 is the first. Rows are queries, columns keys;
    padding, as a key, has none. A weight is moved alone: the others of its row do not make room for it.
    """
    attention = cast(Attention, encoder.blocks[block].attn)
    watched: list[Tensor] = []

    def recompute(module: Attention, inputs: tuple[Tensor, Tensor | None, int | None], output: Tensor) -> Tensor:
        x_BND, is_padding_BN, only = inputs
        assert only is None, "all rows are wanted"
        q_BHNd, k_BHNd, v_BHNd = module.split(x_BND)
        may_attend = None if is_padding_BN is None else ~is_padding_BN[:, None, None, :]
        watched.append(attention_weights(q_BHNd, k_BHNd, may_attend).detach().requires_grad_())
        return module.join(watched[-1] @ v_BHNd)

    handle = attention.register_forward_hook(recompute)
    try:
        with torch.enable_grad():
            value = score()
    finally:
        handle.remove()
    (weights_BHNN,) = watched  # the encoder was gone through once
    (gradient_BHNN,) = torch.autograd.grad(value, weights_BHNN)
    return (weights_BHNN * gradient_BHNN).relu().mean(1).detach(), gradient_BHNN.ne(0).any(3).any(1)
