"""The fit of a hit is the share of background scores below its own."""

import numpy as np
import pytest

from eve_vl.search.fit import BACKGROUND_FACT
from helpers.indices import write_captioned


def test_fit_is_the_share_of_background_scores_below(model, tmp_path):
    index = model.index(write_captioned(tmp_path), tmp_path / "index")
    background = index.database.read_fact(BACKGROUND_FACT)["text"]
    (score_mean, score_std), (known_mean, known_std) = background["spread"]
    spans = model.tokenizer.spans("dog", 12)
    lengths = [end - start for start, end in spans if end > start]
    known_share = sum(length**2 for length in lengths) / 3**2
    query_d = np.asarray(model.encode_text("dog"))[0] - np.array(background["mean"])
    slots = dict(index.database.rows("SELECT name, slot FROM image"))
    hits = index.search("dog", rerank=0)
    shares = {}
    for hit in hits:
        (image_d,) = index.database.images.take(np.array([slots[hit.name]]))
        z_score = (image_d @ query_d - score_mean) / score_std
        z_score += (known_share - known_mean) / known_std
        shares[hit.score] = np.mean(np.array(background["scores"]) < z_score)
    for hit in hits:
        fit = max(share for score, share in shares.items() if score <= hit.score)
        assert hit.fit == pytest.approx(fit, abs=0.02)


def test_min_score_cuts_hits_without_words(model, tmp_path):
    index = model.index(write_captioned(tmp_path), tmp_path / "index")
    hits = index.search("cat", rerank=0)
    min_score = float(np.median([hit.fit for hit in hits if not hit.words]))
    expected = [hit for hit in hits if hit.words or hit.fit >= min_score]
    assert len(expected) < len(hits)
    assert index.search("cat", rerank=0, min_score=min_score) == expected
