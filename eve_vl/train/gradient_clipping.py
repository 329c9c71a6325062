"""Gradients scaled to a norm of at most train.clip_norm, with or without shards."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from eve_vl.train.shard import is_sharded, local_shard, shard_group, shard_units


@torch.no_grad()
def clip_gradients(task: nn.Module, max_norm: float) -> Tensor:
    """Scale a step's gradients to a norm of at most `max_norm`.

    Returns the norm before. Afterwards this process holds its shards only.
    """
    if not is_sharded(task):
        return nn.utils.clip_grad_norm_(task.parameters(), max_norm)
    for unit in shard_units(task):
        unit.reshard()
    gradients = [parameter.grad for parameter in task.parameters() if parameter.grad is not None]
    shards = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
    scalars = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    _average_over_processes(scalars)  # FSDP leaves them alone
    norms = scalars
    if shards:
        norms = [_norm_of_shards(shards), *scalars]
    norm = nn.utils.get_total_norm(norms)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    local_gradients = [local_shard(gradient) for gradient in gradients]
    torch._foreach_mul_(local_gradients, scale)  # pyright: ignore[reportPrivateImportUsage]
    return norm


def _average_over_processes(scalars: Sequence[Tensor]) -> None:
    if not scalars:
        return
    sums = torch.stack([*scalars])
    dist.all_reduce(sums)
    for scalar, mean in zip(scalars, sums / dist.get_world_size(), strict=True):
        scalar.copy_(mean)


def _norm_of_shards(shards: Sequence[DTensor]) -> Tensor:
    local_norm = nn.utils.get_total_norm([shard.to_local() for shard in shards])
    square = local_norm.double().square()
    dist.all_reduce(square, group=shard_group(shards[0]))
    return square.sqrt().float()
