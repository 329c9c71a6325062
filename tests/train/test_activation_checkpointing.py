"""Blocks with activation checkpointing or compilation train as plain ones do."""

import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eve_vl.config import Config, TrainConfig
from eve_vl.train.block_wrapping import wrap_blocks
from eve_vl.utils.errors import UserError
from helpers.tiny_config import tiny_config
from helpers.tiny_tasks import build, config_of, rows_of, train_set

NOISE = {"dropout": 0.2, "drop_path": 0.5}
CHECKPOINTED = TrainConfig(checkpoint_activations=True)
CASES = {
    "nlvr2": config_of("nlvr2_compare", model=NOISE),
    "official": config_of("nlvr2_compare", model=NOISE | {"routing": "reference"}),
    "masked signal": tiny_config(model=NOISE),
}


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

    batch = rows_of(train_set(config, 8), 8)
    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(note_storage, lambda x: x):
        output = task(batch)
    after = torch.rand(1)
    output.loss.backward()
    gradients = {}
    for name, parameter in task.named_parameters():
        if parameter.grad is not None:
            gradients[name] = parameter.grad
    terms = {
        "loss": output.loss.detach(),
        "after": after,
        **output.terms,
    }
    return StepResult(terms, gradients, sum(bytes_by_storage.values()))


@pytest.mark.parametrize("case", CASES)
def test_recomputed_activations_give_the_same_bits_in_less_memory(case):
    plain = step(CASES[case], TrainConfig())
    checkpointed = step(CASES[case], CHECKPOINTED)
    assert "balance" in plain.terms
    torch.testing.assert_close(checkpointed.terms, plain.terms, rtol=0, atol=0)
    torch.testing.assert_close(checkpointed.gradients, plain.gradients, rtol=0, atol=0)
    assert checkpointed.saved_bytes < plain.saved_bytes / 2


@pytest.mark.filterwarnings("ignore")  # of torch about its own tracing
def test_compiled_blocks_give_the_same_gradients(monkeypatch):
    """The traced code runs as it is, because making C++ of it takes a minute. Experts are not
    traced."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setenv("CXX", sys.executable)  # any program
    config = config_of("nlvr2_compare", model={"depth": 1, "num_deep_blocks": 1})
    plain = step(config, TrainConfig())
    compiled = step(config, TrainConfig(compile=True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch.testing.assert_close(compiled.terms, plain.terms, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(compiled.gradients, plain.gradients, rtol=1e-4, atol=1e-5)


def test_wrapping_does_not_change_evaluation():
    task: Any = build(config_of("nlvr2_compare"))
    batch = rows_of(train_set(task.config, 8), 8)
    with torch.no_grad():
        before = task.predict(batch)[0]
        wrap_blocks(task, CHECKPOINTED)
        assert torch.equal(task.predict(batch)[0], before)


def test_model_without_blocks_is_refused():
    with pytest.raises(UserError, match="this model has none"):
        wrap_blocks(nn.Linear(2, 2), CHECKPOINTED)


def test_compiling_needs_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="there is no no-such-compiler"):
        wrap_blocks(build(config_of("nlvr2_compare")), TrainConfig(compile=True))
