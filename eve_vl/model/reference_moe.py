"""The mixture of experts of the published code, for weights trained with it (docs/fidelity.md).

Unlike in `MoE`, experts also see the modality embedding; padding is routed and counted; the
boundary of image and text is fixed. With `reference` routing the second expert is sampled, and
experts have a capacity. A token's result then depends on its batch, in evaluation too.

Letters: S tokens of a batch, D width, E experts, R = 2·S choices.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl.config.model import Activation
from eve_vl.model.moe import MoE
from eve_vl.model.packing import PackedTokens, ReadPositions
from eve_vl.model.router import router_stats

MIN_CAPACITY = 4  # rows of an expert with `reference` routing


@dataclass(kw_only=True, slots=True)
class Assignment:
    """First and second expert of each token."""

    logits_SE: Tensor
    """Logits of the gate, float32, without noise."""
    experts_S2: Tensor
    """int64."""
    places_S2: Tensor
    """int64 places in the experts' queues; -1 without room."""
    gates_S2: Tensor
    """Weights of the experts, which sum to 1 over the choices with room, and are 0 for the
    others."""


class ReferenceMoE(MoE):
    """`MoE` by the published arithmetic, with the same weights."""

    def __init__(
        self,
        *sizes: int,
        modality_routing: bool,
        activation: Activation,
        num_image: int,
        drops: bool,
    ):
        """Set up weights and noise.

        sizes: embed_dim, ffn_dim, num_experts. num_image: tokens of a whole image, [CLS] included.
        drops: `reference` instead of `reference-dropless`.
        """
        super().__init__(*sizes, top_k=2, modality_routing=modality_routing, activation=activation)
        self.num_image = num_image
        self.drops = drops
        self.noise: Callable[[Tensor], Tensor] | None = gumbel_noise if drops else None
        """Noise added to the logits (S, E) before the second choice; torch.manual_seed seeds the
        default."""

    def forward(
        self, x_SD: Tensor, rows: PackedTokens, read: ReadPositions | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the experts' output for all tokens of a batch (S, D), and statistics.

        read: output of these rows only.
        """
        x_SD = rows.unpack_flat(x_SD)  # they queue in this order
        is_text_S = self.fixed_boundary(rows)
        if self.router.modality_embed is not None:
            x_SD = x_SD + self.router.modality_embed.index_select(0, is_text_S)

        assignment = self.assign(x_SD)
        y_SD = rows.pack(self.mix(x_SD, assignment.gates_S2, assignment.experts_S2))
        if read is not None:
            y_SD = y_SD.index_select(0, read.row_M)
        return y_SD, self.statistics(assignment, is_text_S)

    def fixed_boundary(self, rows: PackedTokens) -> Tensor:
        """Return each token's modality in the published code, int64 (S,), 1 for text.

        In a pair, the first num_image tokens count as image, even if patches were dropped.
        """
        S = len(rows.token_S)
        if rows.num_image in (0, S):
            return rows.is_text_S
        position_S = torch.arange(S, device=rows.token_S.device) % rows.shape[1]
        return (position_S >= self.num_image).long()

    def assign(self, x_SD: Tensor) -> Assignment:
        """Choose two experts per token and assign places.

        First choices come before second ones, each in token order.
        """
        with torch.autocast(x_SD.device.type, enabled=False):
            dtype = torch.promote_types(x_SD.dtype, torch.float32)
            logits_SE = F.linear(x_SD.to(dtype), self.router.weight)
            gates_SE = logits_SE.softmax(1)
            S, E = logits_SE.shape

            first_S = gates_SE.argmax(1)
            noisy_SE = logits_SE if self.noise is None else logits_SE + self.noise(logits_SE)
            second_S = noisy_SE.scatter(1, first_S[:, None], float("-inf")).argmax(1)
            experts_S2 = torch.stack([first_S, second_S], dim=1)

            places_S2 = queue(experts_S2, E)
            if self.drops:
                places_S2 = places_S2.masked_fill(places_S2 >= capacity(S, E), -1)

            gates_S2 = gates_SE.gather(1, experts_S2).masked_fill(places_S2 < 0, 0)
            eps = torch.finfo(gates_S2.dtype).eps
            gates_S2 = gates_S2 / gates_S2.sum(1, keepdim=True).clamp(min=eps)
        return Assignment(
            logits_SE=logits_SE, experts_S2=experts_S2, places_S2=places_S2, gates_S2=gates_S2
        )

    def statistics(self, assignment: Assignment, is_text_S: Tensor) -> Tensor:
        """Return the sums over all tokens, padding included."""
        log_gates_SE = assignment.logits_SE.log_softmax(1)
        is_modality_2S = torch.stack([1 - is_text_S, is_text_S]).float()
        # bfloat16 has no whole numbers between 256 and 258
        with torch.autocast(is_text_S.device.type, enabled=False):
            return router_stats(
                log_gates_SE.exp(),
                log_gates_SE,
                assignment.experts_S2,
                is_modality_2S,
                has_room_SK=assignment.places_S2 >= 0,
            )


def gumbel_noise(logits_SE: Tensor) -> Tensor:
    """Return Gumbel(0, 1) noise of a tensor's shape."""
    uniform_SE = torch.rand_like(logits_SE)
    tiny = torch.finfo(logits_SE.dtype).tiny
    exponential_SE = -uniform_SE.clamp(min=tiny).log()
    return -exponential_SE.clamp(min=tiny).log()


def capacity(num_tokens: int, num_experts: int) -> int:
    """Return an expert's share of an even spread, at least MIN_CAPACITY."""
    return max(math.ceil(2 * num_tokens / num_experts), MIN_CAPACITY)


def queue(experts_S2: Tensor, num_experts: int) -> Tensor:
    """Return each choice's place in its expert's queue, int64 (S, 2).

    First choices come before second ones.
    """
    # the first choices of all tokens, then the second ones
    expert_R1 = experts_S2.T.flatten()[:, None]
    is_expert_RE = expert_R1 == torch.arange(num_experts, device=expert_R1.device)
    number_RE = is_expert_RE.cumsum(0)
    place_R1 = number_RE.gather(1, expert_R1) - 1
    return place_R1.view(2, -1).T
