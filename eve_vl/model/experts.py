"""Experts: feed-forward networks as stacked weights, for rows sorted by expert.

Letters: R routed rows, D width, F feed-forward width, E experts, I inputs, O outputs.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl.config.model import Activation
from eve_vl.model.feed_forward import ACTIVATIONS


class Experts(nn.Module):
    """E feed-forward networks as stacked weights, for rows sorted by expert."""

    def __init__(
        self, embed_dim: int, ffn_dim: int, num_experts: int, activation: Activation = "quick_gelu"
    ):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.fc1_weight = nn.Parameter(torch.empty(num_experts, ffn_dim, embed_dim))
        self.fc1_bias = nn.Parameter(torch.empty(num_experts, ffn_dim))
        self.fc2_weight = nn.Parameter(torch.empty(num_experts, embed_dim, ffn_dim))
        self.fc2_bias = nn.Parameter(torch.empty(num_experts, embed_dim))

    def forward(self, x_RD: Tensor, expert_R: Tensor, counts_E: Tensor) -> Tensor:
        """Compute row i of (R, D) by expert expert_R[i]; sorted, counts_E rows each."""
        tile = row_tile(x_RD, len(counts_E))
        if tile == 1:
            return self._compute(x_RD, expert_R, counts_E)

        tiled_E = (counts_E + tile - 1) // tile * tile
        padding_E = tiled_E - counts_E
        padding_before_E = padding_E.cumsum(0) - padding_E
        place_R = torch.arange(len(expert_R), device=x_RD.device) + padding_before_E[expert_R]
        expert_number_E = torch.arange(len(tiled_E), device=x_RD.device)
        tiled_expert_R = expert_number_E.repeat_interleave(tiled_E)
        tiled_x_RD = x_RD.new_zeros(len(tiled_expert_R), x_RD.shape[1])
        tiled_x_RD = tiled_x_RD.index_copy(0, place_R, x_RD)
        return self._compute(tiled_x_RD, tiled_expert_R, tiled_E).index_select(0, place_R)

    def _compute(self, x_RD: Tensor, expert_R: Tensor, counts_E: Tensor) -> Tensor:
        hidden_RF = grouped_linear(x_RD, self.fc1_weight, counts_E)
        hidden_RF = hidden_RF + _bias_of_rows(self.fc1_bias, x_RD.dtype, expert_R)
        y_RD = grouped_linear(self.activation(hidden_RF), self.fc2_weight, counts_E)
        return y_RD + _bias_of_rows(self.fc2_bias, x_RD.dtype, expert_R)


def _bias_of_rows(bias_EO: Tensor, dtype: torch.dtype, expert_R: Tensor) -> Tensor:
    # its backward pass is much faster than that of bias_EO[expert_R]
    return bias_EO.to(dtype).index_select(0, expert_R)


def row_tile(x_RD: Tensor, num_experts: int) -> int:
    """Return the multiple that each expert's rows are padded to.

    oneDNN, which multiplies bfloat16 on CPU, compiles a kernel for every new shape. That costs more
    than the product, and tiles make shapes recur. Experts with few rows have few shapes, and large
    tiles would be mostly padding.
    """
    if x_RD.device.type != "cpu" or x_RD.dtype != torch.bfloat16:
        return 1
    return 64 if len(x_RD) >= 256 * num_experts else 32


def grouped_linear(x_RI: Tensor, weight_EOI: Tensor, counts_E: Tensor) -> Tensor:
    """Multiply groups of rows by their own matrix: (R, I) and (E, O, I) to (R, O).

    Groups are consecutive, with counts_E rows each.
    """
    weight_EOI = weight_EOI.to(x_RI.dtype)
    if grouped_mm_works(x_RI, weight_EOI):
        return F.grouped_mm(x_RI, weight_EOI.transpose(1, 2), offs=counts_E.cumsum(0).int())
    # unbind once: indexing weight_EOI[e] would write a full-size zero gradient per expert
    groups = zip(x_RI.split(counts_E.tolist()), weight_EOI.unbind(0), strict=True)
    return torch.cat([rows @ weight_OI.t() for rows, weight_OI in groups])


def grouped_mm_works(x_RI: Tensor, weight_EOI: Tensor) -> bool:
    """Return whether torch's grouped_mm takes these.

    It takes float32 or half types on CPU, bfloat16 on CUDA, and 16-byte rows.
    """
    device = x_RI.device
    if any(size * x_RI.element_size() % 16 != 0 for size in weight_EOI.shape[1:]):
        return False
    if device.type == "cuda":
        is_ampere_or_later = torch.cuda.get_device_capability(device) >= (8, 0)
        return x_RI.dtype == torch.bfloat16 and is_ampere_or_later
    if device.type == "cpu":
        return x_RI.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return False
