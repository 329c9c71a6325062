"""Contrast over all micro-batches of a step: each pair keeps all its negatives."""

from typing import Any

import pytest
import torch
from torch import Tensor

from eve_vl.config import Config
from eve_vl.tasks.contrast.cached_contrast import replayed
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.train.random_state import get_rng_state
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import pairs
from helpers.tiny_tasks import SECTIONS, TOKENIZER, build, rows_of

ROWS = 12
TASKS = {
    "retrieval": SECTIONS["retrieval_itc"],
    "contrast_match": ContrastMatchConfig(mlm_weight=0.0, itm_weight=0.0, projection_dim=8),
}


def config_of(name: str = "retrieval", **model: Any) -> Config:
    return tiny_config(task=TASKS[name], model=model)


def micro_batches(task: Any, count: int) -> list[Any]:
    """Return the same rows in `count` batches."""
    dataset = type(task).dataset([pairs(ROWS)], task.config, TOKENIZER, training=True)
    parts = torch.arange(ROWS).chunk(count)
    return [rows_of(dataset, part.tolist()) for part in parts]


def loss_and_gradients(name: str, num_micro_batches: int) -> tuple[float, dict[str, Tensor]]:
    """Return those of a step without the balance loss, which is one of a micro-batch."""
    task: Any = build(config_of(name, balance_weight=0.0)).train()
    loss = 0.0
    for batch in task.before_step(micro_batches(task, num_micro_batches)):
        output = task(batch)
        (output.loss / num_micro_batches).backward()
        loss += output.terms["itc"].item() / num_micro_batches
    gradients = {}
    for parameter_name, parameter in task.named_parameters():
        if parameter.grad is not None:
            gradients[parameter_name] = parameter.grad
    return loss, gradients


@pytest.mark.parametrize(
    ("name", "num_micro_batches"),
    [
        ("retrieval", 2),
        ("retrieval", 4),
        ("contrast_match", 4),
    ],
)
def test_micro_batches_have_the_gradients_of_the_whole_batch(name, num_micro_batches):
    expected_loss, expected_gradients = loss_and_gradients(name, 1)
    loss, gradients = loss_and_gradients(name, num_micro_batches)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for parameter, expected in expected_gradients.items():
        tolerance = 1e-5 * expected.abs().max().item()
        torch.testing.assert_close(
            gradients[parameter], expected, rtol=1e-4, atol=tolerance, msg=parameter
        )


def test_the_second_pass_repeats_the_dropout_of_the_first(monkeypatch):
    """Gradients by the features of the first pass are right only if the second has the same."""
    task: Any = build(config_of(dropout=0.3, drop_path=0.3)).train()
    batches = micro_batches(task, 3)
    passes: list[Any] = []
    unimodal = task.contrast.unimodal

    def watched(*args: Any) -> Any:
        passes.append(unimodal(*args))
        return passes[-1]

    monkeypatch.setattr(task.contrast, "unimodal", watched)
    for batch in task.before_step(batches):
        task(batch)
    assert len(passes) == 6
    for first, second in zip(passes[:3], passes[3:], strict=True):
        assert torch.equal(second.image_BXd, first.image_BXd)
        assert torch.equal(second.text_BXd, first.text_BXd)
    repeated = unimodal(task.encoder, batches[0]).image_BXd
    assert not torch.equal(passes[0].image_BXd, repeated)  # dropout changes features


def test_each_micro_batch_updates_running_averages_once():
    """The first pass of GradCache computes features that `forward` computes again."""
    config = config_of(stem="conv")
    task: Any = build(config).train()
    twin: Any = build(config).train()
    batches = micro_batches(task, 3)
    for batch in task.before_step(batches):
        task(batch)
    for batch in batches:
        twin(batch)  # accumulation 1: no first pass
    initial = dict(build(config).named_buffers())
    changed = []
    for name, buffer in task.named_buffers():
        assert torch.equal(buffer, twin.get_buffer(name)), name
        if not torch.equal(buffer, initial[name]):
            changed.append(name)
    assert any("running" in name for name in changed)


def test_random_numbers_after_a_replay_are_those_without_it():
    torch.manual_seed(3)
    state = get_rng_state()
    first = torch.rand(2)
    second = torch.rand(2)
    torch.manual_seed(3)
    torch.rand(2)
    with replayed(state):
        assert torch.equal(torch.rand(2), first)
    assert torch.equal(torch.rand(2), second)
