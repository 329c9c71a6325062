"""The process group of a run, and values exchanged within it.

Without torchrun, torch.distributed is never touched.
"""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from torch import Tensor

from eve_vl.utils.errors import SharedError, UserError
from eve_vl.utils.launcher import is_under_torchrun

T = TypeVar("T")
# NCCL's own is 10; the others wait while the first process trains a tokenizer or saves
TIMEOUT = timedelta(minutes=30)


class _Sum(torch.autograd.Function):
    """Sum over all processes with a gradient.

    torch's own is deprecated, and its replacement has no gradient in torch 2.10; it has one in
    2.13.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return cast(Tensor, _Sum.apply(grad))


def setup(device: torch.device) -> bool:
    """Join torchrun's process group, if any; return whether this call did.

    nccl is for CUDA tensors, gloo for CPU tensors. A process that waits longer than TIMEOUT for
    another one fails.
    """
    if not is_under_torchrun() or dist.is_initialized():
        return False
    if device.type == "cuda":
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=TIMEOUT, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=TIMEOUT, device_id=None)
    return True


def shutdown() -> None:
    """Leave the group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Return this process's number, 0 without torchrun."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes, 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_processes(x: Tensor) -> Tensor:
    """Return x summed over all processes.

    Gradients flow from all results to every process's x.
    """
    return cast(Tensor, _Sum.apply(x)) if dist.is_initialized() else x


def gather_rows(x: Tensor) -> Tensor:
    """Return the rows of all processes, in order of rank.

    Gradients flow to every process's rows. All processes must have the same number of rows.
    """
    if not dist.is_initialized():
        return x.view_as(x)  # a node of its own sums gradients in the same order as with processes
    # one function, its name in newer and in older torch
    gather = getattr(collectives, "all_gather_single_autograd", None)
    if gather is None:
        gather = collectives.all_gather_tensor_autograd
    return gather(x.contiguous(), 0, cast(dist.ProcessGroup, dist.group.WORLD))


def fetch_rows(rows: Tensor, wanted_B: Tensor) -> Tensor:
    """Return the wanted rows, numbered as `gather_rows` orders them.

    Only these travel. No gradient flows. All processes must have the same number of rows.
    """
    num_processes = world_size()
    if num_processes == 1:
        return rows[wanted_B]
    owner_B = wanted_B // len(rows)
    order_B = owner_B.argsort(stable=True)
    num_wanted = torch.bincount(owner_B, minlength=num_processes)
    single = [1] * num_processes
    num_asked = exchange(num_wanted, single, single)
    sent, received = torch.stack([num_wanted, num_asked]).tolist()
    asked_rows = exchange(wanted_B[order_B] % len(rows), sent, received)
    fetched = exchange(rows[asked_rows], received, sent)
    return fetched[order_B.argsort()]


def exchange(
    x: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup | None = None
) -> Tensor:
    """Send parts of x to the processes of a group; return the parts from all.

    sent, received: number of rows to and from each process, in order of rank. group: all processes
    by default.
    """
    parts = x.new_empty(sum(received), *x.shape[1:])
    dist.all_to_all_single(parts, x, received, sent, group=group)
    return parts


def any_process_of_each(flags: Sequence[bool]) -> list[bool]:
    """Return for each flag whether it is set in any process, in one exchange without a GPU sync."""
    if not dist.is_initialized():
        return list(flags)
    num_set = sum_over_processes(torch.tensor([float(flag) for flag in flags]))
    return [number > 0 for number in num_set.tolist()]


def gather_objects(value: object) -> list:
    """Return every process's value, in order of rank, on every process."""
    if not dist.is_initialized():
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def from_main(make: Callable[[], T]) -> T:
    """Return what the main process makes, on every process.

    A UserError of it is raised in all.
    """
    if world_size() == 1:
        return make()
    value = problem = None
    if rank() == 0:
        try:
            value = make()
        except UserError as error:
            problem = str(error)
    value, problem = gather_objects((value, problem))[0]
    if problem is not None:
        raise SharedError(problem)
    return value


def from_each(make: Callable[[], T]) -> list[T]:
    """Return what every process makes, in order of rank, on every process.

    A UserError of one is raised in all.
    """
    if world_size() == 1:
        return [make()]
    value = problem = None
    try:
        value = make()
    except UserError as error:
        problem = str(error)
    values = []
    for value_of_one, problem_of_one in gather_objects((value, problem)):
        if problem_of_one is not None:
            raise SharedError(problem_of_one)
        values.append(value_of_one)
    return values


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()
