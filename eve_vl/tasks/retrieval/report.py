"""The page of a run for image–text retrieval."""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor

from eve_vl.metrics import retrieval as metrics
from eve_vl.metrics.topk import top_candidates
from eve_vl.pages.drawing import Loss, Section
from eve_vl.tasks.classifier.report import heatmaps, pixels_of
from eve_vl.tasks.contrast.report import CONTRAST_LOSSES
from eve_vl.tasks.report import Example, Measured, TaskReport
from eve_vl.tasks.retrieval.gallery import Gallery
from eve_vl.tasks.retrieval.gathering import gather_gallery
from eve_vl.tasks.retrieval.rerank_choice import r_means_tried
from eve_vl.tasks.retrieval.reranking import match_scores
from eve_vl.tasks.retrieval.search_set import SearchSet
from eve_vl.tasks.retrieval.task import Retrieval

NUM_SEARCHED, NUM_MATCHED = 200, 50  # images; fewer if every pair takes a fusion pass


NUM_QUERIES = 30  # per direction, evenly spread; the page shows some of them


NUM_HITS = 5


MAX_RERANKED = 16


class Query(NamedTuple):
    """A caption or an image with its hits of the other kind."""

    item: Example
    hits: list[Example]
    """Best first."""
    is_match: list[bool]
    """Whether each hit is a true match."""
    truth: Example
    """One of the true matches."""
    heat: tuple[np.ndarray, ...] = ()
    """Image queries: the image with the Grad-CAM of the match with its caption, if available."""


class RetrievalReport(TaskReport):
    """Recalls with re-ranking as validation chose, next to contrast only and chance."""

    name = "retrieval"
    title, template = "Search", "retrieval.html"
    row = "pair"
    passes = " (image pass, text pass and matching pass)"
    num_each = 3
    losses: ClassVar[tuple[Loss, ...]] = CONTRAST_LOSSES
    task: Retrieval

    def numbers(self, measured: Measured) -> Markup:
        """Return recalls with and without re-ranking, next to chance, as HTML."""
        captions_of = self.dataset(measured.num_samples, for_evaluation=True).captions_of
        texts = Counter(text for row in captions_of for text in row)
        matches = {"tr": [len(row) for row in captions_of if row], "ir": list(texts.values())}
        num = {"tr": int(measured.values["num_texts"]), "ir": int(measured.values["num_images"])}
        chance = {
            way: [chance_recall(k, num[way], matches[way]) for k in metrics.RECALLS] for way in num
        }
        shown = {"values": measured.values, "num": num, "matches": matches, "chance": chance}
        rerank = int(measured.values.get("rerank_k", self.task.settings.rerank))
        searched = {
            "rerank": rerank,
            "tried": r_means_tried(measured.values),
            "recalls": metrics.RECALLS,
        }
        searched |= {
            "precisions": metrics.PRECISIONS,
            "by": "contrast" if self.task.is_comparable else "matching",
        }
        return self.draw("numbers", **searched, **shown)

    def evidence(self, num_each: int) -> list[Section]:
        """Return the section of queries and their hits."""
        dataset = self._searched()
        by_text, by_image = self.searches(dataset, num_each)
        return [
            Section(
                self.name,
                self.title,
                self.draw("searches", dataset=dataset, by_text=by_text, by_image=by_image),
            )
        ]

    @torch.inference_mode()
    def compared(self, num: int) -> list[Example]:
        """Return captions with the images they find."""
        dataset, examples = self._searched(), []
        for query in self._queries(
            gather_gallery(self.task, self.batches(dataset)), dataset, by_text=True
        )[:num]:
            names = [
                f"{rank} {'✓' if right else '✗'}"
                for rank, right in enumerate(query.is_match, start=1)
            ]
            made = {name: hit.images["image"] for name, hit in zip(names, query.hits, strict=True)}
            text, true = query.item.text, {"true": query.truth.images["image"]}
            examples.append(
                Example(where=f"{query.item.where}: {text}", images=true, text=text, made=made)
            )
        return examples

    def _searched(self) -> SearchSet:
        """Return the images and captions that the examples search."""
        return self.dataset(
            NUM_SEARCHED if self.task.is_comparable else NUM_MATCHED, for_evaluation=True
        )

    @property
    def num_reranked(self) -> int:
        """Number of candidates that the examples re-rank."""
        return min(self.task.settings.rerank, MAX_RERANKED)

    def searches(self, dataset: SearchSet, num_each: int) -> tuple[list[Query], list[Query]]:
        """Return num_each right and wrong queries per direction, computed in float32."""
        with torch.inference_mode():
            gallery = gather_gallery(self.task, self.batches(dataset))
            found = (self._queries(gallery, dataset, by_text=by_text) for by_text in (True, False))
            by_text, by_image = (_right_and_wrong(queries, num_each) for queries in found)
        return by_text, [
            one._replace(heat=heatmaps(self.run, [*one.item.images.values()], one.truth.text))
            for one in by_image
        ]

    def _queries(self, gallery: Gallery, dataset: SearchSet, *, by_text: bool) -> list[Query]:
        """Return NUM_QUERIES captions or images that have a match, with their hits."""
        seen = {f"image {row}": pixels_of(pixels) for row, pixels in sorted(gallery.pixels.items())}
        images = [
            Example(where=where, images={"image": pixels}, text="")
            for where, pixels in seen.items()
        ]
        texts = [
            Example(where=f"text {row}", images={}, text=dataset.captions[row])
            for row in gallery.caption_numbers
        ]
        asking, others = (texts, images) if by_text else (images, texts)
        side = gallery.relevance.images_of_text if by_text else gallery.relevance.texts_of_image
        matches = [each.tolist() for each in side.candidate_M.tensor_split(side.start_Q1[1:-1])]
        able = [query for query, row in enumerate(matches) if row]
        queries = [
            able[i]
            for i in np.linspace(0, len(able), min(NUM_QUERIES, len(able)), endpoint=False).astype(
                int
            )
        ]
        order_QK = best_candidates(self.task, gallery, queries, self.num_reranked, by_text=by_text)
        return [
            Query(
                asking[q],
                [others[c] for c in order_K],
                [c in matches[q] for c in order_K],
                others[matches[q][0]],
            )
            for q, order_K in zip(queries, order_QK[:, :NUM_HITS].tolist(), strict=True)
        ]


