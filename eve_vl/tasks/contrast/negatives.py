"""Negative partners of matching, and further negatives of contrast.

Those of matching are hard or random, of a batch or of all processes. Those of contrast are features of past steps: XBM (Wang et
al. 2020) with negatives only, and with the normalisation of XBN.

Letters: B batch, C candidates over all processes, R rows of a slice, K kinds of keys, N texts to match an image with, L longest
text in tokens, T text tokens, H height, W width, d width of features, M remembered rows, A both together, X contrasts.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl import objectives
from eve_vl.data.batches import Batch
from eve_vl.data.masked_batches import PairBatch
from eve_vl.model.backbone import Backbone
from eve_vl.model.tokens import Tokens, index_tokens
from eve_vl.objectives import LazyRows
from eve_vl.train.processes import fetch_rows, gather_rows, rank
from eve_vl.utils.frozen import Frozen

START = 0.2  # share of the steps after which features change slowly enough to be remembered


def shares_key(keys_BK: Tensor, keys_CK: Tensor) -> Tensor:
    """Return a bool matrix (B, C): the two rows share a key."""
    return (keys_BK[:, None] == keys_CK).any(2)


class HardNegatives(Frozen):
    """Negative partners of the pairs of a micro-batch."""

    partners: Batch
    """An image for each text, and a text for each image; image and text of one row are no pair."""
    is_match_2B: Tensor
    """Bool: whether that image or that text matches after all, because there was no other."""


def global_row_index(x: Tensor) -> Tensor:
    """Return this process's positions among the rows of all processes, int64 (B,)."""
    return rank() * len(x) + torch.arange(len(x), device=x.device)


def by_slices(keys_BK: Tensor, keys_CK: Tensor, draw: Callable[[slice, Tensor], Tensor]) -> Tensor:
    """Return what `draw` returns for slices of rows, concatenated.

    It is given the slice and whether these rows match each candidate, bool.
    """
    parts = objectives.slices(len(keys_BK), len(keys_CK))
    return torch.cat([draw(rows, shares_key(keys_BK[rows], keys_CK)) for rows in parts])


@torch.no_grad()
def hard(
    keys_BK: Tensor, image_Bd: Tensor, text_Bd: Tensor, temperature: Tensor
) -> tuple[Tensor, Tensor]:
    """Return rows of true pairs, then of texts and images with a hard negative.

    As all of this kind, it returns the image row and the text row of each pair, int64.
    """
    own_B = torch.arange(len(keys_BK), device=keys_BK.device)

    def image_of(rows: slice, is_match_RB: Tensor) -> Tensor:
        similarity_BR = objectives.similarities(image_Bd, text_Bd[rows], temperature)
        return objectives.hard_negatives(similarity_BR.T, is_match_RB, None, own_B[rows])

    def text_of(rows: slice, is_match_RB: Tensor) -> Tensor:
        similarity_RB = objectives.similarities(image_Bd[rows], text_Bd, temperature)
        return objectives.hard_negatives(similarity_RB, is_match_RB, None, own_B[rows])

    negative_image_B, negative_text_B = (
        by_slices(keys_BK, keys_BK, image_of),
        by_slices(keys_BK, keys_BK, text_of),
    )
    return torch.cat([own_B, negative_image_B, own_B]), torch.cat([own_B, own_B, negative_text_B])


