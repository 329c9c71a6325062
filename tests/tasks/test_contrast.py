"""Contrast over all micro-batches of a step: each pair keeps all its negatives."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from eve_vl.config import EveModelConfig
from eve_vl.tasks.contrast.contrast import replayed
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.train.random_state import get_rng_state
from helpers import tiny_tasks as tiny

ROWS = 12
SECTIONS = {
    "retrieval": tiny.SECTIONS["retrieval_itc"],
    "contrast_match": ContrastMatchConfig(mlm_weight=0.0, itm_weight=0.0, projection_dim=8),
}


def gradients(
    name: str, num_micro_batches: int, *, dropout: float = 0.0
) -> tuple[dict[str, Tensor], float]:
    """Of one step over the same rows, without the balance loss, which is of a micro-batch."""
    config = tiny.config_of("retrieval_itc")
    config = replace(
        config,
        task=SECTIONS[name],
        model=replace(config.model, balance_weight=0.0, dropout=dropout),
    )
    assert isinstance(config.model, EveModelConfig)
    task = tiny.build(config).train()
    source = tiny.SOURCES["retrieval"](ROWS)
    dataset = type(task).dataset([source], config, tiny.TOKENIZER, training=True)
    samples = [dataset[(0, 0, row)] for row in range(ROWS)]
    size = ROWS // num_micro_batches
    micro_batches = [
        dataset.collate(samples[start : start + size]) for start in range(0, ROWS, size)
    ]
    torch.manual_seed(0)
    loss = 0.0
    for batch in task.before_step(micro_batches):
        output = task(batch)
        (output.loss / num_micro_batches).backward()
        loss += output.terms["itc"].item() / num_micro_batches
    return {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}, loss


@pytest.mark.parametrize("name", SECTIONS)
@pytest.mark.parametrize("num_micro_batches", [2, 4])
def test_the_step_is_that_of_the_whole_batch(name, num_micro_batches):
    whole, loss = gradients(name, 1)
    parts, same_loss = gradients(name, num_micro_batches)
    assert same_loss == pytest.approx(loss, rel=1e-5)
    assert whole.keys() == parts.keys()
    for parameter, gradient in whole.items():
        tolerance = 1e-5 * gradient.abs().max().item()
        torch.testing.assert_close(
            parts[parameter], gradient, rtol=1e-4, atol=tolerance, msg=parameter
        )


def test_with_dropout_the_second_look_is_the_first(monkeypatch):
    """The gradient is by the features of the first pass, so it is right only if the second has the
    same."""
    config = tiny.config_of("retrieval_itc")
    config = replace(config, model=replace(config.model, dropout=0.3, drop_path=0.3))
    task: Any = tiny.build(config).train()
    dataset = tiny.train_set(config, ROWS)
    batches = [
        dataset.collate([dataset[(0, 0, row)] for row in range(start, start + 4)])
        for start in (0, 4, 8)
    ]
    seen: list[tuple[Tensor, Tensor]] = []
    features = task.contrast.unimodal

    def watch(*args):
        result = features(*args)
        seen.append((result.image_BXd.detach(), result.text_BXd.detach()))
        return result

    monkeypatch.setattr(task.contrast, "unimodal", watch)
    for batch in task.before_step(batches):
        task(batch)
    assert len(seen) == 6
    for first, second in zip(seen[:3], seen[3:], strict=True):
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])
    assert not torch.equal(
        seen[0][0], features(task.encoder, batches[0]).image_BXd
    )  # for dropout does something here


def test_each_micro_batch_updates_running_averages_once():
    """The first pass of GradCache computes features that `forward` computes once more."""
    config = tiny.config_of("retrieval_itc")
    config = replace(config, model=replace(config.model, stem="conv"))
    task, twin = (tiny.build(config).train() for _ in range(2))
    dataset = tiny.train_set(config, ROWS)
    batches = [
        dataset.collate([dataset[(0, 0, row)] for row in range(start, start + 4)])
        for start in (0, 4, 8)
    ]
    for batch in task.before_step(batches):
        task(batch)
    for batch in batches:
        twin(batch)  # accumulation 1: no first pass
    averages = {name: value for name, value in task.named_buffers() if "running" in name}
    assert any(
        not torch.equal(value, tiny.build(config).get_buffer(name))
        for name, value in averages.items()
    )
    for name, value in averages.items():
        assert torch.equal(value, twin.get_buffer(name)), name


def test_after_a_replay_random_numbers_go_on_as_if_there_had_been_none():
    torch.manual_seed(3)
    state = get_rng_state()
    first, second = torch.rand(2), torch.rand(2)
    torch.manual_seed(3)
    torch.rand(2)
    with replayed(state):
        assert torch.equal(torch.rand(2), first)
    assert torch.equal(torch.rand(2), second)
