"""The best candidates of a query put in order again by the matching head, as in the run's evaluation.

Letters: P pairs of an image and a text, B of them at a time.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from eve_vl.data.records import ImagePixels
from eve_vl.predict.inputs import GivenImage, chunked

PAIRS_AT_ONCE = 64


def shrunk(image: GivenImage, size: int) -> GivenImage:
    """Return an image as the run sees it, decoded. Raises UserError."""
    return GivenImage(ref=ImagePixels(pixels=image.pixels(size).permute(1, 2, 0).contiguous().numpy()), where=image.where)


@torch.no_grad()
def match_scores(encoder: Any, pairs: Iterable[tuple[GivenImage, str, float]]) -> np.ndarray:
    """Return what each pair of image and text, with its cosine, is ordered by (task.rerank_by), float32 (P,).

    encoder: an `Eve` of a run with a matching head.
    """
    task, inputs = encoder.task, encoder.run.predictor.inputs
    parts = [np.zeros(0, np.float32)]
    for some in chunked(pairs, PAIRS_AT_ONCE):
        images, texts, cosines = zip(*some, strict=True)
        batch = inputs.pairs(images, texts)
        cosine_B = torch.tensor(cosines, device=batch.ids_BT.device)
        parts.append(task.pair_scores(batch.images_BCHW, batch.ids_BT, batch.is_padding_BT, cosine_B).cpu().numpy())
    return np.concatenate(parts)
