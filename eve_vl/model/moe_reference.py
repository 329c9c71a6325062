"""The mixture of experts as the published code computes it, for weights trained with that code (docs/fidelity.md).

Differences from `moe`: experts also see the modality embedding; padding is routed and counted; the boundary of image and text
is fixed. With `reference` routing the second expert is sampled, and experts have a capacity. A token's result then depends on
its batch, in evaluation too.

Letters: N tokens of a sequence, S tokens of the whole batch, D width, E experts, R rows that reach an expert.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl.config.model import Activation
from eve_vl.model.moe import MoE, RouterStats, router_stats
from eve_vl.model.packing import PackedTokens, ReadPositions

MIN_CAPACITY = 4


@dataclass(kw_only=True, slots=True)
class Assignment:
    """First and second expert of each token."""

    logits_SE: Tensor
    """Logits of the gate, float32, without noise."""
    experts_S2: Tensor
    """int64."""
    slots_S2: Tensor
    """int64 places in the experts' queues; -1 without room."""
    gates_S2: Tensor
    """Weights of the experts, which sum to 1 over the choices with room, and are 0 for the others."""


def gumbel_noise(like_SE: Tensor) -> Tensor:
    """Return Gumbel(0, 1) noise of a tensor's shape."""
    uniform_SE = torch.rand_like(like_SE)
    tiny = torch.finfo(like_SE.dtype).tiny
    return -(-uniform_SE.clamp(min=tiny).log()).clamp(min=tiny).log()


class OfficialMoE(MoE):
    """`MoE` by the published arithmetic, with the same weights."""

    def __init__(self, *sizes: int, modality_routing: bool, activation: Activation, num_image: int, drops: bool):
        """Set up weights and noise.

        sizes: embed_dim, ffn_dim, num_experts. num_image: tokens of a whole image, [CLS] included. drops: `reference` instead
        of `reference-dropless`.
        """
        super().__init__(*sizes, top_k=2, modality_routing=modality_routing, activation=activation)
        self.num_image, self.drops = num_image, drops
        self.noise: Callable[[Tensor], Tensor] | None = gumbel_noise if drops else None
        """Noise added to the logits (S, E) before the second choice; torch.manual_seed seeds the default."""

    def forward(self, x_SD: Tensor, rows: PackedTokens, read: ReadPositions | None = None) -> tuple[Tensor, RouterStats]:
        """Return the experts' output for rows (S, D), all tokens of a batch, or for those that are read, and statistics."""
        x_SD = rows.tokens(x_SD)  # they queue in this order
        is_text_S = self.fixed_boundary(rows)
        if self.router.modality_embed is not None:
            x_SD = x_SD + self.router.modality_embed.index_select(0, is_text_S)
        chosen = self.route(x_SD)

        S, E = chosen.logits_SE.shape
        kept_R = (chosen.slots_S2.flatten() >= 0).nonzero().squeeze(1)
        expert_R, order_R = chosen.experts_S2.flatten()[kept_R].sort(stable=True)
        row_R = kept_R[order_R]
        counts_E = expert_R.bincount(minlength=E)
        if torch.is_autocast_enabled(x_SD.device.type):  # grouped_mm does not know autocast
            x_SD = x_SD.to(torch.get_autocast_dtype(x_SD.device.type))
        y_RD = self.experts(x_SD.index_select(0, row_R // 2), expert_R, counts_E)
        weighted_RD = chosen.gates_S2.flatten()[row_R, None].to(y_RD.dtype) * y_RD
        y_SD = y_RD.new_zeros(S, y_RD.shape[1]).index_add(0, row_R // 2, weighted_RD)
        y_SD = rows.tokens.back(y_SD)
        return y_SD if read is None else y_SD.index_select(0, read.row_M), self.statistics(chosen, is_text_S)

    def fixed_boundary(self, rows: PackedTokens) -> Tensor:
        """Return each token's modality in the published code, int64 (S,), 1 for text.

        In a pair, the first num_image tokens count as image, even if patches were dropped.
        """
        S = len(rows.token_S)
        if rows.num_image in (0, S):
            return rows.is_text_S
        return (torch.arange(S, device=rows.token_S.device) % rows.shape[1] >= self.num_image).long()

    def route(self, x_SD: Tensor) -> Assignment:
        """Choose two experts per token and assign places: first choices, then second ones, each in token order."""
        with torch.autocast(x_SD.device.type, enabled=False):
            logits_SE = F.linear(x_SD.to(torch.promote_types(x_SD.dtype, torch.float32)), self.router.weight)
            gates_SE = logits_SE.softmax(1)
            first_S = gates_SE.argmax(1)
            noisy_SE = logits_SE if self.noise is None else logits_SE + self.noise(logits_SE)
            second_S = noisy_SE.scatter(1, first_S[:, None], float("-inf")).argmax(1)
            experts_S2 = torch.stack([first_S, second_S], dim=1)
            slots_S2 = queue(experts_S2, logits_SE.shape[1])
            if self.drops:
                slots_S2 = slots_S2.masked_fill(slots_S2 >= capacity(*logits_SE.shape), -1)
            gates_S2 = gates_SE.gather(1, experts_S2).masked_fill(slots_S2 < 0, 0)
            total_S1 = gates_S2.sum(1, keepdim=True).clamp(min=torch.finfo(gates_S2.dtype).eps)
        return Assignment(logits_SE=logits_SE, experts_S2=experts_S2, slots_S2=slots_S2, gates_S2=gates_S2 / total_S1)

    def statistics(self, chosen: Assignment, is_text_S: Tensor) -> RouterStats:
        """Return the sums over all tokens, padding included."""
        log_gates_SE = chosen.logits_SE.log_softmax(1)
        is_of_2S = torch.stack([1 - is_text_S, is_text_S]).float()
        return router_stats(log_gates_SE.exp(), log_gates_SE, chosen.experts_S2, is_of_2S, chosen.slots_S2 >= 0)


def capacity(num_tokens: int, num_experts: int) -> int:
    """Return the capacity of an expert: its share of an even spread, at least MIN_CAPACITY."""
    return max(math.ceil(2 * num_tokens / num_experts), MIN_CAPACITY)


def queue(experts_S2: Tensor, num_experts: int) -> Tensor:
    """Return each choice's place in its expert's queue, int64 (S, 2); first choices come before second ones."""
    expert_R = experts_S2.T.flatten()  # the first choices of all tokens, then the second ones
    sorted_R, order_R = expert_R.sort(stable=True)
    counts_E = expert_R.bincount(minlength=num_experts)
    starts_E = counts_E.cumsum(0) - counts_E
    place_R = torch.arange(len(expert_R), device=expert_R.device) - starts_E[sorted_R]
    return torch.empty_like(expert_R).scatter_(0, order_R, place_R).view(2, -1).T
