"""Memory and traffic of a training step by layout, without weights.

replicate: each process has all weights (DDP). shard: processes of a machine share them (FSDP2);
they gather whole weights for a step, and machines hold copies (HSDP).
"""

from collections import Counter
from typing import Any

import torch

from eve_vl.config import Config
from eve_vl.tasks.task import Task
from eve_vl.train.block_wrapping import transformer_blocks
from eve_vl.train.parameter_groups import muon_parts
from eve_vl.utils.frozen import Frozen

FLOAT32 = 4  # bytes; weights, gradients, moments and averages have this type
MUON_COPIES = 3  # of the matrices of one shape, while they are made orthogonal


class Layout(Frozen):
    """How processes share a training step."""

    gpus: int
    """Processes per machine."""
    machines: int = 1
    shards: bool = False
    """train.layout shard, over the processes of a machine."""


def step_memory(
    config: Config, task: Task[Any], layout: Layout, kept_size: float
) -> dict[str, float]:
    """Return the bytes of a process at the peak of a step, by kind.

    kept_size: bytes kept by autograd in a micro-batch of the process.
    """
    train = config.train
    num_shards = layout.gpus if layout.shards else 1
    weights = FLOAT32 * sum(parameter.numel() for parameter in task.parameters())
    gradients = FLOAT32 * sum(
        parameter.numel() for parameter in task.parameters() if parameter.requires_grad
    )

    muon_bytes = Counter[torch.Size]()  # by shape of the matrices, which have one moment
    for name, parameter in task.named_parameters():
        if parameter.requires_grad and muon_parts(name, parameter, train.optimizer) > 0:
            muon_bytes[parameter.shape[-2:]] += FLOAT32 * parameter.numel()
    copies = MUON_COPIES * max(muon_bytes.values(), default=0)
    if train.dtype != "float32":
        copies /= 2
    moments = 2 * gradients - muon_bytes.total()
    if train.ema_decay > 0:
        moments += gradients

    memory = {
        "weights": weights / num_shards,
        "gradients": gradients / num_shards,
        "optimizer": moments / num_shards,
        "activations": max(kept_size, copies / num_shards),
    }
    if layout.shards:
        memory["weights"] += weights
        memory["gradients"] += 2 * _largest_unit(task, weights)
    return memory


def _largest_unit(task: Task[Any], weights: int) -> int:
    """Return the bytes of the largest block, or of all that is in no block.

    Gradients are whole until those of such a unit are summed.
    """
    blocks = [
        FLOAT32 * sum(parameter.numel() for parameter in block.parameters())
        for block in transformer_blocks(task)
    ]
    return max([weights - sum(blocks), *blocks])


def step_traffic(config: Config, task: Task[Any], layout: Layout) -> dict[str, float]:
    """Return the bytes that a process sends in a step, and a machine to others.

    These are weights and gradients. Left out are Muon's matrices, features of contrast and sums for
    the log. A ring over n processes sends (n - 1) / n of a tensor to gather or scatter it, and
    twice that to sum it.
    """
    accumulation = config.train.accumulation
    machines = layout.machines
    gpus = layout.gpus
    weights = FLOAT32 * sum(parameter.numel() for parameter in task.parameters())
    gradients = FLOAT32 * sum(
        parameter.numel() for parameter in task.parameters() if parameter.requires_grad
    )
    if layout.shards:
        between_machines = 2 * gradients * (machines - 1) / machines
        within_machine = (weights + accumulation * gradients) * (gpus - 1) / gpus
        return {
            "process": within_machine + between_machines / gpus,
            "machine": between_machines,
        }
    num_sums = accumulation if task.find_unused_parameters else 1  # see processes.without_sharing
    sent = 2 * num_sums * gradients * (1 - 1 / (machines * gpus))
    return {"process": sent, "machine": sent if machines > 1 else 0.0}
