"""Classes, hard false captions, merged captions and tags of a search, against loops."""

import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch

from eve_vl.systems.medical.phantoms.rows import PhantomPairs
from eve_vl.tasks.retrieval import gallery_metrics
from eve_vl.tasks.retrieval.search_set import SearchSet
from helpers.measured import measured
from helpers.slow_ranking import slow_hit
from helpers.slow_search import (
    candidate_pixels,
    ids_of_text,
    image_feature,
    match_logits,
    text_feature,
)
from helpers.tiny_rows import ListSource, pairs
from helpers.tiny_tasks import TOKENIZER, numbers_of, retrieval

NUM_PHANTOMS = 20


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Phantoms:
    """A search among phantoms, whose reports recur and come with false ones."""

    def __init__(self, rerank: int):
        self.task = retrieval(rerank=rerank)
        self.source = PhantomPairs(
            split="test",
            image_size=64,
            num_rows=NUM_PHANTOMS,
            seed=2,
        )
        self.dataset = SearchSet([self.source], self.task.config, TOKENIZER)
        self.rows = [self.source[image.row] for image in self.dataset.images]
        self.reports = [row.captions[0] for row in self.rows]
        self.pixels = candidate_pixels(self.dataset)
        self.features = [image_feature(self.task, pixels) for pixels in self.pixels]
        self.numbers = numbers_of(self.task, self.dataset, 7)

    def similarities(self, texts: Sequence[str]) -> list[list[float]]:
        """Return the products of images and texts."""
        text_features = [text_feature(self.task, ids_of_text(self.dataset, text)) for text in texts]
        similarity_IT = torch.stack(self.features) @ torch.stack(text_features).T
        return similarity_IT.double().round(decimals=5).tolist()

    def match_scores(self, image: int, texts: Sequence[str]) -> list[float]:
        """Return the logits of a match of an image and texts."""
        scores = []
        for text in texts:
            ids = ids_of_text(self.dataset, text)
            scores.append(round(match_logits(self.task, self.pixels[image], ids)[1], 5))
        return scores


@cache
@torch.no_grad()
def phantoms_of(rerank: int) -> Phantoms:
    return Phantoms(rerank)


def share_of_class(scores: Sequence[float], is_right: Sequence[bool], k: int) -> float:
    """Return the share of right candidates among the first k; equal scores share their places."""
    kth = sorted(scores, reverse=True)[k - 1]
    above = []
    tied = []
    for score, right in zip(scores, is_right, strict=True):
        if score > kth:
            above.append(right)
        elif score == kth:
            tied.append(right)
    return (sum(above) + (k - len(above)) * statistics.mean(tied)) / k


@torch.no_grad()
def test_precisions_of_classes_and_merged_recall_equal_loops():
    phantoms = phantoms_of(0)
    numbers = phantoms.numbers
    scores = phantoms.similarities(phantoms.reports)
    labels = [set(row.labels) for row in phantoms.rows]
    shares_class = [[bool(query & candidate) for candidate in labels] for query in labels]
    chance = statistics.mean(statistics.mean(row) for row in shares_class)
    for way, keys in (
        ("tr", scores),
        ("ir", list(zip(*scores, strict=True))),
    ):
        for k in (1, 2, 5, 10):
            shares = []
            for row, is_right in zip(keys, shares_class, strict=True):
                shares.append(share_of_class(row, is_right, k))
            assert numbers[f"precision_{way}{k}"] == pytest.approx(statistics.mean(shares))
        assert numbers[f"precision_{way}_chance"] == pytest.approx(chance)

    distinct = list(dict.fromkeys(phantoms.reports))
    assert len(distinct) < NUM_PHANTOMS
    hits = []
    for report, row in zip(phantoms.reports, phantoms.similarities(distinct), strict=True):
        hits.append(slow_hit(row, [distinct.index(report)], 1))
    assert numbers["tr1_merged"] == pytest.approx(statistics.mean(hits))


@torch.no_grad()
@pytest.mark.parametrize("rerank", [0, 4])
def test_accuracy_among_hard_false_captions_equals_a_loop(rerank):
    """The right image and the one half the images away; texts are cut, so that some are equal."""
    phantoms = phantoms_of(rerank)
    numbers = phantoms.numbers
    right_hits = []
    wrong_hits = []
    for index, image in enumerate(phantoms.dataset.images):
        texts = [phantoms.reports[index], *phantoms.source.distractors(image.row)]
        assert len(texts) == 4
        similarities = phantoms.similarities(texts)
        wrong = (index + NUM_PHANTOMS // 2) % NUM_PHANTOMS
        for hits, number in ((right_hits, index), (wrong_hits, wrong)):
            scores = similarities[number]
            if rerank:
                scores = phantoms.match_scores(number, texts)
            hits.append(slow_hit(scores, [0], 1))
    accuracy = measured(numbers["tr1_hard"])
    assert accuracy == pytest.approx(statistics.mean(right_hits))
    assert numbers["tr1_hard_chance"] == 1 / 4
    assert numbers["tr1_hard_wrong_image"] == pytest.approx(statistics.mean(wrong_hits))
    assert wrong_hits != right_hits
    low, high = accuracy.versus["tr1_hard_wrong_image"]
    assert low < statistics.mean(right_hits) - statistics.mean(wrong_hits) < high


COLORS = ("red", "dark blue", "green", "white")
KINDS = ("circle", "square", "ring", "cross", "star")
TAGS = (*KINDS, *COLORS, *(f"the {color} {kind}" for color in COLORS for kind in KINDS))


@torch.no_grad()
def test_queries_by_tag_equal_a_slow_loop(monkeypatch):
    """The share of the first five images whose captions have the tag, and that of all images."""
    captions = []
    rows = []
    for row, pair in enumerate(pairs(60)):
        color = COLORS[row % 4]
        captions.append(f"The {color} {KINDS[row % 7 % 5]}: no. {row}, {color}")
        rows.append(replace(pair, captions=(captions[row],)))
    task = retrieval(itm_weight=0.0, rerank=0)
    dataset = SearchSet([ListSource(rows)], task.config, TOKENIZER)
    assert "tag_p5" not in numbers_of(task, dataset, 7)  # less than 30 tags decide nothing
    monkeypatch.setattr(gallery_metrics, "FEW", 2)
    numbers = numbers_of(task, dataset, 7)

    expected = {}
    for tag in TAGS:
        images = [row for row in range(60) if tag in captions[row].casefold()]
        if 4 <= len(images) <= 9:
            expected[tag] = images
    assert len(expected) >= 2
    tagged = {dataset.texts[text]: list(images) for text, images in dataset.tagged.items()}
    assert tagged == expected

    image_Id = torch.stack([image_feature(task, pixels) for pixels in candidate_pixels(dataset)])
    shares = []
    for tag, images in expected.items():
        tag_d = text_feature(task, torch.from_numpy(TOKENIZER.encode(tag, 12)[0])[None])
        first = (image_Id @ tag_d).topk(5).indices.tolist()
        shares.append(len(set(first) & set(images)) / 5)
    chance = statistics.mean(len(images) / 60 for images in expected.values())
    precision = measured(numbers["tag_p5"])
    assert precision == pytest.approx(statistics.mean(shares))
    assert precision.n == len(expected)
    assert numbers["tag_p5_chance"] == pytest.approx(chance)
