"""A tiny task of contrast and matching, its batches, and its contrast computed by a slow loop."""

import math
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl.config import Config
from eve_vl.data.masked_batches import PairBatch
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.contrast_match.task import ContrastMatch
from eve_vl.tasks.masked_signal.dataset import MaskedPairs
from helpers import tiny_tasks as tiny
from helpers.tiny_config import tiny_config

CONTRAST_ONLY: dict[str, Any] = {"mlm_weight": 0.0, "itm_weight": 0.0}
ROWS = 8


def config_of(*, model: dict | None = None, **task: Any) -> Config:
    model_fields = {"balance_weight": 0.0, **(model or {})}
    return tiny_config(task=ContrastMatchConfig(**task), model=model_fields)


def build(config: Config) -> Any:
    task = tiny.build(config)
    assert isinstance(task, ContrastMatch)
    return task.train()


def dataset_of(config: Config) -> MaskedPairs:
    return MaskedPairs([tiny.pairs(ROWS)], config, tiny.TOKENIZER, training=True)


def batches_of(config: Config, sizes: Sequence[int] = (ROWS,)) -> list[PairBatch]:
    """Return the rows in micro-batches.

    Row 2 shows the image of row 0 under another caption, row 3 has the caption of row 1.
    """
    dataset = dataset_of(config)
    samples = [dataset[(0, 0, row)] for row in range(ROWS)]
    for row, sample in enumerate(samples):
        sample.ids_T[1] = 20 + row  # cut to as many tokens, two would be the same
    samples[2].image_id = samples[0].image_id
    samples[3].caption = samples[1].caption
    rows = iter(samples)
    return [dataset.collate([*islice(rows, size)]) for size in sizes]  # pyright: ignore[reportReturnType]


def class_states(task: Any, batch: PairBatch, keep_BK: Tensor | None = None):
    """Return the states of images, whole or of kept patches, and of texts."""
    pixels = batch.images_BCHW.float() / 127.5 - 1
    images = task.encoder.image(pixels, keep_BK)
    texts = task.encoder.text(batch.ids_BT, batch.is_padding_BT)
    image_BD = task.encoder.encode(images, None).x_BND[:, 0]
    text_BD = task.encoder.encode(None, texts).x_BND[:, 0]
    return image_BD, text_BD


def features_of(task: Any, batch: PairBatch, keep_BK: Tensor | None = None):
    """Return the features of images and texts, of length 1."""
    image_BD, text_BD = class_states(task, batch, keep_BK)
    head = task.contrast.features
    image_Bd = F.normalize(image_BD @ head.image.weight.T, dim=1)
    text_Bd = F.normalize(text_BD @ head.text.weight.T, dim=1)
    return image_Bd, text_Bd


def even_targets(groups: list[set[int]]) -> list[list[float]]:
    """Return targets that rows of the same group share evenly; any other row is alone."""
    target = torch.eye(ROWS).tolist()
    for group in groups:
        for row in group:
            target[row] = [1 / len(group) if column in group else 0.0 for column in range(ROWS)]
    return target


def slow_contrast(
    image: Tensor,
    text: Tensor,
    target: list[list[float]],
    temperature: float,
) -> float:
    """Return the mean of both directions of minus the target's log-probability."""
    scores = image @ text.T / temperature
    total = 0.0
    for queries in (scores, scores.T):
        for row, line in enumerate(queries.tolist()):
            log_sum = math.log(sum(math.exp(score) for score in line))
            for share, score in zip(target[row], line, strict=True):
                total -= share * (score - log_sum)
    return total / (2 * len(image))
