"""Sparse upcycling: experts that start from the feed-forward networks of a trained encoder.

Komatsuzaki et al. 2023.

Letters: D width, F feed-forward width of an expert, E experts, p parts of a network.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl.model.moe import MoE

MARGIN = 16.0
"""Difference of an upcycled router's logits between the experts of the two modalities, before the
token counts."""
NOISE = 0.001
"""Share of random weights in an upcycled router, so that equal experts get different tokens."""


def upcycle_blocks(
    tensors: Mapping[str, Tensor], blocks: Iterable[nn.Module]
) -> tuple[dict[str, Tensor], str | None]:
    """Give the blocks with experts the networks of another encoder's modalities.

    tensors: weights of the other encoder. Returns all weights, and a sentence on the changes.
    """
    tensors = dict(tensors)
    upcycled_blocks = []
    for number, block in enumerate(blocks):
        if type(block.ffn) is not MoE:
            continue
        prefix = f"blocks.{number}.ffn."
        dense = {
            name.removeprefix(prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
        is_by_modality = "image.fc1.bias" in dense and "vl.fc1.bias" not in dense
        if not is_by_modality or not can_upcycle(block.ffn, dense):
            continue

        for name in dense:
            del tensors[prefix + name]
        for name, tensor in upcycled(block.ffn, dense).items():
            tensors[f"blocks.{number}.{name}"] = tensor
        upcycled_blocks.append(str(number))

    if not upcycled_blocks:
        return tensors, None
    return tensors, f"experts from the networks of blocks {', '.join(upcycled_blocks)}"


def can_upcycle(moe: MoE, dense: Mapping[str, Tensor]) -> bool:
    """Return whether experts can compute together as the network of each modality."""
    E, expert_dim, D = moe.experts.fc1_weight.shape
    K = moe.router.top_k
    ffn_dim, dense_D = dense["image.fc1.weight"].shape
    if dense_D != D or moe.router.modality_embed is None:
        return False
    if E % 2 != 0 or ffn_dim % expert_dim != 0:
        return False
    num_parts = ffn_dim // expert_dim
    return num_parts <= 1 or num_parts == K == E // 2


def upcycled(moe: MoE, dense: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights with which a block computes as one without experts.

    dense: norm and network of each modality there. Names are of the block. Half of the experts
    start from each network: as copies or, if they are narrower, as its parts, all of which a token
    must reach. The router sends tokens by their modality.
    """
    E, expert_dim, D = moe.experts.fc1_weight.shape
    num_parts = len(dense["image.fc1.bias"]) // expert_dim
    num_copies = E // 2 // num_parts
    image = _network_parts(dense, "image", num_parts)
    text = _network_parts(dense, "text", num_parts)
    weights = {
        f"ffn.experts.{name}": torch.cat([image[name]] * num_copies + [text[name]] * num_copies)
        for name in image
    }
    # experts share a norm without scale and shift, which their first layers contain
    weights["norm2.weight"] = torch.ones(D)
    weights["norm2.bias"] = torch.zeros(D)

    router_weight = moe.router.weight.detach()
    axis_D = F.normalize(router_weight[0], dim=0)
    side_2 = torch.tensor([1.0, -1.0], device=axis_D.device)
    side_E1 = side_2.repeat_interleave(E // 2)[:, None]
    weights["ffn.router.weight"] = side_E1 * axis_D / 2 + NOISE * router_weight
    weights["ffn.router.modality_embed"] = torch.stack([MARGIN * axis_D, -MARGIN * axis_D])
    return weights


def _network_parts(dense: Mapping[str, Tensor], modality: str, num_parts: int) -> dict[str, Tensor]:
    """Return a modality's norm and network as experts that each compute a part of it."""
    fc1_FD = dense[f"{modality}.fc1.weight"].float()
    fc1_bias_F = dense[f"{modality}.fc1.bias"].float()
    fc2_DF = dense[f"{modality}.fc2.weight"].float()
    fc2_bias_D = dense[f"{modality}.fc2.bias"]
    scale_D = dense[f"norm_{modality}.weight"].float()
    shift_D = dense[f"norm_{modality}.bias"].float()

    F_ = len(fc1_bias_F) // num_parts
    D = len(fc2_bias_D)
    fc2_pDF = fc2_DF.unflatten(1, (num_parts, F_)).movedim(1, 0)
    return {
        "fc1_weight": (fc1_FD * scale_D).view(num_parts, F_, D),
        "fc1_bias": (fc1_bias_F + fc1_FD @ shift_D).view(num_parts, F_),
        "fc2_weight": fc2_pDF * num_parts,  # gates of 1 / K weigh the parts
        "fc2_bias": fc2_bias_D.expand(num_parts, D),
    }
