"""Which experts each token goes to, seen by watching the routers of a pass.

Letters: S rows of a batch, B batch, N all tokens of a sequence, K chosen experts.
"""

import copy
from dataclasses import dataclass

from torch import Tensor, nn

from eve_vl.model.backbone import Backbone
from eve_vl.model.moe import MoE, RouterStats
from eve_vl.model.moe_reference import Assignment, OfficialMoE
from eve_vl.model.packing import PackedTokens, Tokens
from eve_vl.model.submodules import exchanged


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the router of one block with experts chooses."""

    block: int
    """0 is the first of the blocks, with experts or without."""
    num_experts: int
    experts_BNK: Tensor
    """int64, the best first; what padding has means nothing."""
    gates_BNK: Tensor
    """float32, the weights of what these experts return, which add up to 1; 0 of one that has no room (`official` routing)."""


def mixtures(encoder: nn.Module) -> dict[str, MoE]:
    """Return the mixtures of experts of an encoder by their names, first to last."""
    return {name: part for name, part in encoder.named_modules() if isinstance(part, MoE)}


def choices_of(encoder: Backbone, image: Tokens | None, text: Tokens | None) -> list[Choices]:
    """Return what each router of an encoder chooses in one pass over whole images, texts or pairs."""
    known = mixtures(encoder)
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    exchanged(encoder, {name: _watched(moe, name, seen) for name, moe in known.items()}).encode(image, text)
    N = sum(each.x_BND.shape[1] for each in (image, text) if each is not None)
    return [
        Choices(
            block=next(int(part) for part in name.split(".") if part.isdigit()),
            num_experts=len(moe.router.weight),
            experts_BNK=seen[name][0].view(-1, N, moe.router.top_k),
            gates_BNK=seen[name][1].view(-1, N, moe.router.top_k),
        )
        for name, moe in known.items()
    ]


def _watched(moe: MoE, name: str, seen: dict[str, tuple[Tensor, Tensor]]) -> MoE:
    """Return a twin that notes, under its name, experts and gates (B·N, K) of all tokens in their sequences."""
    if isinstance(moe, OfficialMoE):

        def route(x_SD: Tensor) -> Assignment:
            chosen = moe.route(x_SD)
            seen[name] = chosen.experts_S2, chosen.gates_S2
            return chosen

        twin = copy.copy(moe)
        twin.route = route
        return twin

    def forward(x_SD: Tensor, rows: PackedTokens) -> tuple[Tensor, Tensor, RouterStats]:
        gates_SK, experts_SK, stats = moe.router(x_SD, rows)
        seen[name] = rows.tokens(experts_SK), rows.tokens(gates_SK)
        return gates_SK, experts_SK, stats

    router = copy.copy(moe.router)
    router.forward = forward
    return exchanged(moe, {"router": router})
