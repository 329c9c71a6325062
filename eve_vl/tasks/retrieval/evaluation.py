"""Metrics of image–text retrieval."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch

from eve_vl.config import Config
from eve_vl.data.records import Source
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.metrics import retrieval as metrics
from eve_vl.tasks.baseline import Baseline
from eve_vl.tasks.evaluator import Evaluated, Evaluator
from eve_vl.tasks.retrieval import gallery_metrics
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.retrieval.gallery import Gallery
from eve_vl.tasks.retrieval.gathering import gather_gallery
from eve_vl.tasks.retrieval.rerank_choice import gain, r_means_tried, search_gallery
from eve_vl.tasks.retrieval.row_scores import first_hits, macro_averaged
from eve_vl.tasks.retrieval.search_set import SearchBatch, SearchSet
from eve_vl.tasks.retrieval.task import Retrieval
from eve_vl.utils.console import pluralize, print_line

MAX_SEARCHED = 2000  # rows to search among at most if every pair takes a fusion pass, as in M3AE
NUM_FOLD_IMAGES = 5000  # the five folds of the COCO 1K protocol need this many images


class RetrievalEvaluator(Evaluator[Retrieval]):
    """Recalls of a search both ways."""

    section = RetrievalConfig
    score_name = "tr1 and ir1"
    baselines = (
        Baseline("tr1", "image", "tr1_chance", "chance"),
        Baseline("ir1", "caption", "ir1_chance", "chance"),
        Baseline(
            "tr1_hard",
            "image",
            "tr1_hard_chance",
            "chance among false texts that differ in one place",
            further_baselines={gallery_metrics.HARD_ABLATED: "looking at a wrong image"},
        ),
        Baseline("precision_tr1", "image", "precision_tr_chance", "chance by class"),
        Baseline("tag_p5", "tag", "tag_p5_chance", "chance by tag"),
    )

    def __init__(self, task: Retrieval):
        super().__init__(task)
        self.main_metric = "r_mean" if task.is_validated else None

    @classmethod
    def dataset(
        cls, sources: Sequence[Source[Any]], config: Config, tokenizer: Tokenizer
    ) -> SearchSet:
        """Return the images and texts to search among.

        They are of at most MAX_SEARCHED rows if every pair takes a fusion pass.
        """
        if not cast(RetrievalConfig, config.task).itc_weight:
            num_samples = config.data.val_samples
            num_rows = min(sum(len(source) for source in sources), num_samples)
            if num_rows > MAX_SEARCHED:
                print_line(
                    f"searched among {MAX_SEARCHED:,} of {num_rows:,} rows: "
                    "without contrast each pair takes a fusion pass"
                )
            data = replace(config.data, val_samples=min(num_samples, MAX_SEARCHED))
            config = replace(config, data=data)
        return SearchSet(sources, config, tokenizer)

    def validate(
        self, loader: Iterable[SearchBatch]
    ) -> tuple[dict[str, float], Mapping[str, float]]:
        """Return the metrics of validation, which selects rerank_k, and shares of r_mean.

        The mean of the shares of all queries is r_mean.
        """
        evaluated = self.evaluate_with_rows(loader, selects=True, recalls=metrics.RECALLS)
        directions = []
        for way in ("tr1", "ir1"):
            scores = {
                row: score for row, score in evaluated.row_scores.items() if row.startswith(way)
            }
            directions.append(scores)
        return evaluated.numbers, macro_averaged(*directions)

    @torch.no_grad()
    def evaluate_with_rows(
        self, loader: Iterable[SearchBatch], *, selects: bool = False, recalls: Sequence[int] = (1,)
    ) -> Evaluated:
        """Return the metrics of `metrics.retrieval` over all processes.

        They are tr1 … rsum after re-ranking task.rerank candidates, with a matching head also
        `…_itc_only` before re-ranking; with 5,000 images `…_1k`, the mean of five folds; the number
        of images and captions and of matches of each; and tr1 and ir1 of random order. selects: see
        `search_gallery`. recalls: of the row scores, see `first_hits`.
        """
        gallery = gather_gallery(self.task, loader)
        result = search_gallery(self.task, gallery, self.task.settings.rerank, selects=selects)
        num_reranked = int(result.numbers.get("rerank_k", 0))
        tag_numbers: dict[str, float] = {}
        tag_scores: dict[str, float] = {}
        if self.task.is_comparable:
            tag_numbers, tag_scores = gallery_metrics.tag_precision(gallery)
        numbers = {
            **result.numbers,
            **self._means_of_folds(gallery, num_reranked),
            **counts_and_chance(gallery),
            **gallery_metrics.merged_recalls(gallery),
            **gallery_metrics.class_precisions(gallery),
            **gallery_metrics.hard_caption_accuracy(self.task, gallery, num_reranked),
            **tag_numbers,
        }

        queries = (gallery.names, gallery.relevance, result.ranks_I, result.ranks_T)
        recall_scores = first_hits(*queries, metrics.RECALLS)
        return Evaluated(
            numbers=numbers,
            row_scores=first_hits(*queries, recalls),
            choice_scores=macro_averaged(recall_scores, tag_scores),
        )

    def _means_of_folds(self, gallery: Gallery, num_reranked: int) -> dict[str, float]:
        """Return the means over the five folds of COCO 1K, `…_1k`; empty for fewer images."""
        if len(gallery.image_Id) < NUM_FOLD_IMAGES:
            return {}
        folds = metrics.folds_1k(
            gallery.relevance,
            lambda images, texts, fold: (
                search_gallery(self.task, gallery.part(images, texts, fold), num_reranked).numbers
            ),
        )
        numbers = {}
        for name, value in folds.items():
            if not name.startswith(("num", "rerank")):
                numbers[f"{name}_1k"] = value
        return numbers

    def selected_settings(self, numbers: Mapping[str, float]) -> RetrievalConfig:
        """Return the section with the number of candidates to re-rank that validation selected."""
        return replace(self.task.settings, rerank=int(numbers.get("rerank_k", 0)))

    def warnings(self, numbers: Mapping[str, float]) -> list[str]:
        """Add sentences on captions left out, and on the effect of re-ranking."""
        sentences = super().warnings(numbers)
        num_skipped = numbers.get("num_captions_skipped")
        if num_skipped:
            sentences.append(f"captions left out with their images: {num_skipped:,}")
        if not self.task.is_comparable:
            num_pairs = int(numbers["num_images"] * numbers["num_texts"])
            sentences.append(
                f"no contrast: the matching head scored each of {pluralize(num_pairs, 'pair')} "
                "of an image and a caption"
            )

        r_mean = numbers["r_mean"]
        itc_only = numbers.get("r_mean_itc_only", 0.0)
        tried = r_means_tried(numbers)
        if tried:
            sentences.append(choice_sentence(int(numbers["rerank_k"]), tried, itc_only))
        elif r_mean < itc_only:
            sentences.append(
                f"re-ranking makes this search worse (r_mean {r_mean:.3f}, with ITC only "
                f"{itc_only:.3f}): the matching head needs longer training; "
                "search without it by --rerank 0 (task.rerank)"
            )
        return sentences


def counts_and_chance(gallery: Gallery) -> dict[str, float]:
    """Return the numbers of candidates and matches, and tr1 and ir1 of a random order."""
    relevance = gallery.relevance
    num_pairs = len(relevance.texts_of_image.candidate_M)
    num_images = len(gallery.image_Id)
    num_texts = len(gallery.text_T)
    num_image_queries = int(relevance.texts_of_image.has_any_Q.sum())
    num_text_queries = int(relevance.images_of_text.has_any_Q.sum())
    numbers: dict[str, float] = {
        "num_images": num_images,
        "num_texts": num_texts,
        "texts_per_image": num_pairs / num_images,
        "images_per_text": num_pairs / num_texts,
        "tr1_chance": num_pairs / num_texts / num_image_queries,
        "ir1_chance": num_pairs / num_images / num_text_queries,
    }
    if gallery.num_left_out:
        numbers["num_captions_skipped"] = gallery.num_left_out
    return numbers


def choice_sentence(rerank_k: int, tried: Mapping[int, float], itc_only: float) -> str:
    """Return what validation chose of the numbers of candidates that it tried, and why."""
    best = rerank_k or max(tried, key=lambda k: tried[k])
    low, high = gain(tried[best])
    worth = (
        f"r_mean {tried[best]:.3f}, with ITC only {itc_only:.3f}, "
        f"difference {low:.3f} to {high:.3f}"
    )
    chosen = f"the best {rerank_k} ({worth})"
    if not rerank_k:
        chosen = f"none: not even the best {best} are surely worth it ({worth})"
    numbers = ", ".join(map(str, tried))
    return f"of {numbers} or no candidates to re-rank, validation chose {chosen}"
