"""Blocks with activation checkpointing or compilation train as plain ones do."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eve_vl.config import Config, TrainConfig
from eve_vl.tasks.task import task_class
from eve_vl.train.block_wrapping import wrap_blocks
from eve_vl.utils.errors import UserError
from helpers.tiny_tasks import TOKENIZER, build, config_of, rows_of, train_set
from helpers.twins import pairs, tiny_config

NOISE = {"dropout": 0.2, "drop_path": 0.5}
CHECKPOINTED = TrainConfig(checkpoint_activations=True)
CASES: dict[str, Callable[[], Config]] = {
    "nlvr2": lambda: config_of("nlvr2_compare", model=NOISE),
    "official": lambda: config_of("nlvr2_compare", model=NOISE | {"routing": "reference"}),
    "masked signal": lambda: tiny_config(model=NOISE),
}


def rows(config: Config) -> Any:
    if config.task.name == "nlvr2":
        return rows_of(train_set(config, 8), 8)
    return rows_of(
        task_class(type(config.task)).dataset([pairs(8)], config, TOKENIZER, training=True), 8
    )


@dataclass
class StepResult:
    """Terms, gradients and bytes saved for the backward pass of one step."""

    terms: dict[str, Tensor]
    gradients: dict[str, Tensor]
    saved_bytes: int


def step(config: Config, train: TrainConfig) -> StepResult:
    torch.manual_seed(2)  # with official routing, `build` draws
    task = build(config).train()
    wrap_blocks(task, train)
    bytes_by_storage: dict[int, int] = {}

    def note_storage(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        bytes_by_storage[storage.data_ptr()] = storage.nbytes()
        return x

    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(note_storage, lambda x: x):
        output = task(rows(config))
    after = torch.rand(1)
    output.loss.backward()
    gradients = {
        name: value.grad for name, value in task.named_parameters() if value.grad is not None
    }
    terms = {"loss": output.loss.detach(), "after": after, **output.terms}
    return StepResult(terms, gradients, sum(bytes_by_storage.values()))


@pytest.mark.parametrize("case", CASES)
def test_recomputed_activations_give_the_same_bits_in_less_memory(case):
    config = CASES[case]()
    plain = step(config, TrainConfig())
    checkpointed = step(config, CHECKPOINTED)
    assert "balance" in plain.terms
    assert_equal(checkpointed.terms, plain.terms)
    assert_equal(checkpointed.gradients, plain.gradients)
    assert checkpointed.saved_bytes < plain.saved_bytes / 2


def assert_equal(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(tensors[name], value), name


@pytest.mark.filterwarnings("ignore")  # of torch about its own tracing
def test_compiled_blocks_give_the_same_gradients(monkeypatch):
    """What is traced is run as it is: making C++ of it takes a minute. Experts are left out of what
    is traced."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setenv("CXX", sys.executable)  # any program
    config = config_of("nlvr2_compare", model={"depth": 1, "num_deep_blocks": 1})
    plain = step(config, TrainConfig())
    compiled = step(config, TrainConfig(compile=True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch.testing.assert_close(compiled.terms, plain.terms, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(compiled.gradients, plain.gradients, rtol=1e-4, atol=1e-5)


def numbers(task: Any, batch: Any) -> Tensor:
    return task.predict(batch)[0]


def test_wrapping_does_not_change_evaluation():
    task = build(config_of("nlvr2_compare"))
    batch = rows(task.config)
    with torch.no_grad():
        before = numbers(task, batch)
        wrap_blocks(task, CHECKPOINTED)
        assert torch.equal(numbers(task, batch), before)


def test_model_without_blocks_is_refused():
    with pytest.raises(UserError, match="this model has none"):
        wrap_blocks(nn.Linear(2, 2), CHECKPOINTED)


def test_compiling_needs_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="there is no no-such-compiler"):
        wrap_blocks(build(config_of("nlvr2_compare")), TrainConfig(compile=True))
