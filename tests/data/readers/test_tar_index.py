"""The file that keeps the index of a tar shard."""

import numpy as np

from eve_vl.data.readers import tar_index
from eve_vl.data.readers.open_source import open_source
from helpers.color_cards import COLORS
from helpers.tar_shards import assert_as_webdataset, write_tar


def test_an_index_is_kept_and_made_again_for_another_tar(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "x.tar", COLORS)
    source = open_source(path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["x.tar", "x.tar.index"]
    with monkeypatch.context() as context:
        context.setattr(tar_index, "_scan", None)  # not needed any more
        assert_as_webdataset(open_source(path), [path])
    write_tar(path, COLORS[::-1][:4])
    assert_as_webdataset(open_source(path), [path])
    assert len(source) == 6


def test_a_damaged_index_is_made_again(tmp_path):
    path = write_tar(tmp_path / "x.tar", COLORS)
    index_path = tmp_path / "x.tar.index"
    open_source(path)
    content = index_path.read_bytes()
    whole = np.load(index_path)
    changed = whole.copy()
    changed["spans"][3, 0] += 512
    for array in (
        changed,
        whole["spans"],
        whole[:, None],
        whole[:-1],
        whole[:0],
        np.array(3),
    ):
        np.save(index_path, array)
        index_path.with_name("x.tar.index.npy").replace(index_path)
        assert_as_webdataset(open_source(path), [path])
        assert index_path.read_bytes() == content
    for part in (content[:100], b""):
        index_path.write_bytes(part)
        assert_as_webdataset(open_source(path), [path])


def test_the_cache_keeps_the_index_of_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "x.tar", COLORS)
    (tmp_path / "x.tar.index").mkdir()  # root may write anywhere, but not over a folder
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert_as_webdataset(open_source(path), [path])
    with monkeypatch.context() as context:
        context.setattr(tar_index, "_scan", None)  # the index is in the cache
        assert_as_webdataset(open_source(path), [path])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["cache", "x.tar", "x.tar.index"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))  # a file
    assert_as_webdataset(open_source(path), [path])
