"""Negative pairs for matching: their choice, and their exchange between processes and micro-batches.

Letters: B batch, C pairs of all processes and micro-batches of a step, T text tokens, L most tokens of a text, K kinds of keys,
X contrasts, d width of features, N texts that an image is matched with.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl import objectives
from eve_vl.data.batch import Batch
from eve_vl.data.masking import PairBatch
from eve_vl.model.backbone import Backbone
from eve_vl.model.embeddings import index_tokens
from eve_vl.model.packing import Tokens
from eve_vl.train.collectives import gather_rows, rank

Pairs = tuple[Tokens, Tokens, Tensor]
"""Images, texts, and bool: whether they match."""


@dataclass(frozen=True, kw_only=True)
class HardNegatives:
    """Negative partners of the pairs of a micro-batch."""

    partners: Batch
    """An image for each text, and a text for each image; image and text of one row are no pair."""
    is_match_2B: Tensor
    """Bool: whether that image or that text matches after all, because there was no other."""


def shares_key(keys_BK: Tensor, keys_CK: Tensor) -> Tensor:
    """Return a bool matrix (B, C): the two rows share a key."""
    return (keys_BK[:, None] == keys_CK).any(2)


def global_row_index(x: Tensor) -> Tensor:
    """Return the positions of this process's rows among the rows of all processes, int64 (B,)."""
    return rank() * len(x) + torch.arange(len(x), device=x.device)


def hard(image: Tokens, text: Tokens, is_match_BB: Tensor, similarity_BB: Tensor) -> Pairs:
    """Return the true pairs, the texts with a hard wrong image, and the images with a hard wrong text."""
    own_B = torch.arange(len(is_match_BB), device=is_match_BB.device)
    wrong_image_B = objectives.hard_negatives(similarity_BB.T, is_match_BB)
    wrong_text_B = objectives.hard_negatives(similarity_BB, is_match_BB)
    images, texts = torch.cat([own_B, wrong_image_B, own_B]), torch.cat([own_B, own_B, wrong_text_B])
    # negatives do not match, unless a batch shows one image only
    return index_tokens(image, images), index_tokens(text, texts), is_match_BB[images, texts]


def random_half(image: Tokens, text: Tokens, is_match_BB: Tensor) -> Pairs:
    """Return the texts, half of them (rounded down) with their image, the others with a random wrong one (M3AE)."""
    B, device = len(is_match_BB), is_match_BB.device
    any_B = objectives.hard_negatives(torch.zeros(B, B, device=device), is_match_BB)
    changed, own_B = torch.randperm(B, device=device)[B // 2 :], torch.arange(B, device=device)
    images = own_B.index_copy(0, changed, any_B[changed])
    return index_tokens(image, images), text, is_match_BB[images, own_B]


def random_texts(image: Tokens, text: Tokens, is_match_BB: Tensor, num: int) -> Pairs:
    """Return each image with its own text and num - 1 different random ones (M3AE), texts that are true of it last.

    The order is all images with their own texts, then all images with their second text, and so on.
    """
    own_B = torch.arange(len(is_match_BB), device=is_match_BB.device)
    order_BB = torch.rand(is_match_BB.shape, device=own_B.device).masked_fill(is_match_BB, 2)
    text_NB = order_BB.fill_diagonal_(-1).argsort(1)[:, :num].T
    image_NB = own_B.expand_as(text_NB)
    is_true_NB = is_match_BB[image_NB, text_NB]
    return index_tokens(image, image_NB.flatten()), index_tokens(text, text_NB.flatten()), is_true_NB.flatten()


def gather_hard_negatives(
    batches: Sequence[PairBatch], image_Bd: Tensor, text_Bd: Tensor, keys_BK: Tensor, temperature: Tensor, L: int
) -> list[HardNegatives]:
    """Draw hard negative partners among the pairs of all micro-batches and processes, and fetch them.

    image_Bd, text_Bd, keys_BK: of the micro-batches, concatenated. L: longest text in tokens. Each pair brings three random
    numbers: the first orders all pairs, the others draw the partners. Partners are therefore the same on any number of
    processes and micro-batches, except for rounding.
    """
    draws = [batch.draw_B3 for batch in batches if batch.draw_B3 is not None]
    order_B, for_text_B, for_image_B = torch.cat(draws).unbind(1)
    order_C = gather_rows(order_B).argsort()
    place_B = order_C.argsort()[global_row_index(keys_BK)]
    is_match_BC = shares_key(keys_BK, gather_rows(keys_BK)[order_C])

    def drawn(own_Bd: Tensor, other_Bd: Tensor, draw_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return the drawn pairs of the other modality, and whether they match after all."""
        similarity_BC = objectives.similarities(own_Bd, gather_rows(other_Bd)[order_C], temperature)
        wrong_B = objectives.hard_negatives(similarity_BC, is_match_BC, draw_B, place_B)
        return order_C[wrong_B], is_match_BC.gather(1, wrong_B[:, None])[:, 0]

    image_B, is_true_image_B = drawn(text_Bd, image_Bd, for_text_B)
    text_B, is_true_text_B = drawn(image_Bd, text_Bd, for_image_B)
    images_BCHW = gather_rows(torch.cat([batch.images_BCHW for batch in batches]))[image_B]
    ids_BL = gather_rows(torch.cat([F.pad(batch.ids_BT, (0, L - batch.ids_BT.shape[1])) for batch in batches]))[text_B]
    length_B = gather_rows(torch.cat([(~batch.is_padding_BT).sum(1) for batch in batches]))[text_B]
    sizes = [len(batch.ids_BT) for batch in batches]
    all_rows = zip(*(x.split(sizes) for x in (images_BCHW, ids_BL, length_B, is_true_image_B, is_true_text_B)), strict=True)
    found = []
    for images, ids, lengths, *is_true in all_rows:
        T, num_real = torch.stack([lengths.max(), lengths.sum()]).tolist()  # waits for the device, but saves it the padding
        is_padding_BT = torch.arange(T, device=ids.device) >= lengths[:, None]
        where = ("",) * len(ids)
        partners = Batch(where=where, images_BCHW=images, ids_BT=ids[:, :T], is_padding_BT=is_padding_BT, num_real=num_real)
        found.append(HardNegatives(partners=partners, is_match_2B=torch.stack(is_true)))
    return found


def add_negatives(encoder: Backbone, batch: Batch, wrong: HardNegatives) -> Pairs:
    """Return the same as `hard`, given the negative partners."""
    B, both = len(batch.ids_BT), (batch, wrong.partners)
    T = max(each.ids_BT.shape[1] for each in both)
    ids, is_padding = (
        torch.cat([F.pad(getattr(each, name), (0, T - each.ids_BT.shape[1]), value=fill) for each in both])
        for name, fill in (("ids_BT", 0), ("is_padding_BT", True))
    )
    num_real = None if batch.num_real is None else batch.num_real + (wrong.partners.num_real or 0)
    image, text = encoder.image(torch.cat([each.pixels() for each in both])), encoder.text(ids, is_padding, num_real)
    own_B = torch.arange(B, device=ids.device)
    images, texts = torch.cat([own_B, own_B + B, own_B]), torch.cat([own_B, own_B, own_B + B])
    is_match = torch.cat([torch.ones_like(wrong.is_match_2B[0]), *wrong.is_match_2B])
    return index_tokens(image, images), index_tokens(text, texts), is_match
