"""Statistics of routers as log terms, and the load-balancing loss.

Letters: L blocks with experts, P passes, E experts; 2 modalities, 4 kinds of sums.
"""

import torch
from torch import Tensor

from eve_vl import objectives
from eve_vl.train.processes import sum_over_processes

Routers = list[list[Tensor]]
"""Per pass, the statistics of each block with experts; see `model.router.router_stats`."""


def routing_terms(routers: Routers) -> dict[str, Tensor]:
    """Return the balance loss, and each block's load and entropy, as log terms.

    Load is that of the busiest expert; entropy is that of the gate. The loss is the mean over
    blocks and passes; all terms are over the tokens of all processes. Empty without `moe` blocks.
    routers: per pass through the encoder, the statistics of each `moe` block.
    """
    if not routers or not routers[0]:
        return {}
    sums_of_blocks = [torch.stack(block) for block in zip(*routers, strict=True)]
    sums_LP24E = torch.stack(sums_of_blocks)
    sums_LP4E = sum_over_processes(sums_LP24E).sum(2).unflatten(2, (4, -1))  # one exchange for all
    gate_LPE = sums_LP4E[:, :, 1]
    first_LPE, _, entropy_LPE, _ = sums_LP4E.detach().unbind(2)
    balance_LP = objectives.balance(first_LPE, gate_LPE, first_LPE.sum(2))

    total_L = first_LPE.sum((1, 2))
    max_load_L = first_LPE.sum(1).amax(1) / total_L
    entropy_L = entropy_LPE.sum((1, 2)) / total_L
    terms = {"balance": balance_LP.mean()}
    for number in range(len(total_L)):
        terms[f"max_load/{number}"] = max_load_L[number]
        terms[f"entropy/{number}"] = entropy_L[number]
    return terms
