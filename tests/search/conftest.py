"""A run and images that the tests of the index share."""

from pathlib import Path

import pytest

from eve_vl.eve import Eve
from helpers.indices import write_photos
from helpers.tiny_runs import tiny_run, write_run


@pytest.fixture(name="run", scope="module")
def search_run(tmp_path_factory) -> Path:
    return write_run(tiny_run("retrieval"), tmp_path_factory.mktemp("runs") / "retrieval")


@pytest.fixture(name="model")
def search_model(run) -> Eve:
    return Eve.load(run)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty images in two folders, some with captions."""
    return write_photos(tmp_path / "photos")
