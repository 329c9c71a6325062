"""A world of many processes of which one is here, on tensors without values: their shapes, and what
the process sends."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from eve_vl.config import Config
from eve_vl.model import experts
from eve_vl.run.example_batch import example_batch
from eve_vl.run.loading import build_untrained
from eve_vl.tasks.task import Sizes
from eve_vl.train import data_parallel, gradient_clipping, shard
from eve_vl.train.optimizer import build_optimizer
from eve_vl.utils.launcher import ProcessPlace


@contextlib.contextmanager
def world(rank: int, size: int, per_machine: int) -> Iterator[None]:
    """Be one process of a world."""

    def gather_equal(objects: list[Any], value: object) -> None:
        objects[:] = [value] * size

    def unique_mesh(
        device: str, shape: tuple[int, ...], mesh_dim_names: tuple[str, ...]
    ) -> DeviceMesh:
        """Return a mesh that equals no other rank's: torch caches results for equal ones."""
        names = tuple(f"{name}_{rank}" for name in mesh_dim_names)
        return init_device_mesh(device, shape, mesh_dim_names=names)

    place = ProcessPlace(
        rank=rank, world_size=size, local_rank=rank % per_machine, local_world_size=per_machine
    )
    dist.init_process_group(
        "fake",
        store=FakeStore(),
        rank=rank,
        world_size=size,
    )
    try:
        with (
            mock.patch.object(shard, "process_place", lambda: place),
            mock.patch.object(dist, "all_gather_object", gather_equal),
            mock.patch.object(shard, "init_device_mesh", unique_mesh),
        ):
            yield
    finally:
        dist.destroy_process_group()


@dataclass(frozen=True)
class Exchange:
    """A collective operation, and the bytes of its tensors."""

    name: str
    size: int


class Exchanges(TorchDispatchMode):
    """Collects the collective operations."""

    def __init__(self):
        super().__init__()
        self.all: list[Exchange] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        if "c10d" in func.namespace:
            leaves = pytree.tree_leaves(args)
            size = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))
            self.all.append(Exchange(func._opname, size))
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def sharded(config: Config) -> Iterator[Any]:
    """Give a task in shards, without values. No row knows its expert."""
    device = torch.device("cpu")
    with torch.device("meta"):
        task = build_untrained(config, Sizes(vocab_size=config.tokenizer.vocab_size)).train()
    mesh = shard._mesh(device)  # made of values

    def first_expert(x: Tensor, weight: Tensor, _: Any) -> Tensor:
        return x @ weight[0].t()

    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        mock.patch.object(shard, "_mesh", lambda _: mesh),
        mock.patch.object(experts, "grouped_linear", first_expert),
    ):
        task.to_empty(device=device)
        data_parallel.parallelize(task, device, "shard")
        yield task


def exchanges_of_a_step(task: Any) -> list[Exchange]:
    """Return the collective operations of a training step."""
    optimizer = build_optimizer(task.named_parameters(), task.config.train)
    with Exchanges() as exchanges:
        (batch,) = task.before_step([example_batch(task)])
        task(batch).loss.backward()
        gradient_clipping.clip_gradients(task, 1.0)
        optimizer.step()
    return exchanges.all
