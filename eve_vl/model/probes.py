"""Inspection of a model: Grad-CAM on attention, choices of routers.

Letters: B batch, S rows of a batch, N all tokens of a sequence, H heads, K chosen experts.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from eve_vl.model.backbone import Backbone
from eve_vl.model.layers import Attention, Module, attention_weights, replace_submodules
from eve_vl.model.moe import Assignment, MoE, OfficialMoE
from eve_vl.model.packing import PackedTokens, Tokens


def gradcam(module: Module, attention: str, score: Callable[[Module], Tensor]) -> tuple[Tensor, Tensor]:
    """Return Grad-CAM of an attention, (B, N, N), and rows with effect, bool (B, N).

    It is the mean over heads of relu(weight · ∂score/∂weight) (Selvaraju et al. 2017; on attention as in ALBEF and EVE). Rows
    are queries, columns keys; padding keys have 0. attention: its name in the module. score: runs the twin that it gets once
    over the batch, whole or in parts, and returns a scalar. The derivative moves one weight, without the others of its row.
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
        value = score(replace_submodules(module, {attention: twin}))
    assert passes, "the score goes through the encoder"
    gradient_BHNN = torch.cat(torch.autograd.grad(value, passes))
    return (torch.cat(passes).detach() * gradient_BHNN).relu().mean(1), gradient_BHNN.ne(0).any(3).any(1)


def mixtures(encoder: nn.Module) -> dict[str, MoE]:
    """Return the mixtures of experts of an encoder by name, first to last."""
    return {name: part for name, part in encoder.named_modules() if isinstance(part, MoE)}


def choices_of(encoder: Backbone, image: Tokens | None, text: Tokens | None) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the choices of each mixture in one pass over images, texts or pairs.

    By the mixture's name, first to last: experts, int64 (B·N, K), best first, any value at padding; and their float32 weights,
    which sum to 1. An expert without room (`reference` routing) has 0.
    """
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    twins = {name: _watched(moe, name, seen) for name, moe in mixtures(encoder).items()}
    replace_submodules(encoder, twins).encode(image, text)
    return seen


def _watched(moe: MoE, name: str, seen: dict[str, tuple[Tensor, Tensor]]) -> MoE:
    """Return a twin that records experts and gates (B·N, K) of all tokens."""
    if isinstance(moe, OfficialMoE):

        def route(x_SD: Tensor) -> Assignment:
            chosen = moe.route(x_SD)
            seen[name] = chosen.experts_S2, chosen.gates_S2
            return chosen

        twin = copy.copy(moe)
        twin.route = route
        return twin

    def forward(x_SD: Tensor, rows: PackedTokens) -> tuple[Tensor, Tensor, Tensor]:
        gates_SK, experts_SK, stats = moe.router(x_SD, rows)
        seen[name] = rows.tokens(experts_SK), rows.tokens(gates_SK)
        return gates_SK, experts_SK, stats

    router = copy.copy(moe.router)
    router.forward = forward
    return replace_submodules(moe, {"router": router})
