"""Retrieval by matching only: every pair is scored, against loops over pairs."""

import math
import statistics
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from eve_vl.cli.main import main
from eve_vl.evaluation.evaluate import with_settings
from eve_vl.run.resume_checks import check_batch_size
from eve_vl.systems.medical.phantoms.rows import PhantomPairs
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.contrast_match.task import ContrastMatch
from eve_vl.tasks.evaluator import evaluator_class, evaluator_of
from eve_vl.tasks.retrieval import reranking
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.retrieval.search_set import SearchSet
from eve_vl.tasks.retrieval.task import Retrieval
from eve_vl.utils.errors import UserError
from helpers import tiny_tasks as tiny
from helpers.slow_ranking import slow_hit
from helpers.tiny_runs import TEXT, noise, tiny_run, write_run
from helpers.twins import tiny_config
from tests.tasks.test_retrieval import caption_batch, match_logits, pieces


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def alone(**task: Any) -> RetrievalConfig:
    return RetrievalConfig(**{"itc_weight": 0.0, "rerank": 0} | task)


def build(task: Any) -> Any:
    return tiny.build(
        tiny_config(task=task, model={"balance_weight": 0.0}, train={"batch_size": 6})
    )


def logits_of(task: Any, pixels: Tensor, ids: Tensor) -> list[float]:
    """Of one pair alone: no, yes."""
    found = match_logits(task, pixels, ids)
    return found if len(found) == 2 else [0.0, *found]


# What is trained


@torch.no_grad()
@pytest.mark.parametrize("itc_weight", [0.0, 1.0])
def test_ranking_is_the_cross_entropy_of_the_own_text_among_drawn_ones(itc_weight, monkeypatch):
    """Rows 0 and 2 show one image, so that neither text is wrong for it: with five texts of six a
    row may draw it, but not count it."""
    task = build(alone(itm_loss="ranking", ranking_candidates=4, itc_weight=itc_weight))
    batch, draws = caption_batch(task), torch.rand(6, 6)
    draws[0, [1, 3, 4, 5]] = torch.tensor([0.9, 0.1, 0.8, 0.2])
    monkeypatch.setattr(torch, "rand", lambda *_, **__: draws.clone())
    rows, total, right = pieces(batch), 0.0, 0
    for row in range(6):
        others = [other for other in range(6) if other != row and {row, other} != {0, 2}]
        drawn = sorted(others, key=lambda other: draws[row, other].item())[:3]
        own, *wrong = (logits_of(task, rows[row][0], rows[text][1])[1] for text in [row, *drawn])
        total += math.log(sum(math.exp(score - own) for score in [own, *wrong]))
        right += own > max(wrong)
    terms = task(batch).terms
    assert terms["itm"].item() == pytest.approx(total / 6, rel=1e-4)
    assert terms["itm_acc"].item() == pytest.approx(right / 6)
    assert ("itc" in terms) == bool(itc_weight)


def test_matching_alone_has_no_features_and_gives_half_of_the_texts_another_image():
    task = build(alone()).train()
    assert {name.split(".")[0] for name, _ in task.contrast.named_parameters()} == {"match_head"}
    assert not task.is_comparable
    assert "itc" not in task(caption_batch(task)).terms


def test_scores_that_rank_start_as_the_match_logit_and_go_on_as_they_are():
    task, weight = build(alone(itm_loss="ranking", ranking_candidates=2)), torch.randn(2, 16)
    tensors = {
        "contrast.match_head.weight": weight,
        "contrast.match_head.bias": torch.tensor([3.0, 4.0]),
    }
    kept = task.init_weights_from(tensors, ())
    torch.testing.assert_close(kept["contrast.match_head.weight"], weight[1:])
    assert kept["contrast.match_head.bias"].tolist() == [4.0]
    assert all(
        torch.equal(value, kept[name]) for name, value in task.init_weights_from(kept, ()).items()
    )
    assert build(alone()).init_weights_from(tensors, ()) == tensors


def test_texts_of_one_image_leave_nothing_to_rank():
    task = build(alone(itm_loss="ranking", ranking_candidates=6))
    assert task(caption_batch(task, (0, 3, 4))).terms["itm"].item() == 0


