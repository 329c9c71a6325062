"""Recalls of captions in an index, from its features.

Letters: I images, T texts, P pairs, d width of features.
"""

import json
from collections.abc import Sequence

import numpy as np
import torch

from eve_vl.metrics.retrieval import Ranks, Relevance, best_ranks, summary
from eve_vl.search.database import NO_CAPTION
from eve_vl.search.index import Index

PAIRS = """SELECT DISTINCT image.slot, caption.slot FROM image JOIN caption ON caption.image = image.id
WHERE caption.slot != ? AND source IN (SELECT id FROM source WHERE spec IN (SELECT value FROM json_each(?)))"""
SHOWN = (1, 10)


def recalls(index: Index, sources: Sequence[str], most: int) -> dict[str, float]:
    """Return how often captions of sources find one of their images.

    They are ir1 and ir10 (first, in the first 10), both also by chance (`ir1_chance`), and num_images. Equal captions are one,
    equal images, too. Searches at most `most` images, from all over the sources. Empty if fewer than 11 images have captions.
    """
    pair_P2 = np.array(index.database.rows(PAIRS, [NO_CAPTION, json.dumps([*sources])]), np.int64).reshape(-1, 2)
    image_I = np.unique(pair_P2[:, 0])
    image_I = image_I[np.linspace(0, len(image_I), min(len(image_I), most), endpoint=False).astype(np.int64)]
    if len(image_I) <= max(SHOWN):
        return {}
    pair_P2 = pair_P2[np.isin(pair_P2[:, 0], image_I)]
    text_T, text_P = np.unique(pair_P2[:, 1], return_inverse=True)
    rel = Relevance.from_pairs(np.searchsorted(image_I, pair_P2[:, 0]).tolist(), text_P.tolist(), len(image_I), len(text_T))
    image_Id = torch.from_numpy(index.database.images.take(image_I))
    text_Td = torch.from_numpy(index.database.texts.take(text_T))
    ranks_I, ranks_T = best_ranks(image_Id, text_Td, rel.texts_of_image), best_ranks(text_Td, image_Id, rel.images_of_text)
    true_T = rel.images_of_text.start_Q1.diff()
    random_T = Ranks(better_Q=torch.zeros_like(true_T), tied_Q=torch.full_like(true_T, len(image_I)), true_Q=true_T)
    found = summary(ranks_I, ranks_T, rel.image_T)
    chance = {f"ir{k}_chance": float(random_T.hits(k).mean()) for k in SHOWN}
    return {f"ir{k}": found[f"ir{k}"] for k in SHOWN} | chance | {"num_images": len(image_I)}
