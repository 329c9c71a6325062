"""Process groups and DistributedDataParallel, in one process."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from eve_vl.config import TaskConfig
from eve_vl.systems.mlim.pair.config import PairConfig
from eve_vl.tasks.masked_signal.config import MaskedSignalConfig
from eve_vl.train import processes
from eve_vl.train.data_parallel import without_gradient_averaging
from eve_vl.utils.console import is_main
from helpers.mlim import item_pairs
from helpers.tiny_config import tiny_config
from helpers.tiny_tasks import SECTIONS, build, rows_of, train_set

NUM_ROWS = 8
TASKS: dict[str, TaskConfig] = {
    "words": MaskedSignalConfig(decoder_depth=1, mim_weight=0.0, mlm_weight=1.0),
    "pixels": MaskedSignalConfig(decoder_depth=1, mim_weight=1.0, mlm_weight=0.0),
    "pair": PairConfig(modality_dropout=False),
    **SECTIONS,
}


@pytest.fixture
def group_of_one() -> Iterator[None]:
    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group(
        "gloo",
        store=store,
        rank=0,
        world_size=1,
    )
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("name", "device_id", "backend"),
    [
        ("cpu", None, "gloo"),
        ("cuda:1", torch.device("cuda:1"), "cpu:gloo,cuda:nccl"),
    ],
)
def test_group_has_a_time_limit_and_the_gpu_of_its_process(name, device_id, backend, monkeypatch):
    calls = []

    def note_call(*args: object, **options: object) -> None:
        calls.append((args, options))

    monkeypatch.setattr(dist, "init_process_group", note_call)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    processes.setup(torch.device(name))
    assert calls == [
        (
            (backend,),
            {"timeout": timedelta(minutes=30), "device_id": device_id},
        )
    ]


@pytest.mark.parametrize("may_be_unused", [True, False])
def test_gradients_wait_for_the_last_micro_batch_unless_parameters_may_be_unused(
    group_of_one, may_be_unused
):
    """DDP averages none of a parameter that the last pass leaves out: after earlier passes,
    processes would drift apart."""
    model = DistributedDataParallel(torch.nn.Linear(2, 1), find_unused_parameters=may_be_unused)
    with without_gradient_averaging(model):
        assert model.require_backward_grad_sync == may_be_unused


def test_first_process_of_a_group_is_the_main_one(group_of_one, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    assert is_main()


@pytest.mark.parametrize("policy", ["modality", "shared", "moe"])
@pytest.mark.parametrize("name", TASKS)
def test_parameters_without_a_gradient_are_announced(name, policy):
    """DistributedDataParallel waits for them otherwise, and fails at the second step."""
    config = tiny_config(task=TASKS[name], model={"deep_ffn": policy, "balance_weight": 0.0})
    task = build(config).train()
    dataset = train_set(config, NUM_ROWS, item_pairs if name == "pair" else None)
    task(rows_of(dataset, NUM_ROWS)).loss.backward()
    unused = [name for name, parameter in task.named_parameters() if parameter.grad is None]
    assert task.find_unused_parameters or not unused
