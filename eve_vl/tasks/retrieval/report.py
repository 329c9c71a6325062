"""The page of a run for image–text retrieval: recalls and searches.

Letters: Q queries, C candidates, K best candidates, M matches, d features.
"""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor

from eve_vl.metrics.retrieval import PRECISIONS, RECALLS
from eve_vl.metrics.topk import top_candidates
from eve_vl.pages.charts import Bars, bar_chart
from eve_vl.pages.curves import Curves, Loss
from eve_vl.pages.number_formats import percent
from eve_vl.pages.numbers import Card, NumberGroup, cards_of, draw_numbers
from eve_vl.pages.rendering import Section, draw
from eve_vl.tasks.classifier.report import heatmaps, pixels_of
from eve_vl.tasks.contrast.report import CONTRAST_LOSSES
from eve_vl.tasks.examples import Example
from eve_vl.tasks.report import Measured, TaskReport
from eve_vl.tasks.retrieval.gallery import Gallery
from eve_vl.tasks.retrieval.gathering import gather_gallery
from eve_vl.tasks.retrieval.rerank_choice import r_means_tried
from eve_vl.tasks.retrieval.reranking import match_scores
from eve_vl.tasks.retrieval.search_set import SearchSet
from eve_vl.tasks.retrieval.task import Retrieval
from eve_vl.utils.console import pluralize

TEMPLATE = Path(__file__).with_name("searches.html")
NUM_SEARCHED = 200  # images
NUM_MATCHED = 50  # images, if every pair takes a fusion pass
NUM_QUERIES = 30  # per direction, evenly spread; the page shows some of them
NUM_HITS = 5
MAX_RERANKED = 16


@dataclass(frozen=True)
class Query:
    """A caption or an image with its hits of the other kind."""

    item: Example
    hits: list[Example]
    """Best first."""
    is_match: list[bool]
    """Whether each hit is a true match."""
    truth: Example
    """One of the true matches."""


@dataclass(frozen=True)
class ExplainedQuery:
    """An image query with the Grad-CAM of the match with its caption, if available."""

    query: Query
    heatmaps: tuple[np.ndarray, ...]

    @property
    def images(self) -> dict[str, np.ndarray]:
        """The image, then its heatmap."""
        images = dict(self.query.item.images)
        for heatmap in self.heatmaps:
            images["heat"] = heatmap
        return images


@dataclass(frozen=True)
class Direction:
    """A direction of search: how it is named, and what a random order would find."""

    prefix: str
    """Of the names of its numbers."""
    title: str
    candidate: str
    """Word for a candidate."""
    num_candidates: int
    num_matches: Collection[int]
    """Number of true matches of each query."""

    def chance(self, k: int) -> float:
        """Return the recall at k of a random order."""
        return chance_recall(k, self.num_candidates, self.num_matches)


