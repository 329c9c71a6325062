"""Mixture of experts token by token, in plain loops, next to which the package's is compared.

Letters: B batch, N tokens, D width, E experts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from torch import Tensor

from eve_vl.model.moe import MoE
from eve_vl.model.packing import PackedTokens
from eve_vl.model.tokens import Tokens
from helpers.random_weights import randomize


@dataclass
class TwinStats:
    """What the router did: gates, choices and modality of each real token, in order."""

    gates: list[list[float]] = field(default_factory=list)
    choices: list[list[int]] = field(default_factory=list)
    is_text: list[bool] = field(default_factory=list)


def slow_quick_gelu(x: Tensor) -> Tensor:
    """Return x · sigmoid(1.702 x), with a gradient by autograd."""
    return x * (1 / (1 + torch.exp(-1.702 * x)))


def slow_ffn(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
) -> Tensor:
    """Return what one feed-forward network makes of one token (D,)."""
    return fc2_weight @ slow_quick_gelu(fc1_weight @ x + fc1_bias) + fc2_bias


def slow_moe(
    moe: MoE,
    x_BND: Tensor,
    is_text_BN: Tensor,
    is_padding_BN: Tensor | None,
) -> tuple[Tensor, TwinStats]:
    """Send token after token through the router's formula and the matrices of its experts.

    Only the weights of `moe` are used, none of its code.
    """
    stats = TwinStats()
    B, N, D = x_BND.shape
    output_BND = torch.zeros(B, N, D, dtype=x_BND.dtype)
    for b in range(B):
        for n in range(N):
            if is_padding_BN is not None and is_padding_BN[b, n]:
                continue
            x = x_BND[b, n]
            is_text = bool(is_text_BN[b, n])
            gates = slow_gates(moe, x, is_text)
            order = sorted(range(len(gates)), key=lambda expert: -gates[expert].item())
            chosen = order[: moe.router.top_k]
            output_BND[b, n] = slow_mixture(moe, x, gates, chosen)
            stats.gates.append([gate.item() for gate in gates])
            stats.choices.append(chosen)
            stats.is_text.append(is_text)
    return output_BND, stats


def slow_gates(moe: MoE, x: Tensor, is_text: bool) -> list[Tensor]:
    """Return the router's softmax of one token."""
    router = moe.router
    if router.modality_embed is not None:
        x = x + router.modality_embed[int(is_text)]
    logits = [weight @ x for weight in router.weight]
    largest = max(logit.item() for logit in logits)
    exponentials = [torch.exp(logit - largest) for logit in logits]
    total = sum(exponentials)
    return [exponential / total for exponential in exponentials]


def slow_mixture(
    moe: MoE,
    x: Tensor,
    gates: Sequence[Tensor],
    chosen: Sequence[int],
) -> Tensor:
    """Return the outputs of the chosen experts, weighted by gates that add up to 1."""
    experts = moe.experts
    total = sum(gates[expert] for expert in chosen)
    output = torch.zeros_like(x)
    for e in chosen:
        fc1 = (experts.fc1_weight[e], experts.fc1_bias[e])
        fc2 = (experts.fc2_weight[e], experts.fc2_bias[e])
        output = output + gates[e] / total * slow_ffn(x, *fc1, *fc2)
    return output


def slow_balance(stats: TwinStats) -> float:
    """Return N · Σ f_i · p_i in plain Python (paper Eq. 7)."""
    num_experts = len(stats.gates[0])
    num_tokens = len(stats.gates)
    total = 0.0
    for expert in range(num_experts):
        f = sum(choice[0] == expert for choice in stats.choices) / num_tokens
        p = sum(gates[expert] for gates in stats.gates) / num_tokens
        total += f * p
    return num_experts * total


def slow_entropy(stats: TwinStats) -> float:
    """Return the entropy of the gates in nats, summed over tokens."""
    entropy = 0.0
    for gates in stats.gates:
        entropy -= sum(gate * math.log(gate) for gate in gates)
    return entropy


def router_sums(stats: Tensor) -> SimpleNamespace:
    """Return the router's sums over both modalities: by expert first choices and gates (with
    gradient), over all experts entropy and tokens."""
    first_ME, gate_ME, entropy_ME, _ = stats.unflatten(1, (4, -1)).unbind(1)
    first_E = first_ME.detach().sum(0)
    return SimpleNamespace(
        first_E=first_E,
        gate_E=gate_ME.sum(0),
        entropy=entropy_ME.detach().sum(),
        num_tokens=first_E.sum(),
    )


def random_moe(
    dim: int = 8,
    ffn: int = 12,
    experts: int = 4,
    top_k: int = 2,
    *,
    modality: bool = True,
    seed: int = 0,
) -> MoE:
    """Return a MoE whose every weight matters: nothing is zero or small."""
    moe = MoE(dim, ffn, experts, top_k, modality, "quick_gelu")
    randomize(moe, seed)
    return moe


def in_rows(
    x_BND: Tensor,
    num_image: int,
    is_padding_BN: Tensor | None = None,
    num_heads: int = 1,
) -> tuple[Tensor, PackedTokens]:
    """Return a batch of pairs as packed rows, and where these lie; image tokens come first."""
    tokens = Tokens(x_BND=x_BND, num_image=num_image, is_padding_BN=is_padding_BN)
    packed = PackedTokens.of(tokens, num_heads)
    return packed.pack(x_BND), packed
