"""Report pages of VQA, NLVR2, classification and image–text retrieval.

Letters: B batch, A answers, I images, T captions, Q queries, C classes or candidates, K best candidates of a query,
d feature dimension.
"""

import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor

from eve_vl.data.batches import TextBatch
from eve_vl.data.kinds.labels import LabelBatch
from eve_vl.data.kinds.questions import QuestionBatch
from eve_vl.data.kinds.statements import StatementBatch
from eve_vl.evaluation.retrieval import r_means_tried
from eve_vl.evaluation.retrieval_set import RetrievalSet, SearchSet, gathered, match_scores
from eve_vl.evaluation.runner import eval_rows
from eve_vl.metrics import retrieval as metrics
from eve_vl.metrics.classification import confusion
from eve_vl.metrics.vqa import accuracy_of
from eve_vl.predict.base import predictor_of
from eve_vl.report.drawing import Choice, Loss, Section, draw
from eve_vl.report.task import (
    CONTRAST_LOSSES,
    NUM_SEEN,
    Example,
    Measured,
    TaskReport,
    best_choices,
)
from eve_vl.run.loading import LoadedRun
from eve_vl.tasks.retrieval import Retrieval
from eve_vl.utils.errors import UserError

NUM_ROWS = 1000  # validation rows behind the confusion matrix
NUM_CHOICES = 3
NUM_CLASSES = 20  # the most frequent ones: a larger matrix does not fit on a page
NUM_CONFUSED = 8
TRUTH_VALUES = ("false", "true")
NUM_SEARCHED, NUM_MATCHED = 200, 50  # images; fewer if every pair takes a fusion pass
NUM_QUERIES = 30  # per direction, evenly spread; the page shows some of them
NUM_HITS = 5
MAX_RERANKED = 16


class ClassifierReport(TaskReport):
    """Base of the reports of tasks that choose among labels: right and wrong examples."""

    heat_for: ClassVar[str] = "its first choice"
    """Output that the Grad-CAM explains."""

    def examples(self, batch: Any) -> Iterable[Example]:
        """Return the rows of a batch with the model's output."""
        raise NotImplementedError

    @torch.inference_mode()
    def compared(self, num: int) -> list[Example]:
        """Return validation rows with the model's output."""
        return [
            example for batch in self.batches(self.dataset(num)) for example in self.examples(batch)
        ]

    def evidence(self, num_each: int) -> list[Section]:
        """Return the section of right and wrong examples."""
        seen = self.compared(NUM_SEEN)
        groups = {
            "Right": [one for one in seen if one.is_right],
            "Wrong": [one for one in seen if one.is_right is False],
        }
        num_right = len(groups["Right"])
        if all(example.is_right is None for example in seen):
            groups, num_each = {"Truth unknown": seen}, 2 * num_each
        shown = {
            name: [(one, self._images(one)) for one in round_robin(group)[:num_each]]
            for name, group in groups.items()
        }
        has_heat = any(
            len(images) > len(example.images) for rows in shown.values() for example, images in rows
        )
        values = {
            "shown": shown,
            "num_seen": len(seen),
            "num_right": num_right,
            "has_heat": has_heat,
        }
        return [
            Section(self.name, self.title, draw("examples.html", "examples", report=self, **values))
        ]

    def _images(self, example: Example) -> dict[str, np.ndarray]:
        """Return an example's images, each also with its heatmap."""
        images = dict(example.images)
        names = [f"heat, {name}" if len(images) > 1 else "heat" for name in images]
        return images | dict(
            zip(names, heatmaps(self.run, list(images.values()), example.text), strict=False)
        )

    def example(
        self, batch: Any, row: int, choices: Sequence[Choice], text: str, truth: str, kind: str
    ) -> Example:
        """Return a row of a batch, with its images if it has any."""
        images = [
            pixels_of(getattr(batch, name)[row])
            for name in ("images_BCHW", "right_BCHW")
            if hasattr(batch, name)
        ]
        names = ("left", "right") if len(images) == 2 else ("image",)
        shown: dict[str, np.ndarray] = dict(zip(names, images, strict=False))
        return Example(
            where=batch.where[row], images=shown, text=text, choices=choices, truth=truth, kind=kind
        )

    def two_image_examples(
        self, batch: Any, texts: Sequence[str], names: Sequence[str]
    ) -> Iterator[Example]:
        """Yield rows of two images with the probabilities of the two classes."""
        probability_B2 = self.task.predict(batch)[0].float().softmax(1)
        for row, label in enumerate(batch.labels):
            choices = best_choices(
                probability_B2[row], 2, names.__getitem__, lambda c, label=label: c == label
            )
            truth = "" if label is None else str(names[label])
            yield self.example(batch, row, choices, texts[row], truth, choices[0].text)


