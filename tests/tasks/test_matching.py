"""Retrieval by matching only: ranking loss, and a search that scores every pair."""

import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from eve_vl.cli.main import main
from eve_vl.evaluation.evaluate import changed_settings, with_settings
from eve_vl.run.resume_checks import check_batch_size
from eve_vl.systems.medical.phantoms.rows import PhantomPairs
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.tasks.retrieval import reranking
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.retrieval.search_set import SearchSet
from eve_vl.tasks.retrieval.task import Retrieval
from eve_vl.utils.errors import UserError
from helpers import tiny_tasks
from helpers.counted_rows import counted_rows
from helpers.slow_ranking import slow_hit
from helpers.slow_search import (
    SlowSearch,
    candidate_pixels,
    caption_batch,
    lone_pairs,
    match_logits,
)
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import pairs
from helpers.tiny_runs import TEXT, noise, tiny_run, write_run
from helpers.tiny_tasks import TOKENIZER, eval_set, numbers_of


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def matching_only(**task: Any) -> RetrievalConfig:
    return RetrievalConfig(**({"itc_weight": 0.0, "rerank": 0} | task))


def build(section: Any) -> Any:
    config = tiny_config(
        task=section,
        model={"balance_weight": 0.0},
        train={"batch_size": 6},
    )
    return tiny_tasks.build(config)


# Training


@torch.no_grad()
@pytest.mark.parametrize("itc_weight", [0.0, 1.0])
def test_ranking_is_the_cross_entropy_of_the_true_text_among_random_ones(itc_weight, monkeypatch):
    """Rows 0 and 2 show one image: with four texts of six, neither is drawn for the other."""
    section = matching_only(itm_loss="ranking", ranking_candidates=4, itc_weight=itc_weight)
    task = build(section)
    batch = caption_batch(task)
    draws = torch.rand(6, 6)
    draws[0, [1, 3, 4, 5]] = torch.tensor([0.9, 0.1, 0.8, 0.2])
    monkeypatch.setattr(torch, "rand", lambda *_, **__: draws.clone())
    rows = lone_pairs(batch)
    total = 0.0
    num_right = 0
    for row in range(6):
        negatives = [text for text in range(6) if text != row and {row, text} != {0, 2}]
        drawn = sorted(negatives, key=lambda text: draws[row, text].item())[:3]
        scores = []
        for text in (row, *drawn):
            scores.append(match_logits(task, rows[row].pixels, rows[text].ids)[-1])
        total += math.log(sum(math.exp(score - scores[0]) for score in scores))
        num_right += scores[0] > max(scores[1:])
    terms = task(batch).terms
    assert terms["itm"].item() == pytest.approx(total / 6, rel=1e-4)
    assert terms["itm_acc"].item() == pytest.approx(num_right / 6)
    assert ("itc" in terms) == bool(itc_weight)


def test_matching_only_has_no_features():
    task = build(matching_only()).train()
    assert {name.split(".")[0] for name, _ in task.contrast.named_parameters()} == {"match_head"}
    assert not task.is_comparable
    assert "itc" not in task(caption_batch(task)).terms


def test_ranking_scores_start_as_the_match_logit_and_continue_unchanged():
    task = build(matching_only(itm_loss="ranking", ranking_candidates=2))
    weight = torch.randn(2, 16)
    tensors = {
        "contrast.match_head.weight": weight,
        "contrast.match_head.bias": torch.tensor([3.0, 4.0]),
    }
    weights = task.init_weights_from(tensors, ())
    torch.testing.assert_close(weights["contrast.match_head.weight"], weight[1:])
    assert weights["contrast.match_head.bias"].tolist() == [4.0]
    torch.testing.assert_close(task.init_weights_from(weights, ()), weights, rtol=0, atol=0)
    assert build(matching_only()).init_weights_from(tensors, ()) == tensors


def test_texts_of_one_image_leave_nothing_to_rank():
    task = build(matching_only(itm_loss="ranking", ranking_candidates=6))
    assert task(caption_batch(task, (0, 3, 4))).terms["itm"].item() == 0


# Search


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"itm_loss": "ranking", "ranking_candidates": 3, "dedup_captions": True},
    ],
)
def test_a_search_by_matching_only_scores_every_pair_once(options, monkeypatch, capsys):
    task = build(matching_only(**options))
    dataset = eval_set(task.config)
    monkeypatch.setattr(reranking, "ONE_SIDE_AT_ONCE", 4)
    monkeypatch.setattr(reranking, "MANY_PAIRS", 1)
    with counted_rows(task, "encoder.image", "contrast.match_head") as num_rows:
        numbers = numbers_of(task, dataset, 5)

    num_texts = len(set(dataset.captions))
    assert num_rows == {"encoder.image": 9, "contrast.match_head": 9 * num_texts}
    line = f"{9 * num_texts} fusion passes: 9 images with each of {num_texts} texts"
    assert line in capsys.readouterr().out
    recalls = SlowSearch(task, dataset, num_reranked=10_000).recalls()
    assert {name: numbers[name] for name in recalls} == pytest.approx(recalls)
    assert not [name for name in numbers if "rerank" in name or "itc_only" in name]
    num_pairs = 9 * len(dataset.captions)
    sentence = evaluator_of(task).warnings(numbers)[0]
    assert sentence.startswith(f"no contrast: the matching head scored each of {num_pairs} pairs")


