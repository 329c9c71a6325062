"""Contrast and negatives by slices of rows: equal to autograd over whole matrices, in a fraction of
their memory.

Letters: B rows, C candidates, d width of features.
"""

import importlib
import json
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
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import ListSource, pairs
from helpers.tiny_tasks import TOKENIZER, build, rows_of

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


def gradient_of_second_step(case: str, num_micro_batches: int) -> Tensor:
    """Return the gradient of the second of two steps; rows share images, captions and labels."""
    task: Any = build(tiny_config(task=SECTIONS[case], model={"balance_weight": 0.0})).train()
    rows = []
    for row, pair in enumerate(pairs(16)):
        rows.append(replace(pair, labels=("a", "b")[: 1 + row % 2], absent=("c",)))
    dataset = type(task).dataset([ListSource(rows)], task.config, TOKENIZER, training=True)
    for step in range(2):
        task.zero_grad()
        batches = []
        for numbers in torch.arange(8 * step, 8 * step + 8).chunk(num_micro_batches):
            batch = rows_of(dataset, numbers.tolist())
            batches.append(replace(batch, image_id_B=numbers % 5, caption_B=numbers % 3))
        for batch in task.before_step(batches):
            (task(batch).loss / num_micro_batches).backward()
        task.after_step(1.0)
    gradients = []
    for parameter in task.parameters():
        if parameter.grad is not None:
            gradients.append(parameter.grad.flatten())
    return torch.cat(gradients)


@pytest.mark.parametrize(
    ("case", "num_micro_batches"),
    [
        ("memory", 1),
        ("memory", 2),
        ("diagonal", 1),
        ("global negatives", 2),
        ("labels", 2),
    ],
)
def test_a_step_by_slices_has_the_gradients_of_the_whole_one(case, num_micro_batches, monkeypatch):
    whole = gradient_of_second_step(case, num_micro_batches)
    monkeypatch.setattr(objectives, "AT_ONCE", 24)
    sliced = gradient_of_second_step(case, num_micro_batches)
    assert (whole - sliced).norm() <= 1e-6 * whole.norm()


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
    images, texts = negatives.hard(
        KEYS, image.repeat(COPIES, 1), text.repeat(COPIES, 1), temperature
    )
    true_images, wrong_images, images_of_wrong_texts = images.chunk(3)
    true_texts, texts_of_wrong_images, wrong_texts = texts.chunk(3)
    for rows in (true_images, images_of_wrong_texts, true_texts, texts_of_wrong_images):
        assert torch.equal(rows, ROW)
    is_match = shares_key(KEYS[:6], KEYS[:6])
    once = torch.ones(len(ROW))
    for drawn, similarity in (
        (wrong_images, text @ image.T),
        (wrong_texts, image @ text.T),
    ):
        counts = torch.zeros(6, 6).index_put((ROW % 6, drawn % 6), once, accumulate=True)
        assert not counts[is_match].any()
        weights = (similarity / temperature).exp().masked_fill(is_match, 0).float()
        expected = weights / weights.sum(1, keepdim=True)
        torch.testing.assert_close(counts / COPIES, expected, rtol=0, atol=0.15)


@pytest.mark.usefixtures("in_slices")
def test_random_negatives_never_match():
    """Half of the texts get another image; each image gets its own text and two others."""
    images, texts = negatives.random_half(KEYS)
    assert torch.equal(texts, ROW)
    changed = images != ROW
    assert changed.sum() == len(ROW) // 2
    assert (KEYS[images] != KEYS)[changed].all()

    images, texts = negatives.random_texts(KEYS, 3)
    assert torch.equal(images, ROW.repeat(3))
    true_texts, second_texts, third_texts = texts.chunk(3)
    assert torch.equal(true_texts, ROW)
    assert (KEYS[second_texts] != KEYS).all()
    assert (KEYS[third_texts] != KEYS).all()
    assert (second_texts != third_texts).all()


# Memory


def test_the_benchmark_finds_peak_memory_below_one_and_a_half_matrices(
    tmp_path: Path, monkeypatch, capsys
):
    """Whole matrices take 9.25, and 3.75 to sample negatives."""
    monkeypatch.setattr(objectives, "AT_ONCE", 2**12)
    json_path = tmp_path / "ratios.json"
    flags = ["--rows", "384", "--width", "8", "--rounds", "1", "--json", str(json_path)]
    monkeypatch.setattr(sys, "argv", ["contrast.py", *flags])
    contrast_benchmark.main()
    assert "contrast  9." in capsys.readouterr().out
    parts = json.loads(json_path.read_text())["found"]
    for name, whole in (("contrast", 9), ("partners", 3.5)):
        peaks = parts[name]["peaks"]
        assert peaks["whole"] > whole
        assert peaks["slices"] < 1.5
