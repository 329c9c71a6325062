"""One process of 512: shards are not padded, and all ranks make the same exchanges, those of the
formula."""

from dataclasses import replace

import pytest
import torch
from torch.distributed.tensor import DTensor, Shard

from eve_vl.recipes import get_recipe
from eve_vl.run.step_memory import Layout, step_memory, step_traffic
from eve_vl.train import shard, sharded_matrices
from eve_vl.train.muon import orthogonalize
from eve_vl.train.shard import local_shard
from helpers.fake_world import Sent, sent_in_a_step, sharded, world

SIZE = 512


@pytest.mark.parametrize("per_machine", [8, SIZE])
def test_no_process_has_more_than_its_share(per_machine: int):
    """Shards of 32 experts over 512 processes would be padded to 512 experts."""
    config = get_recipe("base")
    config = replace(config, model=replace(config.model, depth=3))
    with world(0, SIZE, per_machine), sharded(config) as task:
        total = sum(each.numel() for each in task.parameters())
        own = sum(local_shard(each).numel() for each in task.parameters())
        planned = step_memory(
            config, task, Layout(gpus=per_machine, machines=SIZE // per_machine, shards=True), 0
        )
        assert total / per_machine <= own <= 1.15 * total / per_machine
        assert planned["optimizer"] == pytest.approx(8 * own, rel=0.15)


def test_all_ranks_make_the_same_exchanges():
    config = get_recipe("demo")  # with block_muon
    model, train = (
        replace(config.model, num_experts=32, depth=3),
        replace(config.train, batch_size=4, dtype="float32"),
    )
    config, sent = replace(config, model=model, train=train), []
    for rank in (0, 1, SIZE - 1):
        with world(rank, SIZE, 8), sharded(config) as task:
            sent.append(sent_in_a_step(task))
            planned = step_traffic(config, task, Layout(gpus=8, machines=SIZE // 8, shards=True))
    first, *others = sent
    for other in others:
        # which matrices a process makes orthogonal, and thus their number, differs
        assert [(name, size * (name != "alltoall_base_")) for name, size in first] == [
            (name, size * (name != "alltoall_base_")) for name, size in other
        ]
    # their tensors are whole ones and shards of an eighth
    moved = sum(
        size for name, size in first if name in ("_allgather_base_", "_reduce_scatter_base_")
    ) / (1 + 1 / 8)
    assert moved * 7 / 8 == pytest.approx(planned["process"] - planned["machine"] / 8, rel=0.01)
    assert {"allreduce_", "alltoall_base_"} < {name for name, _ in first}


def test_tall_matrices_that_no_axis_divides():
    """The fake world exchanges no values, so this compares sizes only."""
    with world(0, 8, 8):
        mesh, whole = shard._mesh(torch.device("cpu")), torch.randn(90, 6)
        own = whole.chunk(8)[0].contiguous()
        form = {"shape": whole.shape, "stride": whole.stride(), "run_check": False}
        weight = DTensor.from_local(own, mesh, [Shard(0)] * mesh.ndim, **form)
        (update,) = sharded_matrices.compute_on_matrices(
            orthogonalize, [weight], own.flatten(), (30, 6)
        )
    assert len(update) == own.numel()


@pytest.mark.parametrize(
    ("shape", "axis", "is_sent"),
    [((1024, 8), 0, False), ((576, 8), 0, True), ((8, 64, 8), 0, False), ((3, 1024, 8), 1, False)],
)
def test_shards_of_complete_blocks_are_not_exchanged(
    shape: tuple[int, ...], axis: int, is_sent: bool
):
    with world(0, 8, 8), Sent() as sent:
        mesh = shard._mesh(torch.device("cpu"))
        own = torch.ones(shape).chunk(8, axis)[0].contiguous()
        weight = DTensor.from_local(own, mesh, [Shard(axis)] * mesh.ndim, run_check=False)
        sent.found.clear()
        (update,) = sharded_matrices.compute_on_matrices(
            orthogonalize, [weight], own.flatten(), (64, 8)
        )
    assert len(update) == own.numel()
    assert {name for name, _ in sent.found} == ({"alltoall_base_"} if is_sent else set())