class VQAReport(ClassifierReport):
    """Accuracy next to guesses from the question without the image."""

    name = "vqa"
    title, template = "Questions", "vqa.html"
    row = "question"
    heat_for = "the first answer"
    has_baselines = True
    losses = (
        Loss("vqa", "Answer loss", "Binary cross-entropy of the answers, summed over the list."),
    )

    def examples(self, batch: QuestionBatch) -> Iterator[Example]:
        """Yield the questions with the best answers."""
        labels, probability_BA = self.task.answers, self.task.predict(batch)[0].float().sigmoid()
        for row, given in enumerate(batch.answers):
            is_right = lambda c, given=given: bool(given) and accuracy_of(labels[c], given) > 0  # noqa: E731
            choices, truth = (
                best_choices(probability_BA[row], NUM_CHOICES, labels.__getitem__, is_right),
                dict.fromkeys(given),
            )
            yield self.example(
                batch, row, choices, batch.questions[row], ", ".join(truth), batch.answer_types[row]
            )


class NLVR2Report(ClassifierReport):
    """Accuracy and consistency next to those of a coin."""

    name = "nlvr2"
    title, template = "Statements", "nlvr2.html"
    row = "statement"
    heat_for = "the statement being true"
    losses = (Loss("nlvr2", "Statement loss", "Cross-entropy of true or false, in nats."),)

    def examples(self, batch: StatementBatch) -> Iterator[Example]:
        """Yield the statements with the model's choice."""
        return self.two_image_examples(batch, batch.statements, TRUTH_VALUES)

    def numbers(self, measured: Measured) -> Markup:
        """Return accuracy and consistency (if complete) next to guessing, as HTML."""
        rows = [
            row for row in eval_rows(self.sources[1], measured.num_samples) if row.label is not None
        ]
        share = sum(row.label for row in rows) / (len(rows) or 1)
        sizes = Counter(row.group for row in rows).values()
        majority = max(share, 1 - share) if rows else None
        all_by_chance = math.fsum(0.5**size for size in sizes) / len(sizes) if rows else None
        return self.draw(
            "numbers", values=measured.values, majority=majority, all_by_chance=all_by_chance
        )


