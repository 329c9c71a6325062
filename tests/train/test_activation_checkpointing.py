"""Blocks with activation checkpointing or compilation train as plain ones do."""

import sys
from collections.abc import Callable
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
FORGETFUL = TrainConfig(checkpoint_activations=True)
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


def step(config: Config, train: TrainConfig) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Terms, gradients and bytes kept for the backward pass of one step."""
    torch.manual_seed(2)  # with official routing, `build` draws
    task = build(config).train()
    wrap_blocks(task, train)
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        output = task(rows(config))
    after = torch.rand(1)
    output.loss.backward()
    gradients = {
        name: value.grad for name, value in task.named_parameters() if value.grad is not None
    }
    return (
        {"loss": output.loss.detach(), "after": after, **output.terms},
        gradients,
        sum(kept.values()),
    )


@pytest.mark.parametrize("case", CASES)
def test_what_is_computed_anew_is_the_same_to_the_bit(case):
    config = CASES[case]()
    (terms, gradients, kept), (other_terms, other_gradients, other_kept) = (
        step(config, each) for each in (TrainConfig(), FORGETFUL)
    )
    assert "balance" in terms
    assert terms.keys() == other_terms.keys()
    assert gradients.keys() == other_gradients.keys()
    for name, value in (terms | gradients).items():
        assert torch.equal(value, (other_terms | other_gradients)[name]), name
    assert other_kept < kept / 2


@pytest.mark.filterwarnings("ignore")  # of torch about its own tracing
def test_compiled_blocks_train_alike(monkeypatch):
    """What is traced is run as it is: making C++ of it takes a minute. Experts are left out of what is traced."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setenv("CXX", sys.executable)  # any program
    config = config_of("nlvr2_compare", model={"depth": 1, "num_deep_blocks": 1})
    (terms, gradients, _), (other_terms, other_gradients, _) = (
        step(config, TrainConfig(compile=on)) for on in (False, True)
    )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch.testing.assert_close(other_terms, terms, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(other_gradients, gradients, rtol=1e-4, atol=1e-5)


def numbers(task: Any, batch: Any) -> Tensor:
    return task.predict(batch)[0]


def test_evaluation_stays_as_it_is():
    task = build(config_of("nlvr2_compare"))
    batch = rows(task.config)
    with torch.no_grad():
        before = numbers(task, batch)
        wrap_blocks(task, FORGETFUL)
        assert torch.equal(numbers(task, batch), before)


def test_a_model_without_blocks_is_refused():
    with pytest.raises(UserError, match="this model has none"):
        wrap_blocks(nn.Linear(2, 2), FORGETFUL)


def test_compiling_needs_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="there is no no-such-compiler"):
        wrap_blocks(build(config_of("nlvr2_compare")), TrainConfig(compile=True))
