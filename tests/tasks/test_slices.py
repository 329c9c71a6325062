"""Contrast and negatives by slices of rows: equal to autograd over whole matrices, in a fraction of
their memory."""

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
from eve_vl.tasks.contrast.negatives import shares_key
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.task import task_class
from helpers import tiny_tasks as tiny
from helpers.twins import pairs, tiny_config

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
contrast = importlib.import_module("contrast")
ROWS, CANDIDATES = 12, 30


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def features(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(count, 7, dtype=dtype), dim=1).requires_grad_()


def twin(
    image: Tensor,
    text: Tensor,
    images: Tensor,
    texts: Tensor,
    target: Tensor,
    temperature: Tensor,
    ignored: Tensor,
) -> Tensor:
    """The mean over queries of both directions, by plain autograd over whole matrices."""
    total = torch.zeros((), dtype=image.dtype)
    for own, others in ((image, texts), (text, images)):
        scores = (own @ others.T / temperature).masked_fill(ignored, -torch.inf)
        total = total - (target * scores.log_softmax(1)).nan_to_num(0).sum()
    return total / (2 * len(image))


@pytest.mark.parametrize("at_once", [1, CANDIDATES * 5, CANDIDATES * 6, 10**6])
def test_contrast_by_slices_is_its_twin_in_float64(at_once, monkeypatch):
    """For soft targets and candidates that do not count, in slices of 1, 5, 6 and all rows."""
    monkeypatch.setattr(objectives, "AT_ONCE", at_once)
    given = [
        *(features(count) for count in (ROWS, ROWS, CANDIDATES, CANDIDATES)),
        torch.tensor(0.07).double().requires_grad_(),
    ]
    ignored = torch.rand(ROWS, CANDIDATES) < 0.2
    target = torch.rand(ROWS, CANDIDATES).double().masked_fill(ignored, 0)
    target = target / target.sum(1, keepdim=True)
    lazy = [
        objectives.LazyRows(lambda rows, whole=whole: whole[rows]) for whole in (target, ignored)
    ]
    found = 0.3 * objectives.contrastive(
        given[0], given[1], given[2], given[3], lazy[0], given[4], lazy[1]
    )
    expected = 0.3 * twin(given[0], given[1], given[2], given[3], target, given[4], ignored)
    assert abs((found - expected).item()) <= 1e-12
    for one, two in zip(
        torch.autograd.grad(found, given), torch.autograd.grad(expected, given), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_autocast_does_not_coarsen_gradients_of_slices(monkeypatch):
    """With accumulation they are computed inside it."""
    given = [features(ROWS, torch.float32) for _ in range(2)]
    target = torch.eye(ROWS)
    found = []
    for at_once, is_enabled in ((10**6, False), (ROWS * 5, True)):
        monkeypatch.setattr(objectives, "AT_ONCE", at_once)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_enabled):
            loss = objectives.contrastive(
                given[0], given[1], given[0], given[1], target, torch.tensor(0.07)
            )
        found.append(torch.autograd.grad(loss, given))
    for whole, sliced in zip(*found, strict=True):
        torch.testing.assert_close(sliced, whole, rtol=1e-5, atol=1e-6)


CASES = {
    "memory": RetrievalConfig(
        itm_weight=0.0,
        rerank=0,
        projection_dim=8,
        memory_batches=1,
        dedup_captions=True,
    ),
    "diagonal": ContrastMatchConfig(
        mlm_weight=0.0, itm_weight=0.0, itc_targets="diagonal", svd_form="sigma1"
    ),
    "global partners": ContrastMatchConfig(
        mlm_weight=0.0, itm_negatives="global", itc_targets="same_text"
    ),
    "labels": ContrastMatchConfig(mlm_weight=0.0, itm_weight=0.0, itc_targets="semantic"),
}


