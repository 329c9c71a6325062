"""Report page of image–text retrieval: recalls, and the hits of a few queries.

Letters: I images, T captions, Q queries, C candidates, K best candidates of a query, d feature dimension.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor

from eve_vl.evaluation.retrieval import r_means_tried
from eve_vl.evaluation.retrieval_set import RetrievalSet, SearchSet, gathered, match_scores
from eve_vl.metrics import retrieval as metrics
from eve_vl.report.charts import Loss, bar_chart
from eve_vl.report.task import Example, Measured, TaskReport, pixels_of
from eve_vl.report.templating import Section
from eve_vl.tasks.retrieval import Retrieval

NUM_SEARCHED, NUM_MATCHED = 200, 50  # images; fewer if every pair takes a fusion pass
NUM_QUERIES = 30  # per direction, evenly spread; the page shows some of them
NUM_HITS = 5
MAX_RERANKED = 16
WORD = re.compile(r"\w{3,}")
COMMON = 0.05  # share of the captions; the model seldom learnt rarer words
CONTRAST_LOSSES = (
    Loss(
        term="itc",
        title="Contrastive loss",
        note="Cross-entropy of the true partner in a batch, mean of both directions, in nats.",
    ),
    Loss(
        term="itm",
        title="Matching loss",
        note="Cross-entropy in nats: match or no match, or an image's own caption among others.",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Query:
    """A caption or an image with its hits of the other kind."""

    item: Example
    hits: tuple[Example, ...]
    """Best first."""
    is_match: tuple[bool, ...]
    """Whether each hit is a true match."""
    truth: Example
    """One of the true matches."""
    word: str = ""
    """Image queries: a word of the true caption."""
    heat: tuple[np.ndarray, ...] = ()
    """Image queries: the image with the word's Grad-CAM for the match, if available."""


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
        chance = {way: [chance_recall(k, num[way], matches[way]) for k in metrics.RECALLS] for way in num}
        shown = {"values": measured.values, "num": num, "matches": matches, "chance": chance}
        rerank = int(measured.values.get("rerank_k", self.task.settings.rerank))
        searched = {"rerank": rerank, "tried": r_means_tried(measured.values), "recalls": metrics.RECALLS}
        searched |= {"precisions": metrics.PRECISIONS, "by": "contrast" if self.task.is_comparable else "matching"}
        return self.draw("numbers", bar_chart=bar_chart, **searched, **shown)

    def evidence(self, num_each: int) -> list[Section]:
        """Return the section of queries and their hits."""
        dataset = self._searched()
        by_text, by_image = self.searches(dataset, num_each)
        body = self.draw("searches", dataset=dataset, by_text=by_text, by_image=by_image)
        return [Section(name=self.name, title=self.title, body=body)]

    @torch.inference_mode()
    def compared(self, num: int) -> list[Example]:
        """Return captions with the images they find."""
        dataset, examples = self._searched(), []
        for query in self._queries(gathered(self.task, self.batches(dataset)), dataset, by_text=True)[:num]:
            names = [f"{rank} {'✓' if right else '✗'}" for rank, right in enumerate(query.is_match, start=1)]
            made = {name: hit.images["image"] for name, hit in zip(names, query.hits, strict=True)}
            text, true = query.item.text, {"true": query.truth.images["image"]}
            examples.append(Example(where=f"{query.item.where}: {text}", images=true, text=text, made=made))
        return examples

    def _searched(self) -> SearchSet:
        """Return the images and captions that the examples search."""
        return self.dataset(NUM_SEARCHED if self.task.is_comparable else NUM_MATCHED, for_evaluation=True)

    @property
    def num_reranked(self) -> int:
        """Number of candidates that the examples re-rank."""
        return min(self.task.settings.rerank, MAX_RERANKED)

    def searches(self, dataset: SearchSet, num_each: int) -> tuple[list[Query], list[Query]]:
        """Return num_each right and wrong queries per direction, computed in float32."""
        with torch.inference_mode():
            gallery = gathered(self.task, self.batches(dataset))
            found = (self._queries(gallery, dataset, by_text=by_text) for by_text in (True, False))
            by_text, by_image = (_right_and_wrong(queries, num_each) for queries in found)
        return by_text, [self._with_heat(query, dataset.texts) for query in by_image]

    def _queries(self, gallery: RetrievalSet, dataset: SearchSet, *, by_text: bool) -> list[Query]:
        """Return NUM_QUERIES captions or images that have a match, with their hits."""
        seen = {f"image {row}": pixels_of(pixels) for row, pixels in sorted(gallery.pixels.items())}
        images = [Example(where=where, images={"image": pixels}, text="") for where, pixels in seen.items()]
        texts = [Example(where=f"text {row}", images={}, text=dataset.captions[row]) for row in gallery.kept]
        asking, others = (texts, images) if by_text else (images, texts)
        side = gallery.relevance.images_of_text if by_text else gallery.relevance.texts_of_image
        matches = [each.tolist() for each in side.candidate_M.tensor_split(side.start_Q1[1:-1])]
        able = [query for query, row in enumerate(matches) if row]
        queries = [able[i] for i in np.linspace(0, len(able), min(NUM_QUERIES, len(able)), endpoint=False).astype(int)]
        order_QK = best_candidates(self.task, gallery, queries, self.num_reranked, by_text=by_text)
        return [
            Query(
                item=asking[query],
                hits=tuple(others[candidate] for candidate in order_K),
                is_match=tuple(candidate in matches[query] for candidate in order_K),
                truth=others[matches[query][0]],
            )
            for query, order_K in zip(queries, order_QK[:, :NUM_HITS].tolist(), strict=True)
        ]

    def _with_heat(self, query: Query, texts: Sequence[str]) -> Query:
        """Return an image query with the Grad-CAM of a word of its true caption."""
        word = content_word(query.truth.text, texts)
        heat = self.heatmap([*query.item.images.values()], query.truth.text, word) if word else None
        return dataclasses.replace(query, word=word, heat=heat.overlays() if heat is not None else ())


