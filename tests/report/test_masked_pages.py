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
from eve_vl.pages.number_formats import percent
from eve_vl.run.loading import LoadedRun, load_run
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.tasks.masked_signal.report import MaskedSignalReport, MaskedToken
from eve_vl.tasks.masked_signal.task import MaskedSignal
from helpers.report_page import Page, tiny, trained


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
    (batch,) = eval_loader(dataset, batch_size=num_samples, rank=0, world=1)
    return batch


def single_pair(batch: PairBatch, row: int) -> PairBatch:
    """Return one pair as a batch without padding."""
    length = int((~batch.is_padding_BT[row]).sum())
    rows = slice(row, row + 1)
    return PairBatch(
        images_BCHW=batch.images_BCHW[rows],
        ids_BT=batch.ids_BT[rows, :length],
        is_padding_BT=batch.is_padding_BT[rows, :length],
        is_masked_BT=batch.is_masked_BT[rows, :length],
        keep_BK=batch.keep_BK[rows],
        hidden_BM=batch.hidden_BM[rows],
        image_id_B=batch.image_id_B[rows],
        caption_B=batch.caption_B[rows],
        where=batch.where[rows],
    )


def pixels_of(batch: PairBatch, row: int) -> np.ndarray:
    return batch.images_BCHW[row].permute(1, 2, 0).numpy()


@torch.inference_mode()
def masked_and_reconstructed(run: LoadedRun, pair: PairBatch) -> tuple[np.ndarray, np.ndarray]:
    """Return both images of a pair, painted patch by patch with slices of the image."""
    task = run.task
    assert isinstance(task, MaskedSignal)
    size = run.config.input.patch_size
    side = run.config.input.image_size // size
    predicted = task.predict_pixels(task.encode(pair, keep=True), pair)[0]
    predicted_HWC = predicted.reshape(-1, 3, size, size).permute(0, 2, 3, 1).numpy()
    original = pixels_of(pair, 0)
    masked = original.copy()
    reconstructed = original.copy()
    for patch, pixels in zip(pair.hidden_BM[0].tolist(), predicted_HWC, strict=True):
        y = patch // side * size
        x = patch % side * size
        area = np.s_[y : y + size, x : x + size]
        if task.settings.normalize_targets:
            true_pixels = original[area] / 127.5 - 1
            deviation = np.sqrt(true_pixels.var(ddof=1) + 1e-6)
            pixels = pixels * deviation + true_pixels.mean()  # noqa: PLW2901
        masked[area] = 128
        reconstructed[area] = np.rint(np.clip((pixels + 1) * 127.5, 0, 255))
    return masked, reconstructed


@pytest.mark.parametrize("is_normalized", [False, True])
def test_images_are_those_of_the_model(page_with, is_normalized: bool):
    path = page_with(steps=2, task={"normalize_targets": is_normalized})
    page = Page(path)
    run = load_run(path.parent)
    batch = validation_batch(run, 8)
    assert batch.wrong is not None
    largest_difference = 0
    for row, where in enumerate(batch.where):
        pair = single_pair(batch, row)
        masked, reconstructed = masked_and_reconstructed(run, pair)
        wrong_pair = pair.with_text_of(single_pair(batch.wrong, row))
        _, with_wrong_caption = masked_and_reconstructed(run, wrong_pair)
        exact_images = {
            "original": pixels_of(batch, row),
            "image": pixels_of(batch, row),
            "wrong image": pixels_of(batch.wrong, row),
            "masked": masked,
        }
        for name, pixels in exact_images.items():
            assert (page.images[f"{where}: {name}"] == pixels).all()
        is_visible = (masked != 128).any(2)
        outputs = {"reconstructed": reconstructed, "wrong caption": with_wrong_caption}
        for name, pixels in outputs.items():
            image = page.images[f"{where}: {name}"].astype(int)
            assert np.abs(image - pixels).max() <= 1  # rounding
            assert (image == masked)[is_visible].all()
        difference = np.abs(reconstructed.astype(int) - with_wrong_caption).max()
        largest_difference = max(largest_difference, difference)
    assert largest_difference > 5
    assert ("true mean and deviation" in page.text) == is_normalized


def token_probabilities(run: LoadedRun, pair: PairBatch) -> torch.Tensor:
    """Return the probabilities (M, V) of the masked tokens of one pair."""
    assert isinstance(run.task, MaskedSignal)
    encoded = run.task.encode(pair, mask=True)
    text_TD = encoded.x_BND[0, 1 + run.config.input.num_patches :]
    return run.task.token_head(text_TD[pair.is_masked_BT[0]]).softmax(-1)


def guesses_on_page(token: MaskedToken) -> str:
    text = token.truth + (" ✓" if token.guesses[0].is_right else " ✗")
    for guess in token.guesses:
        text += guess.text + percent(guess.probability)
    return text + "wrong image"


@torch.inference_mode()
def test_guesses_are_those_of_the_model(page_with):
    path = page_with(steps=2, task={"normalize_targets": False})
    page = Page(path)
    run = load_run(path.parent)
    word = run.tokenizer.word
    batch = validation_batch(run, 8)
    assert batch.wrong is not None
    examples = MaskedSignalReport(run, evaluated).examples_to_compare(8)
    for row, example in enumerate(examples):
        pair = single_pair(batch, row)
        wrong_pair = replace(pair, images_BCHW=batch.wrong.images_BCHW[row : row + 1])
        truths = pair.ids_BT[pair.is_masked_BT].tolist()
        right_MV = token_probabilities(run, pair)
        wrong_MV = token_probabilities(run, wrong_pair)
        for token, truth, right_V, wrong_V in zip(
            example.masked_tokens, truths, right_MV, wrong_MV, strict=True
        ):
            best = right_V.topk(5)
            ids = best.indices.tolist()
            assert token.truth == word(truth)
            assert [guess.text for guess in token.guesses] == [word(index) for index in ids]
            assert [guess.is_right for guess in token.guesses] == [i == truth for i in ids]
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
