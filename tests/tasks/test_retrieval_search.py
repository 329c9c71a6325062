"""The search of retrieval against a slow one, in loops over queries."""

from typing import Any

import pytest
import torch
from torch import Tensor

from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.tasks.retrieval import reranking
from eve_vl.tasks.retrieval.gallery import Gallery
from eve_vl.tasks.retrieval.rerank_choice import search_gallery
from helpers.counted_rows import counted_rows
from helpers.slow_ranking import hits_of
from helpers.slow_search import SlowSearch
from helpers.tiny_tasks import eval_set, gallery_of, numbers_of, retrieval


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@torch.no_grad()
@pytest.mark.parametrize(
    ("k", "captions_per_image", "merge", "by"),
    [
        (0, 0, False, "match"),
        (4, 1, False, "match"),
        (10_000, 0, True, "match"),
        (4, 0, True, "sum"),
    ],
)
def test_numbers_equal_a_slow_search(k, captions_per_image, merge, by):
    """Some images have several texts, some texts several images; k exceeds the candidates."""
    task = retrieval(
        rerank=k,
        rerank_by=by,
        captions_per_image=captions_per_image,
        dedup_captions=merge,
        pooling="mean" if merge else "cls",
    )
    dataset = eval_set(task.config)
    numbers = numbers_of(task, dataset, 5)
    recalls = SlowSearch(task, dataset, k).recalls()
    assert {name: numbers[name] for name in recalls} == pytest.approx(recalls)
    assert numbers["r_mean"] == pytest.approx(sum(recalls.values()) / 6)
    by_contrast = SlowSearch(task, dataset, 0).recalls()
    assert {name: numbers[f"{name}_itc_only"] for name in recalls} == pytest.approx(by_contrast)

    num_pairs = sum(map(len, dataset.captions_of))
    num_captions = len(dataset.captions)
    assert numbers["rerank_k"] == k
    assert numbers["num_images"] == 9
    assert numbers["num_texts"] == num_captions
    assert numbers["texts_per_image"] == pytest.approx(num_pairs / 9)
    assert numbers["images_per_text"] == pytest.approx(num_pairs / num_captions)


@torch.no_grad()
def test_reranking_scores_no_pair_and_embeds_no_side_twice(monkeypatch):
    task = retrieval(rerank=3)
    dataset = eval_set(task.config)
    gallery = gallery_of(task, dataset)
    pairs: list[tuple[int, str]] = []
    match_scores = reranking.match_scores

    def watched(
        task: Any,
        gallery: Gallery,
        images: Tensor,
        texts: Tensor,
    ) -> Tensor:
        for image, text in zip(images.tolist(), texts.tolist(), strict=True):
            pairs.append((image, dataset.texts[text]))
        return match_scores(task, gallery, images, texts)

    monkeypatch.setattr(reranking, "match_scores", watched)
    modules = ("encoder.image", "encoder.text", "contrast.match_head")
    with counted_rows(task, *modules) as num_rows:
        result = search_gallery(task, gallery, 3)

    expected = SlowSearch(task, dataset, 3)
    assert hits_of(result.ranks_I) == [pytest.approx(hits) for hits in expected.hits_of_images]
    assert hits_of(result.ranks_T) == [pytest.approx(hits) for hits in expected.hits_of_captions]
    assert sorted(pairs) == sorted(expected.scores)
    images, texts = zip(*pairs, strict=True)
    assert num_rows == {
        "encoder.image": len(set(images)),
        "encoder.text": len(set(texts)),
        "contrast.match_head": len(pairs),
    }


def test_harmful_reranking_is_reported():
    evaluator = evaluator_of(retrieval(rerank=4))
    assert evaluator.warnings({"r_mean": 0.8, "r_mean_itc_only": 0.7}) == []
    assert evaluator.warnings({"r_mean": 0.7}) == []
    (sentence,) = evaluator.warnings({"r_mean": 0.7, "r_mean_itc_only": 0.8})
    assert "r_mean 0.700, with ITC only 0.800" in sentence
    assert "--rerank 0" in sentence