def chance_recall(k: int, num_candidates: int, matches: Collection[int]) -> float:
    """Return the expected recall at k of a random order.

    matches: number of true matches m of each query. Mean over the queries of 1 - C(n - m, k) / C(n,
    k).
    """
    n = num_candidates
    missed = (math.prod(max(n - m - i, 0) / (n - i) for i in range(min(k, n))) for m in matches)
    return 1 - math.fsum(missed) / len(matches)


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
    query_Q, sides = torch.tensor(queries), (gallery.image_Id, gallery.caption_Td)
    asking_d, candidate_Cd = reversed(sides) if by_text else sides
    order_QK = top_candidates(asking_d[query_Q], candidate_Cd, max(num_reranked, NUM_HITS))[0].cpu()
    if num_reranked:
        first_QK = order_QK[:, :num_reranked]
        asked_QK = query_Q[:, None].expand_as(first_QK)
        image_QK, caption_QK = (first_QK, asked_QK) if by_text else (asked_QK, first_QK)
        score_QK = match_scores(
            task, gallery, image_QK.flatten(), gallery.text_T[caption_QK.flatten()]
        ).view_as(first_QK)
        new_QK = first_QK.gather(1, score_QK.sort(dim=1, descending=True, stable=True).indices)
        order_QK = torch.cat([new_QK, order_QK[:, num_reranked:]], dim=1)
    return order_QK


def _right_and_wrong(queries: Sequence[Query], num_each: int) -> list[Query]:
    return [
        each
        for right in (True, False)
        for each in [one for one in queries if one.is_match[0] is right][:num_each]
    ]
