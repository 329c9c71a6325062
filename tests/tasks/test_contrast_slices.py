"""Contrast and negatives by slices of rows: equal to autograd over whole matrices, in a fraction of
their memory.

Letters: B rows, C candidates, d width of features.
"""

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl import objectives
from eve_vl.tasks.contrast import negatives
from eve_vl.tasks.contrast.keys import shares_key
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.retrieval.config import RetrievalConfig
from helpers.tiny_tasks import TOKENIZER, build
from helpers.twins import ListSource, pairs, tiny_config

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
contrast_benchmark = importlib.import_module("contrast")
ROWS = 12
CANDIDATES = 30


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def features(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(count, 7, dtype=dtype), dim=1).requires_grad_()


@pytest.mark.parametrize("at_once", [1, CANDIDATES * 5, CANDIDATES * 6, 10**6])
def test_contrast_by_slices_equals_autograd_over_whole_matrices(at_once, monkeypatch):
    """With soft targets and ignored candidates, in slices of 1, 5, 6 and all rows."""
    monkeypatch.setattr(objectives, "AT_ONCE", at_once)
    image = features(ROWS)
    text = features(ROWS)
    all_images = features(CANDIDATES)
    all_texts = features(CANDIDATES)
    temperature = torch.tensor(0.07, dtype=torch.float64, requires_grad=True)
    ignored_BC = torch.rand(ROWS, CANDIDATES) < 0.2
    target_BC = torch.rand(ROWS, CANDIDATES).double().masked_fill(ignored_BC, 0)
    target_BC = target_BC / target_BC.sum(1, keepdim=True)

    expected = torch.zeros((), dtype=torch.float64)
    for queries, candidates in ((image, all_texts), (text, all_images)):
        scores_BC = (queries @ candidates.T / temperature).masked_fill(ignored_BC, -torch.inf)
        expected = expected - (target_BC * scores_BC.log_softmax(1)).nan_to_num(0).sum()
    expected = 0.3 * expected / (2 * ROWS)

    loss = 0.3 * objectives.contrastive(
        image,
        text,
        all_images,
        all_texts,
        objectives.LazyRows(lambda rows: target_BC[rows]),
        temperature,
        objectives.LazyRows(lambda rows: ignored_BC[rows]),
    )
    assert abs((loss - expected).item()) <= 1e-12
    inputs = [image, text, all_images, all_texts, temperature]
    gradients = torch.autograd.grad(loss, inputs)
    expected_gradients = torch.autograd.grad(expected, inputs)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-12, atol=1e-12)


def test_autocast_does_not_coarsen_gradients_of_slices(monkeypatch):
    """With accumulation they are computed inside it."""
    inputs = (features(ROWS, torch.float32), features(ROWS, torch.float32))

    def gradients() -> tuple[Tensor, ...]:
        target = torch.eye(ROWS)
        loss = objectives.contrastive(*inputs, *inputs, target, torch.tensor(0.07))
        return torch.autograd.grad(loss, inputs)

    whole = gradients()
    monkeypatch.setattr(objectives, "AT_ONCE", ROWS * 5)
    with torch.autocast("cpu", torch.bfloat16):
        sliced = gradients()
    torch.testing.assert_close(sliced, whole, rtol=1e-5, atol=1e-6)


SECTIONS = {
    "memory": RetrievalConfig(
        itm_weight=0.0, rerank=0, projection_dim=8, memory_batches=1, dedup_captions=True
    ),
    "diagonal": ContrastMatchConfig(
        mlm_weight=0.0, itm_weight=0.0, itc_targets="diagonal", svd_form="sigma1"
    ),
    "global negatives": ContrastMatchConfig(
        mlm_weight=0.0, itm_negatives="global", itc_targets="same_text"
    ),
    "labels": ContrastMatchConfig(mlm_weight=0.0, itm_weight=0.0, itc_targets="semantic"),
}


def gradients_of_second_step(case: str, num_micro_batches: int) -> dict[str, Tensor]:
    """Return gradients of the second of two steps; rows share images, captions and labels."""
    task: Any = build(tiny_config(task=SECTIONS[case], model={"balance_weight": 0.0})).train()
    source = pairs(16)
    rows = []
    for row in range(16):
        rows.append(replace(source[row], labels=("a", "b")[: 1 + row % 2], absent=("c",)))
    dataset = type(task).dataset([ListSource(rows)], task.config, TOKENIZER, training=True)
    for step in range(2):
        task.zero_grad()
        batches = []
        for numbers in torch.arange(8 * step, 8 * step + 8).chunk(num_micro_batches):
            batch = dataset.collate([dataset[(0, 0, row)] for row in numbers.tolist()])
            batches.append(replace(batch, image_id_B=numbers % 5, caption_B=numbers % 3))
        for batch in task.before_step(batches):
            (task(batch).loss / num_micro_batches).backward()
        task.after_step(1.0)
    return {name: part.grad for name, part in task.named_parameters() if part.grad is not None}


