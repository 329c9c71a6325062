"""Grad-CAM of each task against autograd through attention that is written out here.

Letters: B batch, D width, T text tokens.
"""

import json
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from eve_vl.data.batches import Batch
from eve_vl.eve import Eve
from eve_vl.model.attention import Attention
from eve_vl.model.packing import PackedTokens, ReadPositions
from eve_vl.predict.heatmap import Heatmap, overlay
from eve_vl.tasks.vqa.task import VQA
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


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("masked", "blue squares"),
        ("baseline", None),
        ("baseline", "small blue"),
        ("retrieval", "gray"),
        ("retrieval", None),
        ("vqa", "SMALL"),
        ("vqa", None),
        ("vqa", "[CLS]"),
        ("nlvr2", "two"),
        ("nlvr2_paired", None),
    ],
)
def test_heat_maps_of_every_task(name, word):
    eve = Eve(tiny_run("masked", task=BASELINE) if name == "baseline" else tiny_run(name))
    images = [noise(0, 33, 48), noise(1, 20, 16)][: 2 if "nlvr2" in name else 1]
    found = eve.explain(images if len(images) == 2 else images[0], TEXT, word=word)
    assert isinstance(found, Heatmap)
    assert len(found.heat) == len(found.grids) == len(images)
    for image, shown, heat, grid, over in zip(
        images, found.images, found.heat, found.grids, found.overlays(), strict=True
    ):
        np.testing.assert_array_equal(shown, image)
        assert heat.shape == image.shape[:2]
        assert heat.dtype == np.float32
        assert heat.min() >= 0
        assert grid.shape == (4, 4)
        assert over.shape == image.shape
        assert over.dtype == np.uint8
    assert max(heat.max() for heat in found.heat) == 1
    assert 0 < found.probability < 1
    assert found.block == (2 if word and name in ("masked", "baseline") else 1)


@pytest.mark.parametrize("routing", ["reference", "reference-dropless"])
@pytest.mark.parametrize("name", ["nlvr2", "nlvr2_paired"])
def test_runs_that_take_the_two_images_one_by_one_look_at_both(name, routing):
    found = Eve(tiny_run(name, model={"routing": routing})).explain([noise(0), noise(1)], TEXT)
    assert len(found.heat) == 2
    assert all(heat.max() > 0 for heat in found.heat)


def moving_one_weight(
    eve: Eve, batch: Batch, block: int, rows: list[int], class_: int
) -> np.ndarray:
    """The map of a VQA run by autograd through attention that is written out here, (4, 4)."""
    assert isinstance(eve.task, VQA)
    attention, kept = eve.task.encoder.get_submodule(f"blocks.{block}.attn"), []
    assert isinstance(attention, Attention)

    def forward_packed(
        x_SD: Tensor, rows: PackedTokens, read: ReadPositions | None, bias: None
    ) -> Tensor:
        assert read is None and bias is None
        q, k, v = (rows.unpack(x_SD) @ attention.qkv.weight.T).chunk(3, dim=2)
        q, v = q + attention.q_bias, v + attention.v_bias
        q, k, v = (part.unflatten(2, (2, 8)).transpose(1, 2) for part in (q, k, v))
        kept.append((q @ k.transpose(2, 3) / 8**0.5).softmax(3))
        kept[0].retain_grad()
        return (
            rows.pack((kept[0] @ v).transpose(1, 2).flatten(2)) @ attention.proj.weight.T
            + attention.proj.bias
        )

    with mock.patch.object(attention, "forward_packed", forward_packed):
        eve.task.predict(batch)[0][0, class_].backward()
    return (kept[0] * kept[0].grad).relu().mean(1)[0, rows, 1:17].sum(0).view(4, 4).detach().numpy()


@pytest.mark.parametrize(
    ("word", "rows"), [(None, range(7)), ("[CLS]", [0]), ("blue squares", [3, 4]), ("gray", [6])]
)
def test_looking_equals_a_backward_pass_by_hand(word, rows):
    eve = Eve(tiny_run("vqa"))
    ids = ids_of(eve, TEXT)
    tokens = [eve.tokenizer.word(token) for token in ids[0].tolist()]
    assert tokens == ["[CLS]", "two", "small", "blue", "squares", "on", "gray"]
    batch = Batch(
        images_BCHW=torch.from_numpy(noise(0)).permute(2, 0, 1)[None],
        ids_BT=ids,
        is_padding_BT=torch.zeros(1, 7, dtype=torch.bool),
        where=("here",),
    )
    expected = moving_one_weight(eve, batch, 0, [17 + row for row in rows], ANSWERS.index("red"))
    found = eve.explain(noise(0), TEXT, word=word, answer="red", block=0)
    assert_close(found.grids[0], expected, rtol=1e-3, atol=1e-7)
    assert found.score == 'the answer "red"'
    probability = {each.answer: each.probability for each in eve.answer(noise(0), TEXT)}["red"]
    assert found.probability == pytest.approx(probability, rel=1e-4)
    assert found.heat[0].max() == 1


