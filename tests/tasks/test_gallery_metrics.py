"""Classes, hard false captions, merged captions and tags of a search, against loops."""

import statistics
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from eve_vl.metrics.intervals import MeasuredValue
from eve_vl.systems.medical.phantoms.rows import PhantomPairs
from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.tasks.retrieval.gallery_metrics import hard_caption_accuracy
from eve_vl.tasks.retrieval.search_set import SearchSet
from helpers.slow_ranking import slow_hit
from helpers.slow_search import (
    candidate_pixels,
    ids_of_text,
    image_feature,
    match_logits,
    text_feature,
)
from helpers.tiny_tasks import TOKENIZER, numbers_of, paired_gallery, retrieval
from helpers.twins import ListSource, pairs


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Phantoms:
    """Thirty phantoms, whose reports recur and come with false ones."""

    def __init__(self, rerank: int):
        self.task = retrieval(rerank=rerank)
        self.source = PhantomPairs(split="test", image_size=64, num_rows=30, seed=2)
        self.dataset = SearchSet([self.source], self.task.config, TOKENIZER)
        self.rows = [self.source[image.row] for image in self.dataset.images]
        self.reports = [row.captions[0] for row in self.rows]
        self.pixels = candidate_pixels(self.dataset)
        self.features = [image_feature(self.task, pixels) for pixels in self.pixels]

    def similarities(self, texts: Sequence[str]) -> list[list[float]]:
        """Return the products of images and texts."""
        text_features = [text_feature(self.task, ids_of_text(self.dataset, text)) for text in texts]
        rows = []
        for image_d in self.features:
            rows.append([round(float(image_d @ text_d), 5) for text_d in text_features])
        return rows


def share_of_class(scores: Sequence[float], is_right: Sequence[bool], k: int) -> float:
    """Return the share of right candidates among the first k; equal scores share their places."""
    kth = sorted(scores, reverse=True)[k - 1]
    above = [right for score, right in zip(scores, is_right, strict=True) if score > kth]
    tied = [right for score, right in zip(scores, is_right, strict=True) if score == kth]
    return (sum(above) + (k - len(above)) * sum(tied) / len(tied)) / k


@torch.no_grad()
def test_precisions_of_classes_and_merged_recall_equal_loops():
    phantoms = Phantoms(rerank=0)
    numbers = numbers_of(phantoms.task, phantoms.dataset, 7)
    scores = phantoms.similarities(phantoms.reports)
    labels = [set(row.labels) for row in phantoms.rows]
    shares_class = [[bool(query & candidate) for candidate in labels] for query in labels]
    chance = statistics.mean(statistics.mean(row) for row in shares_class)
    for way, keys in (("tr", scores), ("ir", list(zip(*scores, strict=True)))):
        for k in (1, 2, 5, 10):
            shares = []
            for row, is_right in zip(keys, shares_class, strict=True):
                shares.append(share_of_class(row, is_right, k))
            assert numbers[f"precision_{way}{k}"] == pytest.approx(statistics.mean(shares))
        assert numbers[f"precision_{way}_chance"] == pytest.approx(chance)

    distinct = list(dict.fromkeys(phantoms.reports))
    assert len(distinct) < 30
    hits = []
    for report, row in zip(phantoms.reports, phantoms.similarities(distinct), strict=True):
        hits.append(slow_hit(row, [distinct.index(report)], 1))
    assert numbers["tr1_merged"] == pytest.approx(statistics.mean(hits))