@pytest.mark.parametrize("num_micro_batches", [1, 2])
@pytest.mark.parametrize("case", SECTIONS)
def test_a_step_by_slices_has_the_gradients_of_the_whole_one(case, num_micro_batches, monkeypatch):
    whole = gradients_of_second_step(case, num_micro_batches)
    monkeypatch.setattr(objectives, "AT_ONCE", 24)
    sliced = gradients_of_second_step(case, num_micro_batches)
    assert whole.keys() == sliced.keys()
    whole_vector = torch.cat([gradient.flatten() for gradient in whole.values()])
    sliced_vector = torch.cat([gradient.flatten() for gradient in sliced.values()])
    assert (whole_vector - sliced_vector).norm() <= 1e-6 * whole_vector.norm()


# Negatives: each of six rows a hundred times, in slices of 250, 250 and 100

COPIES = 100
ROW = torch.arange(6 * COPIES)
KEYS = torch.tensor([0, 0, 1, 2, 3, 4]).repeat(COPIES)[:, None]


@pytest.fixture
def in_slices(monkeypatch) -> None:
    monkeypatch.setattr(objectives, "AT_ONCE", len(ROW) * 250)


@pytest.mark.usefixtures("in_slices")
def test_hard_negatives_of_slices_follow_the_weights():
    image = features(6).detach()
    text = features(6).detach()
    temperature = torch.tensor(0.5)
    image_counts = torch.zeros(6, 6)
    text_counts = torch.zeros(6, 6)
    for _ in range(10):
        images, texts = negatives.hard(
            KEYS, image.repeat(COPIES, 1), text.repeat(COPIES, 1), temperature
        )
        true_images, wrong_images, images_of_wrong_texts = images.chunk(3)
        true_texts, texts_of_wrong_images, wrong_texts = texts.chunk(3)
        for rows in (true_images, images_of_wrong_texts, true_texts, texts_of_wrong_images):
            assert torch.equal(rows, ROW)
        once = torch.ones(len(ROW))
        image_counts.index_put_((ROW % 6, wrong_images % 6), once, accumulate=True)
        text_counts.index_put_((ROW % 6, wrong_texts % 6), once, accumulate=True)
    is_match = shares_key(KEYS[:6], KEYS[:6])
    for counts, similarity in ((image_counts, text @ image.T), (text_counts, image @ text.T)):
        weights = (similarity / temperature).exp().masked_fill(is_match, 0).float()
        expected = weights / weights.sum(1, keepdim=True)
        torch.testing.assert_close(counts / (10 * COPIES), expected, rtol=0, atol=0.08)


@pytest.mark.usefixtures("in_slices")
def test_a_row_that_matches_all_is_its_negative():
    keys = torch.zeros(len(ROW), 1)
    all_features = features(6).detach().repeat(COPIES, 1)
    for rows in negatives.hard(keys, all_features, all_features, torch.tensor(0.5)):
        assert torch.equal(rows, ROW.repeat(3))


@pytest.mark.usefixtures("in_slices")
def test_half_of_the_texts_get_a_random_image_that_does_not_match():
    images, texts = negatives.random_half(KEYS)
    assert torch.equal(texts, ROW)
    changed = images != ROW
    assert changed.sum() == len(ROW) // 2
    assert (KEYS[images] != KEYS)[changed].all()


@pytest.mark.usefixtures("in_slices")
def test_random_texts_begin_with_the_true_one_and_differ():
    images, texts = negatives.random_texts(KEYS, 3)
    assert torch.equal(images, ROW.repeat(3))
    text_3B = texts.view(3, -1)
    assert torch.equal(text_3B[0], ROW)
    assert (KEYS[text_3B[1:]] != KEYS).all()
    assert (text_3B[1] != text_3B[2]).all()


# Memory


def test_peak_memory_is_below_one_and_a_half_matrices(monkeypatch):
    """Whole matrices take 9.25, and 3.75 to sample negatives."""
    monkeypatch.setattr(objectives, "AT_ONCE", 2**12)
    step = contrast_benchmark.Step(384, 8)
    contrast = step.peaks("contrast")
    assert contrast["whole"] > 9
    assert contrast["slices"] < 1.5
    partners = step.peaks("partners")
    assert partners["whole"] > 3.5
    assert partners["slices"] < 1.5
    assert step.difference() < 1e-6


def test_the_benchmark_prints_ratios(tmp_path: Path, monkeypatch, capsys):
    json_path = tmp_path / "ratios.json"
    flags = ["--rows", "64", "--width", "4", "--rounds", "1", "--json"]
    monkeypatch.setattr(sys, "argv", ["contrast.py", *flags, str(json_path)])
    contrast_benchmark.main()
    output = capsys.readouterr().out
    assert "contrast  9." in output
    assert "matrices" in output
    assert json_path.is_file()
