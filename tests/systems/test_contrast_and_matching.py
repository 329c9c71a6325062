"""Contrast and matching of VLMo, M3AE and MedFLIP against slow twins."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl import objectives
from eve_vl.config import Config, EveModelConfig
from eve_vl.data.masked_batches import PairBatch
from eve_vl.model.encoder import Encoder
from eve_vl.model.initialization import initialize
from eve_vl.model.tokens import Tokens
from eve_vl.tasks.contrast import negatives
from eve_vl.tasks.contrast.contrast import Contrast
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.contrast_match.task import ContrastMatch
from eve_vl.utils.errors import UserError
from helpers import tiny_tasks as tiny
from helpers.contrast_match_batches import (
    CONTRAST_ONLY,
    ROWS,
    batches_of,
    build,
    class_states,
    config_of,
    even_targets,
    features_of,
    slow_contrast,
)
from helpers.tiny_tasks import watch_matching


@pytest.mark.parametrize("targets", ["image", "diagonal", "same_text"])
def test_targets_are_shared_by_those_that_the_option_names(targets):
    config = config_of(**CONTRAST_ONLY, itc_targets=targets)
    task = build(config)
    (batch,) = batches_of(config)
    groups = {
        "image": [{0, 2}],
        "diagonal": [],
        "same_text": [{0, 2}, {1, 3}],
    }
    target = even_targets(groups[targets])
    expected = slow_contrast(*features_of(task, batch), target, 0.07)
    assert task(batch).terms["itc"].item() == pytest.approx(expected, rel=1e-4)


def test_contrast_over_dropped_patches_is_so_in_training_alone():
    config = config_of(**CONTRAST_ONLY, itc_masked_image=True)
    config = replace(config, task=replace(config.task, image_mask_ratio=0.5))
    task = build(config)
    (batch,) = batches_of(config)
    target = even_targets([{0, 2}])
    assert batch.keep_BK.shape == (ROWS, 8)
    masked = slow_contrast(*features_of(task, batch, batch.keep_BK), target, 0.07)
    whole = slow_contrast(*features_of(task, batch), target, 0.07)
    assert abs(masked - whole) > 1e-3
    assert task(batch).terms["itc"].item() == pytest.approx(masked, rel=1e-4)
    assert task.eval()(batch).terms["itc"].item() == pytest.approx(whole, rel=1e-4)


# Several contrasts


class TwoWays(Encoder):
    """An encoder that compares by two states: its own, and one turned round."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.num_contrasts = 2

    def for_contrast(self, image: Any, text: Any) -> Any:
        state_BD, routers = self.cls(image, text)
        return [state_BD, state_BD.flip(1) ** 2], routers


def two_ways(config: Config) -> Any:
    torch.manual_seed(5)
    task: Any = ContrastMatch(config, tiny.SIZES)
    assert isinstance(config.model, EveModelConfig)
    task.encoder = TwoWays(config.model, config.input, tiny.SIZES.vocab_size)
    task.contrast = Contrast(task.encoder, task.settings)
    initialize(task, config.model)
    with torch.no_grad():
        task.get_parameter("contrast.more_features.0.temperature").fill_(0.2)
    return task.train()


def test_the_loss_of_several_contrasts_is_their_mean():
    config = config_of(**CONTRAST_ONLY, itc_targets="diagonal")
    task = two_ways(config)
    (batch,) = batches_of(config)
    image, text = class_states(task, batch)
    target = torch.eye(ROWS).tolist()

    def slow_loss(head: Any, image_BD: Tensor, text_BD: Tensor) -> float:
        image_Bd = F.normalize(image_BD @ head.image.weight.T)
        text_Bd = F.normalize(text_BD @ head.text.weight.T)
        return slow_contrast(image_Bd, text_Bd, target, head.temperature.item())

    total = slow_loss(task.contrast.features, image, text)
    total += slow_loss(task.contrast.more_features[0], image.flip(1) ** 2, text.flip(1) ** 2)
    output = task(batch)
    assert output.terms["itc"].item() == pytest.approx(total / 2, rel=1e-4)
    output.loss.backward()
    assert all(parameter.grad.any() for parameter in task.contrast.parameters())
    torch.testing.assert_close(
        task.eval().image_features(batch.images_BCHW),
        F.normalize(image @ task.contrast.features.image.weight.T),
    )


# Matching


