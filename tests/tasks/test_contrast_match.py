"""Pre-training by contrast, matching and masked signals: passes, losses, validation."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from eve_vl.config import Config
from eve_vl.data.masked_batches import PairBatch
from eve_vl.data.row_dataset import eval_positions
from eve_vl.model.tokens import Tokens
from eve_vl.recipes import get_recipe
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.tasks.masked_signal.dataset import MaskedPairs
from helpers.masked_pairs import masked_batch
from helpers.pretraining_losses import TASKS, TOKENIZER, build, config_of
from helpers.slow_search import LonePair, image_feature, lone_pairs, match_logits, text_feature
from helpers.tiny_rows import pairs


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def losses_of(config: Config) -> list[str]:
    """Return the names of the losses that have a weight."""
    names = ("mlm", "mim", "itc", "itm")
    return [name for name in names if getattr(config.task, f"{name}_weight", 0)]


WEIGHTS = {
    "mim": 0.3,
    "mlm": 0.7,
    "itc": 2.0,
    "itm": 1.5,
}


@pytest.mark.parametrize("name", TASKS)
def test_loss_is_the_weighted_sum_of_its_terms_and_trains_every_weight(name):
    config = config_of(name)
    losses = losses_of(config)
    weights = {f"{loss}_weight": WEIGHTS[loss] for loss in losses}
    task = build(replace(config, task=replace(config.task, **weights)))
    output = task(masked_batch())
    assert WEIGHTS.keys() & output.terms.keys() == set(losses)
    expected = task.encoder.balance_weight * output.terms["balance"]
    for loss in losses:
        expected = expected + WEIGHTS[loss] * output.terms[loss]
    torch.testing.assert_close(output.loss, expected)

    output.loss.backward()
    for parameter_name, parameter in task.named_parameters():
        assert parameter.grad is not None, parameter_name
        # an expert that no token chose has a gradient of 0
        assert parameter.grad.any() or "moe" in parameter_name, parameter_name


@pytest.mark.parametrize(
    ("name", "num_passes"),
    [
        ("mlm+mim", 2),
        ("mlm+itc+mim", 4),
        ("mlm+itc+itm", 4),
        ("all", 5),
    ],
)
def test_no_encoder_pass_is_run_twice(name, num_passes, monkeypatch):
    config = config_of(name)
    task = build(config)
    sizes: list[tuple[int, int]] = []
    run_blocks = task.encoder.run_blocks

    def watched(tokens: Tokens, *options: Any) -> Any:
        batch_size, num_tokens, _ = tokens.x_BND.shape
        sizes.append((batch_size, num_tokens))
        return run_blocks(tokens, *options)

    monkeypatch.setattr(task.encoder, "run_blocks", watched)
    task(masked_batch((12,) * 4))
    image = 1 + 16
    num_kept = 1 + 4
    text = 12
    sizes_of_loss = {
        "mlm": [(4, image + text)],
        "mim": [(4, num_kept + text)],
        "itc": [(4, image), (4, text)],
        "itm": [(12, image + text)],
    }
    expected = []
    for loss in losses_of(config):
        expected += sizes_of_loss[loss]
    assert sorted(sizes) == sorted(expected)
    assert len(sizes) == num_passes


# Validation


def validation_batches(config: Config, size: int) -> Iterator[PairBatch]:
    dataset = MaskedPairs([pairs(10)], config, TOKENIZER, training=False)
    positions = eval_positions([10], 10)
    for start in range(0, 10, size):
        samples = [dataset[position] for position in positions[start : start + size]]
        yield PairBatch.collate(samples, 0)


def train_a_little(task: Any) -> None:
    """Train until contrast is right more often than not, but not always."""
    optimizer = torch.optim.AdamW(task.parameters(), lr=5e-3)
    with torch.enable_grad():
        for batch in list(validation_batches(task.config, 5)) * 10:
            optimizer.zero_grad()
            task(batch).loss.backward()
            optimizer.step()


def centre_matches(task: Any) -> None:
    """Shift the matching head, which else takes all pairs for true, or none."""
    (batch,) = validation_batches(task.config, 10)
    assert batch.wrong is not None
    logits = []
    for batch_of_pairs in (batch, batch.with_text_of(batch.wrong)):
        inputs = (batch.images_BCHW, batch_of_pairs.ids_BT, batch_of_pairs.is_padding_BT)
        logits.append(task.match(*inputs)[0])
    task.contrast.match_head.bias[1] -= torch.cat(logits).diff(dim=1).quantile(0.75)


def similarity(task: Any, image: LonePair, text: LonePair) -> float:
    return float(image_feature(task, image.pixels) @ text_feature(task, text.ids))


@torch.no_grad()
def test_contrast_and_matching_of_validation_equal_a_slow_loop():
    """Each row alone with its partner and with a wrong one."""
    task = build(config_of("all", init_std=0.05, pos_embed_init_std=0.3))
    train_a_little(task)
    task.eval()
    centre_matches(task)

    is_closer = []
    is_recognised = []
    num_yes = 0
    for batch in validation_batches(task.config, 1):
        assert batch.wrong is not None
        (pair,) = lone_pairs(batch)
        (wrong,) = lone_pairs(batch.wrong)
        is_closer.append(similarity(task, pair, pair) > similarity(task, wrong, pair))
        is_closer.append(similarity(task, pair, pair) > similarity(task, pair, wrong))
        for text, is_match in ((pair, True), (wrong, False)):
            no, yes = match_logits(task, pair.pixels, text.ids)
            is_recognised.append((yes > no) == is_match)
            num_yes += yes > no

    numbers = evaluator_of(task).evaluate(validation_batches(task.config, 4))
    assert 0.5 < np.mean(is_closer) < 1
    assert numbers["itc_acc"] == pytest.approx(np.mean(is_closer))
    assert 0 < num_yes < 20
    assert numbers["itm_acc"] == pytest.approx(np.mean(is_recognised))
    again = evaluator_of(task).evaluate(validation_batches(task.config, 10))
    assert again == pytest.approx(numbers, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "eves"),
    [
        ("demo_mlm_itc_itm", "demo_words"),
        ("scenes_mlm_itc_itm", "scenes_words"),
        ("scenes_all_losses", "scenes_words"),
        ("base_mlm_itc_itm", "base"),
    ],
)
def test_recipes_of_baselines_differ_from_eves_only_in_the_task(name, eves):
    config = get_recipe(name)
    eve = get_recipe(eves)
    task = config.task
    assert isinstance(task, ContrastMatchConfig)
    assert (task.itc_weight, task.itm_weight, task.mlm_weight) == (1, 1, 1)
    assert task.mim_weight == (1 if name == "scenes_all_losses" else 0)
    section = replace(config.train, accumulation=eve.train.accumulation)
    assert replace(config, recipe=eve.recipe, out=eve.out, task=eve.task, train=section) == eve
