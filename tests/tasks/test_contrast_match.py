"""Pre-training by contrast, matching and masked signals: passes, losses, validation."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from eve_vl.config import Config, TokenizerConfig
from eve_vl.data.masked_batches import PairBatch
from eve_vl.data.row_dataset import eval_positions
from eve_vl.metrics.intervals import from_json
from eve_vl.model.tokens import Tokens
from eve_vl.recipes import get_recipe
from eve_vl.run.training import train
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.tasks.masked_signal.dataset import MaskedPairs
from eve_vl.train.run_log import read_log
from helpers.masked_pairs import masked_batch
from helpers.pretraining_losses import TASKS, TOKENIZER, build, config_of
from helpers.twins import pairs


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", TASKS)
def test_loss_is_the_weighted_sum_of_its_terms_and_trains_every_weight(name):
    config = config_of(name)
    weights = {}
    for loss, weight in {"mim": 0.3, "mlm": 0.7, "itc": 2.0, "itm": 1.5}.items():
        if getattr(config.task, f"{loss}_weight", 0):
            weights[loss] = weight
    fields = {f"{loss}_weight": weight for loss, weight in weights.items()}
    task = build(replace(config, task=replace(config.task, **fields)))
    output = task(masked_batch())
    assert {"mim", "mlm", "itc", "itm"} & output.terms.keys() == weights.keys()
    expected = task.encoder.balance_weight * output.terms["balance"]
    for loss, weight in weights.items():
        expected = expected + weight * output.terms[loss]
    torch.testing.assert_close(output.loss, expected)

    output.loss.backward()
    for name, parameter in task.named_parameters():
        assert parameter.grad is not None, name
        # an expert that no token chose has a gradient of 0
        assert parameter.grad.any() or "moe" in name, name


PASSES = {"mlm+mim": 2, "mlm+itc+mim": 4, "mlm+itc+itm": 4, "all": 5}


@pytest.mark.parametrize("name", TASKS)
def test_no_encoder_pass_is_run_twice(name, monkeypatch):
    config = config_of(name)
    task = build(config)
    sizes: list[tuple[int, int]] = []
    run_blocks = task.encoder.run_blocks

    def watched(tokens: Tokens, *options: Any) -> Any:
        batch_size, num_tokens, _ = tokens.x_BND.shape
        sizes.append((batch_size, num_tokens))
        return run_blocks(tokens, *options)

    monkeypatch.setattr(task.encoder, "run_blocks", watched)
    batch = masked_batch((12,) * 4)
    task(batch)
    image = 1 + config.input.num_patches
    text = config.input.text_length
    num_kept = 1 + batch.keep_BK.shape[1]
    sizes_of_loss = {
        "mlm": [(4, image + text)],
        "mim": [(4, num_kept + text)],
        "itc": [(4, image), (4, text)],
        "itm": [(12, image + text)],
    }
    expected = []
    for loss, loss_sizes in sizes_of_loss.items():
        if getattr(config.task, f"{loss}_weight", 0):
            expected += loss_sizes
    assert sorted(sizes) == sorted(expected)
    assert len(sizes) == PASSES[name]


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
        for batch in list(validation_batches(task.config, 5)) * 12:
            optimizer.zero_grad()
            task(batch).loss.backward()
            optimizer.step()


def lone_feature(encoder: Any, projection: Any, image: Any, text: Any) -> Tensor:
    return projection.weight @ encoder.encode(image, text).x_BND[0, 0]


@torch.no_grad()
@pytest.mark.parametrize("name", ["mlm+itc+mim", "all"])
def test_contrast_and_matching_of_validation_equal_a_slow_loop(name):
    """Each row alone with its partner and with a wrong one; features of length 1 by hand."""
    task = build(config_of(name, init_std=0.05, pos_embed_init_std=0.3))
    train_a_little(task)
    task.eval()
    encoder = task.encoder
    heads = task.contrast.features
    match_head = task.contrast.match_head
    if match_head is not None:  # else it takes all pairs for true, or none
        (batch,) = validation_batches(task.config, 10)
        assert batch.wrong is not None
        logits = []
        for batch_of_pairs in (batch, batch.with_text_of(batch.wrong)):
            inputs = (batch.images_BCHW, batch_of_pairs.ids_BT, batch_of_pairs.is_padding_BT)
            logits.append(task.match(*inputs)[0])
        match_head.bias[1] -= torch.cat(logits).diff(dim=1).quantile(0.75)

    is_closer = []
    is_recognised = []
    num_yes = 0
    for batch in validation_batches(task.config, 1):
        assert batch.wrong is not None
        images = []
        texts = []
        for lone in (batch, batch.wrong):
            images.append(encoder.image(lone.images_BCHW.float() / 127.5 - 1))
            texts.append(encoder.text(lone.ids_BT[~lone.is_padding_BT][None], None))
        image, wrong_image = (lone_feature(encoder, heads.image, image, None) for image in images)
        text, wrong_text = (lone_feature(encoder, heads.text, None, text) for text in texts)
        similarity = torch.cosine_similarity(image, text, dim=0)
        is_closer.append(bool(similarity > torch.cosine_similarity(wrong_image, text, dim=0)))
        is_closer.append(bool(similarity > torch.cosine_similarity(image, wrong_text, dim=0)))
        if match_head is not None:
            for pair_text, is_match in zip(texts, (True, False), strict=True):
                states = encoder.encode(images[0], pair_text).x_BND
                no, yes = match_head(states[:, 17])[0].tolist()
                is_recognised.append((yes > no) == is_match)
                num_yes += yes > no

    numbers = evaluator_of(task).evaluate(validation_batches(task.config, 4))
    assert 0.5 < np.mean(is_closer) < 1
    assert numbers["itc_acc"] == pytest.approx(np.mean(is_closer))
    assert ("itm_acc" in numbers) == (match_head is not None)
    if match_head is not None:
        assert 0 < num_yes < 20
        assert numbers["itm_acc"] == pytest.approx(np.mean(is_recognised))
    for size in (1, 10):
        again = evaluator_of(task).evaluate(validation_batches(task.config, size))
        assert again == pytest.approx(numbers, rel=1e-5)


def test_pretraining_by_contrast_only_has_no_metrics_of_masked_signals(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text(TOKENIZER.to_json())
    config = get_recipe("tiny")
    config = replace(
        config,
        out=tmp_path / "run",
        task=ContrastMatchConfig(mlm_weight=0.0, itm_weight=0.0),
        data=replace(config.data, val_samples=8),
        tokenizer=TokenizerConfig(path=tmp_path / "tokenizer.json"),
        train=replace(config.train, steps=2, batch_size=4, val_every=1),
    )
    assert train(config)
    metrics = from_json(json.loads((tmp_path / "run/metrics.json").read_text()))
    assert set(metrics) == {"itc_acc"}
    assert metrics["itc_acc"] in [num_right / 16 for num_right in range(17)]
    validations = [row for row in read_log(tmp_path / "run") if row["kind"] == "val"]
    assert [row.keys() - {"kind", "step"} for row in validations] == [{"itc_acc"}] * 2


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