class RetrievalReport(TaskReport):
    """Recalls with re-ranking as validation chose, next to contrast only and chance."""

    name = "retrieval"
    title = "Search"
    row = "pair"
    passes = " (image pass, text pass and matching pass)"
    num_examples = 3
    losses: ClassVar[tuple[Loss, ...]] = CONTRAST_LOSSES
    task: Retrieval

    def numbers(self, measured: Measured) -> Markup:
        """Return recalls with and without re-ranking, next to chance, as HTML."""
        values = measured.values
        directions = self.directions(measured)
        num_reranked = int(values.get("rerank_k", self.task.settings.rerank))
        ranked_by = "contrast" if self.task.is_comparable else "matching"
        groups = [recall_group(direction, values, num_reranked) for direction in directions]
        groups += [
            *distractor_groups(values),
            *tag_groups(values),
            *class_groups(directions, values, ranked_by),
            *merged_groups(values, ranked_by),
        ]
        charts = [
            recall_chart(direction, values, num_reranked, ranked_by) for direction in directions
        ]
        return draw_numbers(groups, intro=rerank_sentence(values, num_reranked), charts=charts)

    def directions(self, measured: Measured) -> list[Direction]:
        """Return both directions of search, with their candidates and matches in validation."""
        captions_of = self.dataset(measured.num_samples, for_evaluation=True).captions_of
        num_captions_by_image = [len(captions) for captions in captions_of if captions]
        num_images_by_caption = Counter(text for captions in captions_of for text in captions)
        return [
            Direction(
                "tr",
                "Image → caption",
                "caption",
                int(measured.values["num_texts"]),
                num_captions_by_image,
            ),
            Direction(
                "ir",
                "Caption → image",
                "image",
                int(measured.values["num_images"]),
                list(num_images_by_caption.values()),
            ),
        ]

    def charts(self, curves: Curves) -> list[Markup]:
        """Return the charts of matching and of recalls."""
        recalls = [
            curves.val("tr1", "image → caption, first 1"),
            curves.val("ir1", "caption → image, first 1"),
            curves.val("tr5", "image → caption, first 5"),
            curves.val("ir5", "caption → image, first 5"),
        ]
        note = "Validation: share of queries with a match first, or among the first five."
        return [
            curves.shares("Matching accuracy", [curves.train("itm_acc")], ""),
            curves.shares("Recall", recalls, note),
        ]

    def example_sections(self, num_examples: int) -> list[Section]:
        """Return the section of queries and their hits."""
        dataset = self.searched_rows()
        by_text, by_image = self.searches(dataset, num_examples)
        explained = [self.explained(query) for query in by_image]
        body = draw(
            TEMPLATE,
            "searches",
            report=self,
            dataset=dataset,
            by_text=by_text,
            by_image=explained,
            has_heat=any(query.heatmaps for query in explained),
        )
        return [Section(self.name, self.title, body)]

    @torch.inference_mode()
    def examples_to_compare(self, num_rows: int) -> list[Example]:
        """Return captions with the images they find."""
        dataset = self.searched_rows()
        gallery = gather_gallery(self.task, self.batches(dataset))
        examples = []
        for query in self._queries(gallery, dataset, by_text=True)[:num_rows]:
            hit_images = {}
            for rank, hit in enumerate(query.hits, start=1):
                symbol = "✓" if query.is_match[rank - 1] else "✗"
                hit_images[f"{rank} {symbol}"] = hit.images["image"]
            example = Example(
                where=f"{query.item.where}: {query.item.text}",
                images={"true": query.truth.images["image"]},
                text=query.item.text,
                output_images=hit_images,
            )
            examples.append(example)
        return examples

    def searched_rows(self) -> SearchSet:
        """Return the images and captions that the examples search."""
        num_images = NUM_SEARCHED if self.task.is_comparable else NUM_MATCHED
        return self.dataset(num_images, for_evaluation=True)

    @property
    def num_reranked(self) -> int:
        """Number of candidates that the examples re-rank."""
        return min(self.task.settings.rerank, MAX_RERANKED)

    @torch.inference_mode()
    def searches(self, dataset: SearchSet, num_examples: int) -> tuple[list[Query], list[Query]]:
        """Return captions and images as queries, right and wrong ones, computed in float32."""
        gallery = gather_gallery(self.task, self.batches(dataset))
        by_text = self._queries(gallery, dataset, by_text=True)
        by_image = self._queries(gallery, dataset, by_text=False)
        return right_and_wrong(by_text, num_examples), right_and_wrong(by_image, num_examples)

    def explained(self, query: Query) -> ExplainedQuery:
        """Return an image query with the heatmap of the match with its caption."""
        images = list(query.item.images.values())
        return ExplainedQuery(query, heatmaps(self.run, images, query.truth.text))

    def _queries(self, gallery: Gallery, dataset: SearchSet, *, by_text: bool) -> list[Query]:
        """Return NUM_QUERIES captions or images that have a match, with their hits."""
        images = []
        for row, pixels in sorted(gallery.pixels.items()):
            pixels_HWC = pixels_of(pixels)
            images.append(Example(where=f"image {row}", images={"image": pixels_HWC}, text=""))
        texts = []
        for row in gallery.caption_numbers:
            texts.append(Example(where=f"text {row}", images={}, text=dataset.captions[row]))
        if by_text:
            items = texts
            candidates = images
            relevance = gallery.relevance.images_of_text
        else:
            items = images
            candidates = texts
            relevance = gallery.relevance.texts_of_image

        matches_of_item = relevance.candidate_M.tensor_split(relevance.start_Q1[1:-1])
        matches = [candidate_M.tolist() for candidate_M in matches_of_item]
        with_match = [index for index, candidates_M in enumerate(matches) if candidates_M]
        num_queries = min(NUM_QUERIES, len(with_match))
        spread = np.linspace(0, len(with_match), num_queries, endpoint=False).astype(int)
        asked = [with_match[index] for index in spread]
        best_QK = best_candidates(self.task, gallery, asked, self.num_reranked, by_text=by_text)

        queries = []
        for item, hits in zip(asked, best_QK[:, :NUM_HITS].tolist(), strict=True):
            query = Query(
                item=items[item],
                hits=[candidates[hit] for hit in hits],
                is_match=[hit in matches[item] for hit in hits],
                truth=candidates[matches[item][0]],
            )
            queries.append(query)
        return queries


