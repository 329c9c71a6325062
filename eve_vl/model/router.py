"""The router of a mixture of experts: gates, chosen experts and their statistics.

Letters: S rows of a batch, D width, E experts, K chosen experts, X values per row,
M = 2 modalities (image, text).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl.model.packing import PackedTokens


class Router(nn.Module):
    """g(x) = softmax(W (x + b_m)).

    b_m is a learned modality embedding (paper Eq. 6), which only the router sees.
    """

    def __init__(self, embed_dim: int, num_experts: int, top_k: int, modality_routing: bool):
        super().__init__()
        self.top_k = top_k
        self.weight = nn.Parameter(torch.empty(num_experts, embed_dim))
        self.modality_embed = nn.Parameter(torch.empty(2, embed_dim)) if modality_routing else None

    def forward(self, x_SD: Tensor, rows: PackedTokens) -> tuple[Tensor, Tensor, Tensor]:
        """Return gates (S, K), experts (S, K) int64, and statistics.

        Gates are renormalised over the K, in at least float32.
        """
        with torch.autocast(x_SD.device.type, enabled=False):
            dtype = torch.promote_types(x_SD.dtype, torch.float32)
            logits_SE = F.linear(x_SD.to(dtype), self.weight)
            if self.modality_embed is not None:
                # W (x + b_m) = W x + W b_m, without a second copy of x
                logits_of_modality_2E = F.linear(self.modality_embed, self.weight)
                logits_SE = logits_SE + logits_of_modality_2E.index_select(0, rows.is_text_S)

            log_gates_SE = logits_SE.log_softmax(-1)
            gates_SE = log_gates_SE.exp()
            top_gates_SK, experts_SK = gates_SE.topk(self.top_k)
            top_gates_SK = top_gates_SK / top_gates_SK.sum(-1, keepdim=True)
            stats = router_stats(gates_SE, log_gates_SE, experts_SK, rows.is_modality_2S)
        return top_gates_SK, experts_SK, stats


def router_stats(
    gates_SE: Tensor,
    log_gates_SE: Tensor,
    experts_SK: Tensor,
    is_modality_2S: Tensor,
    has_room_SK: Tensor | None = None,
) -> Tensor:
    """Return sums over the real tokens of a `moe` block, float32 (2, 4·E).

    They are by modality (image, text), for all experts: tokens with the expert as first choice;
    gate probability (with gradient); terms of the gate's entropy in nats; tokens with it among the
    K choices. Passes and processes can be added. First choices count even if their expert has no
    room. is_modality_2S: as `PackedTokens.is_modality_2S`. A matrix product needs no GPU sync.
    """
    zeros_SE = torch.zeros_like(gates_SE.detach())
    is_first_SE = zeros_SE.scatter(1, experts_SK[:, :1], 1)
    if has_room_SK is None:
        is_chosen_SE = zeros_SE.scatter(1, experts_SK, 1)
    else:
        is_chosen_SE = zeros_SE.scatter(1, experts_SK, has_room_SK.to(gates_SE.dtype))
    entropy_SE = -gates_SE.detach() * log_gates_SE.detach()
    terms_SX = torch.cat([is_first_SE, gates_SE, entropy_SE, is_chosen_SE], dim=1)
    return is_modality_2S @ terms_SX.float()


def chosen_ME(stats_2X: Tensor) -> Tensor:
    """Return how often each expert was one of the K choices, per modality."""
    return stats_2X.detach().unflatten(1, (4, -1))[:, 3]
