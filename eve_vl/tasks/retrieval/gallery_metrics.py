"""Metrics of a gallery besides recalls: merged captions, classes, tags and hard false captions.

Letters: I images, T captions, N distinct texts, Q queries, L labels or tags, K numbers of first
hits, G images with hard false captions, P pairs of an image and a text, d width of features.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eve_vl.metrics import intervals
from eve_vl.metrics import retrieval as metrics
from eve_vl.metrics.matches import Relevance
from eve_vl.metrics.ranks import best_ranks
from eve_vl.tasks.baseline import FEW
from eve_vl.tasks.retrieval.gallery import Gallery
from eve_vl.tasks.retrieval.reranking import pair_numbers, score_pair_numbers
from eve_vl.tasks.retrieval.task import Retrieval

HARD_ABLATED = "tr1_hard_wrong_image"


def merged_recalls(gallery: Gallery) -> dict[str, float]:
    """Return recalls with equal captions merged, named `…_merged`.

    Equal captions count as one caption that is true of all their images. By contrast only, or by
    matching only; empty if no two captions are equal.
    """
    texts, text_T = gallery.text_T.unique(return_inverse=True)
    if len(texts) == len(text_T):
        return {}
    num_images = len(gallery.image_Id)
    image_P, caption_P = gallery.relevance.texts_of_image.rows(0, num_images)
    relevance = Relevance.from_pairs(image_P, text_T[caption_P], num_images, len(texts))
    text_Nd = gallery.text_Nd[texts.to(gallery.text_Nd.device)]
    ranks_I = best_ranks(gallery.image_Id, text_Nd, relevance.texts_of_image)
    ranks_T = best_ranks(text_Nd, gallery.image_Id, relevance.images_of_text)
    numbers = {}
    for name, value in metrics.summary(ranks_I, ranks_T, relevance.image_T).items():
        if not name.startswith(("num", "rsum")):
            numbers[f"{name}_merged"] = value
    return numbers


@dataclass
class LabeledSide:
    """Images or captions as queries or candidates, with their classes."""

    features_Qd: Tensor
    label_QL: Tensor
    """bool."""
    image_Q: Tensor
    """The image of each, which groups them."""


def class_precisions(gallery: Gallery) -> dict[str, float]:
    """Return precision_tr1 … precision_ir10 and their chance.

    Each is the share of first hits with a class of the query. By contrast only, or by matching
    only; empty if images have no classes. A hit need not be the query's own.
    """
    names = sorted({name for labels in gallery.labels for name in labels})
    if not names:
        return {}
    num_images = len(gallery.image_Id)
    label_IL = torch.tensor([[name in labels for name in names] for labels in gallery.labels])
    image_P, caption_P = gallery.relevance.texts_of_image.rows(0, num_images)
    count_TL = torch.zeros(len(gallery.text_T), len(names))
    count_TL = count_TL.index_add(0, caption_P, label_IL[image_P].float())

    images = LabeledSide(gallery.image_Id, label_IL, torch.arange(num_images))
    captions = LabeledSide(gallery.caption_Td, count_TL > 0, gallery.relevance.image_T)
    return _precisions("tr", images, captions) | _precisions("ir", captions, images)


def _precisions(way: str, queries: LabeledSide, candidates: LabeledSide) -> dict[str, float]:
    """Return the precisions and the chance of one direction."""
    chance_name = f"precision_{way}_chance"
    precision_QK, chance_Q = metrics.precisions(
        queries.features_Qd, candidates.features_Qd, queries.label_QL, candidates.label_QL
    )
    has_class_Q = queries.label_QL.any(1)
    groups = queries.image_Q[has_class_Q].tolist()
    precision_QK = precision_QK[has_class_Q]
    chance_Q = chance_Q[has_class_Q]
    numbers = {}
    for k, precision_Q in zip(metrics.PRECISIONS, precision_QK.T.numpy(), strict=True):
        precision = intervals.mean(precision_Q, groups, is_share=True)
        gain_Q = (precision_Q - chance_Q.numpy()) / len(precision_Q)
        numbers[f"precision_{way}{k}"] = intervals.with_difference(
            precision, chance_name, gain_Q, groups
        )
    numbers[chance_name] = float(chance_Q.mean())
    return numbers


def tag_precision(gallery: Gallery) -> tuple[dict[str, float], dict[str, float]]:
    """Return tag_p5 with its chance, and the share of each tag.

    tag_p5 is the share of the first five hits of a tag that have it. By contrast only; empty with
    less than FEW tags (`common_tags`), which decide nothing.
    """
    if len(gallery.tags) < FEW:
        return {}, {}
    num_tags = len(gallery.tags)
    has_tag_IL = torch.zeros(len(gallery.image_Id), num_tags, dtype=torch.bool)
    for number, images in enumerate(gallery.tags.values()):
        has_tag_IL[images, number] = True
    tags = list(gallery.tags)
    tag_Ld = gallery.text_Nd[torch.tensor(tags, device=gallery.text_Nd.device)]
    own_LL = torch.eye(num_tags) > 0
    precision_LK, chance_L = metrics.precisions(tag_Ld, gallery.image_Id, own_LL, has_tag_IL)

    precision_L = precision_LK[:, metrics.PRECISIONS.index(5)].numpy()
    gain_L = (precision_L - chance_L.numpy()) / num_tags
    mean = intervals.mean(precision_L, is_share=True)
    numbers = {
        "tag_p5": intervals.with_difference(mean, "tag_p5_chance", gain_L),
        "tag_p5_chance": float(chance_L.mean()),
    }
    shares = {}
    for tag, share in zip(tags, precision_L.tolist(), strict=True):
        shares[f"tag {tag}"] = share
    return numbers, shares


def hard_caption_accuracy(task: Retrieval, gallery: Gallery, num_reranked: int) -> dict[str, float]:
    """Return tr1_hard: how often an image's own text precedes hard false texts.

    Texts are ordered as a search orders them. Also by chance, and with the image of another row,
    which shows how much the words give away. Empty if there are no false texts.
    """
    images = [image for image, texts in enumerate(gallery.hard) if texts]
    if not images:
        return {}
    first_text = _first_with_equal_ids(gallery.ids)
    text_P = torch.tensor([first_text[text] for image in images for text in gallery.hard[image]])
    sizes = [len(gallery.hard[image]) for image in images]
    image_G = torch.tensor(images)
    # not the next row, which may be another view of the same patient
    wrong_image_G = image_G.roll(len(images) // 2)
    image_P = image_G.repeat_interleave(torch.tensor(sizes))
    wrong_image_P = wrong_image_G.repeat_interleave(torch.tensor(sizes))

    if num_reranked or not task.is_comparable:
        pairs_P = pair_numbers(gallery, image_P, text_P)
        wrong_pairs_P = pair_numbers(gallery, wrong_image_P, text_P)
        score_P, wrong_score_P = score_pair_numbers(task, gallery, pairs_P, wrong_pairs_P)
    else:
        image_Id = gallery.image_Id.cpu()
        text_Pd = gallery.text_Nd.cpu()[text_P]
        score_P = (image_Id[image_P] * text_Pd).sum(1)
        wrong_score_P = (image_Id[wrong_image_P] * text_Pd).sum(1)

    hit_G = _first_is_best(score_P, sizes)
    numbers = {
        "tr1_hard": intervals.mean(hit_G, is_share=True),
        "tr1_hard_chance": float(np.mean(1 / np.array(sizes))),
    }
    if len(images) > 1:
        wrong_hit_G = _first_is_best(wrong_score_P, sizes)
        gain_G = (hit_G - wrong_hit_G) / len(images)
        intervals.with_difference(numbers["tr1_hard"], HARD_ABLATED, gain_G)
        numbers[HARD_ABLATED] = intervals.mean(wrong_hit_G, is_share=True)
    return numbers


def _first_with_equal_ids(ids: list[Tensor]) -> list[int]:
    """Return for each text the first one with the same tokens: they tie, with any rounding."""
    first_of_ids: dict[tuple[int, ...], int] = {}
    return [first_of_ids.setdefault(tuple(ids_L.tolist()), n) for n, ids_L in enumerate(ids)]


def _first_is_best(score_P: Tensor, sizes: list[int]) -> np.ndarray:
    """Return for each group of scores 1 if its first is the best, 1/n if n tie for it, else 0."""
    hits = []
    for group in score_P.split(sizes):
        scores = group.tolist()
        hits.append(float(scores[0] == max(scores)) / scores.count(scores[0]))
    return np.array(hits)
