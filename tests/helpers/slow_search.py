"""Image–text retrieval in loops: each image and each text is alone in its batch."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from eve_vl.data.kinds.captions import CaptionBatch, CaptionedImages
from eve_vl.data.masked_batches import PairBatch
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.retrieval.search_set import SearchSet
from helpers.slow_ranking import RECALLS, slow_hit
from helpers.tiny_tasks import TOKENIZER, searchable


@dataclass
class LonePair:
    """An image in [-1, 1], (1, 3, H, W), and token ids without padding, (1, T)."""

    pixels: Tensor
    ids: Tensor


def caption_batch(task: Any, rows: Sequence[int] = (0, 1, 3, 6, 7, 2)) -> CaptionBatch:
    """Return a training batch; its rows 0 and 3 show one image."""
    config = replace(task.config, task=RetrievalConfig())
    dataset = CaptionedImages([searchable()], config, TOKENIZER, training=True)
    batch = dataset.collate([dataset[(0, 0, row)] for row in rows])
    assert isinstance(batch, CaptionBatch)
    return batch


def lone_pairs(batch: CaptionBatch | PairBatch) -> list[LonePair]:
    pairs = []
    for row, image in enumerate(batch.images_BCHW):
        ids = batch.ids_BT[row][~batch.is_padding_BT[row]]
        pairs.append(LonePair(normalized(image), ids[None]))
    return pairs


def normalized(image_CHW: Tensor) -> Tensor:
    return image_CHW[None].float() / 127.5 - 1


def candidate_pixels(dataset: SearchSet) -> list[Tensor]:
    """Return the images to search among, in [-1, 1]."""
    return [normalized(dataset[(0, 0, index)].image) for index in range(len(dataset.images))]


def ids_of_text(dataset: SearchSet, text: str) -> Tensor:
    return torch.from_numpy(dataset.tokens(text))[None]


def image_feature(task: Any, pixels: Tensor) -> Tensor:
    states = task.encoder.encode(task.encoder.image(pixels), None).x_BND[0]
    return _feature(task, states, task.contrast.features.image)


def text_feature(task: Any, ids: Tensor) -> Tensor:
    states = task.encoder.encode(None, task.encoder.text(ids, None)).x_BND[0]
    return _feature(task, states, task.contrast.features.text)


def _feature(task: Any, states_ND: Tensor, projection: Any) -> Tensor:
    state_D = states_ND[0]
    if getattr(task.settings, "pooling", "cls") == "mean":
        state_D = states_ND.mean(0)
    projected_d = projection.weight @ state_D
    return projected_d / projected_d.square().sum().sqrt()


def match_logits(task: Any, pixels: Tensor, ids: Tensor) -> list[float]:
    """Return the logits of one pair, no and yes; of a head that ranks, only its score."""
    image = task.encoder.image(pixels)
    states = task.encoder.encode(image, task.encoder.text(ids, None)).x_BND
    return task.contrast.match_head(states[0, image.num_image]).tolist()


class SlowSearch:
    """A search by one query after the other; `num_reranked` candidates are matched.

    A task without features has no order before.
    """

    def __init__(
        self,
        task: Any,
        dataset: SearchSet,
        num_reranked: int,
    ):
        self.task = task
        self.dataset = dataset
        self.num_reranked = num_reranked
        self.pixels = candidate_pixels(dataset)
        self.ids = [ids_of_text(dataset, caption) for caption in dataset.captions]
        self.has_features = hasattr(task.contrast, "features")
        if self.has_features:
            self.image_features = [image_feature(task, pixels) for pixels in self.pixels]
            self.text_features = [text_feature(task, ids) for ids in self.ids]
        self.scores: dict[tuple[int, str], float] = {}
        """Of each matched pair of an image and the words of a caption."""
        images = range(len(self.pixels))
        captions = range(len(self.ids))
        self.hits_of_images = []
        for image in images:
            pairs = [(image, caption) for caption in captions]
            self.hits_of_images.append(self._hits(pairs))
        self.hits_of_captions = []
        for caption in captions:
            pairs = [(image, caption) for image in images]
            self.hits_of_captions.append(self._hits(pairs))

    def recalls(self) -> dict[str, float]:
        """Return tr1 … ir10."""
        table = {}
        for way, hits in (("tr", self.hits_of_images), ("ir", self.hits_of_captions)):
            for column, k in enumerate(RECALLS):
                table[f"{way}{k}"] = statistics.mean(row[column] for row in hits)
        return table

    def _hits(self, pairs: Sequence[tuple[int, int]]) -> list[float]:
        """Return the hits of one query at 1, 5 and 10. pairs: it with each candidate."""
        similarities = [self._similarity(image, caption) for image, caption in pairs]
        order = sorted(range(len(pairs)), key=similarities.__getitem__, reverse=True)
        best = order[: self.num_reranked]
        keys = []
        matches = []
        for candidate, (image, caption) in enumerate(pairs):
            is_best = candidate in best
            score = self._score(image, caption) if is_best else 0.0
            keys.append(
                (
                    is_best,
                    round(score, 4),
                    round(similarities[candidate], 5),
                )
            )
            if caption in self.dataset.captions_of[image]:
                matches.append(candidate)
        return [slow_hit(keys, matches, k) for k in RECALLS]

    def _similarity(self, image: int, caption: int) -> float:
        if not self.has_features:
            return 0.0
        return (self.image_features[image] @ self.text_features[caption]).item()

    def _score(self, image: int, caption: int) -> float:
        """Return what the best candidates are ordered by."""
        pair = (image, self.dataset.captions[caption])
        if pair not in self.scores:
            logits = match_logits(self.task, self.pixels[image], self.ids[caption])
            score = logits[-1]
            if self.task.settings.rerank_by == "sum":
                temperature = self.task.contrast.features.temperature.item()
                score += self._similarity(image, caption) / temperature - logits[0]
            self.scores[pair] = score
        return self.scores[pair]
