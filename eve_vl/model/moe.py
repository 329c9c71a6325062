"""The modality-aware sparse mixture of experts: router → dispatch → experts → combine (paper, "Modality-Aware MoE").

`stable` routing: every real token reaches its top-k experts, none is dropped, padding is neither routed nor counted, and
what a token gets never depends on its neighbours in the batch. Statistics are returned, never stored.

Letters: B batch, N tokens, S real tokens of the whole batch, D width, F feed-forward width, E experts, K chosen experts,
R = S·K routed rows, M = 2 modalities (image, text).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl.config.model import Activation
from eve_vl.model.layers import ACTIVATIONS


@dataclass(kw_only=True, slots=True)
class RouterStats:
    """What one `moe` block did in one pass, as sums, so that passes and processes can be added; float32 throughout."""

    first_E: Tensor
    """Real tokens whose first choice is each expert."""
    gate_E: Tensor
    """Gate probability of each expert, summed over the real tokens (carries gradient)."""
    chosen_ME: Tensor
    """Times each expert was among the K choices, per modality (image, text)."""
    entropy: Tensor
    """Entropy of the gate in nats, summed over the real tokens."""
    num_tokens: Tensor
    """Real tokens."""


class Router(nn.Module):
    """g(x) = softmax(W (x + b_m)); b_m is a learned modality embedding (paper Eq. 6), seen by the router alone."""

    def __init__(self, embed_dim: int, num_experts: int, top_k: int, modality_routing: bool):
        super().__init__()
        self.top_k = top_k
        self.weight = nn.Parameter(torch.empty(num_experts, embed_dim))
        self.modality_embed = nn.Parameter(torch.empty(2, embed_dim)) if modality_routing else None

    def forward(self, x_SD: Tensor, is_text_S: Tensor) -> tuple[Tensor, Tensor, RouterStats]:
        """Return gates (S, K) renormalised over the K, experts (S, K) int64, and the statistics. At least float32."""
        with torch.autocast(x_SD.device.type, enabled=False):
            logits_SE = F.linear(x_SD.to(torch.promote_types(x_SD.dtype, torch.float32)), self.weight)
            if self.modality_embed is not None:  # W (x + b_m) = W x + W b_m, without a second copy of x
                logits_SE = logits_SE + F.linear(self.modality_embed, self.weight)[is_text_S.long()]
            log_gates_SE = logits_SE.log_softmax(-1)
            gates_SE = log_gates_SE.exp()
            top_gates_SK, experts_SK = gates_SE.topk(self.top_k)
            top_gates_SK = top_gates_SK / top_gates_SK.sum(-1, keepdim=True)
        return top_gates_SK, experts_SK, router_stats(gates_SE, log_gates_SE, is_text_S, experts_SK, slice(None))


def router_stats(
    gates_SE: Tensor, log_gates_SE: Tensor, is_text_S: Tensor, experts_SK: Tensor, has_room_SK: Tensor | slice
) -> RouterStats:
    """Return the sums over tokens; first choices count whether they found room with their expert or not."""
    S, E = gates_SE.shape
    rows_SK = is_text_S.long()[:, None] * E + experts_SK
    return RouterStats(
        first_E=experts_SK[:, 0].bincount(minlength=E).float(),
        gate_E=gates_SE.sum(0),
        chosen_ME=rows_SK[has_room_SK].flatten().bincount(minlength=2 * E).view(2, E).float(),
        entropy=-(gates_SE.detach() * log_gates_SE.detach()).sum(),
        num_tokens=torch.full((), S, device=gates_SE.device, dtype=torch.float32),
    )


class Experts(nn.Module):
    """E feed-forward networks as stacked weights, applied to rows that are sorted by expert."""

    def __init__(self, embed_dim: int, ffn_dim: int, num_experts: int, activation: Activation = "quick_gelu"):
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.fc1_weight = nn.Parameter(torch.empty(num_experts, ffn_dim, embed_dim))
        self.fc1_bias = nn.Parameter(torch.empty(num_experts, ffn_dim))
        self.fc2_weight = nn.Parameter(torch.empty(num_experts, embed_dim, ffn_dim))
        self.fc2_bias = nn.Parameter(torch.empty(num_experts, embed_dim))

    @torch.compiler.disable  # grouped_mm compiles for bfloat16 alone, and sizes that follow from counts_E would not gain
    def forward(self, x_RD: Tensor, expert_R: Tensor, counts_E: Tensor) -> Tensor:  # pyright: ignore
        """(R, D) to (R, D); row i goes through expert expert_R[i]; rows are sorted by expert, counts_E rows each."""
        tile = row_tile(x_RD, len(counts_E))
        if tile == 1:
            return self._sorted(x_RD, expert_R, counts_E)
        tiled_E = (counts_E + tile - 1) // tile * tile
        starts_E = (tiled_E - counts_E).cumsum(0) - (tiled_E - counts_E)
        slot_R = torch.arange(len(expert_R), device=x_RD.device) + starts_E[expert_R]
        experts = torch.arange(len(tiled_E), device=x_RD.device).repeat_interleave(tiled_E)
        x_tiled = x_RD.new_zeros(len(experts), x_RD.shape[1]).index_copy(0, slot_R, x_RD)
        return self._sorted(x_tiled, experts, tiled_E).index_select(0, slot_R)

    def _sorted(self, x_RD: Tensor, expert_R: Tensor, counts_E: Tensor) -> Tensor:
        h_RF = grouped_linear(x_RD, self.fc1_weight, counts_E) + _rows_of(self.fc1_bias, x_RD.dtype, expert_R)
        y_RD = grouped_linear(self.activation(h_RF), self.fc2_weight, counts_E)
        return y_RD + _rows_of(self.fc2_bias, x_RD.dtype, expert_R)


def _rows_of(bias_EO: Tensor, dtype: torch.dtype, expert_R: Tensor) -> Tensor:
    return bias_EO.to(dtype).index_select(0, expert_R)  # whose backward pass is much faster than that of bias_EO[expert_R]


class MoE(nn.Module):
    """Sparse mixture of experts over the real tokens of a batch."""

    def __init__(
        self,
        embed_dim: int,
        ffn_dim: int,
        num_experts: int,
        top_k: int = 2,
        modality_routing: bool = True,
        activation: Activation = "quick_gelu",
    ):
        super().__init__()
        self.router = Router(embed_dim, num_experts, top_k, modality_routing)
        self.experts = Experts(embed_dim, ffn_dim, num_experts, activation)

    @property
    def num_idle_parameters(self) -> int:
        """Parameters of the experts that a token is not sent to."""
        experts = sum(parameter.numel() for parameter in self.experts.parameters())
        return experts - experts * self.router.top_k // len(self.router.weight)

    def forward(self, x_BND: Tensor, is_text_BN: Tensor, real_S: Tensor | None) -> tuple[Tensor, RouterStats]:
        """Return (B, N, D), zero at padding, and the statistics.

        is_text_BN: bool, the modality of each token. real_S: int64 positions of the real tokens in the flattened B·N,
        or None when there is no padding.
        """
        x_SD, is_text_S = x_BND.flatten(0, 1), is_text_BN.flatten()
        if real_S is not None:
            x_SD, is_text_S = x_SD.index_select(0, real_S), is_text_S[real_S]
        gates_SK, experts_SK, stats = self.router(x_SD, is_text_S)

        if torch.is_autocast_enabled(x_SD.device.type):  # grouped_mm does not know autocast
            x_SD = x_SD.to(torch.get_autocast_dtype(x_SD.device.type))
        S, K = experts_SK.shape
        expert_R, order_R = experts_SK.flatten().sort(stable=True)
        # a module of its own: where experts lie on several processes, one that exchanges rows can stand in its place
        y_RD = self.experts(x_SD.index_select(0, order_R // K), expert_R, stats.chosen_ME.sum(0).long())
        inverse_R = torch.empty_like(order_R).scatter_(0, order_R, torch.arange(S * K, device=order_R.device))
        y_SKD = y_RD.index_select(0, inverse_R).view(S, K, -1)
        y_SD = torch.bmm(gates_SK.to(y_SKD.dtype)[:, None, :], y_SKD).squeeze(1)

        if real_S is not None:
            y_SD = y_SD.new_zeros(x_BND.shape[0] * x_BND.shape[1], y_SD.shape[1]).index_copy(0, real_S, y_SD)
        return y_SD.view(*x_BND.shape[:2], -1), stats


def row_tile(x_RD: Tensor, num_experts: int) -> int:
    """Rows that each expert's share is padded to a multiple of.

    oneDNN, which multiplies bfloat16 on CPU, compiles a kernel for every new shape, which costs more than the product;
    whole tiles make shapes recur. Where experts get few rows, there are few shapes, and large tiles would be mostly padding.
    """
    if x_RD.device.type != "cpu" or x_RD.dtype != torch.bfloat16:
        return 1
    return 64 if len(x_RD) >= 256 * num_experts else 32


def grouped_linear(x_RI: Tensor, weight_EOI: Tensor, counts_E: Tensor) -> Tensor:
    """Multiply consecutive groups of rows, counts_E rows each, by their own matrix: (R, I) and (E, O, I) to (R, O)."""
    weight_EOI = weight_EOI.to(x_RI.dtype)
    if grouped_mm_works(x_RI, weight_EOI):
        return F.grouped_mm(x_RI, weight_EOI.transpose(1, 2), offs=counts_E.cumsum(0).int())
    # unbind once: indexing weight_EOI[e] would write a full-size zero gradient per expert
    groups = zip(x_RI.split(counts_E.tolist()), weight_EOI.unbind(0), strict=True)
    return torch.cat([rows @ weight_OI.t() for rows, weight_OI in groups])


def grouped_mm_works(x_RI: Tensor, weight_EOI: Tensor) -> bool:
    """Whether torch's grouped_mm takes these: float32 or half types on CPU, bfloat16 on CUDA, rows of whole 16 bytes."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16) if x_RI.device.type == "cpu" else (torch.bfloat16,)
    aligned = all(size * x_RI.element_size() % 16 == 0 for size in weight_EOI.shape[1:])
    if x_RI.device.type == "cuda" and torch.cuda.get_device_capability(x_RI.device) < (8, 0):
        return False
    return x_RI.dtype in dtypes and aligned and x_RI.device.type in ("cpu", "cuda")
