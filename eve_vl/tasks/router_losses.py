"""The terms that a step's routers add to its log, and the balance loss among them.

Letters: L blocks with experts, P passes, E experts; 2 modalities, 4 kinds of sums.
"""

import torch
from torch import Tensor

from eve_vl import objectives
from eve_vl.model.moe import RouterStats
from eve_vl.train.collectives import sum_over_processes


def routing_terms(routers: list[list[RouterStats]]) -> dict[str, Tensor]:
    """Return the balance loss, mean over blocks and passes, and per block the load of the busiest expert and the entropy
    of the gate; all over the tokens of all processes. Empty without `moe` blocks.

    routers: per pass through the encoder, the statistics of each `moe` block.
    """
    if not routers or not routers[0]:
        return {}
    sums_LP24E = torch.stack([torch.stack([stats.sums_2X for stats in block]) for block in zip(*routers, strict=True)])
    sums_LP4E = sum_over_processes(sums_LP24E).sum(2).unflatten(2, (4, -1))  # one exchange for all
    gate_LPE = sums_LP4E[:, :, 1]
    first_LPE, _, entropy_LPE, _ = sums_LP4E.detach().unbind(2)
    balance_LP = objectives.balance(first_LPE, gate_LPE, first_LPE.sum(2))
    total_L, first_LE = first_LPE.sum((1, 2)), first_LPE.sum(1)
    values = {"max_load": first_LE.amax(1) / total_L, "entropy": entropy_LPE.sum((1, 2)) / total_L}
    logged = {f"{name}/{number}": value_L[number] for number in range(len(total_L)) for name, value_L in values.items()}
    return {"balance": balance_LP.mean(), **logged}
