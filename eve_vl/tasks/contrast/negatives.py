"""Negative partners of matching within a batch, hard or random.

Letters: B pairs of a batch, R rows of a slice, C candidates, K kinds of keys, N texts to match an
image with, d width of features.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from eve_vl import objectives
from eve_vl.tasks.contrast.keys import shares_key


def by_slices(keys_BK: Tensor, keys_CK: Tensor, draw: Callable[[slice, Tensor], Tensor]) -> Tensor:
    """Return what `draw` returns for slices of rows, concatenated.

    It is given the slice and whether these rows match each candidate, bool (R, C).
    """
    parts = objectives.slices(len(keys_BK), len(keys_CK))
    return torch.cat([draw(rows, shares_key(keys_BK[rows], keys_CK)) for rows in parts])


@torch.no_grad()
def hard(
    keys_BK: Tensor, image_Bd: Tensor, text_Bd: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """Return image rows and text rows of the true pairs, then of pairs with hard negatives (ALBEF).

    int64 (3·B,): the true pairs, each text with a negative image, each image with a negative text.
    """
    row_B = torch.arange(len(keys_BK), device=keys_BK.device)

    def draw_images(rows: slice, is_match_RB: Tensor) -> Tensor:
        similarity_BR = objectives.similarities(image_Bd, text_Bd[rows], temperature)
        return objectives.hard_negatives(similarity_BR.T, is_match_RB, None, row_B[rows])

    def draw_texts(rows: slice, is_match_RB: Tensor) -> Tensor:
        similarity_RB = objectives.similarities(image_Bd[rows], text_Bd, temperature)
        return objectives.hard_negatives(similarity_RB, is_match_RB, None, row_B[rows])

    negative_image_B = by_slices(keys_BK, keys_BK, draw_images)
    negative_text_B = by_slices(keys_BK, keys_BK, draw_texts)
    image_rows = torch.cat([row_B, negative_image_B, row_B])
    text_rows = torch.cat([row_B, row_B, negative_text_B])
    return image_rows, text_rows


def random_half(keys_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Return image rows and text rows of all texts, half of them (rounded down) with their image.

    The others have a random negative image (M3AE).
    """
    B = len(keys_BK)
    row_B = torch.arange(B, device=keys_BK.device)

    def draw_images(rows: slice, is_match_RB: Tensor) -> Tensor:
        even_RB = torch.zeros(is_match_RB.shape, device=keys_BK.device)
        return objectives.hard_negatives(even_RB, is_match_RB, None, row_B[rows])

    negative_image_B = by_slices(keys_BK, keys_BK, draw_images)
    changed = torch.randperm(B, device=keys_BK.device)[B // 2 :]
    return row_B.index_copy(0, changed, negative_image_B[changed]), row_B


def random_texts(keys_BK: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Return image rows and text rows of each image with its own text and num - 1 random ones
    (M3AE).

    Texts that are true of it come last. The order is all images with their own texts, then all
    images with their second text, and so on.
    """
    row_B = torch.arange(len(keys_BK), device=keys_BK.device)

    def draw_texts(rows: slice, is_match_RB: Tensor) -> Tensor:
        order_RB = torch.rand(is_match_RB.shape, device=is_match_RB.device)
        order_RB = order_RB.masked_fill(is_match_RB, 2)
        order_RB = order_RB.scatter(1, row_B[rows, None], -1)
        return order_RB.argsort(1)[:, :num]

    text_NB = by_slices(keys_BK, keys_BK, draw_texts).T
    return row_B.expand_as(text_NB).flatten(), text_NB.flatten()