def rerank_sentence(values: Mapping[str, float], num_reranked: int) -> str:
    """Return how many candidates validation chose to re-rank, "" if it had no choice."""
    r_means = r_means_tried(values)
    if not r_means:
        return ""
    chosen = f"the best {num_reranked}" if num_reranked else "none"
    means = [f"{percent(values['r_mean_itc_only'])} with ITC only"]
    for num_candidates, r_mean in r_means.items():
        means.append(f"{percent(r_mean)} with {num_candidates}")
    conclusion = "the gain is significant" if num_reranked else "no gain is significant"
    return (
        f"Re-ranked candidates per query: {chosen}, chosen in validation. Mean of the six "
        f"recalls: {', '.join(means)}; {conclusion}."
    )


def recall_group(
    direction: Direction, values: Mapping[str, float], num_reranked: int
) -> NumberGroup:
    """Return the recall at 1 of a direction, next to contrast only and chance."""
    num_matches = direction.num_matches
    matches = pluralize(sum(num_matches) / len(num_matches), "match", "matches")
    if min(num_matches) < max(num_matches):
        matches += " on average"
    candidates = pluralize(direction.num_candidates, direction.candidate)
    name = f"{direction.prefix}1"
    sentence = f"Share of queries whose first {direction.candidate} is a match."
    cards = [Card(name, values[name], sentence, is_main=True)]
    if num_reranked:
        name = f"{name}_itc_only"
        sentence = f"By contrast only, without re-ranking the best {num_reranked}."
        cards.append(Card(name, values[name], sentence))
    sentence = f"Baseline: {direction.candidate}s in random order."
    cards.append(Card("chance", direction.chance(RECALLS[0]), sentence))
    explanation = f"Each query has {matches} among {candidates}."
    return NumberGroup(direction.title, cards, explanation)


def distractor_groups(values: Mapping[str, float]) -> list[NumberGroup]:
    """Return the recall among hard distractors, if it was measured."""
    if "tr1_hard" not in values:
        return []
    sentence = "Share of images whose own caption ranks first."
    baselines = {
        "tr1_hard_chance": "Baseline: random order.",
        "tr1_hard_wrong_image": "The same with another image: what the captions give away.",
    }
    cards = [Card("tr1_hard", values["tr1_hard"], sentence, is_main=True)]
    cards += cards_of(values, baselines)
    explanation = "Each image's own caption among false ones that differ from it in one place."
    return [NumberGroup("Hard distractors", cards, explanation)]


def tag_groups(values: Mapping[str, float]) -> list[NumberGroup]:
    """Return the precision of searches for tags, if it was measured."""
    if "tag_p5" not in values:
        return []
    sentence = "Share of the first five hits with the tag."
    cards = [Card("tag_p5", values["tag_p5"], sentence, is_main=True)]
    cards += cards_of(values, {"tag_p5_chance": "Baseline: random order."})
    explanation = (
        "Queries of a word or phrase that at least four captions have. A hit is an image whose "
        "caption has it."
    )
    return [NumberGroup("By tag", cards, explanation)]


