"""The images and captions of a search, as features.

Letters: I images, T captions, N distinct texts, d width of features, L text tokens.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from eve_vl.metrics.matches import Relevance


@dataclass(kw_only=True, slots=True)
class Gallery:
    """The images and captions of all processes, in order of index.

    A search compares the products of image_Id and text_Nd. These are features or, without contrast,
    each image's match logits with all texts (d = N) and unit vectors, whose products are the
    logits.
    """

    image_Id: Tensor
    text_Nd: Tensor
    text_T: Tensor
    """int64: the distinct text of each caption; equal captions share features and scores."""
    ids: list[Tensor]
    """Token ids of each distinct text, int64 (L,), on the CPU; with model.padded_text_length its
    padding too."""
    lengths: list[int]
    """Length of each distinct text in tokens, without padding."""
    owner_I: Tensor
    """The process that holds the pixels of each image."""
    pixels: dict[int, Tensor]
    """uint8 images of this process, by index, on the CPU."""
    relevance: Relevance
    names: list[str] = field(default_factory=list)
    """Name of each image's row."""
    labels: list[tuple[str, ...]] = field(default_factory=list)
    """Classes of each image."""
    hard: list[tuple[int, ...]] = field(default_factory=list)
    """For each image with false captions: its own text and the false ones."""
    tags: dict[int, list[int]] = field(default_factory=dict)
    """The images of each text that is a tag."""
    caption_numbers: list[int] = field(default_factory=list)
    """Number of each caption in the set; captions without a usable image are left out."""
    num_left_out: int = 0
    """The number of captions left out."""

    @property
    def caption_Td(self) -> Tensor:
        """Features of each caption."""
        return self.text_Nd[self.text_T.to(self.text_Nd.device)]

    def part(self, images: Tensor, captions: Tensor, relevance: Relevance) -> "Gallery":
        """Return some images and captions, renumbered from 0."""
        pixels = {}
        for new, old in enumerate(images.tolist()):
            if old in self.pixels:
                pixels[new] = self.pixels[old]
        return replace(
            self,
            image_Id=self.image_Id[images.to(self.image_Id.device)],
            text_T=self.text_T[captions],
            owner_I=self.owner_I[images],
            pixels=pixels,
            relevance=relevance,
        )

    def images_BCHW(self, images: Tensor, device: torch.device) -> Tensor:
        """Return images of this process as uint8 (B, 3, H, W) on a device."""
        return torch.stack([self.pixels[image] for image in images.tolist()]).to(device)

    def padded_texts(self, texts: Tensor, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Return the ids of distinct texts (B, L), and which are padding; None if none are."""
        ids_BL = pad_sequence([self.ids[text] for text in texts.tolist()], batch_first=True)
        length_B1 = torch.tensor(self.lengths)[texts, None]
        is_padding_BL = torch.arange(ids_BL.shape[1]) >= length_B1
        if not is_padding_BL.any():
            return ids_BL.to(device), None
        return ids_BL.to(device), is_padding_BL.to(device)
