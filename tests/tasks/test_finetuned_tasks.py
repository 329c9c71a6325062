"""What holds for every fine-tuning task: sums of losses, learning, evaluation of any batches."""

from dataclasses import replace

import pytest
import torch

from eve_vl.evaluation.evaluate import with_settings
from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.train.optimizer import build_optimizer
from helpers.tiny_tasks import (
    SECTIONS,
    build,
    config_of,
    eval_set,
    numbers_of,
    rows_of,
    shuffled,
    train_set,
)

COUNT = 6


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", ["vqa", "nlvr2", "nlvr2_paired", "nlvr2_compare"])
def test_without_experts_there_is_nothing_to_balance(name):
    task = build(config_of(name, model={"deep_ffn": "modality"}))
    output = task(rows_of(train_set(task.config, COUNT), COUNT))
    assert output.loss.item() == output.terms[task.section.name].item()
    assert "balance" not in output.terms


@pytest.mark.parametrize("name", SECTIONS)
def test_every_weight_learns_and_a_few_rows_are_learnt_by_heart(name):
    config = config_of(name, data={"flip": False, "crop_scale": (1.0, 1.0)})
    batch = rows_of(train_set(config, COUNT), COUNT)
    task = build(config)
    task(batch).loss.backward()
    for parameter_name, parameter in task.named_parameters():
        assert parameter.grad is not None, parameter_name
        if not parameter_name.startswith("paired_head.score"):  # scores may all be cut off at 0
            assert parameter.grad.any(), parameter_name

    task = build(config, noise=0).train()
    optimizer = build_optimizer(task.named_parameters(), replace(config.train, lr=2e-3))
    first_loss = task(batch).loss.item()
    last_losses = [first_loss] * 5
    for _ in range(50):
        optimizer.zero_grad()
        loss = task(batch).loss
        loss.backward()
        optimizer.step()
        last_losses = [*last_losses[1:], loss.item()]
        if sum(last_losses) / 5 < 0.4 * first_loss:
            return
    raise AssertionError(f"the loss fell from {first_loss} to {last_losses[-1]} only")


@pytest.mark.parametrize("name", SECTIONS)
def test_evaluation_depends_neither_on_batch_size_nor_on_order(name):
    task = build(config_of(name))
    dataset = eval_set(task.config, 11)
    numbers = numbers_of(task, dataset, 7)
    assert numbers_of(task, dataset, 1) == pytest.approx(numbers, rel=1e-6)
    batches = shuffled(dataset, 5, seed=0)
    again: dict[str, float] = evaluator_of(task).evaluate_with_rows(batches).numbers
    assert again == pytest.approx(numbers, rel=1e-6)
    assert not any(parameter.grad is not None for parameter in task.parameters())


def test_a_task_with_other_settings_shares_the_weights():
    task = build(config_of("retrieval"))
    twin = with_settings(task, replace(task.settings, rerank=2))
    assert task.settings.rerank == 4
    assert twin.settings.rerank == 2
    for name, parameter in task.named_parameters():
        assert twin.get_parameter(name) is parameter
