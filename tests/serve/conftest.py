"""Runs of each task, an index and a server of them, which the tests of the server share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from eve_vl.eve import Eve
from eve_vl.search.index import Index
from eve_vl.systems.mlim.pair.config import PairConfig
from eve_vl.tasks.classification.config import ClassificationConfig
from helpers.serving import png, serving
from helpers.tars import write_tar_of
from helpers.tiny_runs import TEXTS, tiny_run, write_run


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A written run, and images: some are files, some members of a shard."""
    folder = tmp_path_factory.mktemp("secret")
    write_run(tiny_run("retrieval"), folder / "runs" / "retrieval" / "best")
    for number in range(6):
        path = folder / "photos" / ("old" if number < 4 else "new") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
        path.with_suffix(".txt").write_text(TEXTS[number % 3])
    write_tar_of(folder / "shard.tar", {"a.png": png(100), "a.txt": b"a shard"})
    return folder


@pytest.fixture(scope="session")
def runs(folder) -> dict[str, Eve]:
    """A run of each task."""
    runs = {"retrieval": Eve.load(folder / "runs" / "retrieval")}
    for name in ("masked", "vqa", "nlvr2"):
        runs[name] = Eve(tiny_run(name, folder / "runs" / name))
    for name, task in {"pair": PairConfig(), "classification": ClassificationConfig()}.items():
        runs[name] = Eve(tiny_run(name, folder / "runs" / name, task=task))
    return runs


@pytest.fixture(scope="session")
def index(folder, runs) -> Index:
    return runs["retrieval"].index([folder / "photos", folder / "shard.tar"], folder / "index")


# of a file: its thread runs until it ends, and tests of other folders fork
@pytest.fixture(scope="module")
def client(runs, index) -> Iterator[TestClient]:
    with serving(*runs.values(), index=index) as client:
        yield client