def chance_recall(k: int, num_candidates: int, matches: Collection[int]) -> float:
    """Return the expected recall at k of a random order.

    matches: number of true matches m of each query. Mean over the queries of 1 - C(n - m, k) / C(n, k).
    """
    n = num_candidates
    missed = (math.prod(max(n - m - i, 0) / (n - i) for i in range(min(k, n))) for m in matches)
    return 1 - math.fsum(missed) / len(matches)


def content_word(text: str, texts: Sequence[str]) -> str:
    """Return the most specific word of a caption.

    The rarest word that at least COMMON of all captions have, else the rarest; of several the longest. "" without words.
    """
    counts = Counter(word for each in texts for word in set(WORD.findall(each)))
    words = WORD.findall(text)
    common = [word for word in words if counts[word] >= COMMON * len(texts)]
    return min(common or words, key=lambda word: (counts[word], -len(word)), default="")


def best_candidates(
    task: Retrieval, gallery: RetrievalSet, queries: Sequence[int], num_reranked: int, *, by_text: bool
) -> Tensor:
    """Return each query's best images or captions, int64 (Q, K).

    Ranked by contrast; the first num_reranked are then re-ranked by the matching head (task.rerank_by).
    """
    query_Q, sides = torch.tensor(queries), (gallery.image_Id, gallery.caption_Td)
    asking_d, candidate_Cd = reversed(sides) if by_text else sides
    order_QK = metrics.top_candidates(asking_d[query_Q], candidate_Cd, max(num_reranked, NUM_HITS))[0].cpu()
    if num_reranked:
        first_QK = order_QK[:, :num_reranked]
        asked_QK = query_Q[:, None].expand_as(first_QK)
        image_QK, caption_QK = (first_QK, asked_QK) if by_text else (asked_QK, first_QK)
        score_QK = match_scores(task, gallery, image_QK.flatten(), gallery.text_T[caption_QK.flatten()]).view_as(first_QK)
        new_QK = first_QK.gather(1, score_QK.sort(dim=1, descending=True, stable=True).indices)
        order_QK = torch.cat([new_QK, order_QK[:, num_reranked:]], dim=1)
    return order_QK


def _right_and_wrong(queries: Sequence[Query], num_each: int) -> list[Query]:
    return [each for right in (True, False) for each in [one for one in queries if one.is_match[0] is right][:num_each]]
