"""Pages of masked signal modelling: images and guesses are those of the model."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eve_vl.data.loader import eval_loader
from eve_vl.data.masked_batches import PairBatch
from eve_vl.data.opening import open_sources
from eve_vl.evaluation.evaluate import evaluated
from eve_vl.eve import Eve
from eve_vl.pages.number_formats import percent
from eve_vl.run.loading import LoadedRun
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.tasks.masked_signal.report import MaskedSignalReport, MaskedToken
from helpers.report_page import Page, tiny, trained
from helpers.tiny_runs import token_probabilities


@pytest.fixture(scope="module")
def page_with(tmp_path_factory, tokenizer) -> Callable[..., Path]:
    """The page of a run with a part changed, trained on the first request."""
    pages: dict[str, Path] = {}

    def page(**part: Any) -> Path:
        key = repr(part)
        if key not in pages:
            pages[key] = trained(tiny(tmp_path_factory.mktemp("part") / "run", tokenizer, **part))
        return pages[key]

    return page


def validation_batch(run: LoadedRun, num_samples: int) -> PairBatch:
    config = replace(run.config, data=replace(run.config.data, val_samples=num_samples))
    sources = open_sources(config.data.val, config.data, config.input.image_size)
    dataset = evaluator_of(run.task).dataset(sources, config, run.tokenizer)
    (batch,) = eval_loader(
        dataset,
        batch_size=num_samples,
        rank=0,
        world=1,
    )
    return batch


def pixels_of(batch: PairBatch, row: int) -> np.ndarray:
    return batch.images_BCHW[row].permute(1, 2, 0).numpy()


@pytest.mark.parametrize("is_normalized", [False, True])
def test_images_are_those_of_the_model(page_with, is_normalized: bool):
    path = page_with(steps=2, task={"normalize_targets": is_normalized})
    page = Page(path)
    eve = Eve.load(path.parent)
    batch = validation_batch(eve.run, 8)
    assert batch.wrong is not None
    examples = MaskedSignalReport(eve.run, evaluated).examples_to_compare(8)
    largest_difference = 0
    for row, example in enumerate(examples):
        pixels = pixels_of(batch, row)
        keep = batch.keep_BK[row].tolist()
        right = eve.reconstruct(pixels, example.text, keep=keep)
        wrong = eve.reconstruct(pixels, example.wrong_caption, keep=keep)
        exact_images = {
            "original": pixels,
            "image": pixels,
            "wrong image": pixels_of(batch.wrong, row),
            "masked": right.masked,
        }
        for name, image in exact_images.items():
            assert (page.images[f"{example.where}: {name}"] == image).all()
        is_visible = (right.masked != 128).any(2)
        outputs = {"reconstructed": right.reconstructed, "wrong caption": wrong.reconstructed}
        for name, output in outputs.items():
            image = page.images[f"{example.where}: {name}"].astype(int)
            assert np.abs(image - output).max() <= 1  # rounding
            assert (image == right.masked)[is_visible].all()
        difference = np.abs(right.reconstructed.astype(int) - wrong.reconstructed).max()
        largest_difference = max(largest_difference, difference)
    assert largest_difference > 5
    assert ("true mean and deviation" in page.text) == is_normalized


def guesses_on_page(token: MaskedToken) -> str:
    text = token.truth + (" ✓" if token.guesses[0].is_right else " ✗")
    for guess in token.guesses:
        text += guess.text + percent(guess.probability)
    return text + "wrong image"


@torch.inference_mode()
def test_guesses_are_those_of_the_model(page_with):
    path = page_with(steps=2, task={"normalize_targets": False})
    page = Page(path)
    eve = Eve.load(path.parent)
    word = eve.tokenizer.word
    batch = validation_batch(eve.run, 8)
    assert batch.wrong is not None
    examples = MaskedSignalReport(eve.run, evaluated).examples_to_compare(8)
    for row, example in enumerate(examples):
        truths = batch.ids_BT[row, batch.is_masked_BT[row]].tolist()
        places = batch.is_masked_BT[row].nonzero().flatten().tolist()
        ids_T = batch.ids_BT[row].masked_fill(batch.is_masked_BT[row], eve.tokenizer.mask_id)
        ids = ids_T[~batch.is_padding_BT[row]].tolist()
        right_MV = token_probabilities(eve, pixels_of(batch, row), ids, places)
        wrong_MV = token_probabilities(eve, pixels_of(batch.wrong, row), ids, places)
        for token, truth, right_V, wrong_V in zip(
            example.masked_tokens, truths, right_MV, wrong_MV, strict=True
        ):
            best = right_V.topk(5)
            best_ids = best.indices.tolist()
            assert token.truth == word(truth)
            assert [guess.text for guess in token.guesses] == [word(index) for index in best_ids]
            assert [guess.is_right for guess in token.guesses] == [i == truth for i in best_ids]
            probabilities = [guess.probability for guess in token.guesses]
            assert probabilities == pytest.approx(best.values.tolist(), abs=1e-4)
            assert token.wrong_image is not None
            assert token.wrong_image.text == word(int(wrong_V.argmax()))
            assert token.truth_probability[1] == pytest.approx(wrong_V[truth].item(), abs=1e-4)
            assert guesses_on_page(token) in page.text


@pytest.mark.parametrize(
    ("part", "expected", "absent"),
    [
        (
            {"task": {"mlm_weight": 0.0}},
            ["Masked-pixel error", "reconstructed", "is 0)"],
            ["Masked-token loss", "mlm_acc", "truth"],
        ),
        (
            {"task": {"mim_weight": 0.0}},
            ["Masked-token accuracy", "truth", "is 0)"],
            ["Masked-pixel loss", "mim_mse", "reconstructed"],
        ),
        (
            {"task": {"joint_masking": True}},
            ["in one pass", "reconstructed", "truth", "masked image"],
            ["complete image", "is 0)"],
        ),
        (
            {"model": {"deep_ffn": "shared"}},
            ["reconstructed", "truth"],
            ["Entropy", "Experts by modality", "Balance loss", "used per token", "is 0)"],
        ),
        (
            {"task": ContrastMatchConfig(mlm_weight=0.0)},
            ["Contrastive loss", "Matching loss", "Partner accuracy", "chance50.0 %", "is 0)"],
            ["Masked-token loss", "Masked-pixel loss"],
        ),
        (
            {"model": {"num_experts": 32, "top_k": 1}},
            ["among 32 experts", "expert 31, image tokens"],
            ["is 0)"],
        ),
    ],
)
def test_page_shows_only_trained_parts(page_with, part, expected, absent):
    page = Page(page_with(**part))
    for text in expected:
        assert text in page.text
    for text in absent:
        assert text not in page.text.partition("eve pretrain tiny")[0]
    ids = ["numbers", "curves", "images", "captions", "routing", "config"]
    if "Entropy" in absent:
        ids.remove("routing")
    assert page.ids == ids


@pytest.mark.parametrize(
    ("modality", "absent_task", "number", "section", "num_images"),
    [
        ("image", "mlm", "mim_mse", "images", 8 * 3),
        ("text", "mim", "mlm_acc", "captions", 0),
    ],
)
def test_page_of_rows_without_partners(
    page_with, modality, absent_task, number, section, num_images
):
    path = page_with(data={"modality": modality}, task={f"{absent_task}_weight": 0.0})
    page = Page(path)
    assert number in page.text
    assert "wrong" not in page.text.partition("eve pretrain tiny")[0]
    assert page.ids == ["numbers", "curves", section, "routing", "config"]
    assert len(page.images) == num_images
    assert ("Masked texts" in page.text) == (modality == "text")


def test_joint_masking_shows_the_masked_images_of_the_text_pass(page_with):
    images = Page(page_with(task={"joint_masking": True})).images
    originals = [alt for alt in images if alt.endswith(": original")]
    assert len(originals) == 8
    for alt in originals:
        where = alt.removesuffix(": original")
        assert (images[f"{where}: image"] == images[f"{where}: masked"]).all()
        num_grey = (images[f"{where}: wrong image"] == 128).all(2).sum()
        assert num_grey >= 12 * 8**2