@torch.no_grad()
@pytest.mark.parametrize("rerank", [0, 4])
def test_accuracy_among_hard_false_captions_equals_a_loop(rerank):
    """The right image and the one half the images away; texts are cut, so that some are equal."""
    phantoms = Phantoms(rerank)
    numbers = numbers_of(phantoms.task, phantoms.dataset, 7)
    right_hits = []
    wrong_hits = []
    for index, image in enumerate(phantoms.dataset.images):
        texts = [phantoms.reports[index], *phantoms.source.distractors(image.row)]
        assert len(texts) == 4
        similarities = phantoms.similarities(texts)
        for hits, number in ((right_hits, index), (wrong_hits, (index + 15) % 30)):
            keys = similarities[number]
            if rerank:
                keys = []
                for text in texts:
                    ids = ids_of_text(phantoms.dataset, text)
                    keys.append(
                        round(match_logits(phantoms.task, phantoms.pixels[number], ids)[1], 5)
                    )
            hits.append(slow_hit(keys, [0], 1))
    accuracy = numbers["tr1_hard"]
    assert accuracy == pytest.approx(statistics.mean(right_hits))
    assert numbers["tr1_hard_chance"] == 1 / 4
    assert numbers["tr1_hard_wrong_image"] == pytest.approx(statistics.mean(wrong_hits))
    assert wrong_hits != right_hits
    assert isinstance(accuracy, MeasuredValue)
    low, high = accuracy.versus["tr1_hard_wrong_image"]
    assert low < statistics.mean(right_hits) - statistics.mean(wrong_hits) < high


@pytest.mark.parametrize(
    ("weight_of_image", "sentence"),
    [
        (
            2,
            "tr1_hard 1.000 is better than the best of 2 baselines, looking at a wrong image "
            "(0.750",
        ),
        (
            0,
            "tr1_hard 0.750, the best of 2 baselines, looking at a wrong image 0.750: "
            "no significant difference",
        ),
    ],
)
def test_false_captions_that_words_give_away_show_nothing(weight_of_image, sentence):
    """Of true captions, three in four score higher than the false one next to any image."""
    task = retrieval(rerank=0)
    num = 200
    scores_of_true = weight_of_image * torch.eye(num) + (torch.arange(num) % 4 > 0)
    scores_of_false = torch.full((num, num), 0.5)
    gallery = paired_gallery(torch.cat([scores_of_true, scores_of_false], 1), torch.eye(2 * num))
    gallery.ids = [torch.tensor([text]) for text in range(2 * num)]
    gallery.hard = [(image, num + image) for image in range(num)]
    assert sentence in evaluator_of(task).comparison(hard_caption_accuracy(task, gallery, 0))


COLORS = ("red", "dark blue", "green", "white")
KINDS = ("circle", "square", "ring", "cross", "star")


@torch.no_grad()
def test_queries_by_tag_equal_a_slow_loop():
    """The share of the first five images whose captions have the tag, and that of all images."""
    captions = []
    for row in range(60):
        color = COLORS[row % 4]
        captions.append(f"The {color} {KINDS[row % 7 % 5]}: no. {row}, {color}")
    rows = [replace(pairs(60)[row], captions=(captions[row],)) for row in range(60)]
    task = retrieval(itm_weight=0.0, rerank=0)
    dataset = SearchSet([ListSource(rows)], task.config, TOKENIZER)
    numbers = numbers_of(task, dataset, 7)

    expected = {}
    for tag in (*KINDS, *COLORS, *(f"the {color} {kind}" for color in COLORS for kind in KINDS)):
        images = [row for row in range(60) if tag in captions[row].casefold()]
        if 4 <= len(images) <= 9:
            expected[tag] = images
    assert len(expected) >= 2
    tagged = {dataset.texts[text]: list(images) for text, images in dataset.tagged.items()}
    assert tagged == expected

    image_features = [image_feature(task, pixels) for pixels in candidate_pixels(dataset)]
    shares = []
    for tag, images in expected.items():
        tag_d = text_feature(task, torch.from_numpy(TOKENIZER.encode(tag, 12)[0])[None])
        scores = [(image_d @ tag_d).item() for image_d in image_features]
        first = sorted(range(60), key=lambda row: -scores[row])[:5]
        shares.append(len(set(first) & set(images)) / 5)
    chance = statistics.mean(len(images) / 60 for images in expected.values())
    precision = numbers["tag_p5"]
    assert isinstance(precision, MeasuredValue)
    assert precision == pytest.approx(statistics.mean(shares))
    assert precision.n == len(expected)
    assert numbers["tag_p5_chance"] == pytest.approx(chance)
