"""Process groups and DistributedDataParallel, in one process."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from eve_vl.systems.mlim.pair.config import PairConfig
from eve_vl.tasks.masked_signal.config import MaskedSignalConfig
from eve_vl.tasks.masked_signal.dataset import MaskedPairs
from eve_vl.tasks.task import task_class
from eve_vl.train import processes
from eve_vl.train.data_parallel import without_gradient_averaging
from eve_vl.utils.console import is_main
from helpers.mlim import item_pairs
from helpers.tiny_tasks import SECTIONS, TOKENIZER, build, config_of, train_set
from helpers.twins import pairs, tiny_config

NUM_ROWS = 8


@pytest.fixture
def group_of_one() -> Iterator[None]:
    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("name", "device_id", "backend"),
    [("cpu", None, "gloo"), ("cuda:1", torch.device("cuda:1"), "cpu:gloo,cuda:nccl")],
)
def test_group_has_a_time_limit_and_the_gpu_of_its_process(name, device_id, backend, monkeypatch):
    calls = []

    def note_call(*args: object, **options: object) -> None:
        calls.append((args, options))

    monkeypatch.setattr(dist, "init_process_group", note_call)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    processes.setup(torch.device(name))
    assert calls == [((backend,), {"timeout": timedelta(minutes=30), "device_id": device_id})]


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
@pytest.mark.parametrize("name", ["words", "pixels", "pair", *SECTIONS])
def test_parameters_without_a_gradient_are_announced(name, policy):
    """DistributedDataParallel waits for them otherwise, and fails at the second step."""
    model = {"deep_ffn": policy, "balance_weight": 0.0}
    if name in SECTIONS:
        config = config_of(name, model=model)
        dataset = train_set(config, NUM_ROWS)
    elif name == "pair":
        config = tiny_config(task=PairConfig(modality_dropout=False), model=model)
        sources = [item_pairs(NUM_ROWS)]
        dataset = task_class(PairConfig).dataset(sources, config, TOKENIZER, training=True)
    else:
        section = MaskedSignalConfig(decoder_depth=1)
        if name == "pixels":
            section = replace(section, mim_weight=1.0, mlm_weight=0.0)
        else:
            section = replace(section, mim_weight=0.0, mlm_weight=1.0)
        config = tiny_config(task=section, model=model)
        dataset = MaskedPairs([pairs(NUM_ROWS)], config, TOKENIZER, training=True)
    task = build(config).train()
    batch = dataset.collate([dataset[0, 0, row] for row in range(NUM_ROWS)])
    task(batch).loss.backward()
    unused = [name for name, parameter in task.named_parameters() if parameter.grad is None]
    assert task.find_unused_parameters or not unused
