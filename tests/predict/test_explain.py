"""Heatmaps of each task against autograd through attention that is written out here.

Letters: B batch, S real tokens of a batch, D width, T text tokens.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from eve_vl.data.batches import Batch
from eve_vl.eve import Eve
from eve_vl.model.packing import PackedTokens
from eve_vl.predict.heatmap import Heatmap, overlay
from eve_vl.utils.errors import UserError
from helpers.tiny_runs import (
    ANSWERS,
    BASELINE,
    TEXT,
    assert_close,
    ids_of,
    noise,
    tiny_run,
    token_probabilities,
)


def eve_of(name: str, **options: Any) -> Any:
    return Eve(tiny_run(name, **options))


def baseline_eve(**weights: float) -> Any:
    return eve_of("masked", task=replace(BASELINE, **weights))


@pytest.mark.parametrize(
    ("name", "word", "block"),
    [
        ("masked", "blue squares", 2),
        ("baseline", None, 1),
        ("baseline", "small blue", 2),
        ("retrieval", None, 1),
        ("vqa", "SMALL", 1),
        ("vqa", None, 1),
        ("nlvr2", "two", 1),
        ("nlvr2_paired", None, 1),
    ],
)
def test_every_task_draws_a_heatmap_of_each_image(name, word, block):
    eve = baseline_eve() if name == "baseline" else eve_of(name)
    images = [noise(0, 33, 48)]
    if name.startswith("nlvr2"):
        images.append(noise(1, 20, 16))
    heatmap = eve.explain(images, TEXT, word=word)
    assert isinstance(heatmap, Heatmap)
    assert heatmap.block == block
    assert 0 < heatmap.probability < 1
    parts = (
        images,
        heatmap.images,
        heatmap.heat,
        heatmap.overlays(),
        heatmap.grids,
    )
    for image, shown, heat, drawing, grid in zip(*parts, strict=True):
        np.testing.assert_equal(shown, image)
        assert (heat.shape, heat.dtype) == (image.shape[:2], np.float32)
        assert (drawing.shape, drawing.dtype) == (image.shape, np.uint8)
        assert grid.shape == (4, 4)
        assert heat.min() >= 0
    assert max(heat.max() for heat in heatmap.heat) == 1


@pytest.mark.parametrize(
    ("name", "routing"),
    [
        ("nlvr2", "reference"),
        ("nlvr2_paired", "reference-dropless"),
    ],
)
def test_both_images_have_heat_where_they_are_encoded_one_by_one(name, routing):
    heatmap = eve_of(name, model={"routing": routing}).explain(
        [
            noise(0),
            noise(1),
        ],
        TEXT,
    )
    first, second = heatmap.heat
    assert first.max() > 0
    assert second.max() > 0


def slow_grid(
    eve: Any,
    batch: Batch,
    rows: Sequence[int],
    answer: str,
) -> Tensor:
    """Return the map of block 0 of a VQA run, by autograd through written-out attention, (4, 4)."""
    attention = eve.task.encoder.get_submodule("blocks.0.attn")
    all_weights: list[Tensor] = []

    def forward_packed(
        x_SD: Tensor,
        rows: PackedTokens,
        read: None,
        bias: None,
    ) -> Tensor:
        assert read is None
        assert bias is None
        q, k, v = (rows.unpack(x_SD) @ attention.qkv.weight.T).chunk(3, dim=2)
        q = (q + attention.q_bias).unflatten(2, (2, 8)).transpose(1, 2)
        k = k.unflatten(2, (2, 8)).transpose(1, 2)
        v = (v + attention.v_bias).unflatten(2, (2, 8)).transpose(1, 2)
        weights_BHNN = (q @ k.transpose(2, 3) / 8**0.5).softmax(3)
        weights_BHNN.retain_grad()
        all_weights.append(weights_BHNN)
        heads_BND = (weights_BHNN @ v).transpose(1, 2).flatten(2)
        return rows.pack(heads_BND) @ attention.proj.weight.T + attention.proj.bias

    with mock.patch.object(attention, "forward_packed", forward_packed):
        eve.task.predict(batch)[0][0, ANSWERS.index(answer)].backward()
    (weights_BHNN,) = all_weights
    assert weights_BHNN.grad is not None
    cam_BNN = (weights_BHNN * weights_BHNN.grad).relu().mean(1)
    return cam_BNN[0, [17 + row for row in rows], 1:17].sum(0).view(4, 4).detach()


@pytest.mark.parametrize(
    ("word", "rows"),
    [
        (None, range(7)),
        ("[CLS]", [0]),
        ("blue squares", [3, 4]),
        ("gray", [6]),
    ],
)
def test_a_heatmap_equals_a_backward_pass_by_hand(word, rows):
    eve = eve_of("vqa")
    ids = ids_of(eve, TEXT)
    tokens = [eve.tokenizer.word(token) for token in ids[0].tolist()]
    assert tokens == ["[CLS]", "two", "small", "blue", "squares", "on", "gray"]
    batch = Batch(
        images_BCHW=torch.from_numpy(noise(0)).permute(2, 0, 1)[None],
        ids_BT=ids,
        is_padding_BT=torch.zeros(1, 7, dtype=torch.bool),
        where=("here",),
    )
    heatmap = eve.explain(
        noise(0),
        TEXT,
        word=word,
        answer="red",
        block=0,
    )
    assert_close(heatmap.grids[0], slow_grid(eve, batch, rows, "red"), rtol=1e-3, atol=1e-7)
    assert heatmap.score == 'the answer "red"'
    probabilities = {answer.answer: answer.probability for answer in eve.answer(noise(0), TEXT)}
    assert heatmap.probability == pytest.approx(probabilities["red"], rel=1e-4)
    assert heatmap.heat[0].max() == 1


def test_without_an_answer_the_most_probable_one_is_explained():
    eve = eve_of("vqa")
    (best,) = eve.answer(noise(0), TEXT, top=1)
    heatmap = eve.explain(noise(0), TEXT)
    assert heatmap.score == f'the answer "{best.answer}"'
    assert heatmap.probability == pytest.approx(best.probability, rel=1e-5)
    assert eve.explain(noise(0), TEXT, block=-2).block == 1


@pytest.mark.parametrize(
    ("weights", "word", "score"),
    [
        ({}, None, "the match"),
        ({}, "[CLS]", "the match"),
        ({}, "blue", 'the masked "blue"'),
        ({"itm_weight": 0.0}, "blue", 'the masked "blue"'),
        ({"mlm_weight": 0.0}, "blue", "the match"),
        ({"mim_weight": 0.0, "mlm_weight": 0.0}, None, "the match"),
    ],
)
def test_baseline_explains_a_masked_word_or_else_the_match(weights, word, score):
    eve = baseline_eve(**weights)
    heatmap = eve.explain(noise(0), TEXT, word=word)
    assert heatmap.score == score
    if score == "the match":
        assert (heatmap.block, heatmap.word) == (1, word)
        assert heatmap.probability == pytest.approx(eve.match(noise(0), TEXT), rel=1e-4)
    else:
        assert heatmap.block == 2


def test_the_probability_of_a_masked_word_is_that_of_the_token_head():
    eve = eve_of("masked")
    heatmap = eve.explain(noise(0), TEXT, word="blue")
    ids = ids_of(eve, TEXT)[0].tolist()
    position = [eve.tokenizer.word(token) for token in ids].index("blue")
    blue = ids[position]
    ids[position] = eve.tokenizer.mask_id
    probability = token_probabilities(eve, noise(0), ids, [position])[0, blue].item()
    assert heatmap.score == 'the masked "blue"'
    assert heatmap.probability == pytest.approx(probability, rel=1e-4)


def test_a_heatmap_is_printed_and_written_as_json():
    heatmap = eve_of("nlvr2").explain(
        noise(0),
        TEXT,
        right=noise(1),
        word="blue",
    )
    assert str(heatmap) == (
        f"Grad-CAM of the label true (probability {heatmap.probability:.4f}), "
        'attention of "blue" in block 1'
    )
    values = json.loads(json.dumps(heatmap.values()))
    np.testing.assert_allclose(values.pop("grids"), heatmap.grids)
    assert values == {
        "score": "the label true",
        "probability": heatmap.probability,
        "word": "blue",
        "block": 1,
    }


def test_an_overlay_is_blue_where_cold_and_red_where_hot():
    cold = overlay(noise(0), np.zeros((16, 16))).mean((0, 1))
    hot = overlay(noise(0), np.ones((16, 16))).mean((0, 1))
    assert cold[2] > cold[0]
    assert hot[0] > hot[2] + 50


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("vqa", {"word": "green"}, f'"green" is not a word of "{TEXT}"'),
        ("vqa", {"word": "squa"}, '"squa" is not a word of'),
        ("vqa", {"word": "last", "text": "red " * 20 + "last"}, '"last" lies beyond the 12 tokens'),
        ("vqa", {"block": 3}, "block 3: this run has blocks 0 to 2"),
        (
            "vqa",
            {"word": "gray", "block": 2},
            'block 2: the attention of "gray" has no effect on the answer',
        ),
        ("vqa", {"answer": "rad"}, "no answer 'rad'"),
        ("vqa", {"image": [noise(0), noise(1)]}, "a run of task vqa takes 1 image (2 given)"),
        ("nlvr2", {}, "a run of task nlvr2 takes 2 images (1 given)"),
        (
            "retrieval",
            {"answer": "red"},
            "answer has no effect with a run that has no answers or labels",
        ),
        ("masked", {}, "name a word of the text"),
        ("masked", {"word": "[CLS]"}, "name a word of the text"),
        ("baseline", {}, "name a word of the text"),
    ],
)
def test_requests_that_cannot_be_explained_are_refused(name, arguments, message):
    eve = baseline_eve(itm_weight=0.0) if name == "baseline" else eve_of(name)
    with pytest.raises(UserError) as error:
        eve.explain(
            **{
                "image": noise(0),
                "text": TEXT,
                **arguments,
            }
        )
    assert message in str(error.value)