class ClassificationReport(ClassifierReport):
    """Accuracy next to the most frequent label, and which classes are confused."""

    name = "classification"
    title, template = "Labels", "classification.html"
    row = "row"
    has_baselines = True
    heat_for = "the first label"
    losses = (
        Loss(
            "classification",
            "Label loss",
            "Cross-entropy in nats; multi-label: summed over the labels.",
        ),
    )

    def examples(self, batch: LabelBatch) -> Iterator[Example]:
        """Yield the rows with the best labels."""
        names, probability_BC = (
            self.task.sizes.labels,
            self.task.probabilities(self.task.predict(batch)[0]),
        )
        for row, given in enumerate(batch.labels):
            is_right = lambda c, given=given: names[c] in given  # noqa: E731
            text = (
                self.run.tokenizer.decode(batch.ids_BT[row].tolist())
                if isinstance(batch, TextBatch)
                else ""
            )
            choices = best_choices(probability_BC[row], NUM_CHOICES, names.__getitem__, is_right)
            yield self.example(
                batch, row, choices, text, ", ".join(given), given[0] if given else ""
            )

    def numbers(self, measured: Measured) -> Markup:
        """Return the numbers and, for single labels, the confusion matrix, as HTML."""
        classes, counts_CC, confused = [], [], []
        if "acc" in measured.values:
            seen = [
                each
                for each in self.evaluated(min(measured.num_samples, NUM_ROWS)).examples
                if each.labels
            ]
            pairs = Counter((each.labels[0], each.label) for each in seen)
            classes = [
                name
                for name, _ in Counter(each.labels[0] for each in seen).most_common(NUM_CLASSES)
            ]
            counts_CC = confusion(
                [each.label for each in seen], [each.labels[0] for each in seen], classes
            ).tolist()
            confused = [
                (true, guess, count)
                for (true, guess), count in pairs.most_common()
                if true != guess
            ][:NUM_CONFUSED]
        return self.draw(
            "numbers", values=measured.values, classes=classes, counts=counts_CC, confused=confused
        )


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
            gathered(self.task, self.batches(dataset)), dataset, by_text=True
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
            gallery = gathered(self.task, self.batches(dataset))
            found = (self._queries(gallery, dataset, by_text=by_text) for by_text in (True, False))
            by_text, by_image = (_right_and_wrong(queries, num_each) for queries in found)
        return by_text, [
            one._replace(heat=heatmaps(self.run, [*one.item.images.values()], one.truth.text))
            for one in by_image
        ]

    def _queries(self, gallery: RetrievalSet, dataset: SearchSet, *, by_text: bool) -> list[Query]:
        """Return NUM_QUERIES captions or images that have a match, with their hits."""
        seen = {f"image {row}": pixels_of(pixels) for row, pixels in sorted(gallery.pixels.items())}
        images = [
            Example(where=where, images={"image": pixels}, text="")
            for where, pixels in seen.items()
        ]
        texts = [
            Example(where=f"text {row}", images={}, text=dataset.captions[row])
            for row in gallery.kept
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


def heatmaps(run: LoadedRun, images: Sequence[np.ndarray], text: str) -> tuple[np.ndarray, ...]:
    """Return the images under the Grad-CAM of the run's output; none if not available."""
    calls = predictor_of(run)
    try:
        return (
            calls.call("explain")(list(images), text).overlays()
            if images and "explain" in calls.offered()
            else ()
        )
    except UserError:  # e.g. a model with a single block
        return ()


def chance_recall(k: int, num_candidates: int, matches: Collection[int]) -> float:
    """Return the expected recall at k of a random order.

    matches: number of true matches m of each query. Mean over the queries of 1 - C(n - m, k) / C(n, k).
    """
    n = num_candidates
    missed = (math.prod(max(n - m - i, 0) / (n - i) for i in range(min(k, n))) for m in matches)
    return 1 - math.fsum(missed) / len(matches)


def best_candidates(
    task: Retrieval,
    gallery: RetrievalSet,
    queries: Sequence[int],
    num_reranked: int,
    *,
    by_text: bool,
) -> Tensor:
    """Return each query's best images or captions, int64 (Q, K).

    Ranked by contrast; the first num_reranked are then re-ranked by the matching head (task.rerank_by).
    """
    query_Q, sides = torch.tensor(queries), (gallery.image_Id, gallery.caption_Td)
    asking_d, candidate_Cd = reversed(sides) if by_text else sides
    order_QK = metrics.top_candidates(asking_d[query_Q], candidate_Cd, max(num_reranked, NUM_HITS))[
        0
    ].cpu()
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


def round_robin(examples: Sequence[Example]) -> list[Example]:
    """Return all examples in a round robin over their kinds."""
    kinds: dict[str, list[Example]] = {}
    for example in examples:
        kinds.setdefault(example.kind, []).append(example)
    return [
        example
        for turn in itertools.zip_longest(*kinds.values())
        for example in turn
        if example is not None
    ]


def pixels_of(image_CHW: Tensor) -> np.ndarray:
    """Return a uint8 image as (H, W, 3)."""
    return image_CHW.permute(1, 2, 0).cpu().numpy()
