"""Data, and an undisturbed call, for all tests of `eve learn`."""

from pathlib import Path

import pytest

from helpers.learning import learn, use_tiny_run, write_table


@pytest.fixture(scope="session")
def table(tmp_path_factory) -> Path:
    """A table of 60 images with lists of tags."""
    return write_table(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def tiny(monkeypatch, pretrained) -> None:
    use_tiny_run(monkeypatch, pretrained)


@pytest.fixture(scope="session")
def whole(table, pretrained, tmp_path_factory) -> Path:
    """The folder of an undisturbed call."""
    out = tmp_path_factory.mktemp("whole") / "mine"
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_run(patch, pretrained)
        assert learn(table, "--for", "30s", "--out", out) == 0
    return out