def random_half(keys_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows of all texts, half of them (rounded down) with their image (M3AE).

    The others have a random negative image.
    """
    B, device = len(keys_BK), keys_BK.device
    own_B = torch.arange(B, device=device)

    def any_of(rows: slice, is_match_RB: Tensor) -> Tensor:
        return objectives.hard_negatives(
            torch.zeros(is_match_RB.shape, device=device), is_match_RB, None, own_B[rows]
        )

    any_B = by_slices(keys_BK, keys_BK, any_of)
    changed = torch.randperm(B, device=device)[B // 2 :]
    return own_B.index_copy(0, changed, any_B[changed]), own_B


def random_texts(keys_BK: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Return rows of each image with its own text and num - 1 random ones (M3AE).

    Texts that are true of it come last. The order is all images with their own texts, then all images with their second text,
    and so on.
    """
    own_B = torch.arange(len(keys_BK), device=keys_BK.device)

    def texts_of(rows: slice, is_match_RB: Tensor) -> Tensor:
        order_RB = torch.rand(is_match_RB.shape, device=is_match_RB.device).masked_fill(
            is_match_RB, 2
        )
        return order_RB.scatter(1, own_B[rows, None], -1).argsort(1)[:, :num]

    text_NB = by_slices(keys_BK, keys_BK, texts_of).T
    return own_B.expand_as(text_NB).flatten(), text_NB.flatten()


def gather_hard_negatives(
    batches: Sequence[PairBatch],
    image_Bd: Tensor,
    text_Bd: Tensor,
    keys_BK: Tensor,
    temperature: Tensor,
    L: int,
) -> list[HardNegatives]:
    """Draw hard negative partners among all pairs of a step, and fetch them.

    The pairs are those of all micro-batches and processes. image_Bd, text_Bd, keys_BK: of the micro-batches, concatenated. L:
    longest text in tokens. Each pair brings three random numbers: the first orders all pairs, the others draw the partners.
    Partners are therefore the same on any number of processes and micro-batches, except for rounding.
    """
    draws = [batch.draw_B3 for batch in batches if batch.draw_B3 is not None]
    order_B, for_text_B, for_image_B = torch.cat(draws).unbind(1)
    order_C = gather_rows(order_B).argsort()
    place_B = order_C.argsort()[global_row_index(keys_BK)]
    keys_CK = gather_rows(keys_BK)[order_C]

    def partners_of(own_Bd: Tensor, other_Bd: Tensor, draw_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return the drawn rows of the other modality, and whether they match after all."""
        other_Cd = gather_rows(other_Bd)[order_C]

        def of(rows: slice, is_match_RC: Tensor) -> Tensor:
            similarity_RC = objectives.similarities(own_Bd[rows], other_Cd, temperature)
            return objectives.hard_negatives(
                similarity_RC, is_match_RC, draw_B[rows], place_B[rows]
            )

        partner_B = by_slices(keys_BK, keys_CK, of)
        return order_C[partner_B], (keys_BK == keys_CK[partner_B]).any(1)

    image_B, is_true_image_B = partners_of(text_Bd, image_Bd, for_text_B)
    text_B, is_true_text_B = partners_of(image_Bd, text_Bd, for_image_B)
    images_BCHW = fetch_rows(torch.cat([batch.images_BCHW for batch in batches]), image_B)
    ids_BL = fetch_rows(
        torch.cat([F.pad(batch.ids_BT, (0, L - batch.ids_BT.shape[1])) for batch in batches]),
        text_B,
    )
    length_B = fetch_rows(torch.cat([(~batch.is_padding_BT).sum(1) for batch in batches]), text_B)
    sizes = [len(batch.ids_BT) for batch in batches]
    all_rows = zip(
        *(x.split(sizes) for x in (images_BCHW, ids_BL, length_B, is_true_image_B, is_true_text_B)),
        strict=True,
    )
    found = []
    for images, ids, lengths, *is_true in all_rows:
        T, num_real = torch.stack(
            [lengths.max(), lengths.sum()]
        ).tolist()  # waits for the device, but saves it the padding
        is_padding_BT = torch.arange(T, device=ids.device) >= lengths[:, None]
        where = ("",) * len(ids)
        partners = Batch(
            where=where,
            images_BCHW=images,
            ids_BT=ids[:, :T],
            is_padding_BT=is_padding_BT,
            num_real=num_real,
        )
        found.append(HardNegatives(partners=partners, is_match_2B=torch.stack(is_true)))
    return found


def add_negatives(
    encoder: Backbone, batch: Batch, negatives: HardNegatives
) -> tuple[Tokens, Tokens, Tensor]:
    """Return the true pairs, then those with negative partners.

    They are images, texts, and bool: whether they match.
    """
    B, both = len(batch.ids_BT), (batch, negatives.partners)
    T = max(each.ids_BT.shape[1] for each in both)
    ids, is_padding = (
        torch.cat(
            [F.pad(getattr(each, name), (0, T - each.ids_BT.shape[1]), value=fill) for each in both]
        )
        for name, fill in (("ids_BT", 0), ("is_padding_BT", True))
    )
    num_real = (
        None if batch.num_real is None else batch.num_real + (negatives.partners.num_real or 0)
    )
    image, text = (
        encoder.image(torch.cat([each.pixels() for each in both])),
        encoder.text(ids, is_padding, num_real),
    )
    own_B = torch.arange(B, device=ids.device)
    images, texts = torch.cat([own_B, own_B + B, own_B]), torch.cat([own_B, own_B, own_B + B])
    is_match = torch.cat([torch.ones_like(negatives.is_match_2B[0]), *negatives.is_match_2B])
    return index_tokens(image, images), index_tokens(text, texts), is_match


class CrossBatchMemory:
    """Features of the pairs of the last optimiser steps, of all processes.

    They are kept standardised and take on mean and deviation of the present step, with gradients (XBN, Ajanthan et al. 2023).
    Without this, all present features move away from the remembered ones together: the loss falls, and nothing is learnt
    (LOG.md). The mean of their squared length stays 1. A row's remembered matches do not count: as positives, old features
    would take most of the target from the row's partner.
    """

    def __init__(self, num_batches: int):
        self.num_batches = num_batches
        self.rows: dict[str, Tensor] = {}  # what a checkpoint keeps
        self.present: dict[
            str, Tensor
        ] = {}  # rows of the present step, until it has updated the weights

    def extend(
        self, image_CXd: Tensor, text_CXd: Tensor, target_BC: LazyRows, keys_BK: Tensor
    ) -> tuple[Tensor, Tensor, LazyRows, LazyRows | None]:
        """Return images, texts and targets with remembered rows, and which do not count.

        The last is bool (B, A); None: all count.
        """
        if not self.num_batches:
            return image_CXd, text_CXd, target_BC, None
        self.present, both = {"keys": gather_rows(keys_BK)}, []
        for name, x_CXd in (("images", image_CXd), ("texts", text_CXd)):
            variance_Xd, mean_Xd = torch.var_mean(x_CXd, 0, correction=0)
            std_Xd = (variance_Xd + 1e-12).sqrt()
            self.present[name] = ((x_CXd - mean_Xd) / std_Xd).detach()
            old_MXd = self.rows.get(name, self.present[name][:0])
            both.append(torch.cat([x_CXd, torch.addcmul(mean_Xd, old_MXd, std_Xd)]))
        old_MK = self.rows.get("keys", keys_BK[:0])
        is_ignored_BA = LazyRows(
            lambda rows: F.pad(shares_key(keys_BK[rows], old_MK), (len(image_CXd), 0))
        )
        return (
            both[0],
            both[1],
            LazyRows(lambda rows: F.pad(target_BC[rows], (0, len(old_MK)))),
            is_ignored_BA,
        )

    def add_step(self, progress: float) -> None:
        """Remember the present step and forget the oldest.

        progress: share of the steps done.
        """
        if progress >= START or self.rows:  # more steps, given on resuming, change the share
            for name, x_C in self.present.items():
                self.rows[name] = torch.cat([self.rows.get(name, x_C[:0]), x_C])[
                    -self.num_batches * len(x_C) :
                ]