def class_groups(
    directions: Sequence[Direction], values: Mapping[str, float], ranked_by: str
) -> list[NumberGroup]:
    """Return the precisions by class, if they were measured."""
    if "precision_tr1" not in values:
        return []
    cards = []
    for direction in directions:
        prefix = f"precision_{direction.prefix}"
        for k in PRECISIONS:
            sentence = f"{direction.title}: first {k}."
            cards.append(Card(f"{prefix}{k}", values[f"{prefix}{k}"], sentence, is_main=k == 1))
        sentence = f"{direction.title}: all candidates, as in random order."
        cards.append(Card(f"{prefix}_chance", values[f"{prefix}_chance"], sentence))
    explanation = (
        f"Precision: share of the first hits, by {ranked_by} only, that share a class with the "
        "query. A hit need not be the query's own partner."
    )
    return [NumberGroup("By class", cards, explanation)]


def merged_groups(values: Mapping[str, float], ranked_by: str) -> list[NumberGroup]:
    """Return the recalls with identical captions merged, if they were measured."""
    if "tr1_merged" not in values:
        return []
    sentences = {
        "tr1_merged": "Share of images whose first caption is a match.",
        "ir1_merged": "Share of captions whose first image is a match.",
    }
    explanation = (
        "Several images have the same caption; here it is a match for each of them. "
        f"By {ranked_by} only."
    )
    cards = cards_of(values, sentences)
    return [NumberGroup("Identical captions merged", cards, explanation)]


def recall_chart(
    direction: Direction, values: Mapping[str, float], num_reranked: int, ranked_by: str
) -> Markup:
    """Return the chart of the recalls of a direction, next to contrast only and chance."""
    recalls = [values[f"{direction.prefix}{k}"] for k in RECALLS]
    bars = [Bars("re-ranked" if num_reranked else ranked_by, recalls)]
    if num_reranked:
        contrast = [values[f"{direction.prefix}{k}_itc_only"] for k in RECALLS]
        bars.append(Bars("contrast only", contrast))
    bars.append(Bars("chance", [direction.chance(k) for k in RECALLS]))
    labels = [f"R@{k}" for k in RECALLS]
    axis = "a match among the first k"
    return bar_chart(f"{direction.title}: recall", labels, bars, show=percent, axis=axis)


def chance_recall(k: int, num_candidates: int, num_matches: Collection[int]) -> float:
    """Return the expected recall at k of a random order.

    num_matches: number of true matches m of each query. Mean over the queries of
    1 - C(n - m, k) / C(n, k).
    """
    n = num_candidates
    missed = []
    for m in num_matches:
        missed.append(math.prod(max(n - m - i, 0) / (n - i) for i in range(min(k, n))))
    return 1 - math.fsum(missed) / len(num_matches)


def best_candidates(
    task: Retrieval,
    gallery: Gallery,
    queries: Sequence[int],
    num_reranked: int,
    *,
    by_text: bool,
) -> Tensor:
    """Return each query's best images or captions, int64 (Q, K).

    Ranked by contrast; the first num_reranked are then re-ranked by the matching head
    (task.rerank_by).
    """
    query_Q = torch.tensor(queries)
    if by_text:
        query_Qd = gallery.caption_Td[query_Q]
        candidate_Cd = gallery.image_Id
    else:
        query_Qd = gallery.image_Id[query_Q]
        candidate_Cd = gallery.caption_Td
    num_best = max(num_reranked, NUM_HITS)
    best_QK = top_candidates(query_Qd, candidate_Cd, num_best)[0].cpu()
    if not num_reranked:
        return best_QK

    first_QK = best_QK[:, :num_reranked]
    query_QK = query_Q[:, None].expand_as(first_QK)
    if by_text:
        image_QK = first_QK
        caption_QK = query_QK
    else:
        image_QK = query_QK
        caption_QK = first_QK
    text_P = gallery.text_T[caption_QK.flatten()]
    score_QK = match_scores(task, gallery, image_QK.flatten(), text_P).view_as(first_QK)
    order_QK = score_QK.sort(dim=1, descending=True, stable=True).indices
    return torch.cat([first_QK.gather(1, order_QK), best_QK[:, num_reranked:]], dim=1)


def right_and_wrong(queries: Sequence[Query], num_examples: int) -> list[Query]:
    """Return the first queries with a right first hit, then those with a wrong one."""
    right = [query for query in queries if query.is_match[0]]
    wrong = [query for query in queries if not query.is_match[0]]
    return right[:num_examples] + wrong[:num_examples]