def matched(task: Any, batch: PairBatch, monkeypatch) -> tuple[list[int], list[int], list[bool]]:
    """Which image and text each matched pair has, by row among all, and its label."""
    (everything,) = batches_of(task.config)

    def nearest_rows(states_BD: Tensor, candidates_BD: Tensor) -> list[int]:
        distances, rows = torch.cdist(states_BD, candidates_BD).min(1)
        assert distances.max() < 1e-4
        return rows.tolist()

    def rows(image: Tokens, text: Any) -> tuple[list[int], list[int]]:
        """Texts differ in their first word."""
        all_images = task.encoder.image(everything.pixels()).x_BND
        all_texts = task.encoder.text(everything.ids_BT, None).x_BND
        image_rows = nearest_rows(image.x_BND.flatten(1), all_images.flatten(1))
        return image_rows, nearest_rows(text.x_BND[:, 1], all_texts[:, 1])

    images, texts, labels = watch_matching(task, batch, monkeypatch, rows)
    return images, texts, labels.tolist()


@torch.no_grad()
def test_random_half_gives_half_of_the_texts_another_image_and_needs_no_contrast(monkeypatch):
    config = config_of(mlm_weight=0.0, itc_weight=0.0, itm_negatives="random_half")
    task = build(config)
    (batch,) = batches_of(config)
    terms = task(batch).terms.keys()
    assert {"itm", "itm_acc"} <= terms
    assert "itc" not in terms
    assert not task.is_comparable
    assert task.image_features(batch.images_BCHW).shape == (ROWS, task.feature_dim)
    images, texts, labels = matched(task, batch, monkeypatch)
    assert texts == list(range(ROWS))
    pairs = list(zip(images, texts, strict=True))
    assert labels == [image == text for image, text in pairs]
    assert not {(0, 2), (2, 0)} & set(pairs)