@torch.no_grad()
def test_hard_false_captions_are_scored_with_the_image_and_with_a_wrong_one():
    task = build(matching_only())
    source = PhantomPairs(
        split="test",
        image_size=64,
        num_rows=8,
        seed=2,
    )
    dataset = SearchSet([source], task.config, TOKENIZER)
    with counted_rows(task, "contrast.match_head") as num_rows:
        numbers = numbers_of(task, dataset, 7)
    num_of_search = 8 * len(set(dataset.captions))
    assert num_rows["contrast.match_head"] <= num_of_search + 2 * 4 * 8

    pixels = candidate_pixels(dataset)
    for name, step in (("tr1_hard", 0), ("tr1_hard_wrong_image", 4)):
        hits = []
        for image, texts in enumerate(dataset.hard):
            scores = []
            for text in texts:
                ids = torch.from_numpy(dataset.ids[text])[None]
                logits = match_logits(task, pixels[(image + step) % 8], ids)
                scores.append(round(logits[-1], 4))
            hits.append(slow_hit(scores, [0], 1))
        assert numbers[name] == pytest.approx(statistics.mean(hits))


@pytest.mark.parametrize(
    ("section", "num_images", "output"),
    [
        (
            matching_only(),
            3,
            "searched among 3 of 8 rows: without contrast each pair takes a fusion pass\n",
        ),
        (RetrievalConfig(rerank=0), 8, ""),
    ],
)
def test_a_search_of_every_pair_has_fewer_candidates(
    section, num_images, output, monkeypatch, capsys
):
    monkeypatch.setattr("eve_vl.tasks.retrieval.evaluation.MAX_SEARCHED", 3)
    task = build(section)
    dataset = evaluator_of(task).dataset([pairs(8)], task.config, TOKENIZER)
    assert len(dataset.images) == num_images
    assert capsys.readouterr().out == output


@torch.no_grad()
@pytest.mark.parametrize(
    ("section", "rerank"),
    [
        (ContrastMatchConfig(itc_weight=0.0, itm_negatives="random_half"), 0),
        (ContrastMatchConfig(itm_weight=0.0), 0),
        (ContrastMatchConfig(), 4),
    ],
)
def test_a_pretrained_run_searches_with_the_heads_that_it_has(section, rerank):
    task = build(section)
    search: Any = task.as_task("retrieval")
    assert isinstance(search, Retrieval)
    assert evaluator_of(search).main_metric is None
    assert search.settings.rerank == 0  # validation chose nothing
    twin = build(replace(search.settings, rerank=rerank))
    weights = task.state_dict()
    twin.load_state_dict({name: weights[name] for name in twin.state_dict()})
    dataset = eval_set(twin.config)
    numbers = numbers_of(with_settings(search, twin.settings), dataset, 5)
    assert numbers == numbers_of(twin, dataset, 5)
    assert ("tr1_itc_only" in numbers) == bool(rerank)
    assert task.as_task("vqa") is None
    assert twin.as_task("vqa") is None


# Commands and configs


def test_commands_report_what_a_run_without_features_cannot_do(tmp_path: Path, capsys):
    run = write_run(tiny_run("", task=matching_only(), folder=tmp_path), tmp_path / "run")
    image = tmp_path / "a.png"
    Image.fromarray(noise(1)).save(image)
    features = tmp_path / "f.npz"
    main(["features", str(run), str(image), "--texts", TEXT, "--out", str(features)])
    assert "do not compare" in capsys.readouterr().out
    main(["index", str(tmp_path), "--run", str(run), "--out", str(tmp_path / "index")])
    assert "finds only images by an image" in capsys.readouterr().out


def test_evaluation_refuses_what_the_heads_do_not_allow(tmp_path: Path, capsys):
    message = "--rerank: rerank 5 needs the matching head, but itm_weight is 0"
    with pytest.raises(UserError, match=message):
        changed_settings(RetrievalConfig(itm_weight=0.0, rerank=0), {"rerank": 5})
    run = write_run(tiny_run("masked", folder=tmp_path), tmp_path / "run")
    with pytest.raises(SystemExit):
        main(["evaluate", "retrieval", str(run)])
    assert "is a masked_signal run, which has no head for retrieval" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        (
            RetrievalConfig(itc_weight=0.0),
            "rerank 128 needs contrast's candidates, but itc_weight is 0",
        ),
        (matching_only(itm_weight=0.0), "itc_weight and itm_weight are both 0"),
        (
            matching_only(itm_loss="ranking", ranking_candidates=1),
            r"ranking_candidates 1 is not in \[2, inf\)",
        ),
        (
            matching_only(itm_loss="ranking", ranking_candidates=5),
            "ranking_candidates 5 is more than the 4 pairs of a micro-batch",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(section, problem):
    with pytest.raises(UserError, match=f"task.{problem}"):
        tiny_config(task=section)


def test_ranking_needs_enough_pairs_in_each_process(tmp_path: Path):
    config = tiny_config(task=matching_only(itm_loss="ranking", ranking_candidates=4))
    message = "task.ranking_candidates 4 is more than the 2 pairs of .* each of 2 processes: "
    with pytest.raises(UserError, match=message):
        check_batch_size(replace(config, out=tmp_path), 2)


def test_options_of_contrast_are_unused_without_it():
    assert set(matching_only().unused_fields()) == {
        "rerank_by",
        "projection_dim",
        "pooling",
        "final_norm",
        "ranking_candidates",
        "memory_batches",
    }