# What is found


def naive(task: Any, dataset: SearchSet) -> dict[str, float]:
    """Recalls by the match logit of each image and each caption, pair after pair."""
    pixels = [
        dataset[(0, 0, index)].image[None].float() / 127.5 - 1
        for index in range(len(dataset.images))
    ]
    ids = [torch.from_numpy(dataset.tokens(words))[None] for words in dataset.captions]
    scores = [[round(logits_of(task, image, text)[1], 4) for text in ids] for image in pixels]
    of_text = [
        [i for i, true in enumerate(dataset.captions_of) if t in true] for t in range(len(ids))
    ]
    ways = ("tr", scores, dataset.captions_of), ("ir", [*zip(*scores, strict=True)], of_text)
    return {
        f"{way}{k}": statistics.mean(
            slow_hit(row, each, k) for row, each in zip(keys, wanted, strict=True)
        )
        for way, keys, wanted in ways
        for k in (1, 5, 10)
    }


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{}, {"itm_loss": "ranking", "ranking_candidates": 3, "dedup_captions": True}]
)
def test_a_search_by_matching_alone_scores_every_pair_once(options, monkeypatch, capsys):
    task = build(alone(**options))
    dataset = tiny.eval_set(task.config)
    seen = {"encoder.image": 0, "contrast.match_head": 0}
    for name in seen:
        hook = lambda _, inputs, name=name: seen.update({name: seen[name] + len(inputs[0])})  # noqa: E731
        task.get_submodule(name).register_forward_pre_hook(hook)
    monkeypatch.setattr(reranking, "ONE_SIDE_AT_ONCE", 4)
    monkeypatch.setattr(reranking, "MANY_PAIRS", 1)
    numbers, num_texts = tiny.numbers_of(task, dataset, 5), len({*dataset.captions})
    assert seen == {"encoder.image": 9, "contrast.match_head": 9 * num_texts}
    assert (
        f"{9 * num_texts} fusion passes: 9 images with each of {num_texts} texts"
        in capsys.readouterr().out
    )
    expected = naive(task, dataset)
    assert {name: numbers[name] for name in expected} == pytest.approx(expected)
    assert not [name for name in numbers if "rerank" in name or "itc_only" in name]
    assert (
        evaluator_of(task)
        .warnings(numbers)[0]
        .startswith(
            f"no contrast: the matching head scored each of {9 * len(dataset.captions)} pairs"
        )
    )


@torch.no_grad()
def test_false_texts_are_scored_beside_their_own_image_and_a_wrong_one_alone(monkeypatch):
    task = build(alone())
    dataset = SearchSet(
        [PhantomPairs(split="test", image_size=64, num_rows=12, seed=2)],
        task.config,
        tiny.TOKENIZER,
    )
    scored, match = [], reranking.match_scores
    monkeypatch.setattr(
        reranking, "match_scores", lambda *args: scored.append(len(args[2])) or match(*args)
    )
    numbers = tiny.numbers_of(task, dataset, 7)
    for name, step in (("tr1_hard", 0), ("tr1_hard_wrong_image", 6)):
        hits = []
        for place, texts in enumerate(dataset.hard):
            pixels = dataset[(0, 0, (place + step) % 12)].image[None].float() / 127.5 - 1
            keys = [
                logits_of(task, pixels, torch.from_numpy(dataset.ids[text])[None])[1]
                for text in texts
            ]
            hits.append(slow_hit([round(key, 4) for key in keys], [0], 1))
        assert numbers[name] == pytest.approx(statistics.mean(hits))
    assert sum(scored) <= 2 * 4 * 12


def test_a_gallery_of_every_pair_is_limited(monkeypatch, capsys):
    monkeypatch.setattr("eve_vl.tasks.retrieval.evaluation.MAX_SEARCHED", 3)
    source = tiny.pairs(8)
    sizes = [
        len(
            evaluator_class(RetrievalConfig)
            .dataset([source], tiny_config(task=task), tiny.TOKENIZER)
            .images
        )
        for task in (alone(), RetrievalConfig(rerank=0))
    ]
    assert sizes == [3, 8]
    assert (
        capsys.readouterr().out
        == "searched among 3 of 8 rows: without contrast each pair takes a fusion pass\n"
    )


