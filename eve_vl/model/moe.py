"""Modality-aware sparse mixture of experts: router → dispatch → experts → combine.

`MoE` has `dropless` routing: every token reaches its top-k experts, padding is not counted, and no result depends on other
tokens of the batch. Statistics are returned, never stored.

`ReferenceMoE` computes as the published code does, for weights trained with it (docs/fidelity.md): experts also see the
modality embedding; padding is routed and counted; the boundary of image and text is fixed. With `reference` routing the second
expert is sampled, and experts have a capacity. A token's result then depends on its batch, in evaluation too.

Letters: N tokens of a sequence, S rows of a batch, or those that are read, D width, F feed-forward width, E experts, K chosen
experts, R = S·K routed rows, M = 2 modalities (image, text).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl.config.model import Activation
from eve_vl.model.layers import ACTIVATIONS
from eve_vl.model.packing import PackedTokens, ReadPositions

MIN_CAPACITY = 4  # rows of an expert with `reference` routing
MARGIN = 16.0  # difference of an upcycled router's logits between the experts of the two modalities, before the token counts
NOISE = 0.001  # share of random weights in an upcycled router, so that equal experts get different tokens


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
            logits_SE = F.linear(
                x_SD.to(torch.promote_types(x_SD.dtype, torch.float32)), self.weight
            )
            if (
                self.modality_embed is not None
            ):  # W (x + b_m) = W x + W b_m, without a second copy of x
                logits_SE = logits_SE + F.linear(self.modality_embed, self.weight).index_select(
                    0, rows.is_text_S
                )
            log_gates_SE = logits_SE.log_softmax(-1)
            gates_SE = log_gates_SE.exp()
            top_gates_SK, experts_SK = gates_SE.topk(self.top_k)
            top_gates_SK = top_gates_SK / top_gates_SK.sum(-1, keepdim=True)
            stats = router_stats(gates_SE, log_gates_SE, experts_SK, rows.is_of_2S)
        return top_gates_SK, experts_SK, stats


def router_stats(
    gates_SE: Tensor,
    log_gates_SE: Tensor,
    experts_SK: Tensor,
    is_of_2S: Tensor,
    has_room_SK: Tensor | None = None,
) -> Tensor:
    """Return sums over the real tokens of a `moe` block, float32 (2, 4·E).

    They are by modality (image, text), for all experts: tokens with the expert as first choice; gate probability (with
    gradient); terms of the gate's entropy in nats; tokens with it among the K choices. Passes and processes can be added.
    First choices count even if their expert has no room. is_of_2S: as `PackedTokens.is_of_2S`. A matrix product needs no GPU
    sync.
    """
    zeros_SE = torch.zeros_like(gates_SE.detach())
    first_SE = zeros_SE.scatter(1, experts_SK[:, :1], 1)
    chosen_SE = zeros_SE.scatter(
        1, experts_SK, 1 if has_room_SK is None else has_room_SK.to(gates_SE.dtype)
    )
    values_SX = torch.cat(
        [first_SE, gates_SE, -gates_SE.detach() * log_gates_SE.detach(), chosen_SE], dim=1
    )
    return is_of_2S @ values_SX.float()


def chosen_ME(stats_2X: Tensor) -> Tensor:
    """Return how often each expert was one of the K choices, per modality."""
    return stats_2X.detach().unflatten(1, (4, -1))[:, 3]


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

    @torch.compiler.disable  # grouped_mm compiles for bfloat16 alone, and sizes that follow from counts_E would not gain
    def forward(self, x_RD: Tensor, expert_R: Tensor, counts_E: Tensor) -> Tensor:  # pyright: ignore
        """Compute row i of (R, D) by expert expert_R[i]; sorted, counts_E rows each."""
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
        h_RF = grouped_linear(x_RD, self.fc1_weight, counts_E) + _rows_of(
            self.fc1_bias, x_RD.dtype, expert_R
        )
        y_RD = grouped_linear(self.activation(h_RF), self.fc2_weight, counts_E)
        return y_RD + _rows_of(self.fc2_bias, x_RD.dtype, expert_R)


def _rows_of(bias_EO: Tensor, dtype: torch.dtype, expert_R: Tensor) -> Tensor:
    return bias_EO.to(dtype).index_select(
        0, expert_R
    )  # its backward pass is much faster than that of bias_EO[expert_R]


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
        self.experts = Experts(embed_dim, ffn_dim, num_experts, activation)

    @property
    def num_idle_parameters(self) -> int:
        """Number of parameters in the experts that a token does not use."""
        experts = sum(parameter.numel() for parameter in self.experts.parameters())
        return experts - experts * self.router.top_k // len(self.router.weight)

    def forward(
        self, x_SD: Tensor, rows: PackedTokens, read: ReadPositions | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the experts' output for rows (S, D) and the statistics of all rows.

        read: output of these rows only.
        """
        gates_SK, experts_SK, stats = self.router(x_SD, rows)
        if read is not None:
            x_SD, gates_SK, experts_SK = (
                each.index_select(0, read.row_M) for each in (x_SD, gates_SK, experts_SK)
            )
        return self.combined(x_SD, gates_SK, experts_SK), stats

    def combined(self, x_SD: Tensor, gates_SK: Tensor, experts_SK: Tensor) -> Tensor:
        """Return the outputs of each row's experts, weighted by its gates, (S, D)."""
        if torch.is_autocast_enabled(x_SD.device.type):  # grouped_mm does not know autocast
            x_SD = x_SD.to(torch.get_autocast_dtype(x_SD.device.type))
        S, K = experts_SK.shape
        expert_R, order_R = experts_SK.flatten().sort(stable=True)
        counts_E = torch.zeros(len(self.router.weight), dtype=torch.long, device=x_SD.device)
        counts_E = counts_E.scatter_add_(0, expert_R, torch.ones_like(expert_R))
        # a separate module, so that one that exchanges rows between processes can replace it
        y_RD = self.experts(x_SD.index_select(0, order_R // K), expert_R, counts_E)
        inverse_R = torch.empty_like(order_R).scatter_(
            0, order_R, torch.arange(S * K, device=order_R.device)
        )
        y_SKD = y_RD.index_select(0, inverse_R).view(S, K, y_RD.shape[1])
        return torch.bmm(gates_SK.to(y_SKD.dtype)[:, None, :], y_SKD).squeeze(1)


def upcycled(moe: MoE, dense: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return the weights with which a block computes as one without experts.

    Sparse upcycling (Komatsuzaki et al. 2023). dense: norm and network of each modality there. Names are of the block. Half of
    the experts start from each network: as copies or, if they are narrower, as its parts, all of which a token must reach.
    The router sends tokens by their modality. None if this is impossible.
    """
    (E, F_, D), K, own = moe.experts.fc1_weight.shape, moe.router.top_k, moe.router
    parts, rest = divmod(len(dense["image.fc1.bias"]), F_)
    is_as_wide = dense["image.fc1.weight"].shape[1] == D
    if (
        not is_as_wide
        or own.modality_embed is None
        or E % 2
        or rest
        or (parts > 1 and not parts == K == E // 2)
    ):
        return None
    found: dict[str, list[Tensor]] = defaultdict(list)
    for name in ("image", "text"):
        fc1, fc2, bias = (
            dense[f"{name}.{part}"].float() for part in ("fc1.weight", "fc2.weight", "fc1.bias")
        )
        scale, shift = (dense[f"norm_{name}.{part}"].float() for part in ("weight", "bias"))
        stacks = {  # the norm that experts share has no scale and shift of its own
            "fc1_weight": (fc1 * scale).view(parts, F_, D),
            "fc1_bias": (bias + fc1 @ shift).view(parts, F_),
            "fc2_weight": fc2.unflatten(1, (parts, F_)).movedim(1, 0)
            * parts,  # gates of 1 / K weigh the parts
            "fc2_bias": dense[f"{name}.fc2.bias"].expand(parts, D),
        }
        for key, stack in stacks.items():
            found[f"ffn.experts.{key}"] += [stack] * (E // 2 // parts)
    axis_D = F.normalize(own.weight.detach()[0], dim=0)
    side_E1 = torch.tensor([1.0, -1.0], device=axis_D.device).repeat_interleave(E // 2)[:, None]
    return {name: torch.cat(stacks) for name, stacks in found.items()} | {
        "norm2.weight": torch.ones(D),
        "norm2.bias": torch.zeros(D),
        "ffn.router.weight": side_E1 * axis_D / 2 + NOISE * own.weight.detach(),
        "ffn.router.modality_embed": torch.stack([MARGIN * axis_D, -MARGIN * axis_D]),
    }


def row_tile(x_RD: Tensor, num_experts: int) -> int:
    """Return the multiple that each expert's rows are padded to.

    oneDNN, which multiplies bfloat16 on CPU, compiles a kernel for every new shape. That costs more than the product, and tiles
    make shapes recur. Experts with few rows have few shapes, and large tiles would be mostly padding.
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
    if x_RI.device.type == "cuda":
        fits = x_RI.dtype == torch.bfloat16 and torch.cuda.get_device_capability(x_RI.device) >= (
            8,
            0,
        )
    else:
        fits = x_RI.device.type == "cpu" and x_RI.dtype in (
            torch.float32,
            torch.bfloat16,
            torch.float16,
        )
    return fits and all(size * x_RI.element_size() % 16 == 0 for size in weight_EOI.shape[1:])


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

        sizes: embed_dim, ffn_dim, num_experts. num_image: tokens of a whole image, [CLS] included. drops: `reference` instead
        of `reference-dropless`.
        """
        super().__init__(*sizes, top_k=2, modality_routing=modality_routing, activation=activation)
        self.num_image, self.drops = num_image, drops
        self.noise: Callable[[Tensor], Tensor] | None = gumbel_noise if drops else None
        """Noise added to the logits (S, E) before the second choice; torch.manual_seed seeds the default."""

    def forward(
        self, x_SD: Tensor, rows: PackedTokens, read: ReadPositions | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the experts' output for all tokens of a batch (S, D), and statistics.

        read: output of these rows only.
        """
        x_SD = rows.tokens(x_SD)  # they queue in this order
        is_text_S = self.fixed_boundary(rows)
        if self.router.modality_embed is not None:
            x_SD = x_SD + self.router.modality_embed.index_select(0, is_text_S)
        chosen = self.route(x_SD)
        y_SD = rows.collect(self.combined(x_SD, chosen.gates_S2, chosen.experts_S2))
        return y_SD if read is None else y_SD.index_select(0, read.row_M), self.statistics(
            chosen, is_text_S
        )

    def fixed_boundary(self, rows: PackedTokens) -> Tensor:
        """Return each token's modality in the published code, int64 (S,), 1 for text.

        In a pair, the first num_image tokens count as image, even if patches were dropped.
        """
        S = len(rows.token_S)
        if rows.num_image in (0, S):
            return rows.is_text_S
        return (
            torch.arange(S, device=rows.token_S.device) % rows.shape[1] >= self.num_image
        ).long()

    def route(self, x_SD: Tensor) -> Assignment:
        """Choose two experts per token and assign places.

        First choices come before second ones, each in token order.
        """
        with torch.autocast(x_SD.device.type, enabled=False):
            logits_SE = F.linear(
                x_SD.to(torch.promote_types(x_SD.dtype, torch.float32)), self.router.weight
            )
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
        return Assignment(
            logits_SE=logits_SE,
            experts_S2=experts_S2,
            slots_S2=slots_S2,
            gates_S2=gates_S2 / total_S1,
        )

    def statistics(self, chosen: Assignment, is_text_S: Tensor) -> Tensor:
        """Return the sums over all tokens, padding included."""
        log_gates_SE = chosen.logits_SE.log_softmax(1)
        is_of_2S = torch.stack([1 - is_text_S, is_text_S]).float()
        with torch.autocast(
            is_of_2S.device.type, enabled=False
        ):  # bfloat16 has no whole numbers between 256 and 258
            return router_stats(
                log_gates_SE.exp(), log_gates_SE, chosen.experts_S2, is_of_2S, chosen.slots_S2 >= 0
            )


def capacity(num_tokens: int, num_experts: int) -> int:
    """Return an expert's share of an even spread, at least MIN_CAPACITY."""
    return max(math.ceil(2 * num_tokens / num_experts), MIN_CAPACITY)


def queue(experts_S2: Tensor, num_experts: int) -> Tensor:
    """Return each choice's place in its expert's queue, int64 (S, 2).

    First choices come before second ones.
    """
    expert_R1 = experts_S2.T.flatten()[
        :, None
    ]  # the first choices of all tokens, then the second ones
    number_RE = (expert_R1 == torch.arange(num_experts, device=expert_R1.device)).cumsum(0)
    return (number_RE.gather(1, expert_R1) - 1).view(2, -1).T
