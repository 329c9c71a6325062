"""Vector files."""

import os
from pathlib import Path

import numpy as np
import pytest

from eve_vl.search import vector_file
from eve_vl.search.vector_file import VectorFile
from eve_vl.utils.errors import UserError

NUM = 350


@pytest.fixture
def features() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(NUM, 6)).astype(np.float16)


@pytest.fixture
def vectors(features, tmp_path: Path, monkeypatch) -> VectorFile:
    """A file of rows that were written in random order, read in blocks of 100."""
    monkeypatch.setattr(vector_file, "ROWS_MAPPED", 100)
    vectors = VectorFile(tmp_path / "x.f16", 6)
    order = np.random.default_rng(1).permutation(NUM)
    for slots in np.array_split(order, 9):
        vectors.write(slots.tolist(), features[slots])
    vectors.sync()
    return vectors


def test_rows_are_read_as_written(vectors, features):
    blocks = list(vectors.first(NUM))
    assert [len(block) for block in blocks] == [100, 100, 100, 50]
    np.testing.assert_array_equal(np.concatenate(blocks), features)
    slots = np.array([349, 3, 200])
    np.testing.assert_array_equal(vectors.take(slots), features[slots])


def test_missing_rows_are_an_error(vectors):
    os.truncate(vectors.path, 330 * 12 - 1)  # a part of the last row is cut off
    with pytest.raises(UserError, match=r"x\.f16: lacks features"):
        list(vectors.first(330))
    vectors.path.unlink()
    with pytest.raises(UserError, match=r"x\.f16: lacks features"):
        list(vectors.first(330))
