"""Modality-aware sparse mixture of experts: router → dispatch → experts → combine.

Every token reaches its top-k experts (`dropless` routing), padding is not counted, and no result
depends on other tokens of the batch. Statistics are returned, never stored.

Letters: S rows of a batch, or those that are read, D width, E experts, K chosen experts,
R = S·K routed rows.
"""

import torch
from torch import Tensor, nn

from eve_vl.config.model import Activation
from eve_vl.model.experts import Experts
from eve_vl.model.packing import PackedTokens, ReadPositions
from eve_vl.model.router import Router


class MoE(nn.Module):
    """Sparse mixture of experts over the rows of a batch."""

    def __init__(
        self,
        embed_dim: int,
        ffn_dim: int,
        num_experts: int,
        top_k: int,
        modality_routing: bool,
        activation: Activation,
    ):
        super().__init__()
        self.router = Router(embed_dim, num_experts, top_k, modality_routing)
        # a separate module, so that one that exchanges rows between processes can replace it
        self.experts = Experts(embed_dim, ffn_dim, num_experts, activation)

    @property
    def num_idle_parameters(self) -> int:
        """Number of parameters in the experts that a token does not use."""
        num_parameters = sum(parameter.numel() for parameter in self.experts.parameters())
        return num_parameters - num_parameters * self.router.top_k // len(self.router.weight)

    def forward(
        self, x_SD: Tensor, rows: PackedTokens, read: ReadPositions | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the experts' output for rows (S, D) and the statistics of all rows.

        read: output of these rows only.
        """
        gates_SK, experts_SK, stats = self.router(x_SD, rows)
        if read is not None:
            x_SD = x_SD.index_select(0, read.row_M)
            gates_SK = gates_SK.index_select(0, read.row_M)
            experts_SK = experts_SK.index_select(0, read.row_M)
        return self.mix(x_SD, gates_SK, experts_SK), stats

    def mix(self, x_SD: Tensor, gates_SK: Tensor, experts_SK: Tensor) -> Tensor:
        """Return the outputs of each row's experts, weighted by its gates, (S, D)."""
        device = x_SD.device
        if torch.is_autocast_enabled(device.type):  # grouped_mm does not know autocast
            x_SD = x_SD.to(torch.get_autocast_dtype(device.type))

        # dispatch: one copy of a row for each of its experts, sorted by expert
        S, K = experts_SK.shape
        expert_R, choice_R = experts_SK.flatten().sort(stable=True)
        counts_E = torch.zeros(len(self.router.weight), dtype=torch.long, device=device)
        counts_E = counts_E.scatter_add_(0, expert_R, torch.ones_like(expert_R))
        y_RD = self.experts(x_SD.index_select(0, choice_R // K), expert_R, counts_E)

        # combine: back to the order of rows, then the weighted sum over their experts
        number_R = torch.arange(S * K, device=device)
        place_of_choice_R = torch.empty_like(choice_R).scatter_(0, choice_R, number_R)
        y_SKD = y_RD.index_select(0, place_of_choice_R).view(S, K, y_RD.shape[1])
        return torch.bmm(gates_SK.to(y_SKD.dtype)[:, None, :], y_SKD).squeeze(1)