# Without fine-tuning


@torch.no_grad()
@pytest.mark.parametrize(
    "weights", [{"itc_weight": 0.0, "itm_negatives": "random_half"}, {"itm_weight": 0.0}, {}]
)
def test_a_pretrained_run_searches_with_the_heads_that_it_has(weights):
    task = build(ContrastMatchConfig(**weights))
    assert isinstance(task, ContrastMatch)
    seen: Any = task.as_task("retrieval")
    assert isinstance(seen, Retrieval) and evaluator_of(seen).main_metric is None
    assert (
        seen.settings.rerank == 0
    )  # of a run that has chosen nothing on validation data, what a user gets is contrast
    twin = build(replace(seen.settings, rerank=0 if weights else 4))
    twin.load_state_dict(
        {name: value for name, value in task.state_dict().items() if name in twin.state_dict()}
    )
    seen = with_settings(seen, twin.settings)
    dataset = tiny.eval_set(twin.config)
    numbers = tiny.numbers_of(seen, dataset, 5)
    assert numbers == tiny.numbers_of(twin, dataset, 5)
    assert ("tr1_itc_only" in numbers) == (not weights)
    assert task.as_task("vqa") is None and twin.as_task("vqa") is None


def test_commands_say_what_such_a_run_can_and_cannot(tmp_path, capsys):
    run = write_run(tiny_run("", task=alone(), folder=tmp_path), tmp_path / "run")
    masked = write_run(tiny_run("masked"), tmp_path / "masked")
    headless = RetrievalConfig(itm_weight=0.0, rerank=0)
    headless = write_run(tiny_run("", task=headless, folder=tmp_path), tmp_path / "headless")
    image = tmp_path / "a.png"
    from PIL import Image

    Image.fromarray(noise(1)).save(image)

    def said(*words: Any) -> str:
        main([str(word) for word in words])
        return capsys.readouterr().out

    assert "do not compare" in said(
        "features", image, "--run", run, "--texts", TEXT, "--out", tmp_path / "f.npz"
    )
    assert "finds only images by an image" in said(
        "index", image.parent, "--run", run, "--out", tmp_path / "index"
    )
    assert "tr1 " in said("evaluate", "retrieval", run, "--data", "scenes:val", "--samples", "4")
    for words, problem in (
        (
            (run, "--data", "scenes:val", "--rerank", "5"),
            "rerank 5 needs contrast's candidates, but itc_weight is 0",
        ),
        (
            (headless, "--data", "scenes:val", "--rerank", "5"),
            "--rerank: rerank 5 needs the matching head, but itm_weight is 0",
        ),
        ((masked,), "is a masked_signal run, which has no head for retrieval"),
    ):
        with pytest.raises(SystemExit):
            said("evaluate", "retrieval", *words)
        assert problem in capsys.readouterr().err


def test_what_does_not_go_together_is_said(tmp_path, monkeypatch):
    for task, problem in (
        (
            RetrievalConfig(itc_weight=0.0),
            "rerank 128 needs contrast's candidates, but itc_weight is 0",
        ),
        (alone(itm_weight=0.0), "itc_weight and itm_weight are both 0"),
        (
            alone(itm_loss="ranking", ranking_candidates=1),
            r"ranking_candidates 1 is not in \[2, inf\)",
        ),
        (
            alone(itm_loss="ranking", ranking_candidates=5),
            "ranking_candidates 5 is more than the 4 pairs of a micro-batch",
        ),
    ):
        with pytest.raises(UserError, match=f"task.{problem}"):
            tiny_config(task=task)
    config = replace(
        tiny_config(task=alone(itm_loss="ranking", ranking_candidates=4)), out=tmp_path
    )
    with pytest.raises(
        UserError,
        match=r"task.ranking_candidates 4 is more than the 2 pairs of a micro-batch of each of 2 processes: ",
    ):
        check_batch_size(config, 2)
    idle = {*alone().unused_fields()}
    assert idle == {
        "rerank_by",
        "projection_dim",
        "pooling",
        "final_norm",
        "ranking_candidates",
        "memory_batches",
    }
