"""Pairs of a gallery scored by the matching head, over processes.

Letters: I images, T captions, N distinct texts, P pairs, B pairs of a pass, K best candidates of a
query.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from eve_vl.data.batches import normalize
from eve_vl.tasks.contrast import pair_scores
from eve_vl.tasks.contrast.task import AnyContrastTask
from eve_vl.tasks.retrieval.gallery import Gallery
from eve_vl.train.processes import gather_objects, rank
from eve_vl.utils.console import print_line, progress

ONE_SIDE_AT_ONCE = 16  # images, and texts, matched with each other in one pass
MANY_PAIRS = 100_000  # takes minutes on a small machine


def score_every_pair(task: AnyContrastTask, gallery: Gallery) -> Tensor:
    """Return the match logits of all images and searched texts.

    float32 (I, N) on the CPU, 0 for other texts. Each process computes those of its own images. An
    image passes its tower once.
    """
    own_I = (gallery.owner_I == rank()).nonzero()[:, 0]
    searched_N = gallery.text_T.unique()
    num_images = len(gallery.owner_I)
    num_texts = len(searched_N)
    device = next(task.parameters()).device
    if num_images * num_texts >= MANY_PAIRS:
        print_line(
            f"{num_images * num_texts:,} fusion passes: {num_images:,} images with each of "
            f"{num_texts:,} texts (fewer: --samples, or data.val_samples in training)"
        )

    score_IN = torch.zeros(len(own_I), len(gallery.ids))
    by_length_N = searched_N[torch.tensor(gallery.lengths)[searched_N].argsort(stable=True)]
    chunks = own_I.split(ONE_SIDE_AT_ONCE) if len(own_I) else ()
    title = f"{ONE_SIDE_AT_ONCE} images with {num_texts:,} texts"
    for number, images in enumerate(progress(chunks, title, len(chunks))):
        image = task.encoder.image(normalize(gallery.images_BCHW(images, device)))
        rows = torch.arange(len(images))[:, None] + number * ONE_SIDE_AT_ONCE
        for texts in by_length_N.split(ONE_SIDE_AT_ONCE):
            logits_IN2 = task.match_each(image, *gallery.padded_texts(texts, device))
            score_IN[rows, texts] = logits_IN2[:, :, 1].float().cpu()

    parts = gather_objects((own_I, score_IN))
    images_I = torch.cat([images for images, _ in parts])
    scores_IN = torch.cat([scores for _, scores in parts])
    return scores_IN[images_I.argsort()]


def rerank_scores(
    task: AnyContrastTask, gallery: Gallery, captions_IK: Tensor, images_TK: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the scores of the candidates in both directions.

    They are of each image's captions (I, K) and of each caption's images (T, K).
    """
    image_I1 = torch.arange(len(captions_IK))[:, None]
    pairs_IK = pair_numbers(gallery, image_I1, gallery.text_T[captions_IK])
    pairs_TK = pair_numbers(gallery, images_TK, gallery.text_T[:, None])
    score_IK, score_TK = score_pair_numbers(task, gallery, pairs_IK, pairs_TK)
    return score_IK, score_TK


def pair_numbers(gallery: Gallery, images: Tensor, texts: Tensor) -> Tensor:
    """Return one number for each pair: its image times the number of texts, plus its text."""
    return images * len(gallery.ids) + texts


def score_pair_numbers(task: AnyContrastTask, gallery: Gallery, *pairs: Tensor) -> list[Tensor]:
    """Return the scores of pairs (`pair_numbers`) in the same shapes.

    A pair is scored once, however often it occurs. Each process scores the pairs of its own images.
    """
    num_texts = len(gallery.ids)
    pair_P = torch.cat([numbers.flatten() for numbers in pairs]).unique()
    own_P = pair_P[gallery.owner_I[pair_P // num_texts] == rank()]
    own_scores_P = match_scores(task, gallery, own_P // num_texts, own_P % num_texts)
    parts = gather_objects((own_P, own_scores_P))
    sorted_P, order_P = torch.cat([numbers for numbers, _ in parts]).sort()
    score_P = torch.cat([scores for _, scores in parts])[order_P]
    return [score_P[torch.searchsorted(sorted_P, numbers)] for numbers in pairs]


def match_scores(
    task: AnyContrastTask, gallery: Gallery, image_P: Tensor, text_P: Tensor
) -> Tensor:
    """Return the scores that pairs are ordered by (task.rerank_by).

    float32 (P,) on the CPU. Pairs with texts of similar length are scored together.
    """
    device = gallery.image_Id.device

    def score(chunk: Sequence[int]) -> Tensor:
        image_B = image_P[torch.tensor(chunk)]
        text_B = text_P[torch.tensor(chunk)]
        products_Bd = gallery.image_Id[image_B.to(device)] * gallery.text_Nd[text_B.to(device)]
        # what is in several pairs is embedded once: with towers that is most of the work
        images, image_row_B = image_B.unique(return_inverse=True)
        texts, text_row_B = text_B.unique(return_inverse=True)
        return task.pair_scores(
            gallery.images_BCHW(images, device),
            *gallery.padded_texts(texts, device),
            products_Bd.sum(1),
            pairs=(image_row_B.to(device), text_row_B.to(device)),
        )

    by_length_P = torch.tensor(gallery.lengths)[text_P].argsort(stable=True)
    score_P = torch.empty(len(image_P))
    score_P[by_length_P] = pair_scores.in_chunks(
        score, by_length_P.tolist(), pair_scores.PAIRS_AT_ONCE
    )
    return score_P
