"""What is known of all shards of a source, and shards that change."""

import pytest

from eve_vl.data.readers import shard_list, tar_index
from eve_vl.data.readers.open_source import open_source
from eve_vl.utils.errors import StorageError, UserError
from helpers.shard_store import NUM, write_shard


@pytest.mark.parametrize("is_lazy", [False, True])
def test_the_list_of_many_shards_is_kept(store, monkeypatch, is_lazy):
    monkeypatch.setattr(shard_list, "MANY", 2)
    open_source(store.folder, by_shards=is_lazy)
    monkeypatch.setattr(shard_list, "find_index", None)
    monkeypatch.setattr(shard_list, "_stated_rows", None)
    shards = shard_list.list_shards(sorted(store.folder.glob("*.tar")), is_lazy)
    assert shards.num_rows_S.tolist() == [NUM] * 3
    # another time of change: the numbers are counted again
    write_shard(store.folder / "00000.tar", 0)
    with pytest.raises(TypeError):
        open_source(store.folder, by_shards=is_lazy)


def test_a_stated_number_of_rows_is_checked_when_the_shard_is_read(store, monkeypatch):
    monkeypatch.setattr(shard_list, "MANY", 2)
    stats = store.folder / "00001_stats.json"
    stats.write_text('{"successes": 5}')
    source = open_source(store.folder, by_shards=True)
    assert len(source) == 3 * NUM - 1
    problem = "00001.tar: has 6 rows, 00001_stats.json says 5; delete that file"
    with pytest.raises(StorageError, match=problem):
        source[NUM]
    stats.unlink()  # as the message says; the tars stay as they are
    assert len(open_source(store.folder, by_shards=True)) == 3 * NUM


def test_a_shard_without_a_stated_number_of_rows_is_counted(store):
    (store.folder / "00001_stats.json").write_text("{}")
    (store.folder / "00002_stats.json").unlink()
    assert len(open_source(store.folder, by_shards=True)) == 3 * NUM


def test_a_local_shard_that_changed_is_not_indexed_again(store):
    path = store.folder / "00002.tar"
    source = open_source(path)
    write_shard(path, 500, 20)
    tar_index.mapped_index.cache_clear()
    changed = r"00002.tar: has changed since it was indexed \(20,480 → 61,440 bytes\)"
    with pytest.raises(StorageError, match=changed):
        source[0]
    path.unlink()
    with pytest.raises(UserError, match=r"00002.tar: cannot be read \(No such file"):
        source[0]
