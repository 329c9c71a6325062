"""Shared by the tests of data."""

from pathlib import Path

import pytest

from helpers.color_cards import write_images
from helpers.shard_store import store  # noqa: F401 (a fixture)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with images/red.png … images/navy.png."""
    write_images(tmp_path)
    return tmp_path
