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
from eve_vl.tasks.masked_signal.dataset import MaskedPairs
from eve_vl.train import processes
from helpers.tiny_tasks import TOKENIZER, build
from helpers.twins import pairs, tiny_config

NUM_ROWS = 8


class SharedExperts(nn.Module):
    """Compute the rows of a whole group by this process's experts."""

    def __init__(self, experts: Experts, group: Any):
        super().__init__()
        self.group, n, me = group, dist.get_world_size(group), dist.get_rank(group)
        self.own = experts
        for name, parameter in list(experts.named_parameters()):
            setattr(experts, name, nn.Parameter(parameter.detach().chunk(n)[me].clone()))

    def forward(self, x_RD: Tensor, expert_R: Tensor, counts_E: Tensor) -> Tensor:
        n = dist.get_world_size(self.group)
        counts_nE = counts_E.view(n, -1)
        theirs_nE = all_to_all_single(counts_nE, None, None, self.group).view_as(counts_nE)
        sent, received = counts_nE.sum(1).tolist(), theirs_nE.sum(1).tolist()
        rows = all_to_all_single_autograd(x_RD, received, sent, self.group)
        expert_R = torch.arange(theirs_nE.shape[1]).repeat(n).repeat_interleave(theirs_nE.flatten())
        expert_R, order_R = expert_R.sort(stable=True)
        y_RD = self.own(rows.index_select(0, order_R), expert_R, theirs_nE.sum(0))
        return all_to_all_single_autograd(
            y_RD.index_select(0, order_R.argsort()), sent, received, self.group
        )


def step(routing: str, group: Any = None) -> dict[str, Tensor]:
    """Return the loss and the mean gradients of all processes; None: every process has all
    experts."""
    model = {
        "balance_weight": 0.5,
        "deep_ffn": "moe",
        "num_deep_blocks": 2,
        "num_experts": 8,
        "routing": routing,
    }
    config = tiny_config(model=model)
    task = build(config).train()
    moes = [module for module in task.modules() if isinstance(module, MoE)]
    assert len(moes) == 2
    for moe in moes if group else ():
        moe.experts = SharedExperts(moe.experts, group)  # pyright: ignore[reportAttributeAccessIssue]
    own = {name for name, _ in task.named_parameters() if ".own." in name}
    is_split = group is not None and dist.get_world_size(group) > 1
    task._ddp_params_and_buffers_to_ignore = [*own] if is_split else []  # pyright: ignore[reportArgumentType]
    ddp = DistributedDataParallel(task, find_unused_parameters=task.find_unused_parameters)
    dataset = MaskedPairs([pairs(NUM_ROWS)], config, TOKENIZER, training=True)
    rows = range(processes.rank(), NUM_ROWS, processes.world_size())
    (batch,) = task.before_step([dataset.collate([dataset[0, 0, row] for row in rows])])
    loss = ddp(batch).loss
    loss.backward()
    found = {"loss": loss.detach()}
    for name, parameter in task.named_parameters():
        gradient = parameter.grad
        assert gradient is not None, name
        if is_split and name in own:  # a sum over the losses of the group
            gradient = processes.gather_rows(gradient) / processes.world_size()
        found[name.replace(".own.", ".")] = gradient
    return found


def steps() -> dict[str, Tensor]:
    """Return `step` with all experts here, with those of a group of one process, and with those of
    all processes."""
    alone = [dist.new_group([rank]) for rank in range(processes.world_size())][processes.rank()]
    groups = {"whole": None, "alone": alone, "split": dist.group.WORLD}
    return {
        f"experts.{routing}.{kind}.{name}": value
        for routing in ("dropless", "reference-dropless")
        for kind, group in groups.items()
        for name, value in step(routing, group).items()
    }
