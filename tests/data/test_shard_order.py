"""Training in an order by shards, and held-out splits of whole shards."""

from dataclasses import replace

import pytest

from eve_vl.data import loader
from eve_vl.data.held_out import held_out_split
from eve_vl.data.opening import open_sources, open_train_and_val
from eve_vl.data.readers import tar_index
from eve_vl.utils.errors import UserError
from helpers.shard_store import NUM, Store, batches_of, config_of, write_shard


@pytest.fixture
def many_shards(store: Store) -> Store:
    """Sixty shards."""
    for number in range(3, 60):
        write_shard(store.folder / f"{number:05}.tar", NUM * number)
    return store


def shards_of(rows) -> set[str]:
    return {rows[index].where.split(":")[0] for index in range(len(rows))}


def test_a_large_source_has_a_keyed_order_of_all_of_its_rows(store, monkeypatch):
    monkeypatch.setattr(loader, "LARGE", 3 * NUM - 1)
    monkeypatch.setattr(loader, "epoch_order", None)
    names: list[str] = []
    for where, *_ in batches_of(config_of(store.local_shards), 9):
        names += where
    one_epoch = [f"{row // NUM:05}.tar:{row:06}" for row in range(3 * NUM)]
    assert sorted(names) == sorted(one_epoch * 2)


def test_a_shard_is_indexed_when_the_order_reaches_it(many_shards, monkeypatch):
    scanned = []
    scan = tar_index._scan

    def counting(path):
        scanned.append(path)
        return scan(path)

    monkeypatch.setattr(tar_index, "_scan", counting)
    config = config_of(str(many_shards.folder), order="shards")
    data = replace(config.data, val=("held-out",), val_fraction=0.2)
    (train,), (val,) = open_train_and_val(replace(config, data=data))
    assert len(scanned) == 1  # for the columns
    assert len(train) + len(val) == 60 * NUM
    batches_of(config, 6)
    assert len(scanned) < 60


def test_an_order_by_shards_is_the_same_for_any_world_workers_and_resume(many_shards):
    config = config_of(str(many_shards.folder), order="shards")
    whole = batches_of(config, 6)
    first, second = (batches_of(config, 6, rank=rank, world=2) for rank in range(2))
    for batch, first_half, second_half in zip(whole, first, second, strict=True):
        assert first_half[0] + second_half[0] == batch[0]
    in_worker = replace(config, data=replace(config.data, num_workers=1))
    consumed = 4 * len(whole[0][0])
    assert batches_of(in_worker, 2, consumed=consumed) == whole[4:]


def test_a_held_out_split_has_whole_shards_that_stay_when_others_go(many_shards):
    config = config_of(str(many_shards.folder), order="shards")
    sources = open_sources(config.data.train, config.data, 16)
    splits = held_out_split(sources, [""], 0.2, by_shards=True)
    (train,) = splits.train
    (val,) = splits.val
    held_out = shards_of(val)
    assert 30 < len(val) < 120
    assert len(val) == NUM * len(held_out)
    assert held_out.isdisjoint(shards_of(train))
    moved = many_shards.folder.with_name("moved")
    many_shards.folder.rename(moved)
    for number in range(10):
        (moved / f"{number:05}.tar").unlink()
    sources = open_sources([str(moved)], config.data, 16)
    (val,) = held_out_split(sources, [""], 0.2, by_shards=True).val
    assert shards_of(val) == {name for name in held_out if name > "00009.tar"}


def test_a_split_takes_one_shard_at_least_and_not_far_too_much(store):
    spec = str(store.folder)
    sources = open_sources([spec], config_of(spec, order="shards").data, 16)
    splits = held_out_split(sources, ["shards"], 0.17, by_shards=True)
    assert [len(splits.train[0]), len(splits.val[0])] == [2 * NUM, NUM]
    too_much = (
        "^shards: held-out takes whole shards .*, 33.3% of its rows instead of 2.0%; "
        "give --data.val, "
    )
    with pytest.raises(UserError, match=too_much):
        held_out_split(sources, ["shards"], 0.02, by_shards=True)
