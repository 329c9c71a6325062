"""Weights, gradients and optimiser state in shards: train.layout shard.

Only this file knows FSDP2, DeviceMesh and DTensor. Each process of a machine keeps an equal part of every tensor and gathers
whole weights for a step. Machines hold copies of one another (HSDP), so that weights stay within a machine.

Letters: M matrices, O rows, I columns.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
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

OLDEST = (
    2,
    13,
)  # older ones follow no tensors in dataclasses: a step whose blocks are frozen would average nothing


def shard(task: nn.Module, blocks: Sequence[nn.Module], device: torch.device) -> nn.Module:
    """Replace a task's parameters by this process's shards; return the task.

    Shards, gathered weights and gradients are float32; autocast rounds as without shards. Scalars such as temperatures stay
    whole in each process. Raises SharedError for a task that cannot.
    """
    problem = ""
    if getattr(task, "passes_vary", False):
        problem = "processes run different numbers of passes in this task, and would wait for each other forever"
    elif not blocks:
        problem = "works on Transformer blocks, and this model has none"
    elif torch.__version__ < OLDEST:  # pyright: ignore[reportOperatorIssue]
        problem = f"needs torch {OLDEST[0]}.{OLDEST[1]}, this is {torch.__version__}"
    if problem:
        raise SharedError(f"train.layout shard: {problem}; leave it out")
    mesh = _mesh(device)
    size, scalars = mesh.size(mesh.ndim - 1), {each for each in task.parameters() if each.ndim == 0}

    def placement(parameter: nn.Parameter) -> Shard:
        """Return the first axis that divides evenly: any other is padded."""
        return Shard(
            next((axis for axis, length in enumerate(parameter.shape) if length % size == 0), 0)
        )

    for unit in (*blocks, task):
        fully_shard(
            unit,
            mesh=mesh,
            reshard_after_forward=False,
            shard_placement_fn=placement,
            ignored_params=scalars,
        )
    root = cast(FSDPModule, task)
    root.set_reshard_after_backward(
        False
    )  # a step makes several passes: weights stay whole until `clip_gradients`
    root._get_fsdp_state()._lazy_init()  # else the first block that runs outside `forward` becomes the root
    if hasattr(task, "before_step"):
        register_fsdp_forward_method(task, "before_step")
    return task


def is_sharded(model: object) -> bool:
    """Return whether this is a task in shards."""
    return isinstance(model, FSDPModule)


def _mesh(device: torch.device) -> DeviceMesh:
    """Return processes by machine, or in one row if these do not divide evenly."""
    world = dist.get_world_size()
    local: list[Any] = [None] * world
    dist.all_gather_object(local, process_place().local_world_size)
    is_even = len({*local}) == 1 and 1 < local[0] < world and world % local[0] == 0
    if is_even:
        return init_device_mesh(
            device.type, (world // local[0], local[0]), mesh_dim_names=("machine", "shard")
        )
    return init_device_mesh(device.type, (world,), mesh_dim_names=("shard",))


def _group(sharded: DTensor) -> dist.ProcessGroup:
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
    for unit in _units(task):
        unit.unshard()
    try:
        yield
    finally:
        for unit in _units(task):
            unit.reshard()


def _units(task: nn.Module) -> list[FSDPModule]:
    return [module for module in task.modules() if isinstance(module, FSDPModule)]


def local(x: Tensor) -> Tensor:
    """Return this process's shard, which shares memory; a whole tensor as it is."""
    return x.to_local() if isinstance(x, DTensor) else x


