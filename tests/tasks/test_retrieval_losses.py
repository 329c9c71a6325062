"""Losses of retrieval against loops over queries and pairs."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from eve_vl import objectives
from eve_vl.data.kinds.captions import CaptionBatch
from eve_vl.tasks.contrast.contrast import MAX_TEMPERATURE, MIN_TEMPERATURE, Contrast
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.masked_signal.dataset import MaskedPairs
from helpers.slow_contrast import slow_contrastive
from helpers.slow_search import (
    caption_batch,
    image_feature,
    lone_pairs,
    match_logits,
    text_feature,
)
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import pairs
from helpers.tiny_tasks import TOKENIZER, build, retrieval, rows_of, train_set


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


WRONG_IMAGES = [1, 3, 4, 0, 5, 2]
WRONG_TEXTS = [4, 2, 5, 1, 0, 3]


@torch.no_grad()
@pytest.mark.parametrize(
    ("merge", "pooling"),
    [
        (False, "cls"),
        (True, "mean"),
    ],
)
def test_losses_equal_loops_over_queries_and_pairs(merge, pooling, monkeypatch):
    task = retrieval(
        itc_weight=0.7, itm_weight=0.3, projection_dim=8, dedup_captions=merge, pooling=pooling
    )
    batch = replace(caption_batch(task), caption_B=torch.tensor([6, 8, 9, 7, 8, 6]))
    is_match = torch.eye(6, dtype=torch.bool)
    matching_rows = [(0, 2)]  # one image
    if merge:
        matching_rows += [(1, 4), (0, 5)]  # equal captions
    for row, column in matching_rows:
        is_match[row, column] = True
        is_match[column, row] = True
    similarities: list[Tensor] = []
    matches: list[Tensor] = []

    def choose(similarity: Tensor, is_match: Tensor, *_: object) -> Tensor:
        similarities.append(similarity)
        matches.append(is_match)
        return torch.tensor(WRONG_IMAGES if len(matches) == 1 else WRONG_TEXTS)

    monkeypatch.setattr(objectives, "hard_negatives", choose)
    output = task(batch)

    rows = lone_pairs(batch)
    images = torch.stack([image_feature(task, row.pixels) for row in rows])
    texts = torch.stack([text_feature(task, row.ids) for row in rows])
    temperature = task.contrast.features.temperature.item()
    itc = slow_contrastive(images, texts, images, texts, is_match, temperature)
    assert output.terms["itc"].item() == pytest.approx(itc, rel=1e-4)
    similarity = images @ texts.T / temperature
    torch.testing.assert_close(similarities, [similarity.T, similarity], rtol=1e-4, atol=1e-4)
    assert torch.equal(matches[0], is_match)
    assert torch.equal(matches[1], is_match)

    total = 0.0
    num_right = 0
    candidates = [(row, row) for row in range(6)]
    candidates += [(image, text) for text, image in enumerate(WRONG_IMAGES)]
    candidates += enumerate(WRONG_TEXTS)
    for image, text in candidates:
        logits = match_logits(task, rows[image].pixels, rows[text].ids)
        label = int(image == text)
        total += math.log(1 + math.exp(logits[1 - label] - logits[label]))
        num_right += logits[label] > logits[1 - label]
    assert output.terms["itm"].item() == pytest.approx(total / 18, rel=1e-4)
    assert output.terms["itm_acc"].item() == pytest.approx(num_right / 18)

    weighted = 0.7 * output.terms["itc"] + 0.3 * output.terms["itm"] + 0.5 * output.terms["balance"]
    assert output.loss.item() == pytest.approx(weighted.item(), rel=1e-6)


def test_without_matching_there_is_no_head_and_no_fusion_pass(monkeypatch):
    task = retrieval(itm_weight=0.0, rerank=0)
    assert task.contrast.match_head is None
    monkeypatch.setattr(Contrast, "match", None)
    output = task(caption_batch(task))
    assert not [name for name in output.terms if name.startswith("itm")]
    expected = output.terms["itc"] + 0.5 * output.terms["balance"]
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (-0.1, MIN_TEMPERATURE),
        (0.2, 0.2),
        (3.0, MAX_TEMPERATURE),
    ],
)
def test_temperature_stays_within_bounds_and_learns(start, end):
    task = retrieval()
    temperature = task.contrast.features.temperature
    with torch.no_grad():
        temperature.fill_(start)
    task(caption_batch(task)).loss.backward()
    assert temperature.item() == pytest.approx(start)  # a forward pass changes no parameter
    task.after_step(0.1)
    assert temperature.item() == pytest.approx(end)
    assert temperature.grad is not None


@pytest.mark.parametrize(
    ("temperature", "is_reset"),
    [
        (0.002, True),
        (0.07, False),
        (0.4, False),
    ],
)
def test_temperature_is_reset_if_the_loss_is_above_that_of_a_guess(temperature, is_reset):
    """The temperature of another run may be too low."""
    task = retrieval()
    batch = rows_of(train_set(task.config, 6), 6)
    parameter = task.contrast.features.temperature
    with torch.no_grad():
        parameter.fill_(temperature)
        images = task.image_features(batch.images_BCHW)
        texts = task.text_features(batch.ids_BT, batch.is_padding_BT)
    loss = slow_contrastive(images, texts, images, texts, torch.eye(6), temperature)
    guess_loss = math.log(6)
    note = ""
    if is_reset:
        assert loss > guess_loss
        note = (
            f"temperature reset from 0.002 to 0.07: contrastive loss {loss:.2f} "
            f"on training rows, of a uniform guess {guess_loss:.2f}"
        )
    assert task.reset_temperatures(batch) == note
    assert parameter.item() == pytest.approx(0.07 if is_reset else temperature)


def test_a_batch_of_one_image_has_only_matches():
    task = retrieval()
    output = task(caption_batch(task, (0, 3, 4)))
    assert output.loss.isfinite()
    assert output.terms["itc"].item() >= math.log(3) - 1e-5  # three targets of a third each


@torch.no_grad()
def test_pretraining_by_contrast_has_the_terms_of_retrieval(monkeypatch):
    """Baselines pre-train with the losses that retrieval is fine-tuned with."""

    def next_row(similarity: Tensor, *_: object) -> Tensor:
        return torch.arange(len(similarity)).roll(1)

    monkeypatch.setattr(objectives, "hard_negatives", next_row)
    config = tiny_config(task=ContrastMatchConfig())
    baseline: Any = build(config)
    dataset = MaskedPairs([pairs(5)], config, TOKENIZER, training=True)
    batch = rows_of(dataset, 5)
    expected = baseline(batch).terms

    task = retrieval()
    task.encoder = baseline.encoder
    task.contrast = baseline.contrast
    captions = CaptionBatch(
        images_BCHW=batch.images_BCHW,
        ids_BT=batch.ids_BT,
        is_padding_BT=batch.is_padding_BT,
        where=batch.where,
        image_id_B=batch.image_id_B,
        caption_B=batch.caption_B,
    )
    terms = task(captions).terms
    for name in ("itc", "itm", "itm_acc"):
        torch.testing.assert_close(terms[name], expected[name])
