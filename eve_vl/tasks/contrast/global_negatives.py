"""Hard negative partners of matching among the pairs of all processes and micro-batches of a step.

Letters: B pairs of a process, C pairs of all processes, K kinds of keys, L longest text in tokens,
T text tokens, H height, W width, d width of features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl import objectives
from eve_vl.data.batches import Batch
from eve_vl.data.masked_batches import PairBatch
from eve_vl.model.backbone import Backbone
from eve_vl.model.tokens import Tokens, index_tokens
from eve_vl.tasks.contrast.keys import global_row_index
from eve_vl.tasks.contrast.negatives import by_slices
from eve_vl.train.processes import fetch_rows, gather_rows
from eve_vl.utils.frozen import Frozen


class HardNegatives(Frozen):
    """Negative partners of the pairs of a micro-batch."""

    partners: Batch
    """An image for each text, and a text for each image; image and text of one row are no pair."""
    is_match_2B: Tensor
    """Bool: whether that image or that text matches after all, because there was no other."""


def gather_hard_negatives(
    batches: Sequence[PairBatch],
    image_Bd: Tensor,
    text_Bd: Tensor,
    keys_BK: Tensor,
    temperature: Tensor,
    L: int,
) -> list[HardNegatives]:
    """Draw hard negative partners among all pairs of a step, and fetch them.

    The pairs are those of all micro-batches and processes. image_Bd, text_Bd, keys_BK: of the
    micro-batches, concatenated. L: longest text in tokens. Each pair brings three random numbers:
    the first orders all pairs, the others draw the partners. Partners are therefore the same on any
    number of processes and micro-batches, except for rounding.
    """
    draws = [batch.draw_B3 for batch in batches if batch.draw_B3 is not None]
    order_B, draw_for_text_B, draw_for_image_B = torch.cat(draws).unbind(1)
    order_C = gather_rows(order_B).argsort()
    place_B = order_C.argsort()[global_row_index(keys_BK)]
    keys_CK = gather_rows(keys_BK)[order_C]

    def draw_partners(
        query_Bd: Tensor, partner_Bd: Tensor, draw_B: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the drawn rows of the other modality, and whether they match after all."""
        partner_Cd = gather_rows(partner_Bd)[order_C]

        def draw(rows: slice, is_match_RC: Tensor) -> Tensor:
            similarity_RC = objectives.similarities(query_Bd[rows], partner_Cd, temperature)
            return objectives.hard_negatives(
                similarity_RC, is_match_RC, draw_B[rows], place_B[rows]
            )

        partner_B = by_slices(keys_BK, keys_CK, draw)
        return order_C[partner_B], (keys_BK == keys_CK[partner_B]).any(1)

    image_B, is_true_image_B = draw_partners(text_Bd, image_Bd, draw_for_text_B)
    text_B, is_true_text_B = draw_partners(image_Bd, text_Bd, draw_for_image_B)
    images_BCHW = fetch_rows(torch.cat([batch.images_BCHW for batch in batches]), image_B)
    ids = [F.pad(batch.ids_BT, (0, L - batch.ids_BT.shape[1])) for batch in batches]
    ids_BL = fetch_rows(torch.cat(ids), text_B)
    lengths = [(~batch.is_padding_BT).sum(1) for batch in batches]
    length_B = fetch_rows(torch.cat(lengths), text_B)

    sizes = [len(batch.ids_BT) for batch in batches]
    columns = (images_BCHW, ids_BL, length_B, is_true_image_B, is_true_text_B)
    negatives = []
    for part in zip(*(column.split(sizes) for column in columns), strict=True):
        partners = _batch_of(*part[:3])
        is_match_2B = torch.stack(part[3:])
        negatives.append(HardNegatives(partners=partners, is_match_2B=is_match_2B))
    return negatives


def _batch_of(images_BCHW: Tensor, ids_BL: Tensor, length_B: Tensor) -> Batch:
    """Return a batch whose texts are cut to the longest one."""
    # waits for the device, but saves it the padding
    T, num_real = torch.stack([length_B.max(), length_B.sum()]).tolist()
    is_padding_BT = torch.arange(T, device=ids_BL.device) >= length_B[:, None]
    return Batch(
        where=("",) * len(ids_BL),
        images_BCHW=images_BCHW,
        ids_BT=ids_BL[:, :T],
        is_padding_BT=is_padding_BT,
        num_real=num_real,
    )


def add_negatives(
    encoder: Backbone, batch: Batch, negatives: HardNegatives
) -> tuple[Tokens, Tokens, Tensor]:
    """Return the true pairs, then those with negative partners.

    They are images, texts, and bool: whether they match.
    """
    partners = negatives.partners
    T = max(batch.ids_BT.shape[1], partners.ids_BT.shape[1])

    def padded(x_BT: Tensor, value: int) -> Tensor:
        return F.pad(x_BT, (0, T - x_BT.shape[1]), value=value)

    ids = torch.cat([padded(batch.ids_BT, 0), padded(partners.ids_BT, 0)])
    is_padding = torch.cat(
        [padded(batch.is_padding_BT, True), padded(partners.is_padding_BT, True)]
    )
    num_real = None
    if batch.num_real is not None:
        num_real = batch.num_real + (partners.num_real or 0)
    image = encoder.image(torch.cat([batch.pixels(), partners.pixels()]))
    text = encoder.text(ids, is_padding, num_real)

    B = len(batch.ids_BT)
    row_B = torch.arange(B, device=ids.device)
    image_rows = torch.cat([row_B, row_B + B, row_B])
    text_rows = torch.cat([row_B, row_B, row_B + B])
    is_true_B = torch.ones_like(negatives.is_match_2B[0])
    is_match = torch.cat([is_true_B, *negatives.is_match_2B])
    return index_tokens(image, image_rows), index_tokens(text, text_rows), is_match
