"""Metrics of image–text retrieval."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch

from eve_vl.config import Config
from eve_vl.data.records import Source
from eve_vl.data.row_hashes import hash_of
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.metrics import intervals
from eve_vl.metrics import retrieval as metrics
from eve_vl.metrics.intervals import GROUP
from eve_vl.tasks.baseline import Baseline
from eve_vl.tasks.evaluator import Evaluated, Evaluator
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.retrieval.retrieval_set import (
    RetrievalSet,
    SearchBatch,
    SearchSet,
    gathered,
    pair_scores,
    rerank_scores,
)
from eve_vl.tasks.retrieval.task import Retrieval
from eve_vl.utils.console import pluralize, print_line

MAX_SEARCHED = 2000  # rows to search among at most if every pair takes a fusion pass, as in M3AE


TRIED = "r_mean_k"


HARD_ABLATED = "tr1_hard_wrong_image"


NUM_FOLD_IMAGES = 5000  # the five folds of the COCO 1K protocol need this many images


class RetrievalEvaluator(Evaluator[Retrieval]):
    """Recalls of a search both ways."""

    section = RetrievalConfig
    score_name = "tr1 and ir1"
    baselines = (
        Baseline("tr1", "image", "tr1_chance", "chance"),
        Baseline("ir1", "caption", "ir1_chance", "chance"),
        Baseline(
            *(
                "tr1_hard",
                "image",
                "tr1_hard_chance",
                "chance among false texts that differ in one place",
            ),
            others={HARD_ABLATED: "looking at a wrong image"},
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
            if (num := min(sum(map(len, sources)), config.data.val_samples)) > MAX_SEARCHED:
                print_line(
                    f"searched among {MAX_SEARCHED:,} of {num:,} rows: without contrast each pair takes a fusion pass"
                )
            config = replace(
                config,
                data=replace(config.data, val_samples=min(config.data.val_samples, MAX_SEARCHED)),
            )
        return SearchSet(sources, config, tokenizer)

    def validate(
        self, loader: Iterable[SearchBatch]
    ) -> tuple[dict[str, float], Mapping[str, float]]:
        """Return the metrics of validation, which selects rerank_k, and shares of r_mean.

        The mean of the shares of all queries is r_mean.
        """
        found = self.evaluate_with_rows(loader, selects=True, recalls=metrics.RECALLS)
        ways = [
            {row: score for row, score in found.row_scores.items() if row.startswith(way)}
            for way in ("tr1", "ir1")
        ]
        return found.numbers, macro_averaged(*ways)

    @torch.no_grad()
    def evaluate_with_rows(
        self, loader: Iterable[SearchBatch], *, selects: bool = False, recalls: Sequence[int] = (1,)
    ) -> Evaluated:
        """Return the metrics of `metrics.retrieval` over all processes.

        They are tr1 … rsum after re-ranking task.rerank candidates, with a matching head also `…_itc_only` before re-ranking;
        with 5,000 images `…_1k`, the mean of five folds; the number of images and captions and of matches of each; and tr1 and
        ir1 of random order. selects: see `search`. recalls: of the row scores, see `first_hits`.
        """
        gallery = gathered(self.task, loader)
        numbers, ranks = self.search(gallery, self.task.settings.rerank, selects=selects)
        rel, k = gallery.relevance, int(numbers.get("rerank_k", 0))
        if len(gallery.image_Id) >= NUM_FOLD_IMAGES:
            folds = metrics.folds_1k(
                rel,
                lambda images, texts, fold: self.search(gallery.part(images, texts, fold), k)[0],
            )
            numbers |= {
                f"{name}_1k": value
                for name, value in folds.items()
                if not name.startswith(("num", "rerank"))
            }
        num_pairs = len(rel.texts_of_image.candidate_M)
        counts = {
            "num_images": len(gallery.image_Id),
            "num_texts": len(gallery.text_T),
            "texts_per_image": num_pairs / len(gallery.image_Id),
            "images_per_text": num_pairs / len(gallery.text_T),
            "tr1_chance": num_pairs / len(gallery.text_T) / int(rel.texts_of_image.has_any_Q.sum()),
            "ir1_chance": num_pairs
            / len(gallery.image_Id)
            / int(rel.images_of_text.has_any_Q.sum()),
        } | ({"num_captions_skipped": gallery.num_left_out} if gallery.num_left_out else {})
        by_tag, tag_scores = self.by_tag(gallery)
        numbers |= (
            counts
            | self.merged(gallery)
            | self.precisions(gallery)
            | by_tag
            | self.hard(gallery, k)
        )
        choice = macro_averaged(first_hits(gallery.names, rel, *ranks, metrics.RECALLS), tag_scores)
        return Evaluated(
            numbers=numbers,
            row_scores=first_hits(gallery.names, rel, *ranks, recalls),
            choice_scores=choice,
        )

    def merged(self, gallery: RetrievalSet) -> dict[str, float]:
        """Return recalls with equal captions merged, named `…_merged`.

        Equal captions count as one caption that is true of all their images. By contrast only, or by matching only; empty if no
        two captions are equal.
        """
        texts, text_T = gallery.text_T.unique(return_inverse=True)
        if len(texts) == len(text_T):
            return {}
        image_P, caption_P = gallery.relevance.texts_of_image.rows(0, len(gallery.image_Id))
        rel = metrics.Relevance.from_pairs(
            image_P, text_T[caption_P], len(gallery.image_Id), len(texts)
        )
        text_Nd = gallery.text_Nd[texts.to(gallery.text_Nd.device)]
        ranks_I = metrics.best_ranks(gallery.image_Id, text_Nd, rel.texts_of_image)
        ranks_T = metrics.best_ranks(text_Nd, gallery.image_Id, rel.images_of_text)
        found = metrics.summary(ranks_I, ranks_T, rel.image_T)
        return {
            f"{name}_merged": value
            for name, value in found.items()
            if not name.startswith(("num", "rsum"))
        }

    def precisions(self, gallery: RetrievalSet) -> dict[str, float]:
        """Return precision_tr1 … precision_ir10 and their chance.

        Each is the share of first hits with a class of the query. By contrast only, or by matching only; empty if images have
        no classes. A hit need not be the query's own.
        """
        names = sorted({name for given in gallery.labels for name in given})
        if not names:
            return {}
        numbers: dict[str, float] = {}
        label_IL = torch.tensor([[name in given for name in names] for given in gallery.labels])
        image_P, caption_P = gallery.relevance.texts_of_image.rows(0, len(gallery.image_Id))
        label_TL = (
            torch.zeros(len(gallery.text_T), len(names)).index_add(
                0, caption_P, label_IL[image_P].float()
            )
            > 0
        )
        images, captions = (gallery.image_Id, label_IL), (gallery.caption_Td, label_TL)
        for way, (query_QD, query_QL), (other_CD, other_CL) in (
            ("tr", images, captions),
            ("ir", captions, images),
        ):
            chance = f"precision_{way}_chance"
            found_QK, chance_Q = metrics.precisions(query_QD, other_CD, query_QL, other_CL)
            asked_Q, groups = (
                query_QL.any(1),
                torch.arange(len(query_QD)) if way == "tr" else gallery.relevance.image_T,
            )
            for k, found_Q in zip(metrics.PRECISIONS, found_QK[asked_Q].T.numpy(), strict=True):
                found = intervals.mean(found_Q, groups[asked_Q].tolist(), is_share=True)
                gain_Q = (found_Q - chance_Q[asked_Q].numpy()) / len(found_Q)
                numbers[f"precision_{way}{k}"] = intervals.over(
                    found, chance, gain_Q, groups[asked_Q].tolist()
                )
            numbers[chance] = float(chance_Q[asked_Q].mean())
        return numbers

    def by_tag(self, gallery: RetrievalSet) -> tuple[dict[str, float], dict[str, float]]:
        """Return tag_p5 with its chance, and the share of each tag.

        tag_p5 is the share of the first five hits of a tag that have it. By contrast only; empty without tags (`common_tags`).
        """
        if not gallery.tags or not self.task.is_comparable:
            return {}, {}
        tags, has_IL = (
            list(gallery.tags),
            torch.zeros(len(gallery.image_Id), len(gallery.tags), dtype=torch.bool),
        )
        for number, images in enumerate(gallery.tags.values()):
            has_IL[images, number] = True
        tag_Ld, own_LL = (
            gallery.text_Nd[torch.tensor(tags, device=gallery.text_Nd.device)],
            torch.eye(len(tags)) > 0,
        )
        found_LK, chance_L = metrics.precisions(tag_Ld, gallery.image_Id, own_LL, has_IL)
        found_L = found_LK[:, metrics.PRECISIONS.index(5)].numpy()
        gain_L = (found_L - chance_L.numpy()) / len(tags)
        found = intervals.over(intervals.mean(found_L, is_share=True), "tag_p5_chance", gain_L)
        shares = {f"tag {text}": share for text, share in zip(tags, found_L.tolist(), strict=True)}
        return {"tag_p5": found, "tag_p5_chance": float(chance_L.mean())}, shares

    def hard(self, gallery: RetrievalSet, num_reranked: int) -> dict[str, float]:
        """Return tr1_hard: how often an image's own text precedes hard false texts.

        Texts are ordered as a search orders them. Also by chance, and with the image of another row, which shows how much the
        words give away. Empty if there are no false texts.
        """
        same: dict[tuple[int, ...], int] = {}  # texts cut to the same tokens tie, with any rounding
        first = [same.setdefault(tuple(ids.tolist()), text) for text, ids in enumerate(gallery.ids)]
        groups = [
            (image, [first[text] for text in texts])
            for image, texts in enumerate(gallery.hard)
            if texts
        ]
        if not groups:
            return {}
        sizes, text_P = (
            [len(texts) for _, texts in groups],
            torch.tensor([text for _, texts in groups for text in texts]),
        )
        own_G = torch.tensor([image for image, _ in groups])
        other_G = own_G.roll(
            len(groups) // 2
        )  # not the next row, which may be another view of the same patient
        image_P, other_P = (
            image_G.repeat_interleave(torch.tensor(sizes)) for image_G in (own_G, other_G)
        )
        if num_reranked or not self.task.is_comparable:
            scores = pair_scores(
                self.task,
                gallery,
                *(each_P * len(gallery.ids) + text_P for each_P in (image_P, other_P)),
            )
        else:
            image_Id, text_Pd = gallery.image_Id.cpu(), gallery.text_Nd.cpu()[text_P]
            scores = [(image_Id[each_P] * text_Pd).sum(1) for each_P in (image_P, other_P)]
        hit_G, ablated_G = (
            np.array([first_is_best(each.tolist()) for each in score_P.split(sizes)])
            for score_P in scores
        )
        numbers = {
            "tr1_hard": intervals.mean(hit_G, is_share=True),
            "tr1_hard_chance": float(np.mean(1 / np.array(sizes))),
        }
        if len(groups) > 1:
            intervals.over(numbers["tr1_hard"], HARD_ABLATED, (hit_G - ablated_G) / len(groups))
            numbers[HARD_ABLATED] = intervals.mean(ablated_G, is_share=True)
        return numbers

    def selected_settings(self, numbers: Mapping[str, float]) -> RetrievalConfig:
        """Return the section with the number of candidates to re-rank.

        Validation selected that number.
        """
        return replace(self.task.settings, rerank=int(numbers.get("rerank_k", 0)))

    def warnings(self, numbers: Mapping[str, float]) -> list[str]:
        """Add sentences on captions left out, and on the effect of re-ranking."""
        ranked, alone, found = (
            numbers["r_mean"],
            numbers.get("r_mean_itc_only", 0.0),
            super().warnings(numbers),
        )
        if left_out := numbers.get("num_captions_skipped"):
            found.append(f"captions left out with their images: {left_out:,}")
        if not self.task.is_comparable:
            num_pairs = pluralize(int(numbers["num_images"] * numbers["num_texts"]), "pair")
            found.append(
                f"no contrast: the matching head scored each of {num_pairs} of an image and a caption"
            )
        if tried := r_means_tried(numbers):
            k, best = int(numbers["rerank_k"]), max(tried, key=lambda k: tried[k])
            low, high = gain(tried[k or best])
            worth = f"r_mean {tried[k or best]:.3f}, with ITC only {alone:.3f}, difference {low:.3f} to {high:.3f}"
            chosen = (
                f"the best {k} ({worth})"
                if k
                else f"none: not even the best {best} are surely worth it ({worth})"
            )
            found.append(
                f"of {', '.join(map(str, tried))} or no candidates to re-rank, validation chose {chosen}"
            )
        elif ranked < alone:
            worse = f"re-ranking makes this search worse (r_mean {ranked:.3f}, with ITC only {alone:.3f})"
            found.append(
                f"{worse}: the matching head needs longer training; search without it by --rerank 0 (task.rerank)"
            )
        return found

    def search(
        self, gallery: RetrievalSet, most: int, *, selects: bool = False
    ) -> tuple[dict[str, float], tuple[metrics.Ranks, metrics.Ranks]]:
        """Return tr1 … rsum after re-ranking, and the ranks of both directions.

        The best candidates of each query are re-ranked. Ranks are those of images' captions (I,) and of captions' images (T,).
        With a matching head also `…_itc_only`, with ITC only, and `rerank_k`, the number re-ranked. That is `most` or, if it
        selects, the k of `most`, most/2, most/4 … with the highest r_mean (all are in `r_mean_k…`), provided that the 95 %
        interval of its gain over contrast, query by query, is above 0; else 0.
        """
        images, captions, rel = gallery.image_Id, gallery.caption_Td, gallery.relevance
        ways = (images, captions, rel.texts_of_image), (captions, images, rel.images_of_text)
        alone = metrics.best_ranks(*ways[0]), metrics.best_ranks(*ways[1])
        by_contrast = metrics.summary(*alone, rel.image_T)
        if self.task.contrast.match_head is None or not self.task.is_comparable:
            return by_contrast, alone
        found = {0: (by_contrast, alone)}
        if most:
            best = [
                metrics.top_candidates(queries, candidates, most) for queries, candidates, _ in ways
            ]
            scores = rerank_scores(self.task, gallery, best[0][0].cpu(), best[1][0].cpu())
            for k in halves(most) if selects else [most]:
                both = [
                    metrics.reranked_ranks(
                        order[:, :k], first[:, :k], score[:, :k], ways[way][2], alone[way]
                    )
                    for way, ((order, first), score) in enumerate(zip(best, scores, strict=True))
                ]
                found[k] = metrics.summary(both[0], both[1], rel.image_T, alone), (both[0], both[1])
        r_mean = {k: numbers["r_mean"] for k, (numbers, _) in found.items()}
        if selects:
            most = max(
                (k for k in r_mean if gain(r_mean[k])[0] > 0),
                key=lambda k: (r_mean[k], -k),
                default=0,
            )
        itc_only = {
            f"{name}_itc_only": value
            for name, value in by_contrast.items()
            if not name.startswith("num")
        }
        tried = {f"{TRIED}{k}": r_mean[k] for k in r_mean if k and selects}
        numbers, ranks = found[most]
        return numbers | itc_only | {"rerank_k": most} | tried, ranks


def first_is_best(scores: Sequence[float]) -> float:
    """Return 1 if the first score is the best, 1/n if n tie for it, else 0."""
    return float(scores[0] == max(scores)) / scores.count(scores[0])


def macro_averaged(*parts: Mapping[str, float]) -> dict[str, float]:
    """Return scores of rows, whose mean is the macro average of the parts.

    That is the mean of the parts' means. Empty parts do not count.
    """
    given = [part for part in parts if part]
    total = sum(map(len, given))
    return {
        row: score * total / len(part) / len(given) for part in given for row, score in part.items()
    }


def halves(k: int) -> list[int]:
    """Return k, k/2, k/4 …, down to 2: one candidate has no order."""
    return [k >> times for times in range(k.bit_length() - 1)]


def r_means_tried(numbers: Mapping[str, float]) -> dict[int, float]:
    """Return r_mean by each number of re-ranked candidates that was tried.

    The largest number comes first.
    """
    return {
        int(name[len(TRIED) :]): value for name, value in numbers.items() if name.startswith(TRIED)
    }


def gain(r_mean: float) -> tuple[float, float]:
    """Return both ends of the 95 % interval of the gain in r_mean by re-ranking."""
    return getattr(r_mean, "versus", {}).get("r_mean_itc_only", (0.0, 0.0))


def first_hits(
    names: Sequence[str],
    relevance: metrics.Relevance,
    ranks_I: metrics.Ranks,
    ranks_T: metrics.Ranks,
    recalls: Sequence[int] = (1,),
) -> dict[str, float]:
    """Return a score for each query by its name: whether its first hit is true.

    recalls: instead the share of these numbers of first hits with a true one.

    If several hits tie, it is the share of true ones. An image is named by its row, a caption by its number there, both with a
    hash of the set that is searched; the captions of an image belong together.
    """
    sides = relevance.texts_of_image
    pool = hash_of(repr((names, sides.start_Q1.tolist(), sides.candidate_M.tolist())).encode())
    asked, seen = [("tr1", image, "") for image in range(len(names))], Counter()
    for image in relevance.image_T.tolist():
        seen[image] += 1
        asked.append(("ir1", image, f" {seen[image]}"))
    hits = {}
    both = ranks_I, ranks_T
    is_asked = torch.cat([each.is_asked_Q for each in both]).tolist()
    hit = torch.cat(
        [sum((each.hits(k) for k in recalls), torch.zeros(())) / len(recalls) for each in both]
    ).tolist()
    for (way, image, number), has_match, value in zip(asked, is_asked, hit, strict=True):
        if has_match:
            hits[f"{way} {names[image]}{number} {pool:x}{GROUP}{names[image]}"] = value
    return hits