def gradients(case: str, num_micro_batches: int) -> dict[str, Tensor]:
    """Of the second of two steps; rows share images, captions and labels."""
    task: Any = tiny.build(tiny_config(task=CASES[case], model={"balance_weight": 0.0})).train()
    source: Any = pairs(16)
    source.rows = [
        replace(row, labels=("a", "b")[: 1 + n % 2], absent=("c",))
        for n, row in enumerate(source.rows)
    ]
    dataset = task_class(type(task.settings)).dataset(
        [source], task.config, tiny.TOKENIZER, training=True
    )
    for step in range(2):
        task.zero_grad()
        parts = []
        for rows in torch.arange(8 * step, 8 * step + 8).chunk(num_micro_batches):
            batch = dataset.collate([dataset[(0, 0, row)] for row in rows.tolist()])
            parts.append(replace(batch, image_id_B=rows % 5, caption_B=rows % 3))
        for batch in task.before_step(parts):
            (task(batch).loss / num_micro_batches).backward()
        task.after_step(1.0)
    return {name: each.grad for name, each in task.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("num_micro_batches", [1, 2])
@pytest.mark.parametrize("case", CASES)
def test_a_step_by_slices_has_the_gradients_of_the_whole_one(case, num_micro_batches, monkeypatch):
    whole = gradients(case, num_micro_batches)
    monkeypatch.setattr(objectives, "AT_ONCE", 24)
    sliced = gradients(case, num_micro_batches)
    assert whole.keys() == sliced.keys()
    one, two = (torch.cat([each.flatten() for each in found.values()]) for found in (whole, sliced))
    assert (one - two).norm() <= 1e-6 * one.norm()


def test_partners_of_slices_are_no_matches_and_follow_the_weights(monkeypatch):
    monkeypatch.setattr(
        objectives, "AT_ONCE", 600 * 250
    )  # 250, 250 and 100 rows: each of six rows a hundred times
    keys, image, text = (
        torch.tensor([[0], [0], [1], [2], [3], [4]]),
        features(6).detach(),
        features(6).detach(),
    )
    many = [each.repeat(100, 1) for each in (keys, image, text)]
    own, counts = torch.arange(600), torch.zeros(2, 6, 6)
    for _ in range(10):
        images, texts = negatives.hard(many[0], many[1], many[2], torch.tensor(0.5))
        assert torch.equal(
            images[[*range(600), *range(1200, 1800)]], own.repeat(2)
        ) and torch.equal(texts[:1200], own.repeat(2))
        counts[0].index_put_((own % 6, images[600:1200] % 6), torch.ones(600), accumulate=True)
        counts[1].index_put_((own % 6, texts[1200:] % 6), torch.ones(600), accumulate=True)
    is_match = shares_key(keys, keys)
    for found, scores in zip(counts, (text @ image.T, image @ text.T), strict=True):
        weights = objectives.negative_weights(scores / 0.5, is_match)
        torch.testing.assert_close(
            found / 1000, weights / weights.sum(1, keepdim=True), rtol=0, atol=0.08
        )
    everything = negatives.hard(torch.zeros(600, 1), many[1], many[2], torch.tensor(0.5))
    assert all(torch.equal(rows, own.repeat(3)) for rows in everything)
    images, _ = negatives.random_half(many[0])
    assert (images != own).sum() == 300
    assert not shares_key(many[0], many[0])[own, images][images != own].any()
    _, texts = negatives.random_texts(many[0], 3)
    assert (
        torch.equal(texts[:600], own)
        and not shares_key(many[0], many[0])[own.repeat(2), texts[600:]].any()
    )
    assert all(len(set(row)) == 3 for row in texts.view(3, 600).T.tolist())


def test_peak_memory_is_below_one_and_a_half_matrices(monkeypatch):
    """Whole ones take 9.25, and 3.75 to draw partners."""
    monkeypatch.setattr(objectives, "AT_ONCE", 2**12)
    step = contrast.Step(384, 8)
    for name, least, most in (("contrast", 9, 1.5), ("partners", 3.5, 1.5)):
        peaks = step.peaks(name)
        assert peaks["whole"] > least and peaks["slices"] < most, (name, peaks)
    assert step.difference() < 1e-6


def test_the_benchmark_prints_ratios(tmp_path, monkeypatch, capsys):
    words = [
        "contrast.py",
        "--rows",
        "64",
        "--width",
        "4",
        "--rounds",
        "1",
        "--json",
        str(tmp_path / "found.json"),
    ]
    monkeypatch.setattr(sys, "argv", words)
    contrast.main()
    shown = capsys.readouterr().out
    assert "contrast  9." in shown and "matrices" in shown and (tmp_path / "found.json").is_file()
