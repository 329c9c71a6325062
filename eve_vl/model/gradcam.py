"""Grad-CAM on attention: which keys each query takes that speak for a score (Selvaraju et al. 2017; on the attention of
vision-language encoders as in ALBEF, Li et al. 2021, and EVE's visualisations).

Letters: B batch, N all tokens, H heads.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from eve_vl.model.layers import Attention, attention_weights
from eve_vl.model.submodules import Module, exchanged


def gradcam(module: Module, attention: str, score: Callable[[Module], Tensor]) -> tuple[Tensor, Tensor]:
    """Return (B, N, N), the mean over heads of relu(weight · ∂score/∂weight) in one attention; and whether each row's
    weights have any effect on the score at all, bool (B, N).

    attention: its name in the module. score: goes once through the module that it is given, a twin, with the whole batch or
    with part after part of it, and returns a scalar. Rows are queries, columns keys; padding, as a key, has none. A weight is
    moved alone: the others of its row do not make room for it.
    """
    original = module.get_submodule(attention)
    assert isinstance(original, Attention)
    passes: list[Tensor] = []  # the weights of each, (B, H, N, N)

    def watched(q_BHNd: Tensor, k_BHNd: Tensor, v_BHNd: Tensor, mask: Tensor | None) -> Tensor:
        assert q_BHNd.shape[2] > 1, "all rows are wanted"
        passes.append(attention_weights(q_BHNd, k_BHNd, mask).detach().requires_grad_())
        return passes[-1] @ v_BHNd

    twin = copy.copy(original)
    twin.attend = watched
    with torch.enable_grad():
        value = score(exchanged(module, {attention: twin}))
    assert passes, "the score goes through the encoder"
    gradient_BHNN = torch.cat(torch.autograd.grad(value, passes))
    return (torch.cat(passes).detach() * gradient_BHNN).relu().mean(1), gradient_BHNN.ne(0).any(3).any(1)
