"""The terms that a step's routers add to its log, and the balance loss among them."""

import torch
from torch import Tensor

from eve_vl import objectives
from eve_vl.model.moe import RouterStats
from eve_vl.train.distributed import sum_over_processes


def routing_terms(routers: list[list[RouterStats]]) -> dict[str, Tensor]:
    """Return the balance loss, mean over blocks and passes, and per block the load of the busiest expert and the entropy
    of the gate; all over the tokens of all processes. Empty without `moe` blocks.

    routers: per pass through the encoder, the statistics of each `moe` block.
    """
    if not routers or not routers[0]:
        return {}
    terms: dict[str, Tensor] = {}
    losses = []
    for number, block in enumerate(zip(*routers, strict=True)):
        first = [sum_over_processes(stats.first_E) for stats in block]
        gate = [sum_over_processes(stats.gate_E) for stats in block]
        tokens = [sum_over_processes(stats.num_tokens) for stats in block]
        entropy = sum_over_processes(torch.stack([stats.entropy for stats in block]).sum())
        losses += [objectives.balance(*sums) for sums in zip(first, gate, tokens, strict=True)]
        total = torch.stack(tokens).sum()
        terms[f"max_load/{number}"] = torch.stack(first).sum(0).max() / total
        terms[f"entropy/{number}"] = entropy / total
    return {"balance": torch.stack(losses).mean(), **terms}
