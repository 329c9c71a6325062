"""One process of 64: shards are not padded, and all ranks make the same exchanges, those of the
formula."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from eve_vl.recipes import get_recipe
from eve_vl.run.step_memory import Layout, step_memory, step_traffic
from eve_vl.train import shard, sharded_matrices
from eve_vl.train.muon import orthogonalize
from eve_vl.train.shard import local_shard
from helpers.fake_world import Exchange, Exchanges, exchanges_of_a_step, sharded, world

SIZE = 64
CPU = torch.device("cpu")


@pytest.mark.parametrize("per_machine", [8, SIZE])
def test_no_process_has_more_than_its_share(per_machine: int):
    """Shards of 32 experts over 64 processes would be padded to 64 experts."""
    config = get_recipe("base")
    config = replace(config, model=replace(config.model, depth=2, num_deep_blocks=1))
    layout = Layout(
        gpus=per_machine,
        machines=SIZE // per_machine,
        shards=True,
    )
    with world(0, SIZE, per_machine), sharded(config) as task:
        share = sum(parameter.numel() for parameter in task.parameters()) / per_machine
        num_local = sum(local_shard(parameter).numel() for parameter in task.parameters())
        planned = step_memory(config, task, layout, 0)
    assert share <= num_local <= 1.15 * share
    assert planned["optimizer"] == pytest.approx(8 * num_local, rel=0.15)


def without_matrices(exchanges: list[Exchange]) -> list[Exchange]:
    """Which matrices a process makes orthogonal, and thus their number, differs."""
    comparable = []
    for exchange in exchanges:
        size = 0 if exchange.name == "alltoall_base_" else exchange.size
        comparable.append(Exchange(exchange.name, size))
    return comparable


def test_all_ranks_make_the_same_exchanges():
    config = get_recipe("demo")  # with block_muon
    config = replace(
        config,
        model=replace(
            config.model,
            num_experts=32,
            depth=2,
            num_deep_blocks=1,
        ),
        train=replace(config.train, batch_size=4, dtype="float32"),
    )
    layout = Layout(
        gpus=8,
        machines=SIZE // 8,
        shards=True,
    )
    exchanges_by_rank = {}
    for rank in (0, SIZE - 1):
        with world(rank, SIZE, 8), sharded(config) as task:
            exchanges_by_rank[rank] = exchanges_of_a_step(task)
            planned = step_traffic(config, task, layout)
    first = exchanges_by_rank[0]
    for exchanges in exchanges_by_rank.values():
        assert without_matrices(exchanges) == without_matrices(first)

    # their tensors are whole ones and shards of an eighth
    sizes = []
    for exchange in first:
        if exchange.name in ("_allgather_base_", "_reduce_scatter_base_"):
            sizes.append(exchange.size)
    num_moved = sum(sizes) / (1 + 1 / 8) * 7 / 8
    assert num_moved == pytest.approx(planned["process"] - planned["machine"] / 8, rel=0.01)
    assert {"allreduce_", "alltoall_base_"} < {exchange.name for exchange in first}


def orthogonalized(weight: DTensor, part: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return the update of a part. The fake world exchanges no values, so only its size counts."""
    (update,) = sharded_matrices.compute_on_matrices(orthogonalize, [weight], part.flatten(), shape)
    return update


def test_tall_matrices_that_no_axis_divides():
    whole = torch.randn(90, 6)
    with world(0, 8, 8):
        mesh = shard._mesh(CPU)
        part = whole.chunk(8)[0].contiguous()
        form = {
            "shape": whole.shape,
            "stride": whole.stride(),
            "run_check": False,
        }
        weight = DTensor.from_local(part, mesh, [Shard(0)] * mesh.ndim, **form)
        assert len(orthogonalized(weight, part, (30, 6))) == part.numel()


@pytest.mark.parametrize(
    ("shape", "axis", "names"),
    [
        ((1024, 8), 0, set()),
        ((576, 8), 0, {"alltoall_base_"}),
        ((8, 64, 8), 0, set()),
        ((3, 1024, 8), 1, set()),
    ],
)
def test_shards_of_complete_blocks_are_not_exchanged(
    shape: tuple[int, ...], axis: int, names: set[str]
):
    with world(0, 8, 8), Exchanges() as exchanges:
        mesh = shard._mesh(CPU)
        part = torch.ones(shape).chunk(8, axis)[0].contiguous()
        weight = DTensor.from_local(part, mesh, [Shard(axis)] * mesh.ndim, run_check=False)
        exchanges.all.clear()
        assert len(orthogonalized(weight, part, (64, 8))) == part.numel()
    assert {exchange.name for exchange in exchanges.all} == names
