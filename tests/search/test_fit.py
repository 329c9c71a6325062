"""The fit of a hit is the share of background scores below its own."""

import numpy as np
import pytest

from eve_vl.search.fit import BACKGROUNDS_FACT
from eve_vl.search.index import Index
from helpers.indices import write_captioned


@pytest.fixture(scope="module")
def index(model, tmp_path_factory) -> Index:
    folder = tmp_path_factory.mktemp("fit")
    return model.index(write_captioned(folder), folder / "index")


def test_fit_is_the_share_of_background_scores_below(model, index):
    background = index.database.read_fact(BACKGROUNDS_FACT)["text"]
    score_mean, score_std = background["cosine_spread"]
    letters_mean, letters_std = background["known_spread"]
    spans = model.tokenizer.spans("dog", 12)
    lengths = [end - start for start, end in spans if end > start]
    share_of_letters = sum(length**2 for length in lengths) / 3**2
    letters_z = (share_of_letters - letters_mean) / letters_std
    query_d = np.asarray(model.encode_text("dog"))[0] - np.array(background["mean"])
    slots = dict(index.database.rows("SELECT name, slot FROM image"))
    hits = index.search("dog", rerank=0)
    shares = {}
    for hit in hits:
        (image_d,) = index.database.images.take(np.array([slots[hit.name]]))
        z_score = (image_d @ query_d - score_mean) / score_std + letters_z
        shares[hit.score] = np.mean(np.array(background["scores"]) < z_score)
    for hit in hits:
        fit = max(share for score, share in shares.items() if score <= hit.score)
        assert hit.fit == pytest.approx(fit, abs=0.02)


def test_min_score_cuts_hits_without_words(index):
    hits = index.search("cat", rerank=0)
    min_score = float(np.median([hit.fit for hit in hits if not hit.words]))
    expected = [hit for hit in hits if hit.words or hit.fit >= min_score]
    assert len(expected) < len(hits)
    assert index.search("cat", rerank=0, min_score=min_score) == expected