@pytest.mark.parametrize("B", [8, 5])
def test_random_half_changes_each_row_as_often(B):
    is_match = torch.eye(B, dtype=torch.bool)
    candidates = torch.arange(B)[:, None]
    halves = torch.stack([is_match[negatives.random_half(candidates)] for _ in range(400)])
    assert (halves.sum(1) == B // 2).all()
    error_B = halves.float().mean(0) - B // 2 / B
    assert error_B.abs().max() < 0.125  # five standard deviations


def slow_draw(scores: list[float], is_match: list[bool], draw: float) -> int:
    """The first column up to which the weights add up to more than `draw` of their sum."""
    log_sum = math.log(sum(math.exp(score) for score in scores))
    weights = []
    for score, same in zip(scores, is_match, strict=True):
        weights.append(0.0 if same else math.exp(score - log_sum) + 1e-5)
    remaining = draw * sum(weights)
    for column, weight in enumerate(weights):
        remaining -= weight
        if remaining < 0:
            return column
    raise AssertionError


@torch.no_grad()
@pytest.mark.parametrize(
    "sizes",
    [
        (8,),
        (4, 4),
        (2, 2, 2, 2),
    ],
)
def test_global_negatives_are_drawn_among_all_micro_batches(sizes, monkeypatch):
    """The same partners however the step is cut, and those that a slow loop draws."""
    config = config_of(mlm_weight=0.0, itm_negatives="global")
    task = build(config)
    (whole,) = batches_of(config)
    assert whole.draw_B3 is not None
    image, text = features_of(task, whole)
    order = whole.draw_B3[:, 0].argsort()
    expected: dict[str, list[int]] = {"images": [], "texts": []}
    for row in range(ROWS):
        is_match = [bool(whole.image_id_B[row] == whole.image_id_B[partner]) for partner in order]
        _, image_draw, text_draw = whole.draw_B3[row].tolist()
        image_scores = (image @ text[row])[order] / 0.07
        text_scores = (text @ image[row])[order] / 0.07
        image_place = slow_draw(image_scores.tolist(), is_match, image_draw)
        text_place = slow_draw(text_scores.tolist(), is_match, text_draw)
        expected["images"].append(int(order[image_place]))
        expected["texts"].append(int(order[text_place]))
    partners: dict[str, list[int]] = {"images": [], "texts": []}
    start = 0
    with torch.enable_grad():
        micro_batches = task.before_step(batches_of(config, sizes))
    for batch in micro_batches:
        with monkeypatch.context() as patched:
            images, texts, labels = matched(task, batch, patched)
        B = len(batch.where)
        own_rows = list(range(start, start + B))
        assert images[:B] == images[2 * B :] == texts[:B] == texts[B : 2 * B] == own_rows
        assert labels == [True] * B + [False] * 2 * B
        partners["images"] += images[B : 2 * B]
        partners["texts"] += texts[2 * B :]
        start += B
    assert partners == expected


@torch.no_grad()
@pytest.mark.parametrize("drawn", ["local", "global"])
def test_autocast_does_not_coarsen_what_negatives_are_drawn_by(drawn, monkeypatch):
    """Global ones stand in another order."""
    config = config_of(mlm_weight=0.0, itm_negatives=drawn)
    task = build(config)
    (batch,) = batches_of(config)
    calls = {"hard_negatives": [], "contrastive": []}

    def record(name: str):
        function = getattr(objectives, name)

        def recorded(*arguments):
            calls[name].append(arguments)
            return function(*arguments)

        monkeypatch.setattr(objectives, name, recorded)

    record("hard_negatives")
    record("contrastive")
    with torch.autocast("cpu", torch.bfloat16):
        task(batch)
    image, text = calls["contrastive"][0][:2]
    temperature = task.contrast.features.temperature.double()
    expected = image.double() @ text.double().T / temperature
    similarities = [arguments[0].double() for arguments in calls["hard_negatives"]]
    for similarity, exact in zip(similarities, (expected.T, expected), strict=True):
        torch.testing.assert_close(similarity.sort(1)[0], exact.sort(1)[0], rtol=0, atol=1e-4)


# Accumulation


def gradients(config: Config, sizes: Sequence[int], make: Any) -> dict[str, Tensor]:
    task = make(config)
    torch.manual_seed(0)
    for batch in task.before_step(batches_of(config, sizes)):
        (task(batch).loss / len(sizes)).backward()
    return {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("make", [build, two_ways])
def test_accumulation_changes_nothing_of_contrast_svd_and_global_matching(make):
    config = config_of(
        mlm_weight=0.0,
        itc_masked_image=True,
        itc_targets="same_text",
        itm_negatives="global",
        svd_form="sigma1_share",
        svd_weight=0.5,
    )
    whole = gradients(config, (ROWS,), make)
    parts = gradients(config, (4, 4), make)
    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        tolerance = 2e-5 * gradient.abs().max().item() + 1e-7
        torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=tolerance, msg=name)


# What does not go together


def idle(**values: Any) -> set[str]:
    return {*ContrastMatchConfig(**values).unused_fields()}


def test_options_without_a_use_are_known():
    pixels = {"mim_share", "normalize_targets", "decoder_depth", "decoder_dim", "decoder_num_heads"}
    assert idle(mask_replace_prob=0.2, svd_form="sigma1") == pixels | {"image_mask_ratio"}
    assert idle(mask_replace_prob=0.2, itc_masked_image=True) == pixels | {"svd_weight"}
    words = {"text_mask_ratio", "whole_word_masking", "mask_replace_prob", "mask_replace_source"}
    assert idle(**CONTRAST_ONLY) == pixels | words | {
        "image_mask_ratio",
        "itm_negatives",
        "svd_weight",
    }
    contrast = {"projection_dim", "itc_masked_image", "itc_targets", "svd_form", "svd_weight"}
    contrast |= {"memory_batches"}
    assert idle(mim_weight=1.0, itc_weight=0.0, itm_negatives="random_half") == contrast | {
        "mask_replace_source"
    }


def test_convolutions_that_never_see_a_whole_image_are_refused():
    with pytest.raises(UserError, match=r"itc_masked_image with model\.stem conv"):
        config_of(
            **CONTRAST_ONLY,
            itc_masked_image=True,
            model={"stem": "conv"},
        )
    config_of(
        mlm_weight=0.0,
        itc_masked_image=True,
        model={"stem": "conv"},
    )


# Masked words


def test_wrong_words_may_come_from_the_whole_vocabulary():
    """Of 80/10/10: one in ten shows any word, one in ten its own, the others [MASK]."""
    config = config_of(mask_replace_prob=0.2, mask_replace_source="vocabulary")
    task = build(config)
    ids_BT = torch.full((200, 50), 7)
    (batch,) = batches_of(config)
    is_masked_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    torch.manual_seed(0)
    ids = task.with_masked_tokens(
        replace(batch, ids_BT=ids_BT, is_masked_BT=is_masked_BT, masked_M=None)
    ).flatten()
    wrong = ids[(ids != tiny.SIZES.mask_id) & (ids != 7)]
    margin = 5 * math.sqrt(0.1 * 0.9 / 10_000)
    assert (ids == 7).float().mean().item() == pytest.approx(0.1, abs=margin)
    assert len(wrong) / 10_000 == pytest.approx(0.1, abs=margin)
    assert wrong.max() < tiny.SIZES.vocab_size
    num_expected = tiny.SIZES.vocab_size * (1 - math.exp(-1000 / tiny.SIZES.vocab_size))
    assert len(wrong.unique()) > 0.9 * num_expected
