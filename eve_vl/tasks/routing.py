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
    blocks = [*zip(*routers, strict=True)]
    entropies = torch.stack([torch.stack([stats.entropy for stats in block]).sum() for block in blocks])
    rows = [torch.cat([stats.first_E, stats.gate_E, stats.num_tokens[None]]) for block in blocks for stats in block]
    # one exchange for all; what they have in common is their length
    *sums, entropies = sum_over_processes(torch.cat([*rows, entropies])).split([len(row) for row in rows] + [len(blocks)])
    for number, block in enumerate(blocks):
        own, sums = sums[: len(block)], sums[len(block) :]
        E = len(block[0].first_E)
        losses += [objectives.balance(row[:E], row[E:-1], row[-1]) for row in own]
        total = torch.stack([row[-1] for row in own]).sum()
        terms[f"max_load/{number}"] = torch.stack([row[:E] for row in own]).sum(0).max() / total
        terms[f"entropy/{number}"] = entropies[number] / total
    return {"balance": torch.stack(losses).mean(), **terms}
