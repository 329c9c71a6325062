"""Features of the images and texts of a search, gathered over processes.

Letters: B batch, I images, N distinct texts, d width of features, T text tokens.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from eve_vl.data.caption_tags import TAG_ROWS
from eve_vl.metrics.matches import Relevance
from eve_vl.tasks.contrast.task import AnyContrastTask
from eve_vl.tasks.retrieval.gallery import Gallery
from eve_vl.tasks.retrieval.reranking import score_every_pair
from eve_vl.tasks.retrieval.search_set import SearchBatch, SearchImages, SearchTexts
from eve_vl.train.processes import gather_objects, rank
from eve_vl.utils.errors import SharedError

Item = TypeVar("Item")


@dataclass
class EncodedImage:
    """What every process needs to know of an image."""

    features_d: Tensor
    name: str
    labels: tuple[str, ...]
    captions: tuple[int, ...]
    """Its true captions."""
    hard: tuple[int, ...]
    """The text of its own caption and hard false ones."""
    owner: int
    """The process that holds its pixels."""


@dataclass
class EncodedText:
    """What every process needs to know of a distinct text."""

    features_d: Tensor
    ids_T: Tensor
    length: int
    """Tokens without padding."""
    captions: tuple[int, ...]
    """The captions with these words."""
    tagged: tuple[int, ...]
    """The images of a tag."""


def gather_gallery(task: AnyContrastTask, loader: Iterable[SearchBatch]) -> Gallery:
    """Compute the features of each image and text once, and gather them over processes.

    Without contrast, compute all match logits instead. Pixels stay on the CPU of the process that
    read them. Captions without a usable image are left out. Raises UserError if nothing remains.
    """
    images: dict[int, EncodedImage] = {}
    texts: dict[int, EncodedText] = {}
    pixels: dict[int, Tensor] = {}
    for batch in loader:
        indices = batch.index_B.tolist()
        if isinstance(batch, SearchImages):
            images.update(zip(indices, encode_images(task, batch), strict=True))
            pixels.update(zip(indices, batch.images_BCHW.cpu(), strict=True))
        elif isinstance(batch, SearchTexts):
            texts.update(zip(indices, encode_texts(task, batch), strict=True))

    gallery = build_gallery(merge_processes(images), merge_processes(texts), pixels)
    device = next(task.parameters()).device
    gallery.image_Id = gallery.image_Id.to(device)
    gallery.text_Nd = gallery.text_Nd.to(device)
    if task.is_comparable:
        return gallery
    logits_IN = score_every_pair(task, gallery).to(device)
    unit_NN = torch.eye(len(gallery.ids), device=device)
    return replace(gallery, image_Id=logits_IN, text_Nd=unit_NN)


def encode_images(task: AnyContrastTask, batch: SearchImages) -> list[EncodedImage]:
    """Return the images of a batch with their features."""
    features_Bd = torch.empty(len(batch.index_B), 0)
    if task.is_comparable:
        features_Bd = task.image_features(batch.images_BCHW).cpu()
    images = []
    for row, features_d in enumerate(features_Bd):
        image = EncodedImage(
            features_d=features_d.clone(),  # a view would keep its batch in memory
            name=batch.names[row],
            labels=batch.labels[row],
            captions=batch.captions[row],
            hard=batch.hard[row],
            owner=rank(),
        )
        images.append(image)
    return images


def encode_texts(task: AnyContrastTask, batch: SearchTexts) -> list[EncodedText]:
    """Return the texts of a batch with their features."""
    features_Bd = torch.empty(len(batch.index_B), 0)
    if task.is_comparable:
        features_Bd = task.text_features(batch.ids_BT, batch.is_padding_BT).cpu()
    lengths = (~batch.is_padding_BT).sum(1).tolist()
    padded_length = task.config.input.padded_text_length
    texts = []
    for row, ids_T in enumerate(batch.ids_BT.cpu()):
        text = EncodedText(
            features_d=features_Bd[row].clone(),
            ids_T=ids_T[: padded_length or lengths[row]].clone(),
            length=lengths[row],
            captions=batch.captions[row],
            tagged=batch.tagged[row],
        )
        texts.append(text)
    return texts


def merge_processes(items: dict[int, Item]) -> dict[int, Item]:
    """Return the items of all processes by index, in ascending order."""
    merged: dict[int, Item] = {}
    for part in gather_objects(items):
        merged.update(part)
    return dict(sorted(merged.items()))


def build_gallery(
    images: dict[int, EncodedImage], texts: dict[int, EncodedText], pixels: dict[int, Tensor]
) -> Gallery:
    """Return the gallery of usable images and of the captions that are true of one of them."""
    new_image = {index: new for new, index in enumerate(images)}  # unusable images are missing
    text_of_caption = {}
    tags = {}
    for number, text in enumerate(texts.values()):
        for caption in text.captions:
            text_of_caption[caption] = number
        tagged_images = [new_image[index] for index in text.tagged if index in new_image]
        if len(tagged_images) >= TAG_ROWS:
            tags[number] = tagged_images

    match_images = []
    match_captions = []
    for number, image in enumerate(images.values()):
        for caption in image.captions:
            match_images.append(number)
            match_captions.append(caption)
    if not match_captions:
        how = "repair such rows or name other data (eve data check lists the broken rows)"
        raise SharedError(f"none of the images to search among can be used; {how}")
    captions, caption_P = torch.tensor(match_captions).unique(return_inverse=True)
    caption_numbers = captions.tolist()
    num_captions = len(caption_numbers)

    return Gallery(
        image_Id=torch.stack([image.features_d for image in images.values()]),
        text_Nd=torch.stack([text.features_d for text in texts.values()]),
        text_T=torch.tensor([text_of_caption[caption] for caption in caption_numbers]),
        ids=[text.ids_T for text in texts.values()],
        lengths=[text.length for text in texts.values()],
        owner_I=torch.tensor([image.owner for image in images.values()]),
        pixels={new_image[index]: pixels[index] for index in images if index in pixels},
        relevance=Relevance.from_pairs(match_images, caption_P, len(images), num_captions),
        names=[image.name for image in images.values()],
        labels=[image.labels for image in images.values()],
        hard=[image.hard for image in images.values()],
        tags=tags,
        caption_numbers=caption_numbers,
        num_left_out=len(text_of_caption) - num_captions,
    )
