"""Weights, gradients and optimiser state in shards: train.layout shard.

Only the files of shards know FSDP2, DeviceMesh and DTensor. Each process of a machine keeps an
equal part of every tensor and gathers whole weights for a step. Machines hold copies of one another
(HSDP), so that weights stay within a machine.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from eve_vl.utils.console import is_main
from eve_vl.utils.errors import SharedError
from eve_vl.utils.launcher import process_place

# older ones follow no tensors in dataclasses: a step whose blocks are frozen would average nothing
OLDEST_TORCH = (2, 13)


def shard(task: nn.Module, blocks: Sequence[nn.Module], device: torch.device) -> nn.Module:
    """Replace a task's parameters by this process's shards; return the task.

    Shards, gathered weights and gradients are float32; autocast rounds as without shards. Scalars
    such as temperatures stay whole in each process. Raises SharedError for a task that cannot.
    """
    problem = _obstacle(task, blocks)
    if problem:
        raise SharedError(f"train.layout shard: {problem}; leave it out")
    mesh = _mesh(device)
    num_shards = mesh.size(mesh.ndim - 1)
    scalars = {parameter for parameter in task.parameters() if parameter.ndim == 0}

    def placement(parameter: nn.Parameter) -> Shard:
        """Return the first axis that divides evenly: any other is padded."""
        for axis, length in enumerate(parameter.shape):
            if length % num_shards == 0:
                return Shard(axis)
        return Shard(0)

    for unit in (*blocks, task):
        fully_shard(
            unit,
            mesh=mesh,
            reshard_after_forward=False,
            shard_placement_fn=placement,
            ignored_params=scalars,
        )
    root = cast(FSDPModule, task)
    # a step makes several passes: weights stay whole until `clip_gradients`
    root.set_reshard_after_backward(False)
    # else the first block that runs outside `forward` becomes the root
    root._get_fsdp_state()._lazy_init()
    if hasattr(task, "before_step"):
        register_fsdp_forward_method(task, "before_step")
    return task


def _obstacle(task: nn.Module, blocks: Sequence[nn.Module]) -> str:
    """Return why a task cannot be in shards; empty if it can."""
    if getattr(task, "passes_vary", False):
        return (
            "processes run different numbers of passes in this task, "
            "and would wait for each other forever"
        )
    if not blocks:
        return "works on Transformer blocks, and this model has none"
    if torch.__version__ < OLDEST_TORCH:  # pyright: ignore[reportOperatorIssue]
        return f"needs torch {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]}, this is {torch.__version__}"
    return ""


def is_sharded(model: object) -> bool:
    """Return whether this is a task in shards."""
    return isinstance(model, FSDPModule)


def _mesh(device: torch.device) -> DeviceMesh:
    """Return processes by machine, or in one row if these do not divide evenly."""
    world = dist.get_world_size()
    per_machine: list[Any] = [None] * world
    dist.all_gather_object(per_machine, process_place().local_world_size)
    num_local = per_machine[0]
    is_even = len(set(per_machine)) == 1 and world % num_local == 0
    if is_even and 1 < num_local < world:
        shape = (world // num_local, num_local)
        return init_device_mesh(device.type, shape, mesh_dim_names=("machine", "shard"))
    return init_device_mesh(device.type, (world,), mesh_dim_names=("shard",))


def shard_group(sharded: DTensor) -> dist.ProcessGroup:
    """Return the processes that have the shards of a tensor."""
    return sharded.device_mesh.get_group(sharded.device_mesh.ndim - 1)


@contextlib.contextmanager
def within_machine(model: Any) -> Iterator[None]:
    """Sum the gradients of a pass within each machine; a later pass sums over all."""
    model.set_requires_all_reduce(False)
    try:
        yield
    finally:
        model.set_requires_all_reduce(True)


@contextlib.contextmanager
def unsharded(task: nn.Module) -> Iterator[None]:
    """Give every process whole weights until the end of the context.

    Without it, processes that call other methods, or not equally often, would wait for each other.
    """
    for unit in shard_units(task):
        unit.unshard()
    try:
        yield
    finally:
        for unit in shard_units(task):
            unit.reshard()


def shard_units(task: nn.Module) -> list[FSDPModule]:
    """Return the modules whose weights are gathered together; none without shards."""
    return [module for module in task.modules() if isinstance(module, FSDPModule)]


def local_shard(x: Tensor) -> Tensor:
    """Return this process's shard, which shares memory; a whole tensor as it is."""
    return x.to_local() if isinstance(x, DTensor) else x


def sharded_as(whole: Tensor, reference: Tensor) -> Tensor:
    """Return a tensor in the shards of another of its shape."""
    if not isinstance(reference, DTensor) or isinstance(whole, DTensor):
        return whole
    return distribute_tensor(
        whole.to(reference.device),
        reference.device_mesh,
        reference.placements,
        src_data_rank=None,
    )


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return whole tensors on the main process, and none on the others.

    Every process must call this.
    """
    wholes = {}
    for name, tensor in tensors.items():  # one at a time: the model may not fit
        whole = tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor
        if is_main():
            wholes[name] = whole
    return wholes
