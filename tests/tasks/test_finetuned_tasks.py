"""What holds for every fine-tuning task: sums of losses, learning, evaluation of any batches."""

from dataclasses import replace
from typing import Any

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


@pytest.mark.parametrize(
    ("name", "weights"),
    [("vqa", {"vqa": 1.0}), ("retrieval", {"itc": 0.5, "itm": 3.0}), ("retrieval", {"itc": 0.5})],
)
def test_a_step_adds_losses_by_their_weights(name, weights):
    """A loss without a weight counts as it is; the routers' loss by the model's weight."""
    task = build(config_of(name, model={"balance_weight": 0.25}))
    if name == "retrieval":
        task = with_settings(task, replace(task.settings, itc_weight=0.5, itm_weight=3.0))
    losses = {loss: torch.tensor(2.0 + number) for number, loss in enumerate(weights)}
    expected = sum(weights[loss] * value.item() for loss, value in losses.items())
    assert task.output(losses, []).loss.item() == pytest.approx(expected)
    routers = task.routers(rows_of(train_set(task.config, COUNT), COUNT))
    output = task.output(losses, routers, acc=torch.tensor(0.5))
    balance = output.terms["balance"].item()
    assert output.loss.item() == pytest.approx(expected + 0.25 * balance)
    assert {"acc", *losses, "balance", "max_load/0", "entropy/1"} <= set(output.terms)


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
    dataset = eval_set(task.config)
    numbers = numbers_of(task, dataset, 7)
    assert numbers_of(task, dataset, 1) == pytest.approx(numbers, rel=1e-6)
    batches = shuffled(dataset, 5, seed=0)
    again: dict[str, float] = evaluator_of(task).evaluate_with_rows(batches).numbers
    assert again == pytest.approx(numbers, rel=1e-6)
    assert not any(parameter.grad is not None for parameter in task.parameters())


@pytest.mark.parametrize(
    ("name", "count", "without"),
    [("vqa", "num_questions", "num_unanswered"), ("nlvr2", "num_pairs", "num_unlabelled")],
)
def test_every_row_counts_once(name, count, without):
    task = build(config_of(name))
    numbers = numbers_of(task, eval_set(task.config, 23), 7)
    assert numbers[count] == 23
    assert numbers[without] == 3
    nine_rows = config_of(name, data={"val_samples": 9})
    assert numbers_of(task, eval_set(nine_rows, 23), 7)[count] == 9


@pytest.mark.parametrize("name", ["vqa", "nlvr2", "nlvr2_paired", "nlvr2_compare"])
@torch.no_grad()
def test_other_rows_of_a_batch_do_not_matter(name):
    task: Any = build(config_of(name))
    dataset = eval_set(task.config, 8)
    samples = [dataset[(0, 0, row)] for row in range(8)]
    alone = torch.cat([task.predict(dataset.collate([sample]))[0] for sample in samples])
    for order in ([5, 1, 7, 0], [3, 3, 3, 4]):
        together = task.predict(dataset.collate([samples[row] for row in order]))[0]
        torch.testing.assert_close(together, alone[order], rtol=1e-4, atol=1e-4)


def test_a_task_with_other_settings_shares_the_weights():
    task = build(config_of("retrieval"))
    twin = with_settings(task, replace(task.settings, rerank=2))
    assert task.settings.rerank == 4
    assert twin.settings.rerank == 2
    for name, parameter in task.named_parameters():
        assert twin.get_parameter(name) is parameter
