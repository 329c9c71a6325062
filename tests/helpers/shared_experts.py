"""A test double of `Experts` whose processes each have some of the experts, and exchange rows
(expert parallelism)."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_to_all_single, all_to_all_single_autograd
from torch.nn.parallel import DistributedDataParallel

from eve_vl.model.experts import Experts
from eve_vl.model.moe import MoE
from eve_vl.train import processes
from helpers.tiny_config import tiny_config
from helpers.tiny_tasks import build, train_set

NUM_ROWS = 8
MODEL: dict[str, Any] = {
    "balance_weight": 0.5,
    "deep_ffn": "moe",
    "num_deep_blocks": 2,
    "num_experts": 8,
}


class SharedExperts(nn.Module):
    """The experts of this process compute the rows of a whole group. Letter n: processes."""

    def __init__(self, experts: Experts, group: Any):
        super().__init__()
        self.group = group
        self.shard = experts
        rank = dist.get_rank(group)
        for name, parameter in list(experts.named_parameters()):
            shards = parameter.detach().chunk(dist.get_world_size(group))
            setattr(experts, name, nn.Parameter(shards[rank].clone()))

    def forward(self, x_RD: Tensor, expert_R: Tensor, counts_E: Tensor) -> Tensor:
        n = dist.get_world_size(self.group)
        sent_nE = counts_E.view(n, -1)
        received_nE = all_to_all_single(sent_nE, None, None, self.group).view_as(sent_nE)
        sent = sent_nE.sum(1).tolist()
        received = received_nE.sum(1).tolist()
        rows = all_to_all_single_autograd(x_RD, received, sent, self.group)

        expert_of_part = torch.arange(received_nE.shape[1]).repeat(n)
        expert_R = expert_of_part.repeat_interleave(received_nE.flatten())
        expert_R, order_R = expert_R.sort(stable=True)
        y_RD = self.shard(rows.index_select(0, order_R), expert_R, received_nE.sum(0))
        y_RD = y_RD.index_select(0, order_R.argsort())
        return all_to_all_single_autograd(y_RD, sent, received, self.group)


def step(routing: str, group: Any = None) -> dict[str, Tensor]:
    """Return the loss and the mean gradients of all processes.

    group: the processes that share the experts; None: every process has all of them.
    """
    config = tiny_config(model=MODEL | {"routing": routing})
    task = build(config).train()
    moes = [module for module in task.modules() if isinstance(module, MoE)]
    assert len(moes) == 2
    is_split = False
    if group is not None:
        is_split = dist.get_world_size(group) > 1
        for moe in moes:
            moe.experts = SharedExperts(moe.experts, group)  # pyright: ignore[reportAttributeAccessIssue]
    shards = [name for name, _ in task.named_parameters() if ".shard." in name]
    if is_split:
        task._ddp_params_and_buffers_to_ignore = shards  # pyright: ignore[reportArgumentType]

    ddp = DistributedDataParallel(task, find_unused_parameters=task.find_unused_parameters)
    dataset = train_set(config, NUM_ROWS)
    rows = range(processes.rank(), NUM_ROWS, processes.world_size())
    (batch,) = task.before_step([dataset.collate([dataset[0, 0, row] for row in rows])])
    loss = ddp(batch).loss
    loss.backward()
    results = {"loss": loss.detach()}
    for name, parameter in task.named_parameters():
        gradient = parameter.grad
        assert gradient is not None, name
        if is_split and name in shards:  # a sum over the losses of the group
            gradient = processes.gather_rows(gradient) / processes.world_size()
        results[name.replace(".shard.", ".")] = gradient
    return results


def steps() -> dict[str, Tensor]:
    """Return `step` with all experts in each process, with those of a group of one, and with those
    of all processes."""
    groups_of_one = [dist.new_group([rank]) for rank in range(processes.world_size())]
    groups = {
        "whole": None,
        "alone": groups_of_one[processes.rank()],
        "split": dist.group.WORLD,
    }
    results = {}
    for routing in ("dropless", "reference-dropless"):
        for kind, group in groups.items():
            for name, value in step(routing, group).items():
                results[f"experts.{routing}.{kind}.{name}"] = value
    return results