def test_a_run_looks_for_its_own_answer():
    eve = Eve(tiny_run("vqa"))
    best = eve.answer(noise(0), TEXT, top=1)[0]
    found = eve.explain(noise(0), TEXT)
    assert (found.score, found.probability) == (
        f'the answer "{best.answer}"',
        pytest.approx(best.probability, rel=1e-5),
    )
    assert eve.explain(noise(0), TEXT, block=-2).block == 1


@pytest.mark.parametrize(
    "weights", [{}, {"mlm_weight": 0.0}, {"mim_weight": 0.0, "mlm_weight": 0.0}]
)
def test_a_baseline_looks_for_the_match_or_for_a_hidden_word(weights):
    """Without a word, or without a head for tokens, for the match that `match` tells; else for the
    word."""
    eve = Eve(tiny_run("masked", task=replace(BASELINE, **weights)))
    probability = pytest.approx(eve.match(noise(0), TEXT), rel=1e-4)
    for word in (None, "[CLS]", "blue"):
        found = eve.explain(noise(0), TEXT, word=word)
        if word == "blue" and "mlm_weight" not in weights:
            assert (found.score, found.block) == ('the masked "blue"', 2)
            assert found.probability != probability
        else:
            assert (found.score, found.probability, found.block, found.word) == (
                "the match",
                probability,
                1,
                word,
            )


def test_a_baseline_without_matching_explains_only_a_masked_word():
    eve = Eve(tiny_run("masked", task=replace(BASELINE, itm_weight=0.0)))
    assert eve.explain(noise(0), TEXT, word="blue").score == 'the masked "blue"'
    with pytest.raises(UserError, match="name a word of the text"):
        eve.explain(noise(0), TEXT)


def test_a_map_is_printed_and_kept_as_what_it_says():
    found = Eve(tiny_run("nlvr2")).explain(noise(0), TEXT, right=noise(1), word="blue")
    assert (
        str(found)
        == f'Grad-CAM of the label true (probability {found.probability:.4f}), attention of "blue" in block 1'
    )
    values = json.loads(json.dumps(found.values()))
    np.testing.assert_allclose(values.pop("grids"), found.grids)
    assert values == {
        "score": "the label true",
        "probability": found.probability,
        "word": "blue",
        "block": 1,
    }


def test_a_hidden_word_is_hidden():
    eve = Eve(tiny_run("masked"))
    found = eve.explain(noise(0), TEXT, word="blue")
    ids = ids_of(eve, TEXT)[0].tolist()
    place = [eve.tokenizer.word(token) for token in ids].index("blue")
    blue, ids[place] = ids[place], eve.tokenizer.mask_id
    assert found.score == 'the masked "blue"'
    assert found.probability == pytest.approx(
        token_probabilities(eve, noise(0), ids, [place])[0, blue].item(), rel=1e-4
    )


def test_what_speaks_for_nothing_is_all_zero_and_an_overlay_shows_it():
    cold, hot = overlay(noise(0), np.zeros((16, 16))), overlay(noise(0), np.ones((16, 16)))
    assert cold[:, :, 2].mean() > cold[:, :, 0].mean()
    assert hot[:, :, 0].mean() > hot[:, :, 2].mean() + 50


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("vqa", {"word": "green"}, f'"green" is not a word of "{TEXT}"'),
        ("vqa", {"word": "squa"}, '"squa" is not a word of'),
        ("vqa", {"word": ""}, '"" is not a word of'),
        ("vqa", {"word": "last", "text": "red " * 20 + "last"}, '"last" lies beyond the 12 tokens'),
        ("vqa", {"block": 3}, "block 3: this run has blocks 0 to 2"),
        ("vqa", {"block": -4}, "block -4: this run has blocks"),
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
    ],
)
def test_what_cannot_be_looked_for(name, kwargs, message):
    arguments = {"image": noise(0), "text": TEXT} | kwargs
    with pytest.raises(UserError) as error:
        Eve(tiny_run(name)).explain(**arguments)
    assert message in str(error.value)
