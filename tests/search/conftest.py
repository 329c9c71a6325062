"""A run, images and an index that the tests of the index share."""

from pathlib import Path

import pytest

from eve_vl.eve import Eve
from eve_vl.search.index import Index
from helpers.indices import write_photos
from helpers.tiny_runs import tiny_run, write_run


@pytest.fixture(name="run", scope="session")
def search_run(tmp_path_factory) -> Path:
    return write_run(tiny_run("retrieval"), tmp_path_factory.mktemp("runs") / "retrieval")


@pytest.fixture(name="model", scope="session")
def search_model(run) -> Eve:
    return Eve.load(run)


@pytest.fixture(scope="session")
def shared_index(model, tmp_path_factory) -> Index:
    """An index of twenty images that no test changes."""
    folder = tmp_path_factory.mktemp("shared")
    return model.index(write_photos(folder / "photos"), folder / "index")


@pytest.fixture(scope="session")
def shared_photos(shared_index) -> Path:
    """The images of the shared index."""
    return shared_index.database.folder.with_name("photos")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty images in two folders, some with captions."""
    return write_photos(tmp_path / "photos")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the index that a test makes, `index` on its command line."""
    return tmp_path / "index"


@pytest.fixture
def index(model, photos, folder) -> Index:
    """An index of the twenty images."""
    return model.index(photos, folder)