def like(whole: Tensor, other: Tensor) -> Tensor:
    """Return a tensor in the shards of another of its shape."""
    if not isinstance(other, DTensor) or isinstance(whole, DTensor):
        return whole
    return distribute_tensor(
        whole.to(other.device), other.device_mesh, other.placements, src_data_rank=None
    )


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return whole tensors on the main process, and none on the others.

    Every process must call this.
    """
    found = {}
    for name, tensor in tensors.items():  # one at a time: the model may not fit
        whole = tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor
        if is_main():
            found[name] = whole
    return found


@torch.no_grad()
def clip_gradients(task: nn.Module, max_norm: float) -> Tensor:
    """Scale a step's gradients to a norm of at most `max_norm`.

    Returns the norm before. Afterwards this process holds its shards only.
    """
    if not is_sharded(task):
        return nn.utils.clip_grad_norm_(task.parameters(), max_norm)
    for unit in _units(task):
        unit.reshard()
    gradients = [parameter.grad for parameter in task.parameters() if parameter.grad is not None]
    shards = [each for each in gradients if isinstance(each, DTensor)]
    scalars = [each for each in gradients if not isinstance(each, DTensor)]
    if scalars:  # FSDP leaves them alone
        means = torch.stack(scalars)
        dist.all_reduce(means)
        for each, mean in zip(scalars, means / dist.get_world_size(), strict=True):
            each.copy_(mean)
    norms = scalars
    if shards:
        square = nn.utils.get_total_norm([each.to_local() for each in shards]).double().square()
        dist.all_reduce(square, group=_group(shards[0]))
        norms = [square.sqrt().float(), *scalars]
    norm = nn.utils.get_total_norm(norms)
    scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_([*map(local, gradients)], scale)  # pyright: ignore[reportPrivateImportUsage]
    return norm


@torch.no_grad()
def on_matrices(
    compute: Callable[[Tensor], Tensor],
    parameters: Sequence[Tensor],
    values: Tensor,
    shape: tuple[int, int],
) -> Sequence[Tensor]:
    """Return `compute` of the matrices (M, O, I) of each parameter, flat.

    values: flat, the matrices of each parameter; with shards, this process's part. A process computes shards of complete
    matrices itself. Each other parameter is computed by one process: one exchange hands out the shards, another hands back the
    results.
    """
    pieces = values.split([local(parameter).numel() for parameter in parameters])
    if not isinstance(parameters[0], DTensor):
        return compute(values.view(-1, *shape)).flatten().split([*map(len, pieces)])
    group, found, alone, exchanged = _group(parameters[0]), {}, list[int](), list[int]()
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    axes = [cast(Shard, cast(DTensor, parameter).placements[-1]).dim for parameter in parameters]
    for number, (parameter, axis) in enumerate(
        zip(cast(Sequence[DTensor], parameters), axes, strict=True)
    ):
        own, is_even = local(parameter), parameter.shape[axis] % size == 0
        if is_even and own.shape[-1] == shape[1] and own.shape[-2] % shape[0] == 0:
            alone.append(number)
        elif not is_even:  # no axis divides evenly: every process computes the whole
            form: dict[str, Any] = {
                "shape": parameter.shape,
                "stride": parameter.stride(),
                "run_check": False,
            }
            piece = pieces[number].view_as(own)
            whole = DTensor.from_local(
                piece, parameter.device_mesh, parameter.placements, **form
            ).full_tensor()
            found[number] = local(
                like(compute(whole.view(-1, *shape)).reshape(whole.shape), parameter)
            ).flatten()
        else:
            exchanged.append(number)
    if alone:
        made = compute(torch.cat([pieces[number] for number in alone]).view(-1, *shape)).flatten()
        found |= dict(
            zip(alone, made.split([len(pieces[number]) for number in alone]), strict=True)
        )
    turns = [
        exchanged[turn::size] for turn in range(size)
    ]  # the parameters that each process computes
    order = [number for turn in turns for number in turn]
    sizes = [sum(len(pieces[number]) for number in turn) for turn in turns]
    mine, same = turns[rank], [sizes[rank]] * size  # all pieces of a parameter have one size
    if order:
        got = _exchange(torch.cat([pieces[number] for number in order]), sizes, same, group).view(
            size, -1
        )
        parts = got.split([len(pieces[number]) for number in mine], dim=1)
        wholes = [
            torch.cat([*part.reshape(size, *local(parameters[number]).shape)], axes[number])
            for part, number in zip(parts, mine, strict=True)
        ]
        if wholes:
            made = compute(torch.cat([whole.view(-1, *shape) for whole in wholes])).flatten()
            made = made.split([whole.numel() for whole in wholes])
            cuts = [
                torch.stack(result.view_as(whole).chunk(size, axes[number])).flatten(1)
                for result, whole, number in zip(made, wholes, mine, strict=True)
            ]
            got = torch.cat(cuts, dim=1)
        back = _exchange(got.flatten(), same, sizes, group).split(
            [len(pieces[number]) for number in order]
        )
        found |= dict(zip(order, back, strict=True))
    return [found[number] for number in range(len(parameters))]


def _exchange(x: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    """Send parts of x to the processes of a group; return the parts from all."""
    found = x.new_empty(sum(received))
    dist.all_to_all_single(found, x, received, sent, group=group)
    return found
