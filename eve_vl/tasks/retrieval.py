"""Image–text retrieval: trained by contrast and matching; searches by features and re-ranks the best by the matching head, or,
without contrast, scores every pair by it.

Letters: B batch, I images, G images with false texts, T captions, N distinct texts, P pairs, K best candidates of a query,
D width, d width of features, L text tokens.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from eve_vl.config import Config, RetrievalConfig
from eve_vl.data.dataset import hash_of
from eve_vl.data.kinds.captions import CaptionBatch, CaptionedImages
from eve_vl.data.records import Source
from eve_vl.data.search_set import SearchImages, SearchSet, SearchTexts
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.evaluation.retrieval import RetrievalSet, gathered, pair_scores, rerank_scores
from eve_vl.evaluation.significance import Baseline
from eve_vl.metrics import intervals
from eve_vl.metrics import retrieval as metrics
from eve_vl.metrics.intervals import GROUP
from eve_vl.model.encoder import initialize
from eve_vl.tasks.contrastive import Contrast, ContrastTask
from eve_vl.tasks.task import Evaluated, PublishedHead, Sizes
from eve_vl.train.trainer import StepOutput
from eve_vl.utils.console import pluralize, print_line
from eve_vl.utils.errors import UserError

MAX_GALLERY = 2000  # rows at most that are searched among by a fusion pass for every pair, as in M3AE
TRIED = "r_mean_k"
HARD_BLIND = "tr1_hard_wrong_image"
NUM_FOLD_IMAGES = 5000  # as many images as the five folds of the COCO 1K protocol need
PUBLISHED = {
    "contrast.features.temperature": "itc_temp",
    "contrast.features.image.weight": "itc_vision_proj_head.weight",
    "contrast.features.text.weight": "itc_text_proj_head.weight",
    "contrast.match_head.weight": "itm_head.weight",
    "contrast.match_head.bias": "itm_head.bias",
}
"""Published names of the heads."""
OLDER_NAMES = {f"m{name}": name for name in PUBLISHED.values()} | {
    f"itc_vl_{kind}_proj_head.weight": f"itc_{kind}_proj_head.weight" for kind in ("vision", "text")
}
"""Of the same heads in pre-training; the published code lets the later ones of these prevail."""


def _is_published(task: RetrievalConfig) -> bool:
    """Whether these heads are those of the published models."""
    has_both = bool(task.itc_weight and task.itm_weight)
    return has_both and task.itm_loss == "pairs" and not task.itm_batchnorm and task.pooling == "cls"


def _published_settings(tensors: Mapping[str, Tensor], width: int) -> RetrievalConfig | None:
    """Return the section of a checkpoint with a matching head."""
    projection_dim = len(tensors.get("itc_vision_proj_head.weight", ()))
    return RetrievalConfig(final_norm=False, projection_dim=projection_dim) if "itm_head.weight" in tensors else None


class Retrieval(ContrastTask[RetrievalConfig]):
    """The task: encoder, feature and matching heads."""

    section = RetrievalConfig
    dataset = CaptionedImages
    main_metric, scored = "r_mean", "tr1 and ir1"
    against = (
        Baseline("tr1", "image", "tr1_chance", "chance"),
        Baseline("ir1", "caption", "ir1_chance", "chance"),
        Baseline(
            "tr1_hard",
            "image",
            "tr1_hard_chance",
            "chance among false texts that differ in one place",
            others={HARD_BLIND: "looking at a wrong image"},
        ),
        Baseline("precision_tr1", "image", "precision_tr_chance", "chance by class"),
    )
    published_head = PublishedHead(
        keys=lambda task: PUBLISHED if _is_published(task) else None,
        settings=_published_settings,
        older_names=OLDER_NAMES,
    )

    def __init__(self, config: Config, sizes: Sizes):
        super().__init__(config, sizes)
        self.contrast = Contrast(self.encoder, self.settings)
        self.is_comparable = self.contrast.num_contrasts > 0
        initialize(self, config.model)

    def kept_of(self, tensors: Mapping[str, Tensor], labels: Sequence[str]) -> dict[str, Tensor]:
        """Return the weights of another run that are of use to this one; scores that rank start as its match logit."""
        kept = super().kept_of(tensors, labels)
        for name in ("contrast.match_head.weight", "contrast.match_head.bias") if self.contrast.num_ranked else ():
            if name in kept:
                kept[name] = kept[name][-1:]
        return kept

    def forward(self, batch: CaptionBatch) -> StepOutput:
        """Return the weighted sum of the losses (weights: task.itc_weight, task.itm_weight, the model's balance weight)."""
        losses, terms, routers = self.contrast(self.encoder, batch)
        return self.output(losses, routers, **terms)

    @classmethod
    def eval_dataset(cls, sources: Sequence[Source[Any]], config: Config, tokenizer: Tokenizer) -> SearchSet:
        """Return the images and texts to search among; of at most MAX_GALLERY rows where every pair takes a fusion pass."""
        if not cast(RetrievalConfig, config.task).itc_weight:
            if (num := min(sum(map(len, sources)), config.data.val_samples)) > MAX_GALLERY:
                print_line(f"searched among {MAX_GALLERY:,} of {num:,} rows: without contrast each pair takes a fusion pass")
            config = replace(config, data=replace(config.data, val_samples=min(config.data.val_samples, MAX_GALLERY)))
        return SearchSet(sources, config, tokenizer)

    def check_heads(self, flags: Mapping[str, Any]) -> None:
        """Raise UserError if candidates are to be re-ranked without a matching head."""
        if (rerank := flags.get("rerank", 0)) and self.contrast.match_head is None:
            raise UserError(f"--rerank {rerank} needs a matching head, which this run lacks; leave --rerank out")

    def check_flags(self, flags: Mapping[str, Any], dataset: SearchSet) -> None:
        """Raise UserError if more candidates are to be re-ranked than a query has."""
        rerank = flags.get("rerank", 0)
        if rerank > dataset.num_candidates:
            raise UserError(f"--rerank {rerank}: a query has only {dataset.num_candidates} candidates; give at most that many")

    def evaluate(self, loader: Iterable[SearchImages | SearchTexts]) -> dict[str, float]:
        """Return the numbers of validation, with as many candidates re-ranked as it shows to be worth it: see `search`."""
        return self._evaluated(loader, chooses=True).numbers

    def evaluated(self, loader: Iterable[SearchImages | SearchTexts]) -> Evaluated:
        """Return the numbers of `metrics.retrieval` over all processes: tr1 … rsum after re-ranking task.rerank candidates and,
        with a matching head, `…_itc_only` beside them; `…_1k` the mean of five folds where there are 5,000 images.

        Also the number of images and captions, how many matches each has on average, and tr1 and ir1 of random order.
        """
        return self._evaluated(loader, chooses=False)

    @torch.no_grad()
    def _evaluated(self, loader: Iterable[SearchImages | SearchTexts], *, chooses: bool) -> Evaluated:
        gallery = gathered(self, loader)
        numbers, ranks = self.search(gallery, self.settings.rerank, chooses=chooses)
        rel, k = gallery.relevance, int(numbers.get("rerank_k", 0))
        if len(gallery.image_Id) >= NUM_FOLD_IMAGES:
            folds = metrics.folds_1k(rel, lambda images, texts, fold: self.search(gallery.part(images, texts, fold), k)[0])
            numbers |= {f"{name}_1k": value for name, value in folds.items() if not name.startswith(("num", "rerank"))}
        num_pairs = len(rel.texts_of_image.candidate_M)
        counts = {
            "num_images": len(gallery.image_Id),
            "num_texts": len(gallery.text_T),
            "texts_per_image": num_pairs / len(gallery.image_Id),
            "images_per_text": num_pairs / len(gallery.text_T),
            "tr1_chance": num_pairs / len(gallery.text_T) / int(rel.texts_of_image.has_any_Q.sum()),
            "ir1_chance": num_pairs / len(gallery.image_Id) / int(rel.images_of_text.has_any_Q.sum()),
        } | ({"num_captions_skipped": gallery.num_left_out} if gallery.num_left_out else {})
        numbers |= counts | self.merged(gallery) | self.precisions(gallery) | self.hard(gallery, k)
        return Evaluated(numbers=numbers, row_scores=first_hits(gallery.names, rel, *ranks))

    def merged(self, gallery: RetrievalSet) -> dict[str, float]:
        """Return recalls by contrast alone, or by matching alone, if captions in the same words are one, true of every image
        that has it, as `…_merged`; empty if no two are in the same words."""
        texts, text_T = gallery.text_T.unique(return_inverse=True)
        if len(texts) == len(text_T):
            return {}
        image_P, caption_P = gallery.relevance.texts_of_image.rows(0, len(gallery.image_Id))
        rel = metrics.Relevance.from_pairs(image_P, text_T[caption_P], len(gallery.image_Id), len(texts))
        text_Nd = gallery.text_Nd[texts.to(gallery.text_Nd.device)]
        ranks_I = metrics.best_ranks(gallery.image_Id, text_Nd, rel.texts_of_image)
        ranks_T = metrics.best_ranks(text_Nd, gallery.image_Id, rel.images_of_text)
        found = metrics.summary(ranks_I, ranks_T, rel.image_T)
        return {f"{name}_merged": value for name, value in found.items() if not name.startswith(("num", "rsum"))}

    def precisions(self, gallery: RetrievalSet) -> dict[str, float]:
        """Return the share of the first hits by contrast alone, or by matching alone, that have a class of the query,
        precision_tr1 … precision_ir10, beside that of random order; empty if images have no classes. No recall: a hit need
        not be the query's own."""
        column = {name: number for number, name in enumerate(sorted({name for given in gallery.labels for name in given}))}
        label_IL = torch.zeros(len(gallery.labels), len(column), dtype=torch.bool)
        for image, given in enumerate(gallery.labels):
            label_IL[image, [column[name] for name in given]] = True
        numbers: dict[str, float] = {}
        if not column:
            return numbers
        image_P, caption_P = gallery.relevance.texts_of_image.rows(0, len(gallery.image_Id))
        label_TL = torch.zeros(len(gallery.text_T), len(column)).index_add(0, caption_P, label_IL[image_P].float()) > 0
        images, captions = (gallery.image_Id, label_IL), (gallery.caption_Td, label_TL)
        for way, (query_QD, query_QL), (other_CD, other_CL) in (("tr", images, captions), ("ir", captions, images)):
            found_QK, chance_Q = metrics.precisions(query_QD, other_CD, query_QL, other_CL)
            asked_Q, groups = query_QL.any(1), torch.arange(len(query_QD)) if way == "tr" else gallery.relevance.image_T
            for k, found_Q in zip(metrics.PRECISIONS, found_QK[asked_Q].T.numpy(), strict=True):
                found = intervals.mean(found_Q, groups[asked_Q].tolist(), is_share=True)
                gain_Q = (found_Q - chance_Q[asked_Q].numpy()) / len(found_Q)
                chance = f"precision_{way}_chance"
                numbers[f"precision_{way}{k}"] = intervals.over(found, chance, gain_Q, groups[asked_Q].tolist())
            numbers[f"precision_{way}_chance"] = float(chance_Q[asked_Q].mean())
        return numbers

    def hard(self, gallery: RetrievalSet, num_reranked: int) -> dict[str, float]:
        """Return how often an image's own text is the first among it and false ones that are hard to tell from it, tr1_hard,
        by what a search orders by; empty if there are none. Beside it how often that is so by chance, and beside the image of
        another row, by what the words alone give away."""
        same: dict[tuple[int, ...], int] = {}  # texts that are cut to the same tokens tie, whatever their rounding
        first = [same.setdefault(tuple(ids.tolist()), text) for text, ids in enumerate(gallery.ids)]
        groups = [(image, [first[text] for text in texts]) for image, texts in enumerate(gallery.hard) if texts]
        if not groups:
            return {}
        sizes, text_P = [len(texts) for _, texts in groups], torch.tensor([text for _, texts in groups for text in texts])
        own_G = torch.tensor([image for image, _ in groups])
        other_G = own_G.roll(len(groups) // 2)  # no neighbour, which may be another view of the same patient
        image_P, other_P = (image_G.repeat_interleave(torch.tensor(sizes)) for image_G in (own_G, other_G))
        if num_reranked or not self.is_comparable:
            scores = pair_scores(self, gallery, *(each_P * len(gallery.ids) + text_P for each_P in (image_P, other_P)))
        else:
            image_Id, text_Pd = gallery.image_Id.cpu(), gallery.text_Nd.cpu()[text_P]
            scores = [(image_Id[each_P] * text_Pd).sum(1) for each_P in (image_P, other_P)]
        hit_G, blind_G = (np.array([first_is_best(each.tolist()) for each in score_P.split(sizes)]) for score_P in scores)
        numbers = {"tr1_hard": intervals.mean(hit_G, is_share=True), "tr1_hard_chance": float(np.mean(1 / np.array(sizes)))}
        if len(groups) > 1:
            intervals.over(numbers["tr1_hard"], HARD_BLIND, (hit_G - blind_G) / len(groups))
            numbers[HARD_BLIND] = intervals.mean(blind_G, is_share=True)
        return numbers

    def chosen(self, numbers: Mapping[str, float]) -> RetrievalConfig:
        """Return the section with as many candidates to re-rank as validation chose."""
        return replace(self.settings, rerank=int(numbers.get("rerank_k", 0)))

    def remarks(self, numbers: Mapping[str, float]) -> list[str]:
        """Say how many captions went with their images, what re-ranking is worth, and so if it makes the search worse."""
        ranked, alone, remarks = numbers["r_mean"], numbers.get("r_mean_itc_only", 0.0), super().remarks(numbers)
        if left_out := numbers.get("num_captions_skipped"):
            remarks.append(f"captions left out with their images: {left_out:,}")
        if not self.is_comparable:
            num_pairs = pluralize(int(numbers["num_images"] * numbers["num_texts"]), "pair")
            remarks.append(f"no contrast: the matching head scored each of {num_pairs} of an image and a caption")
        if tried := r_means_tried(numbers):
            k, best = int(numbers["rerank_k"]), max(tried, key=lambda k: tried[k])
            low, high = gain(tried[k or best])
            worth = f"r_mean {tried[k or best]:.3f}, by contrast alone {alone:.3f}, difference {low:.3f} to {high:.3f}"
            chosen = f"the best {k} ({worth})" if k else f"none: not even the best {best} are surely worth it ({worth})"
            remarks.append(f"of {', '.join(map(str, tried))} or no candidates to re-rank, validation chose {chosen}")
        elif ranked < alone:
            worse = f"re-ranking makes this search worse (r_mean {ranked:.3f}, by contrast alone {alone:.3f})"
            remarks.append(f"{worse}: the matching head needs longer training; search without it by --rerank 0 (task.rerank)")
        return remarks

    def search(
        self, gallery: RetrievalSet, most: int, *, chooses: bool = False
    ) -> tuple[dict[str, float], tuple[metrics.Ranks, metrics.Ranks]]:
        """Return tr1 … rsum after the best candidates of each query are re-ranked, with a matching head also `…_itc_only`, of
        the contrast alone, and `rerank_k`, how many are re-ranked; and the ranks of images' captions (I,) and of captions'
        images (T,).

        `most` are re-ranked or, if it chooses, those of `most`, half of it, a quarter and so on that have the highest r_mean
        (`r_mean_k…` of all) and are above contrast alone by more than chance, which the 95 % interval of the difference query
        by query says, else none.
        """
        images, captions, rel = gallery.image_Id, gallery.caption_Td, gallery.relevance
        ways = (images, captions, rel.texts_of_image), (captions, images, rel.images_of_text)
        alone = metrics.best_ranks(*ways[0]), metrics.best_ranks(*ways[1])
        by_contrast = metrics.summary(*alone, rel.image_T)
        if self.contrast.match_head is None or not self.is_comparable:
            return by_contrast, alone
        found = {0: (by_contrast, alone)}
        if most:
            best = [metrics.top_candidates(queries, candidates, most) for queries, candidates, _ in ways]
            scores = rerank_scores(self, gallery, best[0][0].cpu(), best[1][0].cpu())
            for k in halves(most) if chooses else [most]:
                both = [
                    metrics.reranked_ranks(order[:, :k], first[:, :k], score[:, :k], ways[way][2], alone[way])
                    for way, ((order, first), score) in enumerate(zip(best, scores, strict=True))
                ]
                found[k] = metrics.summary(both[0], both[1], rel.image_T, alone), (both[0], both[1])
        r_mean = {k: numbers["r_mean"] for k, (numbers, _) in found.items()}
        if chooses:
            most = max((k for k in r_mean if gain(r_mean[k])[0] > 0), key=lambda k: (r_mean[k], -k), default=0)
        itc_only = {f"{name}_itc_only": value for name, value in by_contrast.items() if not name.startswith("num")}
        tried = {f"{TRIED}{k}": r_mean[k] for k in r_mean if k and chooses}
        numbers, ranks = found[most]
        return numbers | itc_only | {"rerank_k": most} | tried, ranks

    def outputs(self, tensors: Mapping[str, Tensor], labels: Tensor | None) -> dict[str, Tensor]:
        """Return `image_embeds` (I, d), `text_embeds` (C, d) and, of both, with contrast `logits_per_image` (I, C), similarity
        over the temperature, and `logits_per_text`, and with a matching head and I = C `match_logits` (B, 2) row by row.

        labels: int64 (B,), of true pairs in order, equal where two show the same image, so that they are no negatives of
        each other. In training mode with labels, only the loss is computed.
        """
        images, ids, is_padding = (tensors.get(name) for name in ("pixels", "ids", "is_padding"))
        if images is None and ids is None:
            raise UserError("give pixel_values, input_ids or both")
        outputs: dict[str, Tensor] = {}
        if labels is not None:
            if images is None or ids is None or is_padding is None or not len(images) == len(ids) == len(labels):
                raise UserError("labels need as many pixel_values and input_ids: an image and its text in each row")
            pairs = CaptionBatch(
                images_BCHW=images, ids_BT=ids, is_padding_BT=is_padding, where=(), image_id_B=labels, caption_B=labels
            )
            outputs["loss"] = self(pairs).loss
            if self.training:
                return outputs
        if images is not None:
            outputs["image_embeds"] = self.image_features(images)
        if ids is not None:
            outputs["text_embeds"] = self.text_features(ids, is_padding)
        if images is not None and ids is not None:
            if self.is_comparable:
                similarity_IC = outputs["image_embeds"] @ outputs["text_embeds"].T / self.contrast.features.temperature
                outputs |= {"logits_per_image": similarity_IC, "logits_per_text": similarity_IC.T}
            if self.contrast.match_head is not None and len(images) == len(ids):
                outputs["match_logits"] = self.match(images, ids, is_padding)[0]
        return outputs


def first_is_best(scores: Sequence[float]) -> float:
    """Return whether the first score is the best one, of several that tie how likely it comes first."""
    return float(scores[0] == max(scores)) / scores.count(scores[0])


def halves(k: int) -> list[int]:
    """Return k, half of it, a quarter and so on, down to 2; of one candidate there is no order."""
    return [k >> times for times in range(k.bit_length() - 1)]


def r_means_tried(numbers: Mapping[str, float]) -> dict[int, float]:
    """Return r_mean by each number of candidates that validation has tried to re-rank, the largest first."""
    return {int(name[len(TRIED) :]): value for name, value in numbers.items() if name.startswith(TRIED)}


def gain(r_mean: float) -> tuple[float, float]:
    """Return both ends of the 95 % interval of how far a search after re-ranking is above one by contrast alone."""
    low, high = getattr(r_mean, "versus", {}).get("r_mean_itc_only", (0.0, 0.0))
    return low, high


def first_hits(
    names: Sequence[str], relevance: metrics.Relevance, ranks_I: metrics.Ranks, ranks_T: metrics.Ranks
) -> dict[str, float]:
    """Return whether the first hit of each query is true, of hits that tie how likely; images are named by their row,
    captions by their number there, both by all that is searched among, and what one image is in belongs together."""
    sides = relevance.texts_of_image
    pool = hash_of(repr((names, sides.start_Q1.tolist(), sides.candidate_M.tolist())).encode())
    asked, seen = [("tr1", image, "") for image in range(len(names))], Counter()
    for image in relevance.image_T.tolist():
        seen[image] += 1
        asked.append(("ir1", image, f" {seen[image]}"))
    hits = {}
    both = ranks_I, ranks_T
    is_asked, hit = torch.cat([each.is_asked_Q for each in both]).tolist(), torch.cat([each.hits(1) for each in both]).tolist()
    for (way, image, number), has_match, value in zip(asked, is_asked, hit, strict=True):
        if has_match:
            hits[f"{way} {names[image]}{number} {pool:x}{GROUP}{names[image]}"] = value
    return hits
